"""Straight-through estimation: dense weights train by the gradient of pruned ones."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks, saliency
from snipjax._src import checks
from snipjax._src.types import Criterion, Mask, Select
from snipjax.optim.moves import (
    Info,
    change,
    check_params,
    copy,
    no_change,
    situation,
    unmoved,
    when,
)
from snipjax.optim.relocation import check_movable
from snipjax.optim.sparse import check_inside, check_place


class StraightThroughState(NamedTuple):
    """Holds the state of :func:`straight_through`.

    Attributes:
      mask: the mask now, a pytree of bools like the params.
      step: number of updates so far, int32.
      key: PRNG key of all moves, or None; a move takes ``fold_in(key, step)``.
      inner_state: state of the inner optimizer, of the dense weights.
      info: the change of the mask in the last update.
      dense: the dense weights, of which the params are the kept ones.

    Example:
      >>> mask = {"w": jnp.array([[True, False]])}
      >>> optimizer = straight_through(optax.sgd(1.0), mask, sparsity=0.5)
      >>> state = optimizer.init({"w": jnp.array([[3.0, 2.0]])})
      >>> state.mask["w"].tolist(), state.dense["w"].tolist()
      ([[True, False]], [[3.0, 2.0]])
    """

    mask: chex.ArrayTree
    step: chex.Array
    key: chex.PRNGKey | None
    inner_state: optax.OptState
    info: Info
    dense: optax.Params


def straight_through(
    inner: optax.GradientTransformation,
    mask: Mask,
    *,
    sparsity: float | None = None,
    every: int = 1,
    stop: int | None = None,
    select: Select = masks.global_topk,
    criterion: Criterion = saliency.magnitude,
    key: chex.PRNGKey | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns an optimizer of dense weights, of which the params are the largest.

    The state has dense weights :math:`v`, and the params are always :math:`w = c \odot
    v` with the mask :math:`c`, so that evaluation, checkpoints and export see the
    pruned network. The gradient at the params goes straight through to all dense
    weights,

    .. math:: v \leftarrow v - \eta \, \frac{\partial L}{\partial w},

    by the inner optimizer, which hence sees the dense gradient and the dense weights.
    In updates :math:`0, every, 2\,every, \dots < stop` the mask is then selected anew
    by the magnitude of the dense weights. A connection that returns has the weight that
    it has come to in the meantime.

    Args:
      inner: any optax transformation, extra arguments included.
      mask: pytree of bools like the params, the mask to start from; ``masks.ones`` for
        a dense start, after which the first update prunes.
      sparsity: share of connections to prune, in [0, 1); None for a selection with a
        density of its own.
      every: number of updates from one selection to the next.
      stop: number of updates after which the mask stays; None for never.
      select: ``(scores, sparsity, prunable) -> mask``, e.g. ``masks.layerwise_topk`` or
        ``masks.n_of_m(2, 4)``.
      criterion: ``(loss_fn, params, batch, *, key) -> scores`` of the dense weights.
        For one that takes the loss, ``update`` needs ``loss_fn=`` and ``batch=``.
      key: PRNG key for a criterion that draws random numbers.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a :class:`StraightThroughState`.
      Give ``init`` the dense weights, and training ``masks.apply(mask, weights)``.

    Raises:
      ValueError: if ``every`` or ``stop`` is not a positive integer, or ``sparsity`` is
        outside [0, 1), or None for a selection that takes it. ``update`` raises it
        without params.

    Example:
      >>> weights = {"w": jnp.array([[3.0, 2.0]])}
      >>> mask = {"w": jnp.array([[True, False]])}
      >>> optimizer = straight_through(optax.sgd(1.0), mask, sparsity=0.5)
      >>> state, params = optimizer.init(weights), masks.apply(mask, weights)
      >>> gradient = {"w": jnp.array([[0.5, -1.0]])}
      >>> updates, state = optimizer.update(gradient, state, params)
      >>> optax.apply_updates(params, updates)["w"].tolist(), state.dense["w"].tolist()
      ([[0.0, 3.0]], [[2.5, 3.0]])

    Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic
    Neurons", 2013; for pruning Zhou et al., "Learning N:M Fine-grained Structured
    Sparse Neural Networks From Scratch", ICLR 2021, without their decay term.
    """
    checks.check_positive_integer(every, "every")
    if stop is not None:
        checks.check_positive_integer(stop, "stop")
    if sparsity is not None or select in (masks.global_topk, masks.layerwise_topk):
        meaning = "the share of connections to prune, e.g. 0.9"
        checks.check_fraction(sparsity, "sparsity", meaning)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> StraightThroughState:
        own = dense = params
        if jax.tree.leaves(params):  # or it is a placeholder, of optax.tree.map_params
            check_place(params, mask)
            masks.check_mask(mask, params)
            check_movable(mask, None)
            own = jax.tree.map(lambda keep: jnp.array(keep, copy=True), mask)
            dense = jax.tree.map(lambda w: jnp.array(w, copy=True), params)
        step, inner_state = jnp.zeros((), jnp.int32), inner.init(params)
        check_inside(inner_state)
        return StraightThroughState(
            own, step, copy(key), inner_state, no_change(), dense
        )

    def update(
        updates: optax.Updates,
        state: StraightThroughState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, StraightThroughState]:
        checks.check_same_structure(updates, state.mask, "the gradient", "the mask")
        check_params(params)
        dense = jax.tree.map(jnp.where, state.mask, params, state.dense)
        steps, inner_state = inner.update(
            updates, state.inner_state, dense, **extra_args
        )
        moved_dense = optax.apply_updates(dense, steps)

        def move() -> tuple[Mask, Info]:
            now = situation(state, moved_dense, updates, jnp.float32(0), extra_args)
            new = select(
                criterion(now.loss_fn, moved_dense, now.batch, key=now.key),
                sparsity,
                jax.tree.map(lambda keep: jnp.ndim(keep) > 0, state.mask),
            )
            return new, change(state.mask, new, jnp.float32(0))

        is_due = state.step % every == 0
        if stop is not None:
            is_due &= state.step < stop
        new, info = when(is_due, move, unmoved(state, params, updates))

        # A kept weight moves by the update itself, so that rounding is the inner's. One
        # that returns was zero, and gets its dense weight whole.
        def update_of_params(old: Any, new: Any, u: Any, v: Any, w: Any) -> chex.Array:
            return jnp.where(new, jnp.where(old, u, v - w), -w)

        updates = jax.tree.map(
            update_of_params, state.mask, new, steps, moved_dense, params
        )
        step = optax.safe_increment(state.step)
        return updates, StraightThroughState(
            new, step, state.key, inner_state, info, moved_dense
        )

    return optax.GradientTransformationExtraArgs(init, update)
