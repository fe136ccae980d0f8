"""Pruning in one call: saliency, selection, and the pruned parameters."""

from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax import masks, saliency
from snipjax._src import trees

Select = Callable[[chex.ArrayTree, float, masks.Prunable], chex.ArrayTree]


def prune(
    loss_fn: saliency.LossFn,
    params: chex.ArrayTree,
    batch: Any,
    sparsity: float,
    *,
    criterion: saliency.Criterion = saliency.snip,
    select: Select = masks.global_topk,
    prunable: masks.Prunable = masks.kernels,
    num_batches: int | None = None,
    rounds: int = 1,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Prunes a network once, by the saliency of its connections on a mini-batch.

    Computes ``scores = criterion(loss_fn, params, batch)``, keeps the connections
    that ``select(scores, sparsity, prunable)`` chooses, and sets the others to zero.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function.
      params: pytree of floating-point arrays.
      batch: any pytree of arrays that ``loss_fn`` takes, or an iterator of those:
        the gradient is averaged over them before its absolute value is taken, in
        memory that does not grow with their number.
      sparsity: the share of prunable connections to prune, in [0, 1).
      criterion: ``(loss_fn, params, batch) -> scores``.
      select: :func:`snipjax.masks.global_topk`, :func:`snipjax.masks.layerwise_topk`
        or a function like them.
      prunable: predicate ``(key_path, leaf) -> bool``; :func:`snipjax.masks.kernels`
        or :func:`snipjax.masks.weights_and_biases`, the paper's choice.
      num_batches: if given, every leaf of ``batch`` has this many batches along its
        leading axis, and the criterion sees the mean of their losses. Like an
        iterator, but usable under ``jit``.
      rounds: 1 is single-shot. With more, the saliency of what is left is taken
        again ``rounds`` times while density shrinks geometrically to its target.

    Returns:
      ``(params, mask)``: the pruned params and the mask, pytrees like ``params``.

    Raises:
      ValueError: for a sparsity outside [0, 1), a loss that is not a scalar, a
        ``loss_fn`` that is not hashable (if the criterion takes a gradient), params
        that are not floating-point arrays, nothing prunable, a saliency that is not
        finite (naming the leaf), a leading axis that is not ``num_batches``, or an
        iterator with ``rounds > 1`` (it can be read only once).

    Warns:
      UserWarning: if a leaf other than a bias keeps no connection. It points at the
        line that called this function.

    Example:
      >>> def loss_fn(params, batch):
      ...     return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
      >>> batch = {"x": jnp.ones((8, 2)), "y": jnp.zeros((8, 1))}
      >>> params, mask = prune(loss_fn, {"w": jnp.array([[1.0], [3.0]])}, batch, 0.5)
      >>> params["w"].tolist()
      [[0.0], [3.0]]

    Lee, Ajanthan, Torr, ICLR 2019, algorithm 1; rounds as in de Jorge et al.,
    "Progressive Skeletonization", ICLR 2021.
    """
    masks.kept_count(0, sparsity)
    _check_positive_integer(rounds, "rounds")
    if isinstance(batch, Iterator):
        _check_iterator(num_batches, rounds)
    elif num_batches is not None:
        _check_leading_axis(batch, num_batches)
        loss_fn = saliency.MeanLoss(loss_fn)
    mask = None
    for done in range(1, rounds + 1):
        left = params if mask is None else masks.apply(mask, params)
        scores = criterion(loss_fn, left, batch)
        trees.check_same_structure(scores, params, "the criterion's scores", "params")
        mask = mask_of_round(
            scores,
            sparsity,
            before=mask,
            done=done,
            rounds=rounds,
            select=select,
            prunable=prunable,
        )
    return masks.apply(mask, params), mask


def mask_of_round(
    scores: chex.ArrayTree,
    sparsity: float,
    *,
    before: chex.ArrayTree | None,
    done: int,
    rounds: int,
    select: Select = masks.global_topk,
    prunable: masks.Prunable = masks.kernels,
) -> chex.ArrayTree:
    """Returns the mask that one of the rounds of :func:`prune` chooses.

    With it the density is ``(1 - sparsity) ** (done / rounds)``, and nothing that was
    pruned before is kept again.

    Args:
      scores: pytree of floating-point arrays, the saliencies of what is left.
      sparsity: that of the last round, in [0, 1).
      before: the mask of the round before, ``None`` in the first.
      done: the number of the round, from 1 to ``rounds``.
      rounds: their number.
      select: as :func:`prune` takes it.
      prunable: as :func:`prune` takes it.

    Returns:
      A pytree like ``scores``, as ``select`` returns it, with its errors and warnings.

    Example:
      >>> first = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
      >>> mask = mask_of_round(first, 0.75, before=None, done=1, rounds=2)
      >>> mask["w"].tolist()
      [[False, False, True, True]]
      >>> second = {"w": jnp.array([[9.0, 9.0, 2.0, 1.0]])}
      >>> mask_of_round(second, 0.75, before=mask, done=2, rounds=2)["w"].tolist()
      [[False, False, True, False]]

    de Jorge et al., "Progressive Skeletonization", ICLR 2021.
    """
    if before is not None:
        scores = _never_again(before, scores)
    # The last is given as it is, not but for rounding.
    is_last = done == rounds
    return select(
        scores, sparsity if is_last else 1 - (1 - sparsity) ** (done / rounds), prunable
    )


def _never_again(mask: chex.ArrayTree, scores: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(
        lambda keep, s: jnp.where(keep, s, jnp.finfo(jnp.result_type(s)).min),
        mask,
        scores,
    )


def _check_positive_integer(value: Any, what: str) -> None:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < 1:
        raise ValueError(f"{what} is {value!r}; it must be an integer of at least 1")


def _check_iterator(num_batches: int | None, rounds: int) -> None:
    if num_batches is not None:
        raise ValueError(
            "num_batches is for a batch with a leading axis; leave it out where batch "
            "is an iterator"
        )
    if rounds > 1:
        raise ValueError(
            "batch is an iterator, which can be read only once, but there are "
            f"{rounds} rounds; stack the batches and pass num_batches"
        )


def _check_leading_axis(batch: Any, num_batches: int) -> None:
    _check_positive_integer(num_batches, "num_batches")
    if not jax.tree.leaves(batch):
        raise ValueError(
            f"batch has no arrays, but num_batches={num_batches} asks for that many "
            "along their leading axis; leave num_batches out"
        )
    for name, leaf in trees.named_leaves(batch):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != num_batches:
            raise ValueError(
                f"batch leaf '{name}' has shape {shape}, but num_batches={num_batches} "
                "asks for that many along its leading axis; stack the batches there"
            )
