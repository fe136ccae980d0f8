"""Gradients of `snipjax.ops` on two devices, run by a test in a process of its own.

Under `shard_map` and in meshes of explicit axes the types of arrays say how they are
sharded, in gradients too.
"""

from collections.abc import Callable, Iterator
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from snipjax import ops
from snipjax.ops import winograd

winograd.TILES = 4  # so that the images of a device are several chunks
normal = np.random.default_rng(0).normal
x = normal(size=(8, 4, 4, 16)).astype("float32")
w = normal(size=(3, 3, 16, 16)).astype("float32") / 12


def mesh(axis_type: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("d",), axis_types=(axis_type,))


def network(conv: Callable, max_pool: Callable, avg_pool: Callable) -> Callable:
    def loss(w: chex.Array, x: chex.Array) -> chex.Array:
        y = conv(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y = avg_pool(max_pool(y, (2, 2), (2, 2)), (2, 2))
        return jnp.sum(jnp.sin(y))

    return loss


def in_shard_map(loss: Callable, is_varying: bool, check: bool) -> Any:
    def gradient(w: chex.Array, x: chex.Array) -> chex.Array:
        if is_varying:
            w = lax.pcast(w, "d", to="varying")
            return lax.psum(jax.grad(loss)(w, x), "d")
        return jax.grad(lambda w: lax.psum(loss(w, x), "d"))(w)

    sharded = jax.shard_map(
        gradient,
        mesh=mesh(AxisType.Auto),
        in_specs=(P(), P("d")),
        out_specs=P(),
        check_vma=check,
    )
    return jax.jit(sharded)(w, x)


def in_types(loss: Callable) -> Any:
    explicit = mesh(AxisType.Explicit)
    with jax.set_mesh(explicit):
        images = jax.device_put(x, NamedSharding(explicit, P("d")))
        kernels = jax.device_put(w, NamedSharding(explicit, P()))
        return jax.jit(jax.grad(loss))(kernels, images)


def automatic(loss: Callable) -> Any:
    images = jax.device_put(x, NamedSharding(mesh(AxisType.Auto), P("d")))
    return jax.jit(jax.grad(loss))(w, images)


def gradients(loss: Callable) -> Iterator[Any]:
    yield in_shard_map(loss, is_varying=True, check=True)
    yield in_shard_map(loss, is_varying=False, check=True)
    yield in_shard_map(loss, is_varying=False, check=False)
    yield in_types(loss)
    yield automatic(loss)


if __name__ == "__main__":
    ours = network(ops.conv_general_dilated, ops.max_pool, ops.avg_pool)
    plain = network(lax.conv_general_dilated, nn.max_pool, nn.avg_pool)
    for actual, expected in zip(gradients(ours), gradients(plain), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4)
