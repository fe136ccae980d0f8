"""The derivative of the loss in each connection, which gradient criteria share."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import batches, checks, trees
from snipjax._src.types import LossFn


def sensitivity(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
    dtype: chex.ArrayDType = jnp.float32,
) -> chex.ArrayTree:
    r"""Returns the signed derivative of the loss in each connection.

    With a mask :math:`c` of ones multiplied into the parameters :math:`w`,

    .. math:: g_j = \frac{\partial L(c \odot w)}{\partial c_j} \bigg|_{c = 1}
                  = w_j \frac{\partial L}{\partial w_j}.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the loss of a batch,
        without weight decay.
      params: pytree of floating-point arrays, which the loss sees in their own dtype.
      batch: any pytree that ``loss_fn`` takes.
      key: ignored.
      dtype: float32 or bfloat16, in which the derivative is returned. It is taken in
        float32.

    Returns:
      A pytree like ``params`` of arrays of that dtype.

    Raises:
      ValueError: if the loss is not a floating-point scalar, a leaf of ``params`` is
        not a floating-point array, or ``dtype`` is another.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(params["w"] * x)
      >>> sensitivity(loss_fn, {"w": jnp.array([1.0, -3.0])}, jnp.ones(2))
      {'w': Array([ 1., -3.], dtype=float32)}

    Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection
    Sensitivity", ICLR 2019, equation 5.
    """
    del key
    checks.check_floating(params, "params")
    batch = batches.as_arrays(batch)
    # In float16 most of a billion scores that sum to one are zero.
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        raise ValueError(
            f"dtype is {jnp.dtype(dtype)}, in which scores cannot be held; pass "
            "jnp.float32 or jnp.bfloat16"
        )

    def loss_of_mask(mask: chex.ArrayTree) -> chex.Array:
        return checks.check_loss(loss_fn(jax.tree.map(_connect, mask, params), batch))

    # Compiled, the ones and the products with them are no arrays: XLA leaves
    # dL/dc = dL/dw * w, taken a leaf at a time.
    ones = jax.tree.map(lambda w: jnp.ones_like(w, at_least_float32(w)), params)
    derivative = jax.grad(loss_of_mask)(ones)
    return jax.tree.map(lambda g: g.astype(jnp.float32).astype(dtype), derivative)


def at_least_float32(w: chex.Array) -> Any:
    """Returns the dtype of ``w``, or float32 where that is narrower."""
    dtype = jnp.result_type(w)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def zeros_to_add(params: chex.ArrayTree) -> chex.ArrayTree:
    """Returns zeros like the params, in float32 or wider, to add gradients to."""
    return jax.tree.map(
        lambda w: trees.placed_like(jnp.zeros(jnp.shape(w), at_least_float32(w)), w),
        params,
    )


def _connect(mask: chex.Array, param: chex.Array) -> chex.Array:
    # The product is taken in the mask's float32, so that dL/dc = g * w is too; the
    # loss sees the parameter in its own dtype.
    product = mask * jnp.asarray(param, mask.dtype)
    return product.astype(jnp.result_type(param))


def loss_of_kept(loss_fn: LossFn, mask: chex.ArrayTree) -> LossFn:
    """Returns the loss of pruned params, in which pruned connections are constants.

    It has no derivative by them, so that steps of training leave them at zero. The
    params are pruned already, and no copy of them is made.
    """
    return lambda params, batch: loss_fn(_trained(params, mask), batch)


@jax.custom_jvp
def _trained(params: chex.ArrayTree, mask: chex.ArrayTree) -> chex.ArrayTree:
    del mask
    return params


@_trained.defjvp
def _(primals: Any, tangents: Any) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    params, mask = primals
    return params, jax.tree.map(
        lambda keep, t: jnp.where(keep, t, jnp.zeros_like(t)), mask, tangents[0]
    )
