"""Pruning in one call: saliency, selection, and the pruned parameters."""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from snipjax import masks, saliency
from snipjax._src import batches, checks, trees
from snipjax._src.types import Criterion, LossFn, Mask, Prunable, Scores, Select
from snipjax.masks import counting
from snipjax.saliency.gradient import loss_of_kept, zeros_to_add


def prune(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    sparsity: float | None = None,
    *,
    criterion: Criterion = saliency.snip,
    select: Select = masks.global_topk,
    prunable: Prunable = masks.kernels,
    num_batches: int | None = None,
    rounds: int = 1,
    key: chex.PRNGKey | None = None,
    mask: Mask | None = None,
    may_return: bool = False,
) -> tuple[chex.ArrayTree, Mask]:
    r"""Prunes a network by the saliency of its connections on a mini-batch.

    .. math:: s = criterion(L, w, B), \qquad c = select(s, sparsity), \qquad
              w \leftarrow c \odot w

    for the loss :math:`L`, the params :math:`w` and the batch :math:`B`: connections
    that are not selected become zero.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function.
      params: pytree of floating-point arrays.
      batch: any pytree of arrays that ``loss_fn`` takes; or several of those, as an
        iterator or stacked as ``num_batches`` tells. The criterion then sees the mean
        of their losses, in memory that does not grow with their number.
      sparsity: share of prunable connections to prune, in [0, 1); None for a selection
        with a density of its own.
      criterion: ``(loss_fn, params, batch, *, key) -> scores``, a traceable function.
      select: ``(scores, sparsity, prunable) -> mask``.
      prunable: predicate ``(key_path, leaf) -> bool``, or pytree of bools like
        ``params``; :func:`snipjax.masks.kernels` or the paper's choice,
        :func:`snipjax.masks.weights_and_biases`.
      num_batches: number of batches along the leading axis of every leaf of ``batch``.
      rounds: 1 for single-shot pruning. With more, the saliency of the kept connections
        is taken again ``rounds`` times while density shrinks geometrically.
      key: PRNG key for the criterion, in round ``r > 1`` ``fold_in(key, r)``.
      mask: mask of connections that were pruned before and stay so. The criterion sees
        the loss of the params without them, as in all rounds after the first.
      may_return: whether a connection that a round prunes may return in a later one.
        The criterion then sees the dense params, and a loss of the masked ones whose
        derivative passes to all: :func:`snipjax.saliency.snip` becomes FORCE,
        :math:`|w \odot \nabla L(m \odot w)|`. A criterion that does not look at the
        loss sees no mask, so that rounds are of no use to it.

    Returns:
      ``(params, mask)``: the pruned params and the mask, pytrees like ``params``.

    Raises:
      ValueError: for a sparsity outside [0, 1), a loss that is not a scalar, params
        that are not floating-point arrays, nothing prunable, a saliency that is not
        finite (naming the leaf), batches of different shapes or a leading axis that is
        not ``num_batches``.

    Warns:
      UserWarning: if a leaf other than a bias keeps no connection, or connections of
        score zero had to be kept.

    Example:
      >>> def loss_fn(params, batch):
      ...     return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
      >>> batch = {"x": jnp.ones((8, 2)), "y": jnp.zeros((8, 1))}
      >>> params, mask = prune(loss_fn, {"w": jnp.array([[1.0], [3.0]])}, batch, 0.5)
      >>> params["w"].tolist()
      [[0.0], [3.0]]

    Lee, Ajanthan, Torr, ICLR 2019, algorithm 1; rounds and FORCE as in de Jorge et al.,
    "Progressive Skeletonization", ICLR 2021.
    """
    scores, mask = score_and_mask(
        loss_fn,
        params,
        batch,
        sparsity,
        criterion=criterion,
        select=select,
        prunable=prunable,
        num_batches=num_batches,
        rounds=rounds,
        key=key,
        mask=mask,
        may_return=may_return,
    )
    warn_if_weak(scores, mask, stacklevel=3)
    return masks.apply(mask, params), mask


def score_and_mask(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    sparsity: float | None = None,
    *,
    criterion: Criterion = saliency.snip,
    select: Select = masks.global_topk,
    prunable: Prunable = masks.kernels,
    num_batches: int | None = None,
    rounds: int = 1,
    key: chex.PRNGKey | None = None,
    mask: Mask | None = None,
    may_return: bool = False,
    jit: Callable[..., Callable[..., Any]] = jax.jit,
) -> tuple[Scores, Mask]:
    r"""Returns the saliency of connections and the mask of those to keep.

    .. math:: s = criterion(L, w, B), \qquad c = select(s, sparsity)

    for the loss :math:`L`, the params :math:`w` and the batch :math:`B`.

    Outside of transformations, one program is compiled for the scores, and dies with
    the call: scoring and selection do not share their memory.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function.
      params: pytree of floating-point arrays.
      batch: any pytree of arrays that ``loss_fn`` takes, or several of those, as an
        iterator or stacked as ``num_batches`` tells.
      sparsity: share of prunable connections to prune, in [0, 1); None for a selection
        with a density of its own.
      criterion: ``(loss_fn, params, batch, *, key) -> scores``, a traceable function.
      select: ``(scores, sparsity, prunable) -> mask``.
      prunable: predicate ``(key_path, leaf) -> bool``, or pytree of bools.
      num_batches: number of batches along the leading axis of every leaf of ``batch``.
      rounds: number of times that the saliency of the kept connections is taken.
      key: PRNG key for the criterion, in round ``r > 1`` ``fold_in(key, r)``.
      mask: mask of connections that were pruned before and stay so.
      may_return: whether a connection that a round prunes may return in a later one;
        the criterion then sees the dense params, and a loss of the masked ones.
      jit: compiles the program for the scores, e.g. for a mesh of devices.

    Returns:
      ``(scores, mask)``, pytrees like ``params``, with the scores of the last round.

    Raises:
      ValueError: for a sparsity outside [0, 1), a loss that is not a scalar, params
        that are not floating-point arrays, nothing prunable, a saliency that is not
        finite (naming the leaf), batches of different shapes or a leading axis that is
        not ``num_batches``.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(params["w"] * x)
      >>> params = {"w": jnp.array([[1.0, -3.0]])}
      >>> scores, mask = score_and_mask(loss_fn, params, jnp.ones(2), 0.5)
      >>> scores["w"].tolist(), mask["w"].tolist()
      ([[0.25, 0.75]], [[False, True]])
    """
    checks.check_positive_integer(rounds, "rounds")
    if sparsity is not None:
        masks.kept_count(0, sparsity)
    elif rounds > 1:
        raise ValueError(
            f"sparsity is None, but rounds={rounds} need one to shrink to; pass it, or "
            "rounds=1 for a selection with a density of its own"
        )
    if isinstance(batch, Iterator):
        batch, num_batches = batches.stack(batch, num_batches)
    batch = batches.as_arrays(batch)
    if num_batches is not None:
        batches.check_number(batch, num_batches)
        loss_fn = mean_loss(loss_fn)
    checks.check_floating(params, "params")
    treedef = jax.tree.structure(params)
    is_prunable = jax.tree.unflatten(treedef, masks.are_prunable(params, prunable))

    @jit
    def score(params: chex.ArrayTree, batch: Any, key: Any, mask: Any) -> Scores:
        loss = loss_fn
        if mask is not None:
            loss = (_with_returns if may_return else loss_of_kept)(loss_fn, mask)
        return criterion(loss, params, batch, key=key)

    allowed = mask  # connections that may be kept; None for all
    if may_return and allowed is not None:
        params = masks.apply(allowed, params)
    elif mask is None and (may_return or rounds > 1):
        mask = _dense_mask(params, is_prunable)  # so that rounds have one program
    for number in range(1, rounds + 1):
        # Frees the scores and the masked parameters of the last round.
        scores = None
        if not may_return:
            allowed = mask
            params = params if mask is None else masks.apply(mask, params)
        round_key = key
        if key is not None and number > 1:
            round_key = jax.random.fold_in(key, number)
        scores = score(params, batch, round_key, mask)
        checks.check_same_shapes(scores, params, "the criterion's scores", "params")
        target = sparsity
        if number < rounds and sparsity is not None:
            target = 1 - (1 - sparsity) ** (number / rounds)
        else:
            del params
        mask = select(
            scores if allowed is None else _pruned_last(scores, allowed),
            target,
            is_prunable,
        )
        if allowed is not None:
            mask = jax.tree.map(jnp.logical_and, mask, allowed)
    return scores, mask


def warn_if_weak(scores: Scores, mask: Mask, *, stacklevel: int = 2) -> None:
    """Warns of leaves without connections, and of kept connections of score zero.

    Args:
      scores: pytree of arrays, by which the mask was selected.
      mask: pytree like ``scores``.
      stacklevel: as in :func:`warnings.warn`.

    Warns:
      UserWarning: if a leaf other than a bias keeps no connection, or connections of
        score zero had to be kept.

    Example:
      >>> scores, mask = {"w": jnp.zeros((1, 2))}, {"w": jnp.array([[True, False]])}
      >>> import warnings
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warn_if_weak(scores, mask)
      >>> print(caught[0].message)  # doctest: +ELLIPSIS
      1 connections are kept, but only 0 have a score above zero; ...
    """
    if trees.is_traced((scores, mask)):
        return
    masks.warn_if_disconnected(mask, stacklevel=stacklevel + 1)
    pairs = [
        (jnp.asarray(s), jnp.asarray(keep))
        for s, keep in zip(jax.tree.leaves(scores), jax.tree.leaves(mask))
        if jnp.ndim(keep)
    ]
    kept = sum(counting.counts(counting.is_true, [keep for _, keep in pairs]))
    positive = sum(counting.counts(counting.is_positive, [s for s, _ in pairs]))
    if positive >= kept:
        return
    kept_zeros = sum(int(jnp.sum((s == 0) & keep)) for s, keep in pairs)
    if kept_zeros and any(jnp.any((s == 0) & ~keep) for s, keep in pairs):
        warnings.warn(
            f"{kept:,} connections are kept, but only {positive:,} have a score above "
            f"zero; {kept_zeros:,} of score zero were taken because they come first. "
            "Parameters that are zero, at initialization or pruned before (then pass "
            "mask=), half precision or inputs that are not used may be the reason; "
            "prune more, or initialize otherwise",
            stacklevel=stacklevel,
        )


def mean_loss(loss_fn: LossFn) -> LossFn:
    r"""Returns the mean of a loss over batches stacked along a leading axis.

    .. math:: \bar L(w) = \frac{1}{N} \sum_{i=1}^{N} L(w; B_i)

    Batches are taken one after the other. Each is gone through once for the value and
    the gradient, which adds up in float32; memory does not grow with their number.

    Args:
      loss_fn: ``(params, batch) -> scalar``.

    Returns:
      ``(params, batches) -> scalar``, differentiable in the params any number of times,
      where every leaf of ``batches`` has the batches along its leading axis.

    Example:
      >>> loss_fn = mean_loss(lambda params, x: jnp.sum(params["w"] * x))
      >>> float(loss_fn({"w": jnp.ones(2)}, jnp.array([[1.0, 2.0], [3.0, 4.0]])))
      5.0
    """

    def checked(params: chex.ArrayTree, batch: Any) -> chex.Array:
        return checks.check_loss(loss_fn(params, batch))

    def apart(params: chex.ArrayTree, batch: Any) -> tuple[chex.ArrayTree, Any]:
        # The barrier keeps casts of the parameters inside the loop, one at a time.
        return jax.lax.optimization_barrier((params, batch))

    # Differentiated again, each batch is computed again instead of stored.
    @jax.checkpoint
    def one(params: chex.ArrayTree, batch: Any) -> chex.Array:
        return checked(*apart(params, batch))

    @jax.checkpoint
    def value_and_grad(params: chex.ArrayTree, batch: Any) -> Any:
        return jax.value_and_grad(checked)(*apart(params, batch))

    def plain_mean(params: chex.ArrayTree, batches: Any) -> chex.Array:
        return jnp.mean(jax.lax.map(lambda batch: one(params, batch), batches))

    mean = jax.custom_jvp(plain_mean)

    def mean_jvp(primals: Any, tangents: Any) -> tuple[chex.Array, chex.Array]:
        params, batches = primals

        def add(total: chex.ArrayTree, batch: Any) -> tuple[chex.ArrayTree, chex.Array]:
            loss, gradient = value_and_grad(params, batch)
            return jax.tree.map(
                lambda t, g: t + g.astype(t.dtype), total, gradient
            ), loss

        total, losses = jax.lax.scan(add, zeros_to_add(params), batches)
        terms = jax.tree.map(
            lambda g, t: (
                0.0 if _is_zero(t) else jnp.sum(g / len(losses) * t.astype(g.dtype))
            ),
            total,
            tangents[0],
        )
        tangent = sum(jax.tree.leaves(terms))
        if not all(map(_is_zero, jax.tree.leaves(tangents[1]))):
            # The derivative by the inputs, as of adversarial examples.
            moved = jax.tree.map(_instantiated, tangents[1])
            of_batches = functools.partial(plain_mean, params)
            moves = jax.jvp(of_batches, (batches,), (moved,))[1]
            tangent = tangent + moves.astype(jnp.result_type(tangent))
        return jnp.mean(losses), jnp.asarray(tangent, losses.dtype)

    mean.defjvp(mean_jvp, symbolic_zeros=True)
    return mean


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _instantiated(tangent: Any) -> Any:
    if not _is_zero(tangent):
        return tangent
    return np.zeros(tangent.shape, tangent.dtype)


def _dense_mask(params: chex.ArrayTree, is_prunable: chex.ArrayTree) -> Mask:
    """Returns the mask of all connections, each leaf on the devices of its param."""
    return jax.tree.map(
        lambda prunable, w: (
            jnp.ones_like(w, jnp.bool_) if prunable else jnp.array(True)
        ),
        is_prunable,
        params,
    )


def _with_returns(loss_fn: LossFn, mask: Mask) -> LossFn:
    """Returns the loss of masked params, whose derivative passes to all of them."""

    def masked(params: chex.ArrayTree, batch: Any) -> chex.Array:
        pruned = masks.apply(mask, params)
        # Exactly 0 or w, with the derivative of w.
        straight = jax.tree.map(
            lambda w, p: w - jax.lax.stop_gradient(w - p), params, pruned
        )
        return loss_fn(straight, batch)

    return masked


def _pruned_last(scores: Scores, mask: Mask) -> Scores:
    """Returns scores in which pruned connections come after all others."""
    return jax.tree.map(
        lambda keep, s: jnp.where(keep, s, jnp.finfo(jnp.result_type(s)).min),
        mask,
        scores,
    )
