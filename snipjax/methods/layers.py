"""Layers, for the methods whose thresholds are each layer's own.

A layer is the leaves of one node of the pytree: a kernel and its bias.
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

    Leaves whose paths differ in nothing but the last part make a layer. A leaf that is
    not prunable does not count. Both results are pytrees like ``values`` of scalars.
    If a layer keeps nothing, or nothing that varies, the deviation is 1.
    """
    return _of_layers(values, mask, _moments)


def log_size(mask: chex.ArrayTree) -> chex.ArrayTree:
    """Returns the logarithm of 1 + the number of each layer's prunable connections."""

    def of(members: Members) -> tuple[chex.Array]:
        return (jnp.log1p(sum(jnp.float32(x.size) for x, _ in members)),)

    return _of_layers(mask, mask, of)[0]


def _of_layers(
    values: chex.ArrayTree,
    mask: chex.ArrayTree,
    function: Callable[[Members], tuple[chex.Array, ...]],
) -> tuple[chex.ArrayTree, ...]:
    """Returns pytrees like ``values`` of a function's results for each layer."""
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
