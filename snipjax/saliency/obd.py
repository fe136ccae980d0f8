"""Optimal brain damage: the diagonal of the loss's curvature."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import checks, trees
from snipjax._src.types import LossFn, Scores
from snipjax.saliency.hessian import Entries, hessian_product, hessian_rows


def obd(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
    num_samples: int | None = 16,
) -> Scores:
    r"""Returns optimal brain damage's saliency of every parameter.

    .. math:: s_j = \tfrac{1}{2} h_{jj} w_j^2, \quad
              h_{jj} = \partial^2 L / \partial w_j^2

    is by how much the loss grows where a connection of a trained network is removed,
    if the curvature has no terms off the diagonal. A score is negative where the
    curvature is. In a network of piecewise linear units under a convex loss (ReLU or
    max-pooling, cross entropy) a negative score is rounding or noise.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the loss of a batch.
      params: pytree of floating-point arrays, the parameters of a trained network.
      batch: any pytree that ``loss_fn`` takes.
      key: PRNG key of the estimate; the same key gives the same scores.
      num_samples: products with the Hessian that the estimate is the mean of; None for
        the exact diagonal, which takes one product for each parameter and no key, and
        is for small networks.

    Returns:
      A pytree like ``params`` of float32 arrays.

    Raises:
      ValueError: if ``num_samples`` is not a positive integer, there is no key, the
        loss is not a floating-point scalar, or a leaf of ``params`` is not a
        floating-point array.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(x * params["w"] ** 2)
      >>> params = {"w": jnp.array([1.0, -3.0])}
      >>> obd(loss_fn, params, jnp.array([2.0, 1.0]), key=jax.random.key(0))
      {'w': Array([2., 9.], dtype=float32)}

    LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989, equation 5.
    """
    diagonal = hessian_diagonal(
        loss_fn, params, batch, key=key, num_samples=num_samples
    )
    return jax.tree.map(
        lambda h, w: 0.5 * h * jnp.asarray(w, jnp.float32) ** 2, diagonal, params
    )


def hessian_diagonal(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
    num_samples: int | None = 16,
) -> chex.ArrayTree:
    r"""Returns the second derivative of the loss in each parameter by itself.

    .. math:: h_{jj} = E[v_j (H v)_j], \quad v_j = \pm 1 \text{ at random}

    The estimate has no bias, and variance :math:`\sum_{k \ne j} h_{jk}^2` divided by
    the number of samples. It is exact where the Hessian is diagonal. Products add up
    in float32.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the loss of a batch.
      params: pytree of floating-point arrays.
      batch: any pytree that ``loss_fn`` takes.
      key: PRNG key of the signs.
      num_samples: products with the Hessian that the estimate is the mean of; None for
        the exact diagonal, which takes one product for each parameter and no key.

    Returns:
      A pytree like ``params`` of float32 arrays.

    Raises:
      ValueError: if ``num_samples`` is not a positive integer, there is no key, the
        loss is not a floating-point scalar, or a leaf of ``params`` is not a
        floating-point array.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(x * params["w"] ** 2)
      >>> params, x = {"w": jnp.ones(2)}, jnp.array([2.0, 1.0])
      >>> hessian_diagonal(loss_fn, params, x, key=jax.random.key(0))
      {'w': Array([4., 2.], dtype=float32)}

    Bekas, Kokiopoulou, Saad, "An estimator for the diagonal of a matrix", 2007.
    """
    checks.check_floating(params, "params")
    params = jax.tree.map(jnp.asarray, params)
    if num_samples is None:
        return _exact_diagonal(loss_fn, params, batch)
    checks.check_positive_integer(num_samples, "num_samples")
    keys = jax.random.split(
        jax.random.fold_in(checks.check_key(key, "hessian_diagonal"), 0), num_samples
    )
    product = hessian_product(loss_fn, params, batch)

    def add(total: chex.ArrayTree, key: chex.PRNGKey) -> tuple[chex.ArrayTree, None]:
        signs = trees.sampled_like(
            params, key, lambda key, w: jax.random.rademacher(key, w.shape, w.dtype)
        )
        return jax.tree.map(
            lambda t, v, hv: t + (v.astype(hv.dtype) * hv).astype(jnp.float32),
            total,
            signs,
            product(signs),
        ), None

    zeros = jax.tree.map(
        lambda w: trees.placed_like(jnp.zeros(w.shape, jnp.float32), w), params
    )
    total, _ = jax.lax.scan(add, zeros, keys)
    return jax.tree.map(lambda h: h / num_samples, total)


def _exact_diagonal(
    loss_fn: LossFn, params: chex.ArrayTree, batch: Any
) -> chex.ArrayTree:
    product = hessian_product(loss_fn, params, batch)
    leaves, treedef = jax.tree.flatten(params)

    def entry_of(number: int) -> Entries:
        return lambda row, j: row[number].ravel()[j]

    diagonal = [
        hessian_rows(product, params, i, entry_of(i)).reshape(leaf.shape)
        if leaf.size
        else leaf
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, [h.astype(jnp.float32) for h in diagonal])
