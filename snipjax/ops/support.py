"""Arrays that only XLA's own functions take, and maps that these are slow under."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType

# The name of an axis of `jax.vmap` along which kernels differ, as do networks'.
SIDE_BY_SIDE = "side by side"


def are_side_by_side() -> bool:
    """Returns whether this is traced under a `jax.vmap` of the axis of that name."""
    try:
        jax.lax.axis_size(SIDE_BY_SIDE)
    except NameError:
        return False
    return True


def needs_xla(*arrays: chex.Array) -> bool:
    """Returns whether only XLA's functions take arrays of these types.

    These are 8-bit floats, symbolic or empty shapes, and meshes in which the types of
    arrays say how they are sharded, which products and loops would have to repeat.
    """
    types = [jax.typeof(x) for x in arrays]
    return (
        any(not isinstance(size, int) or size == 0 for x in types for size in x.shape)
        or any(_is_small_float(x.dtype) for x in types)
        or any(map(_is_partitioned, types))
        or any(map(_varies, types))
    )


def _is_small_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 16


def _is_partitioned(array: Any) -> bool:
    # XLA cannot split an array where a product reshapes it.
    mesh = array.sharding.mesh
    axes = zip(mesh.axis_types, mesh.axis_sizes)
    is_split = any(kind == AxisType.Auto and size > 1 for kind, size in axes)
    return is_split or AxisType.Explicit in mesh.axis_types


def _varies(array: Any) -> bool:
    # `shard_map` knows that the array differs between devices.
    manual = getattr(array, "manual_axis_type", None)  # `vma` in earlier JAX
    return bool(array.vma if manual is None else manual.varying)
