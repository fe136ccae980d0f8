"""Sparse momentum: connections go to the layers, and places, of large momentum."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import saliency
from snipjax._src import checks
from snipjax._src.types import Criterion, Mask
from snipjax.optim.moves import Info, Move, MovingState, moving, sparse_scores
from snipjax.optim.relocation import (
    Items,
    Structure,
    count,
    ordered,
    with_grown,
    without_weakest,
)


class SparseMomentumState(NamedTuple):
    """Holds the state of :func:`sparse_momentum`.

    Attributes:
      mask: the mask now, a pytree of bools like the params.
      step: number of updates so far, int32.
      key: PRNG key of all moves, or None; a move takes ``fold_in(key, step)``.
      inner_state: state of the inner optimizer.
      info: the change of the mask in the last update.
      momentum: mean of the gradients so far, of pruned connections too; a scalar where
        a leaf is not prunable.

    Example:
      >>> mask = {"w": jnp.array([[True, False]])}
      >>> optimizer = sparse_momentum(optax.sgd(0.1), mask, every=1, stop=9)
      >>> state = optimizer.init({"w": jnp.array([[1.0, 0.0]])})
      >>> int(state.step), state.momentum["w"].tolist()
      (0, [[0.0, 0.0]])
    """

    mask: chex.ArrayTree
    step: chex.Array
    key: chex.PRNGKey | None
    inner_state: optax.OptState
    info: Info
    momentum: chex.ArrayTree


def sparse_momentum(
    inner: optax.GradientTransformation,
    mask: Mask,
    *,
    every: int,
    stop: int,
    fraction: optax.ScalarOrSchedule = 0.5,
    decay: float = 0.9,
    criterion: Criterion = saliency.magnitude,
    structure: Structure | None = None,
    key: chex.PRNGKey | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns an optimizer that moves weak connections to where momentum is large.

    Every update takes the mean :math:`M \leftarrow decay \, M + (1 - decay) \,
    \partial L / \partial w` of the gradients, of pruned connections too. In update
    :math:`t = every, 2\,every, \dots < stop`, the share :math:`\frac{\alpha}{2} (1 +
    \cos\frac{\pi t}{stop})` of each leaf's kept connections with the smallest
    :math:`|w|` is dropped. The same number grows, and leaf :math:`l` gets of it

    .. math:: \frac{\bar M_l}{\sum_i \bar M_i}

    with the mean :math:`\bar M_l` of :math:`|M|` over its kept connections: in each
    leaf the ones with the largest :math:`|M|`. A leaf that is full leaves its share to
    the others. The number of connections of all leaves is the same after every move, of
    blocks or units where these move. A connection that grows starts from zero, with the
    moments that the inner optimizer starts with. A move takes the place of a step, as
    in :func:`rigl`.

    Args:
      inner: any optax transformation, extra arguments included.
      mask: pytree of bools like the params, the mask to start from.
      every: number of updates from one move to the next; in the paper an epoch.
      stop: number of updates after which the mask stays.
      fraction: share :math:`\alpha` of the kept connections that a first move would
        drop, or a schedule ``step -> share`` in place of the cosine.
      decay: decay of the mean of the gradients.
      criterion: ``(loss_fn, params, batch, *, key) -> scores``; the connections of the
        least scores are dropped. For one that takes the loss, ``update`` needs
        ``loss_fn=`` and ``batch=``.
      structure: structure that moves as a whole: a function such as ``masks.blocks`` or
        ``masks.units`` with its settings bound by :func:`functools.partial`. The
        momentum of a block or unit is the sum of its connections'. With
        ``masks.n_of_m`` each leaf keeps its number, and the largest momentum grows.
      key: PRNG key for a criterion that draws random numbers.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a :class:`SparseMomentumState`.

    Raises:
      ValueError: if ``every`` or ``stop`` is not a positive integer, ``fraction`` is
        outside [0, 1], or ``decay`` outside [0, 1). ``init`` raises it if the mask is
        not of the structure, and ``update`` without params.

    Example:
      >>> mask = {"v": jnp.array([[True, False]]), "w": jnp.array([[True, False]])}
      >>> optimizer = sparse_momentum(
      ...     optax.sgd(0.1), mask, every=1, stop=9,
      ...     fraction=optax.constant_schedule(1.0))
      >>> params = {"v": jnp.array([[1.0, 0.0]]), "w": jnp.array([[2.0, 0.0]])}
      >>> gradient = {"v": jnp.array([[9.0, 8.0]]), "w": jnp.array([[0.1, 0.2]])}
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(gradient, state, params)
      >>> state.mask["v"].tolist(), state.mask["w"].tolist()
      ([[True, True]], [[False, False]])

    Dettmers, Zettlemoyer, "Sparse Networks from Scratch: Faster Training without Losing
    Performance", 2019, algorithm 1.
    """
    settings: dict[str, Any] = {
        "every": every,
        "stop": stop,
        "fraction": fraction,
        "key": key,
        "structure": structure,
    }
    checks.check_fraction(decay, "decay", "the decay of the mean, e.g. 0.9")

    def init(params: optax.Params) -> SparseMomentumState:
        state = moving(inner, mask, lambda move: move.mask, **settings).init(params)
        momentum = params
        if jax.tree.leaves(params):  # or it is a placeholder, of optax.tree.map_params
            momentum = jax.tree.map(
                lambda keep, w: jnp.zeros_like(w) if jnp.ndim(keep) else jnp.zeros(()),
                state.mask,
                params,
            )
        return SparseMomentumState(**state._asdict(), momentum=momentum)

    def update(
        updates: optax.Updates,
        state: SparseMomentumState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SparseMomentumState]:
        def averaged(m: chex.Array, g: chex.Array) -> chex.Array:
            # A gradient that is not finite would stay in the mean for ever.
            mean = jnp.where(jnp.isfinite(g), decay * m + (1 - decay) * g, m)
            return mean.astype(m.dtype) if jnp.ndim(m) else m

        momentum = jax.tree.map(averaged, state.momentum, updates)

        def moved(move: Move) -> Mask:
            items = Items(move.mask, structure)
            scores = items.kept_scores(sparse_scores(criterion, move, move.key))
            size = ordered(move.mask, jax.tree.map(jnp.abs, momentum))
            stays = without_weakest(items.mask, scores, move.fraction)
            if items.has_own_density:
                return items.select_with(stays, size)
            size = items.sums(size)
            numbers = redistributed(items.mask, stays, size)
            return items.expanded(with_grown(stays, size, numbers))

        optimizer = moving(inner, mask, moved, **settings)
        updates, after = optimizer.update(
            updates, MovingState(*state[:-1]), params, **extra_args
        )
        return updates, SparseMomentumState(**after._asdict(), momentum=momentum)

    return optax.GradientTransformationExtraArgs(init, update)


def redistributed(mask: Mask, stays: Mask, momentum: chex.ArrayTree) -> chex.ArrayTree:
    """Returns how many connections grow in each leaf, uint32 scalars.

    They are as many as were dropped, in the ratio of the means of the momentum's
    magnitude over the connections that were kept.
    """
    leaves, treedef = jax.tree.flatten(mask)
    is_prunable = [jnp.ndim(keep) > 0 for keep in leaves]

    def vector(function: Any, *trees: chex.ArrayTree) -> chex.Array:
        rows = zip(is_prunable, *map(jax.tree.leaves, trees))
        return jnp.stack([function(*row) for chosen, *row in rows if chosen])

    kept = vector(lambda keep: count([keep]), mask)
    left = vector(lambda keep: count([keep]), stays)
    sums = vector(
        lambda keep, m: jnp.sum(jnp.where(keep, m, 0), dtype=jnp.float32),
        mask,
        momentum,
    )
    sizes = vector(lambda keep: jnp.uint32(keep.size), mask)
    means = sums / jnp.maximum(kept, 1)
    numbers = iter(
        apportioned(jnp.sum(kept - left, dtype=jnp.uint32), means, sizes - left)
    )
    return jax.tree.unflatten(
        treedef, [next(numbers) if chosen else jnp.uint32(0) for chosen in is_prunable]
    )


def apportioned(total: chex.Array, ratios: chex.Array, room: chex.Array) -> chex.Array:
    """Returns whole numbers in some ratios that add up to a total, uint32.

    None is larger than its room; the excess goes to the others in their ratios. Parts
    of one go to the largest quota. The total is at most the room of all.

    Example:
      >>> apportioned(jnp.uint32(9), jnp.array([2.0, 1.0]), jnp.array([3, 9], "uint32"))
      Array([3, 6], dtype=uint32)
    """
    # If no other is left, an entry of ratio zero takes the rest.
    ratios = jnp.maximum(ratios / jnp.max(ratios), jnp.finfo(jnp.float32).tiny)
    ratios = jnp.where(jnp.isnan(ratios), 1.0, ratios)

    def body(numbers: chex.Array) -> chex.Array:
        rest = total - jnp.sum(numbers, dtype=jnp.uint32)
        weights = jnp.where(numbers < room, ratios, 0.0)
        quotas = rest * (weights / jnp.sum(weights))
        more = jnp.minimum(jnp.floor(quotas).astype(jnp.uint32), room - numbers)
        # Quotas are rounded, and may add up to more than the rest.
        before = jnp.cumsum(more, dtype=jnp.uint32) - more
        more = jnp.minimum(more, rest - jnp.minimum(before, rest))
        one = jnp.arange(len(room)) == jnp.argmax(quotas)
        return numbers + jnp.where(jnp.any(more > 0), more, one.astype(jnp.uint32))

    return jax.lax.while_loop(
        lambda numbers: jnp.sum(numbers, dtype=jnp.uint32) < total,
        body,
        jnp.zeros_like(room),
    )
