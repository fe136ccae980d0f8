"""Names and values of pytree leaves."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src.types import KeyPath


def path_name(path: KeyPath) -> str:
    """Returns a leaf's path as text, e.g. ``Dense_0/kernel``.

    The ``value`` attribute that ends every path of a Flax NNX state is left out.
    """
    if path and getattr(path[-1], "name", None) == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: chex.ArrayTree) -> list[tuple[str, Any]]:
    """Returns ``(name, leaf)`` of every leaf, in tree order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(path_name(path), leaf) for path, leaf in leaves]


def is_traced(tree: chex.ArrayTree) -> bool:
    """Returns whether the value of some leaf cannot be looked at."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def placed_like(value: chex.Array, like: chex.Array) -> chex.Array:
    """Returns ``value`` on the mesh axes of ``like``, an array of the same shape.

    A constant is the same on every device. Inside :func:`jax.shard_map` and on an
    explicit mesh, a loop that begins with one cannot add what differs between devices.
    """
    like = jnp.asarray(like)
    return value + jax.lax.lt(like, like).astype(value.dtype)


def sampled_like(
    tree: chex.ArrayTree,
    key: chex.PRNGKey,
    sample: Callable[[chex.PRNGKey, Any], chex.Array],
) -> chex.ArrayTree:
    """Returns ``sample(key, leaf)`` for every leaf, each with a key of its own."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    samples = [placed_like(sample(k, x), x) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(treedef, samples)
