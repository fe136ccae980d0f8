"""Layers, for the methods whose thresholds are each layer's own.

A layer is what lies at one place of the pytree: a kernel and its bias.
"""

import chex
import jax
import jax.numpy as jnp


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
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(values)
    layers = [path[:-1] for path, _ in paths_and_leaves]
    members = {layer: [] for layer in layers}
    for layer, (_, x), keep in zip(layers, paths_and_leaves, jax.tree.leaves(mask)):
        if jnp.ndim(keep):
            members[layer].append((x, keep))
    moments = {layer: _moments(kept) for layer, kept in members.items()}
    means, stds = zip(*(moments[layer] for layer in layers))
    return jax.tree.unflatten(treedef, means), jax.tree.unflatten(treedef, stds)


def _moments(
    members: list[tuple[chex.Array, chex.Array]],
) -> tuple[chex.Array, chex.Array]:
    def sum_of_kept(leaves: list[chex.Array]) -> chex.Array:
        return sum(
            (jnp.sum(x, where=keep) for x, (_, keep) in zip(leaves, members)),
            start=jnp.float32(0),
        )

    count = jnp.maximum(sum_of_kept([jnp.ones_like(x) for x, _ in members]), 1)
    mean = sum_of_kept([x for x, _ in members]) / count
    std = jnp.sqrt(sum_of_kept([(x - mean) ** 2 for x, _ in members]) / count)
    return mean, jnp.where(std > 0, std, 1)
