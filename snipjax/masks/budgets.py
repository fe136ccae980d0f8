"""Budgets: how many connections each part of a network may keep.

What is here makes functions like :func:`snipjax.masks.global_topk`, to be passed to
:func:`snipjax.pruning.prune` as ``select``. They work under transformations and on
sharded arrays as it does, and neither sort nor concatenate scores.
"""

import fractions
import math
from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from snipjax import masks
from snipjax._src import trees
from snipjax.masks import selection
from snipjax.pruning import Select

GroupOf = Callable[[str], str | None]


def by_group(
    group_of: GroupOf,
    sparsities: Mapping[str, float],
    *,
    select: Select = masks.global_topk,
) -> Select:
    """Returns a selection with a sparsity for each group of leaves.

    Within a group, connections are selected by ``select``: of all its leaves
    together, with the default. All groups that ``sparsities`` does not name are one
    group, pruned to the sparsity that the selection is called with.

    Args:
      group_of: from a leaf's name, such as ``decoder/layer_3/mlp/kernel``, to that
        of its group, e.g. of its type of layer, or ``None``.
      sparsities: for each group the share of its connections to prune, in [0, 1).
        They hold whatever the sparsity of a round is, where there are several.
      select: how to select within a group; ``with_minimum_density(...)`` for one.

    Returns:
      ``(scores, sparsity, prunable) -> mask``. Arguments, ties, errors and warnings
      are those of ``select``; besides, a ``ValueError`` is raised if no prunable leaf
      is in a group of ``sparsities``.

    Raises:
      ValueError: for a sparsity outside [0, 1).

    Example:
      >>> scores = {
      ...     "attention": {"query": jnp.array([[1.0, 2.0]])},
      ...     "mlp": {"up": jnp.array([[3.0, 6.0]]), "down": jnp.array([[5.0, 4.0]])}}
      >>> select = by_group(lambda name: name.split("/")[0], {"attention": 0.0})
      >>> mask = select(scores, 0.5)
      >>> mask["attention"]["query"]
      Array([[ True,  True]], dtype=bool)
      >>> mask["mlp"]["up"]
      Array([[False,  True]], dtype=bool)
    """
    for sparsity in sparsities.values():
        masks.kept_count(0, sparsity)

    def select_by_group(
        scores: chex.ArrayTree,
        sparsity: float,
        prunable: masks.Prunable = masks.kernels,
    ) -> chex.ArrayTree:
        masks.kept_count(0, sparsity)
        groups = _groups(group_of, sparsities, scores, prunable)
        if not groups:
            return select(scores, sparsity, prunable)  # which says what is wrong
        mask = jax.tree.map(lambda _: jnp.array(True), scores)
        for group in dict.fromkeys(groups.values()):

            def is_in_group(path: trees.KeyPath, _: chex.Array, group=group) -> bool:
                return path in groups and groups[path] == group

            budget = sparsity if group is None else sparsities[group]
            part = select(scores, budget, is_in_group)
            mask = jax.tree.map(lambda m, p: p if jnp.ndim(p) else m, mask, part)
        return mask

    return select_by_group


def with_minimum_density(minimum: float) -> Select:
    r"""Returns a global selection that leaves every leaf a minimum of connections.

    Of the :math:`m` prunable connections :math:`\mathrm{round}(m (1 - sparsity))` are
    kept, as :func:`snipjax.masks.global_topk` does. Among them are the
    :math:`\lceil minimum \cdot n_l \rceil` largest of each leaf of :math:`n_l`
    connections, so that none collapses; the others are the largest of what is left
    of all leaves together. Of equal scores, those of lower flat index come first.

    Args:
      minimum: the least density of a leaf, in [0, 1]; the product is taken with the
        decimal fraction that prints for it, so that 0.07 of 100 is 7.

    Returns:
      ``(scores, sparsity, prunable) -> mask``. Arguments, errors and warnings are
      those of :func:`snipjax.masks.global_topk`; besides, a ``ValueError`` is raised
      if the minima come to more connections than the sparsity leaves.

    Raises:
      ValueError: if ``minimum`` is not a number in [0, 1].

    Example:
      >>> scores = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[8.0, 9.0]])}
      >>> mask = with_minimum_density(0.5)(scores, 0.5)
      >>> mask["a"]
      Array([[False,  True]], dtype=bool)
      >>> mask["b"]
      Array([[False,  True]], dtype=bool)
    """
    share = _decimal(minimum)

    def largest(leaves: list[chex.Array], sparsity: float) -> list[chex.Array]:
        of_each = [math.ceil(share * leaf.size) for leaf in leaves]
        total = sum(leaf.size for leaf in leaves)
        kept = masks.kept_count(total, sparsity)
        if sum(of_each) > kept:
            raise ValueError(
                f"a minimum density of {minimum} is {sum(of_each):,} of the {total:,} "
                f"prunable connections, leaf by leaf rounded up, but a sparsity of "
                f"{sparsity} keeps {kept:,}; lower one of the two, or leave out small "
                "leaves such as biases with `prunable`"
            )
        return selection.largest_of_all_and_each(leaves, kept, of_each)

    def select_with_minimum_density(
        scores: chex.ArrayTree,
        sparsity: float,
        prunable: masks.Prunable = masks.kernels,
    ) -> chex.ArrayTree:
        return masks.selected(scores, sparsity, prunable, largest)

    return select_with_minimum_density


def _groups(
    group_of: GroupOf,
    sparsities: Mapping[str, float],
    scores: chex.ArrayTree,
    prunable: masks.Prunable,
) -> dict[trees.KeyPath, str | None]:
    """The group of each prunable leaf by its path, None for those not named."""
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(scores)
    found = {
        path: group_of(trees.path_name(path))
        for (path, _), keep in zip(
            paths_and_leaves, masks.are_prunable(scores, prunable)
        )
        if keep
    }
    for group in sparsities:
        if found and group not in found.values():
            there_are = ", ".join(sorted(map(str, set(found.values()))))
            raise ValueError(
                f"no prunable leaf is in the group '{group}'; group_of puts them in "
                f"{there_are}"
            )
    return {path: name if name in sparsities else None for path, name in found.items()}


def _decimal(minimum: float) -> fractions.Fraction:
    try:
        value = float(minimum)
    except (TypeError, ValueError):
        value = float("nan")
    if isinstance(minimum, bool | str | bytes) or not 0.0 <= value <= 1.0:
        raise ValueError(
            f"the minimum density is {minimum!r}, outside [0, 1]; it is the share of "
            "each leaf's connections to keep in any case, e.g. 0.01 for 1%"
        )
    return fractions.Fraction(repr(value))
