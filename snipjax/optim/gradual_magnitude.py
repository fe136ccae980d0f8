"""Gradual magnitude pruning: a mask that loses connections while it trains."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import saliency
from snipjax._src import checks
from snipjax._src.types import Criterion, Mask
from snipjax.masks import candidates
from snipjax.optim.moves import (
    Info,
    change,
    check_params,
    copy,
    fresh_after,
    no_change,
    situation,
    sparse_scores,
    unmoved,
    when,
)
from snipjax.optim.relocation import (
    Items,
    Structure,
    by_leaf,
    check_movable,
    count,
)
from snipjax.optim.sparse import SparseState, sparse


class GradualState(NamedTuple):
    """Holds the state of :func:`gradual_magnitude`.

    Attributes:
      mask: the mask now, a pytree of bools like the params.
      step: number of updates so far, int32.
      key: PRNG key of all moves, or None; a move takes ``fold_in(key, step)``.
      inner_state: state of the inner optimizer.
      info: the change of the mask in the last update.
      first: number of connections, blocks or units that each leaf kept at first, uint32
        scalars.

    Example:
      >>> params = {"w": jnp.ones((2, 3))}
      >>> optimizer = gradual_magnitude(
      ...     optax.sgd(0.1), snipjax.masks.ones(params), sparsity=0.5, every=1, stop=2)
      >>> state = optimizer.init(params)
      >>> int(state.step), int(state.first["w"])
      (0, 6)
    """

    mask: chex.ArrayTree
    step: chex.Array
    key: chex.PRNGKey | None
    inner_state: optax.OptState
    info: Info
    first: chex.ArrayTree


def gradual_magnitude(
    inner: optax.GradientTransformation,
    mask: Mask,
    *,
    sparsity: Any,
    every: int,
    stop: int,
    start: int = 0,
    layerwise: bool = True,
    criterion: Criterion = saliency.magnitude,
    structure: Structure | None = None,
    key: chex.PRNGKey | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns an optimizer that prunes little by little, fast at first.

    In update :math:`t = start, start + every, \dots` and in :math:`t = stop`, the
    connections with the smallest :math:`|w|` are pruned until the sparsity is

    .. math:: s_t = s_f + (s_i - s_f)
              \Big(1 - \frac{t - start}{stop - start}\Big)^3

    with the sparsity :math:`s_i` of the mask to start from, e.g. 0 for ``masks.ones``,
    and :math:`s_f = sparsity`. At the end exactly
    :math:`\mathrm{round}(n (1 - s_f))` of the :math:`n` connections of each leaf are
    left, or as many as it started with, if these are fewer; all leaves count as one if
    it is not ``layerwise``. None returns. The step of the same update is taken with the
    new mask, and moments of what has been pruned start anew.

    Args:
      inner: any optax transformation, extra arguments included.
      mask: pytree of bools like the params, the mask to start from.
      sparsity: share of connections, blocks or units to prune in the end, in [0, 1); or
        a pytree like the params of such shares, one for each leaf.
      every: number of updates from one move to the next.
      stop: update of the last move.
      start: update of the first move.
      layerwise: whether each leaf comes to the sparsity by itself, as in the paper;
        otherwise the smallest of all leaves are pruned. Choose the latter for a mask
        whose leaves have different densities, SNIP's for example: a leaf that is
        sparser than ``sparsity`` stays so, and the others do not make up for it.
      criterion: ``(loss_fn, params, batch, *, key) -> scores``; the connections of the
        least scores are pruned. For one that takes the loss, ``update`` needs
        ``loss_fn=`` and ``batch=``.
      structure: structure that is pruned as a whole: a function such as
        ``masks.blocks`` or ``masks.units`` with its settings bound by
        :func:`functools.partial`. With ``masks.n_of_m``, which has a density of its
        own, the first move prunes all. The mask to start from is dense or of the same
        structure.
      key: PRNG key for a criterion that draws random numbers.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a :class:`GradualState`; its
      ``mask`` is the mask now. Its updates take pruned entries to exactly zero.

    Raises:
      ValueError: if ``every`` or ``stop`` is not a positive integer, ``start`` is not
        an integer from 0 to ``stop - 1``, a sparsity is outside [0, 1), or a tree of
        them is not like the mask. ``init`` raises it if the mask is not of the
        structure, and ``update`` without params.

    Example:
      >>> params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
      >>> dense = snipjax.masks.ones(params)
      >>> optimizer = gradual_magnitude(
      ...     optax.sgd(0.1), dense, sparsity=0.75, every=1, stop=2)
      >>> state, kept = optimizer.init(params), []
      >>> for _ in range(3):
      ...     updates, state = optimizer.update(params, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     kept.append(int(state.mask["w"].sum()))
      >>> kept
      [4, 1, 1]

    Zhu, Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
    compression", 2017, equation 1.
    """
    checks.check_positive_integer(every, "every")
    checks.check_positive_integer(stop, "stop")
    if start:
        checks.check_positive_integer(start, "start")
    if stop <= start:
        raise ValueError(f"stop is {stop} and start is {start}; make stop larger")
    meaning = "the share of connections to prune in the end, e.g. 0.9"
    for one in jax.tree.leaves(sparsity):
        checks.check_fraction(one, "sparsity", meaning)
    is_one_share = jax.tree_util.all_leaves([sparsity])
    if not is_one_share:
        checks.check_same_structure(sparsity, mask, "sparsity", "the mask")
    masked = sparse(inner, mask)

    def init(params: optax.Params) -> GradualState:
        started = masked.init(params)
        first = params
        if jax.tree.leaves(params):  # or it is a placeholder, of optax.tree.map_params
            items = Items(started.mask, structure)
            check_movable(mask, None if items.has_own_density else structure)
            first = jax.tree.map(lambda keep: count([keep]), items.mask)
        state = started.inner_state
        step = jnp.zeros((), jnp.int32)
        return GradualState(started.mask, step, copy(key), state, no_change(), first)

    def item_shares(items: Items) -> chex.ArrayTree:
        if is_one_share:
            return jax.tree.map(lambda _: sparsity, items.mask)
        pairs = zip(jax.tree.leaves(mask), jax.tree.leaves(sparsity))
        shares = [share for keep, share in pairs if jnp.ndim(keep)]
        leaves, treedef = jax.tree.flatten(items.mask)
        if len(shares) != sum(jnp.ndim(leaf) > 0 for leaf in leaves):
            raise ValueError(
                "sparsity has a share for each leaf, but structure has a group of "
                "several leaves; give one share for all"
            )
        rest = iter(shares)
        return jax.tree.unflatten(
            treedef, [next(rest) if jnp.ndim(leaf) else 0.0 for leaf in leaves]
        )

    def kept_numbers(rows: Sequence[Any], remaining: chex.Array) -> chex.Array:
        sizes = [keep.size for keep, *_ in rows]
        first = sum(number for *_, number, _ in rows)
        last = round(math.fsum(n * (1 - row[-1]) for n, row in zip(sizes, rows)))
        more = (first.astype(jnp.float32) - last) * remaining**3
        return jnp.uint32(last) + jnp.round(jnp.maximum(more, 0)).astype(jnp.uint32)

    def pruned(
        state: GradualState, params: Any, gradient: Any, extra_args: dict[str, Any]
    ) -> tuple[Mask, Info]:
        move = situation(state, params, gradient, jnp.float32(0), extra_args)
        items = Items(state.mask, structure)
        scores = items.kept_scores(sparse_scores(criterion, move, move.key))
        remaining = 1 - (state.step - start).astype(jnp.float32) / (stop - start)

        def kept(rows: Sequence[Any]) -> list[chex.Array]:
            old, scores = [row[0] for row in rows], [row[1] for row in rows]
            number = jnp.minimum(kept_numbers(rows, remaining), count(old))
            return candidates.largest_among(scores, old, number)

        if items.has_own_density:
            new = jax.tree.map(jnp.logical_and, items.select(scores), state.mask)
        else:
            columns = scores, state.first, item_shares(items)
            new = items.expanded(
                by_leaf(kept, items.mask, *columns, layerwise=layerwise)
            )
        before, after = (
            count([keep for keep in jax.tree.leaves(mask) if jnp.ndim(keep)])
            for mask in (state.mask, new)
        )
        return new, change(state.mask, new, 1 - after / before)

    def update(
        updates: optax.Updates,
        state: GradualState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradualState]:
        checks.check_same_structure(updates, state.mask, "the gradient", "the mask")
        check_params(params)
        step = state.step
        is_due = (step >= start) & (step <= stop)
        is_due &= ((step - start) % every == 0) | (step == stop)
        new, info = when(
            is_due,
            lambda: pruned(state, params, updates, extra_args),
            unmoved(state, params, updates),
        )
        fresh = SparseState(new, fresh_after(inner, state, new, params))
        updates, after = masked.update(updates, fresh, params, **extra_args)
        step = optax.safe_increment(step)
        return updates, GradualState(
            new, step, state.key, after.inner_state, info, state.first
        )

    return optax.GradientTransformationExtraArgs(init, update)
