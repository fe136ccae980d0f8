"""Selections: from scores to the mask of the connections with the largest scores."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import checks, trees
from snipjax._src.types import KeyPath, Mask, Prunable, Scores
from snipjax.masks import counting, selection
from snipjax.masks.mask import kept_count
from snipjax.masks.prunable import are_prunable, kernels

Rule = Callable[[list[tuple[KeyPath, chex.Array]], Any], list[chex.Array]]
"""The type of a rule, ``(leaves, sparsity) -> masks``, of the prunable leaves alone.

``leaves`` is a list of ``(key_path, leaf)`` in tree order, each leaf a floating-point
array. The result is a list of bool arrays of their shapes, true where a connection is
kept.

Example:
  >>> def first_half(leaves, sparsity):
  ...     return [jnp.arange(leaf.size).reshape(leaf.shape) < leaf.size // 2
  ...             for path, leaf in leaves]
  >>> select_leaves({"w": jnp.ones((2, 2))}, None, kernels, first_half)["w"]
  Array([[ True,  True],
         [False, False]], dtype=bool)
"""


def global_topk(scores: Scores, sparsity: float, prunable: Prunable = kernels) -> Mask:
    r"""Returns the mask of the connections with the largest scores of all leaves.

    Exactly :math:`\kappa` of the :math:`m` prunable connections are kept:

    .. math:: c_j = \mathbb{1}[s_j \ge s_{(\kappa)}], \qquad
              \kappa = \mathrm{round}(m (1 - sparsity)),

    where :math:`s_{(\kappa)}` is the :math:`\kappa`-th largest score of all leaves.
    Ties go to the lower flat index in tree order. Nothing is sorted or concatenated.

    Args:
      scores: pytree of floating-point arrays, e.g. of :func:`snipjax.saliency.snip`.
      sparsity: share of connections to prune, in [0, 1).
      prunable: predicate ``(key_path, leaf) -> bool``, or pytree of bools like
        ``scores``; scalars are never prunable.

    Returns:
      A pytree like ``scores``: bool arrays, and a scalar ``True`` where a leaf is
      not prunable.

    Raises:
      ValueError: if ``sparsity`` is outside [0, 1), nothing is prunable, a leaf is
        not a floating-point array, or (outside of transformations, where values
        can be looked at) a score is not finite.

    Example:
      >>> global_topk({"w": jnp.array([[1.0, 3.0], [2.0, 3.0]])}, 0.5)["w"]
      Array([[False,  True],
             [False,  True]], dtype=bool)

    Lee, Ajanthan, Torr, ICLR 2019, algorithm 1, line 6.
    """
    return select_leaves(scores, sparsity, prunable, _largest)


def layerwise_topk(
    scores: Scores, sparsity: float, prunable: Prunable = kernels
) -> Mask:
    r"""Returns the mask of the connections with the largest scores of each leaf.

    Exactly :math:`\kappa_l` of the :math:`n_l` connections of every prunable leaf
    :math:`l` are kept:

    .. math:: c_{lj} = \mathbb{1}[s_{lj} \ge s_{l(\kappa_l)}], \qquad
              \kappa_l = \mathrm{round}(n_l (1 - sparsity)),

    where :math:`s_{l(\kappa_l)}` is the :math:`\kappa_l`-th largest score of the leaf.
    Ties go to the lower flat index.

    Args:
      scores: pytree of floating-point arrays.
      sparsity: share of each leaf's connections to prune, in [0, 1).
      prunable: predicate ``(key_path, leaf) -> bool``, or pytree of bools like
        ``scores``; scalars are never prunable.

    Returns:
      A pytree like ``scores``: bool arrays, and a scalar ``True`` where a leaf is
      not prunable.

    Raises:
      ValueError: if ``sparsity`` is outside [0, 1), nothing is prunable, a leaf is
        not a floating-point array, or (outside of transformations) a score is not
        finite.

    Example:
      >>> scores = {"v": jnp.array([[1.0, 2.0]]), "w": jnp.array([[8.0, 9.0]])}
      >>> layerwise_topk(scores, 0.5)["v"]
      Array([[False,  True]], dtype=bool)
    """
    return select_leaves(
        scores,
        sparsity,
        prunable,
        lambda leaves, sparsity: [
            mask for leaf in leaves for mask in _largest([leaf], sparsity)
        ],
    )


def select_leaves(
    scores: Scores, sparsity: float | None, prunable: Prunable, rule: Rule
) -> Mask:
    r"""Returns the mask that a rule makes of the prunable leaves.

    It is for selections of one's own: scores are checked, and each leaf's mask is put
    in its place.

    .. math:: (c_1, \dots, c_k) = rule((s_1, \dots, s_k), sparsity)

    for the scores :math:`s_i` and the masks :math:`c_i` of the prunable leaves.

    Args:
      scores: pytree of floating-point arrays.
      sparsity: share of connections to prune, in [0, 1); None for a rule with a
        density of its own.
      prunable: predicate ``(key_path, leaf) -> bool``, or pytree of bools like
        ``scores``; scalars are never prunable.
      rule: ``(leaves, sparsity) -> masks``, from ``(key_path, leaf)`` of every prunable
        leaf, in tree order, to a bool array of the shape of each.

    Returns:
      A pytree like ``scores``: bool arrays, and a scalar ``True`` where a leaf is
      not prunable.

    Raises:
      ValueError: if ``sparsity`` is outside [0, 1), nothing is prunable, a leaf is
        not a floating-point array, or (outside of transformations) a score is not
        finite.

    Example:
      >>> def not_least(leaves, sparsity):
      ...     return [leaf > jnp.min(leaf) for path, leaf in leaves]
      >>> select_leaves({"w": jnp.array([[1.0, 3.0]])}, 0.5, kernels, not_least)
      {'w': Array([[False,  True]], dtype=bool)}
    """
    if sparsity is not None:
        kept_count(0, sparsity)
    checks.check_floating(scores, "scores")
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(scores)
    is_prunable = are_prunable(scores, prunable)
    leaves = [entry for entry, chosen in zip(paths_and_leaves, is_prunable) if chosen]
    if not leaves:
        names = ", ".join(name for name, _ in trees.named_leaves(scores))
        raise ValueError(
            f"nothing is prunable among the leaves [{names}]; pass a predicate "
            "`prunable(path, leaf)` that is true for some, e.g. masks.kernels for "
            "weight matrices or masks.weights_and_biases"
        )
    _check_finite(leaves)
    rows = iter(rule(leaves, sparsity))
    return jax.tree.unflatten(
        treedef, [next(rows) if chosen else jnp.array(True) for chosen in is_prunable]
    )


def _largest(
    leaves: list[tuple[KeyPath, chex.Array]], sparsity: float
) -> list[chex.Array]:
    arrays = [leaf for _, leaf in leaves]
    kept = kept_count(sum(leaf.size for leaf in arrays), sparsity)
    return selection.largest(arrays, kept)


def _check_finite(leaves: list[tuple[KeyPath, chex.Array]]) -> None:
    if trees.is_traced([leaf for _, leaf in leaves]):
        return
    counts = counting.counts(counting.is_not_finite, [leaf for _, leaf in leaves])
    bad = [trees.path_name(path) for (path, _), n in zip(leaves, counts) if n]
    if bad:
        raise ValueError(
            f"saliency is not finite in {', '.join(bad)}; the loss or its gradient "
            "overflows on this batch: check the inputs, the initialization and the "
            "dtype"
        )
