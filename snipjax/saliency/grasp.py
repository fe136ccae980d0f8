"""Gradient signal preservation: what removing a connection does to the gradient."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import checks
from snipjax._src.types import LossFn, Scores
from snipjax.saliency.hessian import gradient_and_product


def grasp(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
) -> Scores:
    r"""Returns by how much each connection keeps up the norm of the gradient.

    .. math:: s_j = w_j (H g)_j, \quad g = \nabla L(w), \quad H = \nabla^2 L(w)

    To first order, removing connection ``j`` changes :math:`g^\top g` by
    :math:`-2 s_j`. So connections of the largest scores are kept, and scores may be
    negative. The paper's score is :math:`-s_j`, of which the largest are removed.

    The paper divides the logits by 200, which makes the loss of a network at
    initialization nearly linear in them. Such a temperature belongs to ``loss_fn``.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the loss of a batch.
      params: pytree of floating-point arrays.
      batch: any pytree that ``loss_fn`` takes.
      key: ignored.

    Returns:
      A pytree like ``params`` of float32 arrays.

    Raises:
      ValueError: if the loss is not a floating-point scalar, or a leaf of ``params`` is
        not a floating-point array.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(x * params["w"] ** 2)
      >>> grasp(loss_fn, {"w": jnp.array([1.0, -3.0])}, jnp.array([2.0, -1.0]))
      {'w': Array([16., 36.], dtype=float32)}

    Wang, Zhang, Grosse, "Picking Winning Tickets Before Training by Preserving Gradient
    Flow", ICLR 2020, equation 8.
    """
    del key
    checks.check_floating(params, "params")
    params = jax.tree.map(jnp.asarray, params)
    gradient, product = gradient_and_product(loss_fn, params, batch)
    return jax.tree.map(
        lambda w, hg: (w.astype(hg.dtype) * hg).astype(jnp.float32),
        params,
        product(gradient()),
    )


def grasp_magnitude(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
) -> Scores:
    r"""Returns by how much each connection changes the norm of the gradient.

    .. math:: s_j = |w_j (H g)_j|

    It keeps the connections whose removal changes :math:`g^\top g` the most, be it up
    or down.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the loss of a batch.
      params: pytree of floating-point arrays.
      batch: any pytree that ``loss_fn`` takes.
      key: ignored.

    Returns:
      A pytree like ``params`` of float32 arrays.

    Raises:
      ValueError: if the loss is not a floating-point scalar, or a leaf of ``params`` is
        not a floating-point array.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(x / params["w"])
      >>> params, x = {"w": jnp.array([1.0, -1.0])}, jnp.ones(2)
      >>> grasp(loss_fn, params, x), grasp_magnitude(loss_fn, params, x)
      ({'w': Array([-2., -2.], dtype=float32)}, {'w': Array([2., 2.], dtype=float32)})

    Frankle, Dziugaite, Roy, Carbin, "Pruning Neural Networks at Initialization: Why Are
    We Missing the Mark?", ICLR 2021, section 4.
    """
    return jax.tree.map(jnp.abs, grasp(loss_fn, params, batch, key=key))
