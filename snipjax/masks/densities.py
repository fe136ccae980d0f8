"""Densities of leaves: of a mask, and of a selection that keeps them by any scores."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp

from snipjax._src import checks, trees
from snipjax._src.types import KeyPath, Mask, Prunable, Scores, Select
from snipjax.masks import counting, selection, topk
from snipjax.masks.mask import prunable_leaves
from snipjax.masks.prunable import are_prunable, kernels

Densities: TypeAlias = Any
r"""The type of densities, a pytree like ``params`` of Python floats in [0, 1].

A leaf is the share of the parameter's connections to keep,

.. math:: d_l = \frac{1}{n_l} \sum_{j=1}^{n_l} c_{lj}

for the mask :math:`c_l` of its :math:`n_l` connections, and 1.0 where the parameter is
not prunable.

Example:
  >>> scores = {"w": jnp.array([[1.0, 4.0, 3.0, 2.0]]), "b": jnp.ones(4)}
  >>> by_density(scores, {"w": 0.25, "b": 1.0})["w"]
  Array([[False,  True, False, False]], dtype=bool)
"""
Allocation: TypeAlias = Callable[[chex.ArrayTree, float, Prunable], Densities]
r"""The type of an allocation, ``(params, sparsity, prunable) -> densities``.

It is a function of the parameters' shapes alone, with

.. math:: \sum_l d_l n_l = \mathrm{round}(m (1 - sparsity))

for the densities :math:`d_l` of the prunable leaves, of :math:`n_l` connections each
and :math:`m` in all.

Example:
  >>> def first_is_dense(params, sparsity, prunable):
  ...     kept = 8 * (1 - sparsity)  # of 4 + 4 connections
  ...     return {"layer_0": 1.0, "layer_1": (kept - 4) / 4}
  >>> scores = {f"layer_{i}": jnp.arange(4.0).reshape(2, 2) for i in range(2)}
  >>> mask = by_allocation(first_is_dense)(scores, 0.25)
  >>> mask["layer_0"].tolist(), mask["layer_1"].tolist()
  ([[True, True], [True, True]], [[False, False], [True, True]])
"""


def densities(mask: Mask) -> Densities:
    r"""Returns the density of every leaf of a mask.

    With :func:`by_density` and other scores, a mask with the same number of connections
    in each leaf can be drawn.

    .. math:: d_l = \frac{1}{n_l} \sum_{j=1}^{n_l} c_{lj}

    for the mask :math:`c_l` of leaf :math:`l`, of :math:`n_l` connections.

    Args:
      mask: a concrete mask, not a traced one.

    Returns:
      A pytree like ``mask`` of floats, 1.0 where a leaf is not prunable.

    Raises:
      ValueError: if no leaf of the mask is prunable.

    Example:
      >>> densities({"w": jnp.array([[True, False, False, False]]), "b": True})
      {'b': 1.0, 'w': 0.25}
    """
    kept = iter(
        counting.counts(counting.is_true, [x for _, x in prunable_leaves(mask)])
    )
    return jax.tree.map(
        lambda leaf: next(kept) / leaf.size if jnp.ndim(leaf) else 1.0, mask
    )


def by_density(
    scores: Scores, densities: Densities, prunable: Prunable = kernels
) -> Mask:
    r"""Returns the mask of the largest scores of each leaf, as its density tells.

    Leaf :math:`l` keeps :math:`\kappa_l` of its :math:`n_l` connections,

    .. math:: \kappa_l = \mathrm{round}(\lambda d_l n_l), \qquad
              \sum_l \kappa_l = \mathrm{round}\Big(\sum_l d_l n_l\Big),

    with the :math:`\lambda`, next to one, that makes the total exact.  This is
    Webster's method of apportionment: while densities shrink in proportion from round
    to round, no leaf gains a connection. A leaf of density 1 or 0 keeps all or none.
    Ties go to the lower flat index.

    Args:
      scores: pytree of floating-point arrays.
      densities: pytree like ``scores`` of Python floats in [0, 1], e.g. of
        ``masks.erk``; of a leaf that is not prunable it does not matter.
      prunable: predicate ``(key_path, leaf) -> bool``, or pytree of bools like
        ``scores``; scalars are never prunable.

    Returns:
      A pytree like ``scores``: bool arrays, and a scalar ``True`` where a leaf is
      not prunable.

    Raises:
      ValueError: if ``densities`` is not like ``scores``, a density is outside [0, 1],
        nothing is prunable, a leaf is not a floating-point array, or (outside of
        transformations) a score is not finite.

    Example:
      >>> scores = {"v": jnp.array([[1.0, 2.0]]), "w": jnp.array([[8.0, 9.0]])}
      >>> mask = by_density(scores, {"v": 0.5, "w": 1.0})
      >>> mask["v"].tolist(), mask["w"].tolist()
      ([[False, True]], [[True, True]])
    """
    checks.check_same_structure(densities, scores, "densities", "scores")
    chosen = [
        checks.check_fraction(
            density, f"density of '{name}'", "the share to keep", closed=True
        )
        for (name, density), is_prunable in zip(
            trees.named_leaves(densities), are_prunable(scores, prunable)
        )
        if is_prunable
    ]

    def rule(
        leaves: list[tuple[KeyPath, chex.Array]], sparsity: float
    ) -> list[chex.Array]:
        del sparsity
        counts = _apportioned([leaf.size for _, leaf in leaves], chosen)
        return [
            selection.largest([leaf], count)[0]
            for (_, leaf), count in zip(leaves, counts)
        ]

    return topk.select_leaves(scores, 0.0, prunable, rule)


def by_allocation(allocation: Allocation) -> Select:
    r"""Returns a selection with the densities of an allocation.

    .. math:: c = \mathrm{by\_density}(s, d), \qquad d = d(w, sparsity)

    for scores :math:`s` and the allocation :math:`d`.

    Args:
      allocation: ``(params, sparsity, prunable) -> densities``, such as ``masks.erk``,
        or ``functools.partial(masks.smart_ratio, order=...)``.

    Returns:
      ``(scores, sparsity, prunable) -> mask``, which keeps the largest scores of each
      leaf, and exactly ``round(m * (1 - sparsity))`` of all ``m`` connections. In
      rounds from which no connection returns, the total can be one short on leaves of
      a few dozen connections, where a density is held or capped.

    Example:
      >>> scores = {"v": jnp.array([[1.0, 2.0]]), "w": jnp.array([[8.0, 9.0]])}
      >>> mask = by_allocation(snipjax.masks.uniform)(scores, 0.5, kernels)
      >>> mask["v"].tolist(), mask["w"].tolist()
      ([[False, True]], [[False, True]])
    """

    def select_by_allocation(
        scores: Scores, sparsity: float, prunable: Prunable = kernels
    ) -> Mask:
        return by_density(scores, allocation(scores, sparsity, prunable), prunable)

    return select_by_allocation


def _apportioned(sizes: Sequence[int], densities: Sequence[float]) -> list[int]:
    """Returns how many connections each leaf keeps, by Webster's method."""
    quotas = [size * density for size, density in zip(sizes, densities)]
    counts = [math.floor(quota + 0.5) for quota in quotas]
    free = [i for i, density in enumerate(densities) if 0.0 < density < 1.0]
    excess = sum(counts) - round(math.fsum(quotas))
    # The roundings of a common multiple of the quotas whose total is exact: the first
    # count to change is the one that the smallest change of the multiple turns.
    for _ in range(excess):
        last = max(
            (i for i in free if counts[i] > 0),
            key=lambda i: (counts[i] - 0.5) / quotas[i],
        )
        counts[last] -= 1
    for _ in range(-excess):
        first = min(
            (i for i in free if counts[i] < sizes[i]),
            key=lambda i: (counts[i] + 0.5) / quotas[i],
        )
        counts[first] += 1
    return counts
