"""The magnitude of weights, the criterion that sees no data."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import checks
from snipjax._src.types import LossFn, Scores


def magnitude(
    loss_fn: LossFn | None,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
) -> Scores:
    """Returns the magnitude of every parameter.

    .. math:: s_j = |w_j|

    Args:
      loss_fn: ignored.
      params: pytree of floating-point arrays.
      batch: ignored.
      key: ignored.

    Returns:
      A pytree like ``params`` of float32 arrays.

    Raises:
      ValueError: if a leaf of ``params`` is not a floating-point array.

    Example:
      >>> magnitude(None, {"w": jnp.array([1.0, -3.0])}, None)
      {'w': Array([1., 3.], dtype=float32)}

    Han et al., "Learning both Weights and Connections for Efficient Neural
    Networks", NIPS 2015 (there after training).
    """
    del loss_fn, batch, key
    checks.check_floating(params, "params")
    return jax.tree.map(lambda w: jnp.abs(jnp.asarray(w, jnp.float32)), params)
