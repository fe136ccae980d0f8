"""Sparse training: any optax optimizer that leaves pruned entries exactly zero."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks
from snipjax._src import checks


class SparseState(NamedTuple):
    """State of :func:`sparse`: the mask and the inner optimizer's state."""

    mask: chex.ArrayTree
    inner_state: optax.OptState


def sparse(
    inner: optax.GradientTransformation, mask: chex.ArrayTree
) -> optax.GradientTransformationExtraArgs:
    """Returns ``inner`` restricted to the connections that the mask keeps.

    ``inner`` sees masked gradients and masked parameters, so that norms, moments,
    weight decay and clipping are those of the pruned network; kept entries move
    exactly as it moves them. A pruned entry's update is ``-param``: it becomes
    exactly 0.0 with the first step, and stays so. ``grad_fn`` and ``value_fn``, by
    which some optimizers evaluate the loss themselves, see the pruned network too.

    The mask is part of the state, hence an argument of a compiled step and not a
    constant in it, and travels through ``jit``, ``vmap`` and checkpoints. It is
    copied there, so that donating the state leaves your mask alone. Let this be the
    outermost transformation: scaling its updates would scale ``-param`` too.

    Args:
      inner: any optax transformation, extra arguments included.
      mask: pytree of bools like the params, as :mod:`snipjax.masks` makes it.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. Its ``init`` and ``update`` raise
      a ``ValueError`` if the mask does not fit what they are given.

    Example:
      >>> mask = {"w": jnp.array([True, False])}
      >>> optimizer = sparse(optax.sgd(0.1), mask)
      >>> params = masks.apply(mask, {"w": jnp.array([1.0, 2.0])})
      >>> updates, _ = optimizer.update(
      ...     {"w": jnp.ones(2)}, optimizer.init(params), params)
      >>> optax.apply_updates(params, updates)
      {'w': Array([0.9, 0. ], dtype=float32)}
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> SparseState:
        if not jax.tree.leaves(params):  # a placeholder, of optax.tree.map_params
            return SparseState(params, inner.init(params))
        inner_state = inner.init(masks.apply(mask, params))
        return SparseState(
            jax.tree.map(lambda m: jnp.array(m, copy=True), mask), inner_state
        )

    def update(
        updates: optax.Updates,
        state: SparseState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SparseState]:
        checks.check_same_structure(updates, state.mask, "the gradient", "the mask")
        kept_params = None if params is None else masks.apply(state.mask, params)

        def at_pruned(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda params, *args, **kwargs: function(
                masks.apply(state.mask, params), *args, **kwargs
            )

        if "value_fn" in extra_args:
            extra_args["value_fn"] = at_pruned(extra_args["value_fn"])
        if "grad_fn" in extra_args:
            gradient = at_pruned(extra_args["grad_fn"])
            extra_args["grad_fn"] = lambda *args: masks.apply(
                state.mask, gradient(*args)
            )
        updates, inner_state = inner.update(
            masks.apply(state.mask, updates),
            state.inner_state,
            kept_params,
            **extra_args,
        )
        if params is None:
            updates = masks.apply(state.mask, updates)
        else:
            updates = jax.tree.map(_update_or_clear, state.mask, updates, params)
        return updates, SparseState(state.mask, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _update_or_clear(
    keep: chex.Array, update: chex.Array, param: chex.Array
) -> chex.Array:
    # In the wider of the two dtypes, so that adding it to the parameter gives zero.
    return jnp.where(keep, update, -param)
