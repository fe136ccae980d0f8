"""Prospect pruning: the derivative of the loss after some steps of training."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import batches, checks
from snipjax._src.types import LossFn, Scores
from snipjax.saliency.gradient import at_least_float32, zeros_to_add
from snipjax.saliency.snip import normalized


def prospr(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
    steps: int = 3,
    learning_rate: float = 0.5,
    momentum: float = 0.9,
) -> Scores:
    r"""Returns the sensitivity of the loss after some steps of training.

    .. math:: s_j = \frac{|h_j|}{\sum_k |h_k|}, \quad
              h_j = \frac{\partial L_K(w_K)}{\partial c_j} \bigg|_{c = 1}, \quad
              w_0 = c \odot w

    :math:`w_{k+1}` comes from :math:`w_k` by a step of gradient descent with momentum
    on the loss :math:`L_k`. Each of the :math:`K + 1` losses has an equal part of the
    batch, in order. The derivative goes through all steps, in one program.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the loss of a batch.
      params: pytree of floating-point arrays.
      batch: pytree of arrays ``[n, ...]``, where ``steps + 1`` divides ``n``. If
        :func:`snipjax.pruning.prune` takes several batches, the leading axis is theirs.
      key: ignored.
      steps: number :math:`K` of steps before the loss that is differentiated.
      learning_rate: learning rate of the steps.
      momentum: momentum of the steps.

    Returns:
      A pytree like ``params`` of float32 arrays, which sum to one; zeros where every
      derivative is zero.

    Raises:
      ValueError: if ``steps`` is not a positive integer or ``steps + 1`` does not
        divide the batch, the loss is not a floating-point scalar, or a leaf of
        ``params`` is not a floating-point array.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(x * params["w"]) ** 2 / 2
      >>> scores = prospr(
      ...     loss_fn, {"w": jnp.array([1.0, 3.0])}, jnp.ones((2, 2)), steps=1,
      ...     learning_rate=0.1)
      >>> scores["w"].tolist()
      [0.25, 0.75]

    Alizadeh et al., "Prospect Pruning: Finding Trainable Weights at Initialization
    using Meta-Gradients", ICLR 2022, equation 6.
    """
    del key
    return _scores(loss_fn, params, batch, steps, learning_rate, momentum)


def prospr_first_order(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
    steps: int = 3,
    learning_rate: float = 0.5,
    momentum: float = 0.9,
) -> Scores:
    r"""Returns the sensitivity of the loss after training, by first derivatives alone.

    .. math:: s_j = \frac{|h_j|}{\sum_k |h_k|}, \quad
              h_j = w_j \frac{\partial L_K(w_K)}{\partial w_{K,j}}

    takes the steps of gradient descent from :math:`w_0 = w` to :math:`w_K` for
    constants. It is cheaper than :func:`prospr`, and needs the memory of one gradient.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the loss of a batch.
      params: pytree of floating-point arrays.
      batch: pytree of arrays ``[n, ...]``, where ``steps + 1`` divides ``n``. If
        :func:`snipjax.pruning.prune` takes several batches, the leading axis is theirs.
      key: ignored.
      steps: number :math:`K` of steps before the loss that is differentiated.
      learning_rate: learning rate of the steps.
      momentum: momentum of the steps.

    Returns:
      A pytree like ``params`` of float32 arrays, which sum to one; zeros where every
      derivative is zero.

    Raises:
      ValueError: if ``steps`` is not a positive integer or ``steps + 1`` does not
        divide the batch, the loss is not a floating-point scalar, or a leaf of
        ``params`` is not a floating-point array.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(x * params["w"]) ** 2 / 2
      >>> scores = prospr_first_order(
      ...     loss_fn, {"w": jnp.array([1.0, 3.0])}, jnp.ones((2, 2)), steps=1,
      ...     learning_rate=0.1)
      >>> scores["w"].tolist()
      [0.25, 0.75]

    Alizadeh et al., ICLR 2022, section 3.3.
    """
    del key
    return _scores(
        loss_fn, params, batch, steps, learning_rate, momentum, is_first_order=True
    )


def _scores(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    steps: int,
    learning_rate: float,
    momentum: float,
    *,
    is_first_order: bool = False,
) -> Scores:
    checks.check_floating(params, "params")
    checks.check_positive_integer(steps, "steps")
    parts = _parts(batch, steps)
    params = jax.tree.map(jnp.asarray, params)

    def loss_of(wide: chex.ArrayTree, part: Any) -> chex.Array:
        narrow = jax.tree.map(lambda v, w: v.astype(w.dtype), wide, params)
        return checks.check_loss(loss_fn(narrow, part))

    def step(carry: Any, part: Any) -> tuple[Any, None]:
        wide, velocity = carry
        gradient = jax.grad(loss_of)(wide, part)
        if is_first_order:
            gradient = jax.lax.stop_gradient(gradient)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
        wide = jax.tree.map(lambda w, v: w - learning_rate * v, wide, velocity)
        return (wide, velocity), None

    def loss_after(mask: chex.ArrayTree) -> chex.Array:
        wide = jax.tree.map(lambda c, w: c * w.astype(c.dtype), mask, params)
        start = wide, zeros_to_add(wide)
        (wide, _), _ = jax.lax.scan(step, start, jax.tree.map(lambda x: x[:-1], parts))
        return loss_of(wide, jax.tree.map(lambda x: x[-1], parts))

    ones = jax.tree.map(lambda w: jnp.ones_like(w, at_least_float32(w)), params)
    derivative = jax.grad(loss_after)(ones)
    return normalized(jax.tree.map(lambda g: g.astype(jnp.float32), derivative))


def _parts(batch: Any, steps: int) -> Any:
    """Returns the batch in ``steps + 1`` equal parts along a new leading axis."""
    batch = batches.as_arrays(batch)
    number, rest = divmod(checks.check_leading_axis(batch), steps + 1)
    if rest or not number:
        raise ValueError(
            f"batch has {number * (steps + 1) + rest} entries along its leading axis, "
            f"which cannot be divided into steps + 1 = {steps + 1} equal parts; pass a "
            f"multiple of {steps + 1}, or other steps"
        )
    return jax.tree.map(
        lambda x: jnp.reshape(x, (steps + 1, number, *jnp.shape(x)[1:])), batch
    )
