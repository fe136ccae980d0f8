"""Layers, for the methods whose thresholds are each layer's own.

A layer is what lies at one place of the pytree: a kernel and its bias.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

Members = list[tuple[chex.Array, chex.Array]]  # a layer's leaves, and their masks


def mean_and_std(
    values: chex.ArrayTree, mask: chex.ArrayTree
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Returns mean and standard deviation over the kept connections of each layer.

    Args:
      values: pytree of float arrays; leaves whose paths differ in nothing but the
        last part make a layer.
      mask: of these values; a leaf that is not prunable (a scalar) does not count.

    Returns:
      Two pytrees like ``values`` whose leaves are scalars. Where a layer keeps
      nothing to take them of, or nothing that varies, the deviation is 1.

    Example:
      >>> values = {"Dense_0": {"bias": jnp.array([3.0]), "kernel": jnp.array([1.0])}}
      >>> mask = jax.tree.map(lambda x: x > 0, values)
      >>> mean, std = mean_and_std(values, mask)
      >>> float(mean["Dense_0"]["bias"]), float(std["Dense_0"]["kernel"])
      (2.0, 1.0)
    """
    return _of_layers(values, mask, _moments)


def log_size(mask: chex.ArrayTree) -> chex.ArrayTree:
    """Returns the logarithm of 1 + the number of each layer's prunable connections.

    Example:
      >>> mask = {"Dense_0": {"bias": jnp.array([True]), "kernel": jnp.ones(6, bool)}}
      >>> float(log_size(mask)["Dense_0"]["bias"]) == float(jnp.log(8.0))
      True
    """

    def of(members: Members) -> tuple[chex.Array]:
        return (jnp.log1p(sum(jnp.float32(x.size) for x, _ in members)),)

    return _of_layers(mask, mask, of)[0]


def _of_layers(
    values: chex.ArrayTree,
    mask: chex.ArrayTree,
    function: Callable[[Members], tuple[chex.Array, ...]],
) -> tuple[chex.ArrayTree, ...]:
    """Pytrees like ``values`` of what a function has to say of each layer."""
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(values)
    layers = [path[:-1] for path, _ in paths_and_leaves]
    members: dict[Any, Members] = {layer: [] for layer in layers}
    for layer, (_, x), keep in zip(layers, paths_and_leaves, jax.tree.leaves(mask)):
        if jnp.ndim(keep):
            members[layer].append((x, keep))
    results = {layer: function(kept) for layer, kept in members.items()}
    return tuple(
        jax.tree.unflatten(treedef, leaves)
        for leaves in zip(*(results[layer] for layer in layers))
    )


def _moments(members: Members) -> tuple[chex.Array, chex.Array]:
    def sum_of_kept(leaves: list[chex.Array]) -> chex.Array:
        return sum(
            (jnp.sum(x, where=keep) for x, (_, keep) in zip(leaves, members)),
            start=jnp.float32(0),
        )

    count = jnp.maximum(sum_of_kept([jnp.ones_like(x) for x, _ in members]), 1)
    mean = sum_of_kept([x for x, _ in members]) / count
    std = jnp.sqrt(sum_of_kept([(x - mean) ** 2 for x, _ in members]) / count)
    return mean, jnp.where(std > 0, std, 1)
