"""Losses, as criteria take them: their type, their mean over batches, their checks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

LossFn = Callable[[chex.ArrayTree, Any], chex.Array]
Criterion = Callable[[LossFn, chex.ArrayTree, Any], chex.ArrayTree]


@dataclasses.dataclass(frozen=True)
class MeanLoss:
    """The mean of a loss over batches stacked along the leading axis of every leaf.

    Batches are taken one after the other, and what the gradient needs of each is
    computed again when it is needed, so that memory does not grow with their number.
    The gradient adds up in float32. Two of the same loss are equal.

    Example:
      >>> loss_fn = MeanLoss(lambda params, x: jnp.sum(params["w"] * x))
      >>> float(loss_fn({"w": jnp.ones(2)}, jnp.array([[1.0, 2.0], [3.0, 4.0]])))
      5.0
    """

    loss_fn: LossFn

    def __call__(self, params: chex.ArrayTree, batches: Any) -> chex.Array:
        wide = jax.tree.map(lambda w: jnp.asarray(w, at_least_float32(w)), params)

        @jax.checkpoint
        def one(batch: Any) -> chex.Array:
            narrow = jax.tree.map(
                lambda v, w: v.astype(jnp.result_type(w)), wide, params
            )
            loss = self.loss_fn(narrow, batch)
            check_scalar(loss)
            return loss

        return jnp.mean(jax.lax.map(one, batches))


def at_least_float32(w: chex.Array) -> Any:
    """Returns the dtype of ``w``, or float32 where that is narrower."""
    dtype = jnp.result_type(w)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def check_hashable(loss_fn: LossFn) -> None:
    """Raises a ``ValueError`` for a loss whose compiled form cannot be kept."""
    if isinstance(loss_fn, MeanLoss):  # pruning.prune's, not what the user passed
        check_hashable(loss_fn.loss_fn)
        return
    try:
        hash(loss_fn)
    except TypeError:
        raise ValueError(
            f"loss_fn, a {type(loss_fn).__name__}, is not hashable, so its compiled "
            "form cannot be kept; wrap it in a function, e.g. lambda params, batch: "
            "loss_fn(params, batch), and pass the same function again later"
        ) from None


def check_scalar(loss: Any) -> None:
    """Raises a ``ValueError`` for a loss that is no floating-point scalar."""
    try:
        kind = jax.typeof(loss)
    except (TypeError, ValueError):
        raise ValueError(
            f"loss_fn returned a {type(loss).__name__}; return the scalar loss alone "
            "(keep auxiliary outputs for the training step)"
        ) from None
    if kind.shape != ():
        raise ValueError(
            f"loss_fn returned an array of shape {kind.shape}, not a scalar; "
            "reduce it, e.g. with jnp.mean over the batch"
        )
    if not jnp.issubdtype(kind.dtype, jnp.floating):
        raise ValueError(
            f"loss_fn returned dtype {kind.dtype}, which has no gradient; "
            "return a floating-point scalar"
        )
