"""The loss's expansion to second order in each connection."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src.types import LossFn, Scores
from snipjax.saliency.fisher import fisher_diagonal
from snipjax.saliency.gradient import sensitivity
from snipjax.saliency.obd import hessian_diagonal


def taylor(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
    diagonal: Callable[..., chex.ArrayTree] = hessian_diagonal,
) -> Scores:
    r"""Returns the first two terms of the loss's expansion in each connection.

    .. math:: s_j = \left| w_j g_j + \tfrac{1}{2} w_j^2 d_j \right|

    has the gradient :math:`g` and a diagonal :math:`d` of curvature. The sum is the
    paper's, the change of the loss where a weight doubles; where it is removed, the
    first term has the other sign.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the loss of a batch.
      params: pytree of floating-point arrays.
      batch: any pytree that ``loss_fn`` and ``diagonal`` take.
      key: PRNG key that is passed to ``diagonal``.
      diagonal: ``(loss_fn, params, batch, *, key) -> pytree like params``:
        :func:`snipjax.saliency.hessian_diagonal`, which needs the key, or
        :func:`snipjax.saliency.fisher_diagonal`.

    Returns:
      A pytree like ``params`` of float32 arrays.

    Raises:
      ValueError: if there is no key, the loss is not a floating-point scalar, or a leaf
        of ``params`` is not a floating-point array.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(x * params["w"] ** 2)
      >>> params, x = {"w": jnp.array([1.0, -3.0])}, jnp.array([2.0, 1.0])
      >>> taylor(loss_fn, params, x, key=jax.random.key(0))
      {'w': Array([ 6., 27.], dtype=float32)}

    "What Scalable Second-Order Information Knows for Pruning at Initialization", CPAL
    2026 (arXiv:2502.11450), as in its authors' code.
    """
    first = sensitivity(loss_fn, params, batch)
    second = diagonal(loss_fn, params, batch, key=key)
    return jax.tree.map(
        lambda wg, d, w: jnp.abs(wg + 0.5 * d * jnp.asarray(w, jnp.float32) ** 2),
        first,
        second,
        params,
    )


def taylor_fisher(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
) -> Scores:
    r"""Returns the loss's expansion in each connection by the Fisher information.

    .. math:: s_j = \left| w_j g_j + \tfrac{1}{2} w_j^2 F_{jj} \right|

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the mean loss of a batch.
      params: pytree of floating-point arrays.
      batch: pytree of arrays ``[n, ...]``, with one entry for each example.
      key: ignored.

    Returns:
      A pytree like ``params`` of float32 arrays.

    Raises:
      ValueError: if the batch has no common leading axis, the loss is not a
        floating-point scalar, or a leaf of ``params`` is not a floating-point array.

    Example:
      >>> loss_fn = lambda params, x: jnp.mean(x @ params["w"])
      >>> taylor_fisher(loss_fn, {"w": jnp.ones(2)}, jnp.array([[2.0, 0], [0, 1]]))
      {'w': Array([2.  , 0.75], dtype=float32)}

    "What Scalable Second-Order Information Knows for Pruning at Initialization", CPAL
    2026 (arXiv:2502.11450), as in its authors' code.
    """
    return taylor(loss_fn, params, batch, key=key, diagonal=fisher_diagonal)
