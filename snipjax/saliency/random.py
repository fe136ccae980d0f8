"""Scores at random, the criterion that every other must beat."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import checks, trees
from snipjax._src.types import LossFn, Scores


def random(
    loss_fn: LossFn | None,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
) -> Scores:
    r"""Returns scores that are uniform at random in [0, 1).

    .. math:: s_j \sim \mathrm{Uniform}[0, 1), \quad \text{independent for all } j

    Args:
      loss_fn: ignored.
      params: pytree of floating-point arrays.
      batch: ignored.
      key: PRNG key of the scores; the same key gives the same scores.

    Returns:
      A pytree like ``params`` of float32 arrays.

    Raises:
      ValueError: if there is no key, or a leaf of ``params`` is not a floating-point
        array.

    Example:
      >>> random(None, {"w": jnp.ones(3)}, None, key=jax.random.key(0))["w"].shape
      (3,)
    """
    del loss_fn, batch
    key = checks.check_key(key, "random")
    checks.check_floating(params, "params")
    return trees.sampled_like(
        params, key, lambda key, w: jax.random.uniform(key, jnp.shape(w), jnp.float32)
    )
