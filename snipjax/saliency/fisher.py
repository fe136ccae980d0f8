"""The diagonal of the empirical Fisher information, a curvature from gradients."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import batches, checks
from snipjax._src.types import LossFn, Scores
from snipjax.saliency.gradient import zeros_to_add


def fisher(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
) -> Scores:
    r"""Returns the saliency of optimal brain damage by the Fisher information.

    .. math:: s_j = \tfrac{1}{2} F_{jj} w_j^2

    takes the diagonal of the empirical Fisher information for the curvature, which is
    never negative.

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
      >>> fisher(loss_fn, {"w": jnp.array([1.0, -2.0])}, jnp.array([[2.0, 0], [0, 1]]))
      {'w': Array([1., 1.], dtype=float32)}

    Theis, Korshunova, Tejani, Huszár, "Faster gaze prediction with dense networks and
    Fisher pruning", 2018, equation 6.
    """
    diagonal = fisher_diagonal(loss_fn, params, batch, key=key)
    return jax.tree.map(
        lambda f, w: 0.5 * f * jnp.asarray(w, jnp.float32) ** 2, diagonal, params
    )


def fisher_diagonal(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
) -> chex.ArrayTree:
    r"""Returns the diagonal of the empirical Fisher information.

    .. math:: F_{jj} = \frac{1}{n} \sum_{i=1}^n
              \left( \frac{\partial L_i}{\partial w_j} \right)^2

    :math:`L_i` is the loss of entry ``i`` of the batch alone, as a batch of one.
    Entries are taken one after the other, in memory that does not grow with their
    number. If :func:`snipjax.pruning.prune` takes several batches, the entries are the
    batches.

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
      >>> fisher_diagonal(loss_fn, {"w": jnp.ones(2)}, jnp.array([[2.0, 0], [0, 1]]))
      {'w': Array([2. , 0.5], dtype=float32)}

    LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989, has the derivation;
    Kunstner, Balles, Hennig, "Limitations of the Empirical Fisher Approximation",
    NeurIPS 2019, tells it from the Fisher information and the Hessian.
    """
    del key
    checks.check_floating(params, "params")
    batch = batches.as_arrays(batch)
    number = checks.check_leading_axis(batch)
    params = jax.tree.map(jnp.asarray, params)

    def loss_of(params: chex.ArrayTree, entry: Any) -> chex.Array:
        batch_of_one = jax.tree.map(lambda x: jnp.expand_dims(x, 0), entry)
        return checks.check_loss(loss_fn(params, batch_of_one))

    def add(total: chex.ArrayTree, entry: Any) -> tuple[chex.ArrayTree, None]:
        gradient = jax.grad(loss_of)(params, entry)
        return jax.tree.map(
            lambda t, g: t + g.astype(t.dtype) ** 2, total, gradient
        ), None

    entries = jax.tree.map(jnp.asarray, batch)
    total, _ = jax.lax.scan(add, zeros_to_add(params), entries)
    return jax.tree.map(lambda t: (t / number).astype(jnp.float32), total)
