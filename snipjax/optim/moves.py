"""Optimizers with a moving mask: when it moves, and how a step and a move join.

A mask moves inside the compiled step, without a look from the host.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks
from snipjax._src import checks
from snipjax._src.types import Criterion, Mask
from snipjax.optim.fresh import fresh_where
from snipjax.optim.relocation import Structure, check_movable
from snipjax.optim.sparse import SparseState, sparse
from snipjax.saliency.gradient import loss_of_kept

Tree = TypeVar("Tree")


class Info(NamedTuple):
    """Holds the change of the mask in the last update, scalars on the device.

    Attributes:
      moved: whether the mask moved, bool.
      fraction: share of the kept connections to drop, float32; 0 without a move.
      dropped: number of connections that are pruned now and were not, int32.
      grown: number of connections that are kept now and were not, int32.

    Example:
      >>> mask = {"w": jnp.array([[True, True, False, False]])}
      >>> optimizer = snipjax.optim.rigl(optax.sgd(0.1), mask, every=1, stop=9)
      >>> state = optimizer.init({"w": jnp.array([[1.0, 3.0, 0.0, 0.0]])})
      >>> bool(state.info.moved), int(state.info.dropped), int(state.info.grown)
      (False, 0, 0)
    """

    moved: chex.Array
    fraction: chex.Array
    dropped: chex.Array
    grown: chex.Array


class MovingState(NamedTuple):
    """Holds the state of an optimizer with a moving mask.

    Attributes:
      mask: the mask now, a pytree of bools like the params.
      step: number of updates so far, int32.
      key: PRNG key of all moves, or None; a move takes ``fold_in(key, step)``.
      inner_state: state of the inner optimizer.
      info: the change of the mask in the last update.

    Example:
      >>> mask = {"w": jnp.array([[True, True, False, False]])}
      >>> optimizer = snipjax.optim.rigl(optax.sgd(0.1), mask, every=1, stop=9)
      >>> state = optimizer.init({"w": jnp.array([[1.0, 3.0, 0.0, 0.0]])})
      >>> int(state.step), state.mask["w"].tolist()
      (0, [[True, True, False, False]])
    """

    mask: chex.ArrayTree
    step: chex.Array
    key: chex.PRNGKey | None
    inner_state: optax.OptState
    info: Info


class Move(NamedTuple):
    """The situation of a move.

    ``loss_fn`` and ``batch`` are extra arguments of the update; without them a function
    that raises a ``ValueError``, and None.
    """

    mask: Mask
    params: chex.ArrayTree  # pruned entries are zero
    gradient: chex.ArrayTree  # of pruned entries too
    fraction: chex.Array  # of the kept connections to drop, float32
    key: chex.PRNGKey | None
    loss_fn: Any
    batch: Any


def moving(
    inner: optax.GradientTransformation,
    mask: Mask,
    moved: Callable[[Move], Mask],
    *,
    every: int,
    stop: int,
    fraction: optax.ScalarOrSchedule,
    key: chex.PRNGKey | None,
    structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer whose mask moves in place of some of its steps.

    ``moved`` is a traceable function from a situation to the new mask. The mask to
    start from has the ``structure``. The ``fraction`` decays by a cosine to zero at
    ``stop``; it may also be a schedule ``step -> share``. If an entry of the gradient
    is not finite, nothing can be chosen by it, and the update is a step.
    """
    share = fraction_schedule(fraction, every, stop)
    masked = sparse(inner, mask)

    def init(params: optax.Params) -> MovingState:
        started = masked.init(params)
        check_movable(mask, structure)
        return MovingState(
            started.mask, jnp.int32(0), copy(key), started.inner_state, no_change()
        )

    def update(
        updates: optax.Updates,
        state: MovingState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MovingState]:
        checks.check_same_structure(updates, state.mask, "the gradient", "the mask")
        check_params(params)

        def move() -> tuple[Mask, Info]:
            now = share(state.step)
            new = moved(situation(state, params, updates, now, extra_args))
            can_choose = is_finite(updates)
            return jax.tree.map(
                lambda moved, stays: jnp.where(can_choose, moved, stays),
                (new, change(state.mask, new, now)),
                stays,
            )

        stays = unmoved(state, params, updates)
        is_due = (state.step > 0) & (state.step % every == 0) & (state.step < stop)
        new, info = when(is_due, move, stays)
        stepped, after = masked.update(
            updates, SparseState(state.mask, state.inner_state), params, **extra_args
        )
        waited = fresh_after(inner, state, new, params)
        inner_state = jax.tree.map(
            lambda w, s: jnp.where(info.moved, w, s), waited, after.inner_state
        )
        # A move takes the place of a step: connections that stay do not change.
        stepped = jax.tree.map(
            lambda old, new, u, w: jnp.where(
                info.moved, jnp.where(old & new, 0, -w), u
            ),
            state.mask,
            new,
            stepped,
            params,
        )
        return stepped, MovingState(
            new, optax.safe_increment(state.step), state.key, inner_state, info
        )

    return optax.GradientTransformationExtraArgs(init, update)


def fresh_after(
    inner: optax.GradientTransformation, state: Any, new: Mask, params: chex.ArrayTree
) -> optax.OptState:
    """Returns the inner state, as at the start where a move drops or grows."""
    changed = jax.tree.map(jnp.not_equal, state.mask, new)
    return fresh_where(changed, inner, state.inner_state, masks.apply(new, params))


def copy(key: chex.PRNGKey | None) -> chex.PRNGKey | None:
    """Returns a key's copy, so that donating the state leaves the user's alone."""
    return None if key is None else jnp.copy(key)


def situation(
    state: Any,
    params: chex.ArrayTree,
    gradient: chex.ArrayTree,
    fraction: chex.Array,
    extra_args: dict[str, Any],
) -> Move:
    key = None if state.key is None else jax.random.fold_in(state.key, state.step)
    return Move(
        state.mask,
        masks.apply(state.mask, params),
        gradient,
        fraction,
        key,
        extra_args.get("loss_fn", no_loss),
        extra_args.get("batch"),
    )


def sparse_scores(
    criterion: Criterion, move: Move, key: chex.PRNGKey | None
) -> chex.ArrayTree:
    """Returns the scores of the sparse network, whose zeros are constants."""
    loss_fn = loss_of_kept(move.loss_fn, move.mask)
    return criterion(loss_fn, move.params, move.batch, key=key)


def no_loss(params: chex.ArrayTree, batch: Any) -> chex.Array:
    """Raises a ``ValueError``, in place of a loss that the update was not given."""
    raise ValueError(
        "criterion takes the loss, but loss_fn is missing; pass it and the batch: "
        "optimizer.update(gradient, state, params, loss_fn=loss_fn, batch=batch)"
    )


def fraction_schedule(
    fraction: optax.ScalarOrSchedule, every: int, stop: int
) -> Callable[[chex.Array], chex.Array]:
    """Returns ``step -> share of the kept connections to drop``, float32."""
    checks.check_positive_integer(every, "every")
    checks.check_positive_integer(stop, "stop")
    if not callable(fraction):
        meaning = "the share of the kept connections that a move may drop, e.g. 0.3"
        checks.check_fraction(fraction, "fraction", meaning, closed=True)
        fraction = optax.cosine_decay_schedule(fraction, stop)
    schedule = fraction
    return lambda step: jnp.clip(jnp.asarray(schedule(step), jnp.float32), 0, 1)


def is_finite(tree: chex.ArrayTree) -> chex.Array:
    """Returns whether all entries of a tree are finite, a bool on the device."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def no_change() -> Info:
    return Info(jnp.array(False), jnp.float32(0), jnp.int32(0), jnp.int32(0))


def unmoved(state: Any, *inputs: chex.ArrayTree) -> tuple[Mask, Info]:
    """Returns the mask of a state, and the information of an update without a move.

    Inside :func:`jax.shard_map` they differ over the axes that the inputs differ over,
    as a moved mask does.
    """
    found = state.mask, no_change()
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return found
    is_never = jnp.stack([jnp.any(x < x) for x in jax.tree.leaves(inputs)])
    return jax.tree.map(lambda x: x + jnp.any(is_never).astype(x.dtype), found)


def change(old: Mask, new: Mask, fraction: chex.Array) -> Info:
    """Returns the information of an update that moved the mask from old to new."""

    def number(test: Callable[[chex.Array, chex.Array], chex.Array]) -> chex.Array:
        counts = jax.tree.map(lambda o, n: jnp.sum(test(o, n)), old, new)
        return jnp.asarray(sum(jax.tree.leaves(counts)), jnp.int32)

    dropped = number(lambda o, n: o & ~n)
    return Info(jnp.array(True), fraction, dropped, number(lambda o, n: n & ~o))


def check_params(params: Any) -> None:
    if params is None:
        raise ValueError(
            "params is None, but a mask moves by the params; pass them: "
            "optimizer.update(gradient, state, params)"
        )


def when(predicate: chex.Array, function: Callable[[], Tree], otherwise: Tree) -> Tree:
    """Returns ``function()`` where a predicate is true, else ``otherwise``.

    The function runs only if the predicate is true; under :func:`jax.vmap`, only if it
    is true for some entry of the mapped axis.
    """

    def chosen() -> Tree:
        return jax.tree.map(
            lambda new, old: jnp.where(predicate, new, old), function(), otherwise
        )

    return jax.lax.cond(_somewhere(predicate), chosen, lambda: otherwise)


@jax.custom_batching.custom_vmap
def _somewhere(predicate: chex.Array) -> chex.Array:
    """Returns a predicate; under vmap, one for the whole axis: if it is true anywhere.

    By itself, vmap makes a select of a cond with a predicate for each entry, which
    computes both branches.
    """
    return predicate


@_somewhere.def_vmap
def _(
    axis_size: int, in_batched: list[bool], predicate: chex.Array
) -> tuple[chex.Array, bool]:
    del axis_size, in_batched
    return _somewhere(jnp.any(predicate, axis=0)), False
