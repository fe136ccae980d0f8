"""Budgets: how many connections each part of a network may keep."""

import fractions
import math
from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from snipjax._src import checks, trees
from snipjax._src.types import KeyPath, Mask, Prunable, Scores, Select
from snipjax.masks import selection, topk
from snipjax.masks.mask import kept_count
from snipjax.masks.prunable import are_prunable, kernels


def by_group(
    group: Callable[[str], str | None],
    sparsities: Mapping[str, float],
    *,
    select: Select = topk.global_topk,
) -> Select:
    r"""Returns a selection with a sparsity for each group of leaves.

    Within a group, connections are selected by ``select``: of all its leaves
    together, with the default. All groups that ``sparsities`` does not name are one
    group, pruned to the sparsity that the selection is called with.

    .. math:: \kappa_g = \mathrm{round}(m_g (1 - sparsity_g))

    of the :math:`m_g` prunable connections of group :math:`g` are kept.

    Args:
      group: from the name of a leaf, such as ``decoder/layer_3/mlp/kernel``, to the
        name of its group, e.g. its type of layer, or None.
      sparsities: share of each group's connections to prune, in [0, 1), in every round.
      select: selection within a group; ``with_minimum_density(...)`` for one.

    Returns:
      ``(scores, sparsity, prunable) -> mask``, which raises a ``ValueError`` if no
      prunable leaf is in a group of ``sparsities``.

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
        kept_count(0, sparsity)

    def select_by_group(
        scores: Scores, sparsity: float, prunable: Prunable = kernels
    ) -> Mask:
        kept_count(0, sparsity)
        names = [name for name, _ in trees.named_leaves(scores)]
        is_prunable = are_prunable(scores, prunable)
        # None is the group of all others, and of no leaf that is not prunable.
        found = {n: group(n) for n, chosen in zip(names, is_prunable) if chosen}
        if not found:
            return select(scores, sparsity, prunable)  # which raises the error
        for missing in sparsities.keys() - found.values():
            there_are = ", ".join(sorted(map(str, set(found.values()))))
            raise ValueError(
                f"no prunable leaf is in the group '{missing}'; the groups are "
                f"{there_are}"
            )
        treedef = jax.tree.structure(scores)
        mask = jax.tree.unflatten(treedef, [jnp.array(True) for _ in names])
        groups = {n: g if g in sparsities else None for n, g in found.items()}
        for one in dict.fromkeys(groups.values()):
            in_group = [n in groups and groups[n] == one for n in names]
            budget = sparsity if one is None else sparsities[one]
            part = select(scores, budget, jax.tree.unflatten(treedef, in_group))
            mask = jax.tree.map(lambda m, p: p if jnp.ndim(p) else m, mask, part)
        return mask

    return select_by_group


def with_minimum_density(minimum: float) -> Select:
    r"""Returns a global selection that leaves every leaf a minimum of connections.

    Leaf :math:`l` keeps :math:`\kappa_l` of its :math:`n_l` connections, with

    .. math:: \kappa_l \ge \lceil minimum \cdot n_l \rceil, \qquad
              \sum_l \kappa_l = \mathrm{round}(m (1 - sparsity))

    for :math:`m` prunable connections. The least number of each leaf are
    its largest, so that none collapses; the others are the largest of the rest of all
    leaves. Ties go to the lower flat index.

    Args:
      minimum: least density of a leaf, in [0, 1]; the product is taken with the
        decimal fraction that prints for it, so that 0.07 of 100 is 7.

    Returns:
      ``(scores, sparsity, prunable) -> mask``, which raises a ``ValueError`` if the
      minima come to more connections than the sparsity leaves.

    Raises:
      ValueError: if ``minimum`` is not a number in [0, 1].

    Example:
      >>> scores = {"v": jnp.array([[1.0, 2.0]]), "w": jnp.array([[8.0, 9.0]])}
      >>> mask = with_minimum_density(0.5)(scores, 0.5)
      >>> mask["v"]
      Array([[False,  True]], dtype=bool)
      >>> mask["w"]
      Array([[False,  True]], dtype=bool)
    """
    meaning = "the share of each leaf's connections to keep in any case, e.g. 0.01"
    share = fractions.Fraction(
        repr(checks.check_fraction(minimum, "minimum density", meaning, closed=True))
    )

    def rule(
        leaves: list[tuple[KeyPath, chex.Array]], sparsity: float
    ) -> list[chex.Array]:
        arrays = [leaf for _, leaf in leaves]
        minima = [math.ceil(share * leaf.size) for leaf in arrays]
        total = sum(leaf.size for leaf in arrays)
        kept = kept_count(total, sparsity)
        if sum(minima) > kept:
            raise ValueError(
                f"a minimum density of {minimum} is {sum(minima):,} of the {total:,} "
                f"prunable connections, leaf by leaf rounded up, but a sparsity of "
                f"{sparsity} keeps {kept:,}; lower one of the two, or leave out small "
                "leaves such as biases with `prunable`"
            )
        return selection.largest_of_all_and_each(arrays, kept, minima)

    def select_with_minimum_density(
        scores: Scores, sparsity: float, prunable: Prunable = kernels
    ) -> Mask:
        return topk.select_leaves(scores, sparsity, prunable, rule)

    return select_with_minimum_density
