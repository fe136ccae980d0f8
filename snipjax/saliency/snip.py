"""Connection sensitivity, the criterion of SNIP."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import checks
from snipjax._src.types import LossFn, Scores
from snipjax.saliency.gradient import sensitivity


def snip(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
    dtype: chex.ArrayDType = jnp.float32,
) -> Scores:
    r"""Returns the connection sensitivity of every parameter.

    With a mask :math:`c` of ones multiplied into the parameters :math:`w`,

    .. math:: s_j = \frac{|g_j|}{\sum_k |g_k|}, \quad
              g_j = \frac{\partial L(c \odot w)}{\partial c_j} \bigg|_{c = 1}.

    The derivative and the sum are taken in float32 whatever the parameters' dtype.
    Compiled, it holds the scores alone beyond what a gradient takes.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the loss of a batch,
        without weight decay.
      params: pytree of floating-point arrays.
      batch: any pytree that ``loss_fn`` takes.
      key: ignored.
      dtype: float32, or bfloat16 to hold the scores in half the memory.

    Returns:
      A pytree like ``params`` of arrays of that dtype, which sum to one; zeros where
      every derivative is zero.

    Raises:
      ValueError: if the loss is not a floating-point scalar, a leaf of ``params`` is
        not a floating-point array, or ``dtype`` is another.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(params["w"] * x)
      >>> snip(loss_fn, {"w": jnp.array([1.0, -3.0])}, jnp.ones(2))
      {'w': Array([0.25, 0.75], dtype=float32)}

    Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection
    Sensitivity", ICLR 2019, equations 5 and 6.
    """
    del key
    return normalized(sensitivity(loss_fn, params, batch, dtype=dtype))


def normalized(derivative: chex.ArrayTree) -> Scores:
    r"""Returns magnitudes divided by their sum over all leaves.

    .. math:: s_j = |g_j| / \sum_k |g_k|

    Args:
      derivative: pytree of floating-point arrays. Any positive multiple of it gives
        the same scores.

    Returns:
      A pytree like it, of the same dtypes, which sums to one; zeros where every entry
      is zero. Entries that are not finite stay so, and all others are finite.

    Raises:
      ValueError: if a leaf is not a floating-point array.

    Example:
      >>> normalized({"w": jnp.array([1.0, -3.0])})
      {'w': Array([0.25, 0.75], dtype=float32)}

    Lee, Ajanthan, Torr, ICLR 2019, equation 6.
    """
    checks.check_floating(derivative, "derivative")
    # Or XLA would keep the magnitudes of all leaves, which both steps begin with.
    scale, largest, total = _divisors(derivative)
    derivative, scale = jax.lax.optimization_barrier((derivative, scale))

    def over_divisors(g: chex.Array) -> chex.Array:
        magnitude = jnp.abs(g).astype(jnp.float32) * scale
        return (magnitude / largest / total).astype(g.dtype)

    return jax.tree.map(over_divisors, derivative)


def _divisors(
    derivative: chex.ArrayTree,
) -> tuple[chex.Array, chex.Array, chex.Array]:
    """Returns a scale, the largest magnitude by it, and the sum relative to it.

    Dividing by the largest first keeps the sum from overflowing, and the scale the
    product of both, which XLA may divide by. If an entry is not finite, all are 1:
    selection can then name its leaf, and no other.
    """
    leaves = jax.tree.leaves(derivative)
    largest, total = jnp.float32(0.0), jnp.float32(0.0)
    for g in leaves:
        largest = jnp.maximum(
            largest, jnp.max(jnp.abs(g), initial=0.0).astype(jnp.float32)
        )
    largest = jnp.where(jnp.isfinite(largest) & (largest > 0.0), largest, 1.0)
    scale = jnp.where(largest > 2.0**64, 2.0**-64, 1.0)
    largest *= scale
    for g in leaves:
        # Adds nothing: it has a leaf wait for the one before, and take its memory.
        after = scale + 0.0 * total
        total += jnp.sum(jnp.abs(g.astype(jnp.float32) * after) / largest)
    total = jnp.where(jnp.isfinite(total) & (total > 0.0), total, 1.0)
    return scale, largest, total
