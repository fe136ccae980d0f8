"""Criteria: how much each connection matters to the loss, before any training.

A criterion is a function ``(loss_fn, params, batch) -> scores``. ``scores`` is a
pytree like ``params`` with float32 leaves, larger where a connection matters more.
Pass one to :func:`snipjax.pruning.prune`, or write your own.

Beyond what a gradient takes, :func:`snip` holds its scores alone: the derivative is
the gradient times the parameters, leaf by leaf, and is normalised in place.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import losses, trees
from snipjax._src.losses import Criterion, LossFn, MeanLoss
from snipjax.saliency.second_order import obd, obs

__all__ = [
    "Criterion",
    "LossFn",
    "MeanLoss",
    "magnitude",
    "normalized",
    "obd",
    "obs",
    "random",
    "sensitivity",
    "snip",
]


def snip(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    dtype: chex.ArrayDType = jnp.float32,
) -> chex.ArrayTree:
    r"""Returns the connection sensitivity of every parameter.

    With a mask :math:`c` of ones multiplied into the parameters :math:`w`,

    .. math:: s_j = \frac{|g_j|}{\sum_k |g_k|}, \quad
              g_j = \frac{\partial L(c \odot w)}{\partial c_j} \bigg|_{c = 1}.

    The derivative and the sums are in float32 whatever the parameters' dtype.
    Where every derivative is zero the scores are zero. What the loss keeps for its
    gradient is up to it: wrap layers in ``jax.checkpoint`` or ``flax.linen.remat``
    to compute them again instead, the scores are the same.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the loss on a
        mini-batch, without weight decay. It is compiled once per function object,
        so pass the same object again where you call this repeatedly.
      params: pytree of floating-point arrays.
      batch: what ``loss_fn`` takes, any pytree of arrays; or an iterator of those,
        each of the same shapes. The derivative is then averaged over the batches
        before the absolute value is taken, in memory that does not grow with
        their number.
      dtype: float32, or bfloat16 to hold the scores in half the memory: a
        derivative is then rounded to it as soon as its leaf is known, and so is what
        several batches add up to, which limits their number to some tens. As a
        criterion, ``functools.partial(saliency.snip, dtype=jnp.bfloat16)``.

    Returns:
      A pytree like ``params`` of arrays of that dtype, which sum to one.

    Raises:
      ValueError: if the loss is not a floating-point scalar, ``loss_fn`` is not
        hashable, a leaf of ``params`` is not a floating-point array, the iterator
        is empty, or ``dtype`` is another.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(params["w"] * x)
      >>> snip(loss_fn, {"w": jnp.array([1.0, -3.0])}, jnp.ones(2))
      {'w': Array([0.25, 0.75], dtype=float32)}

    Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection
    Sensitivity", ICLR 2019, equations 5 and 6.
    """
    derivative = sensitivity(loss_fn, params, batch, dtype=dtype)
    return _normalized_magnitude(derivative)


def sensitivity(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    dtype: chex.ArrayDType = jnp.float32,
) -> chex.ArrayTree:
    r"""Returns the signed derivative of the loss in each connection.

    .. math:: g_j = \partial L(c \odot w) / \partial c_j |_{c = 1}

    Arguments and errors are those of :func:`snip`, which takes the absolute value
    of this and normalises it.

    Returns:
      A pytree like ``params`` of arrays of that dtype.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(params["w"] * x)
      >>> sensitivity(loss_fn, {"w": jnp.array([1.0, -3.0])}, jnp.ones(2))
      {'w': Array([ 1., -3.], dtype=float32)}
    """
    trees.check_floating(params, "params")
    losses.check_hashable(loss_fn)
    dtype = _score_dtype(dtype)
    if isinstance(batch, Iterator):
        return _mean_sensitivity(loss_fn, params, batch, dtype)
    _check_batch(batch)
    return _compiled_sensitivity(loss_fn, dtype)(params, batch)


def normalized(sensitivity: chex.ArrayTree) -> chex.ArrayTree:
    r"""Returns the scores of signed derivatives, the last step of :func:`snip`.

    .. math:: s_j = |g_j| / \sum_k |g_k|

    For derivatives that were added up elsewhere, one program for each mini-batch.

    Args:
      sensitivity: pytree of floating-point arrays, as :func:`sensitivity` returns.
        Any positive multiple of it gives the same scores.

    Returns:
      A pytree like it, of the same dtypes, which sums to one; zeros where all
      derivatives are zero.

    Raises:
      ValueError: if a leaf is not a floating-point array.

    Example:
      >>> normalized({"w": jnp.array([1.0, -3.0])})
      {'w': Array([0.25, 0.75], dtype=float32)}

    Lee, Ajanthan, Torr, ICLR 2019, equation 6.
    """
    trees.check_floating(sensitivity, "sensitivity")
    return _magnitude_over(sensitivity, *_divisors(sensitivity))


def magnitude(loss_fn: LossFn, params: chex.ArrayTree, batch: Any) -> chex.ArrayTree:
    """Returns ``|w|`` of every parameter ``w``, the baseline that sees no data.

    Args:
      loss_fn: not used; here so that criteria are interchangeable.
      params: pytree of floating-point arrays.
      batch: not used.

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
    del loss_fn, batch
    trees.check_floating(params, "params")
    return jax.tree.map(lambda w: jnp.abs(jnp.asarray(w, jnp.float32)), params)


def random(key: chex.PRNGKey) -> Criterion:
    """Returns a criterion that scores connections uniformly at random in [0, 1).

    Args:
      key: the PRNG key that the scores are drawn from.

    Returns:
      A criterion. It raises a ``ValueError`` where a leaf of its ``params`` is not
      a floating-point array.

    Example:
      >>> criterion = random(jax.random.key(0))
      >>> criterion(None, {"w": jnp.ones(3)}, None)["w"].shape
      (3,)
    """

    def criterion(
        loss_fn: LossFn, params: chex.ArrayTree, batch: Any
    ) -> chex.ArrayTree:
        del loss_fn, batch
        trees.check_floating(params, "params")
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key, max(len(leaves), 1))
        scores = [
            jax.random.uniform(leaf_key, jnp.shape(leaf))
            for leaf_key, leaf in zip(keys, leaves)
        ]
        return jax.tree.unflatten(treedef, scores)

    return criterion


def _score_dtype(dtype: chex.ArrayDType) -> jnp.dtype:
    # Of float16's range a billion scores that sum to one are below the least.
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        raise ValueError(
            f"dtype is {jnp.dtype(dtype)}, in which scores cannot be held; pass "
            "jnp.float32 or jnp.bfloat16"
        )
    return jnp.dtype(dtype)


def _check_batch(batch: Any) -> None:
    trees.check_arrays(
        batch, "batch", "pass a pytree of arrays, or iter(loader) for several batches"
    )


# Bounded, because a loss function holds on to all that it closes over.
@functools.lru_cache(maxsize=16)
def _compiled_sensitivity(
    loss_fn: LossFn, dtype: jnp.dtype
) -> Callable[..., chex.ArrayTree]:
    def sensitivity(params: chex.ArrayTree, batch: Any) -> chex.ArrayTree:
        # The mean of the gradients is the gradient of the mean, but each batch is
        # gone through once, and nothing is rounded to the parameters' dtype.
        if isinstance(loss_fn, MeanLoss):
            return _mean_of_stacked(loss_fn.loss_fn, params, batch, dtype)
        return _as(dtype, _sensitivity(loss_fn, params, batch))

    return jax.jit(sensitivity)


@functools.lru_cache(maxsize=16)
def _compiled_addition(loss_fn: LossFn) -> Callable[..., chex.ArrayTree]:
    def addition(
        total: chex.ArrayTree, params: chex.ArrayTree, batch: Any
    ) -> chex.ArrayTree:
        return _sum(total, _sensitivity(loss_fn, params, batch))

    return jax.jit(addition, donate_argnums=0)


def _sensitivity(loss_fn: LossFn, params: chex.ArrayTree, batch: Any) -> chex.ArrayTree:
    """The derivative in each connection, in float32."""

    def loss_of_mask(mask: chex.ArrayTree) -> chex.Array:
        loss = loss_fn(jax.tree.map(_connect, mask, params), batch)
        losses.check_scalar(loss)
        return loss

    # Compiled, the ones and the products with them are no arrays: XLA leaves
    # dL/dc = dL/dw * w, taken a leaf at a time.
    ones = jax.tree.map(lambda w: jnp.ones_like(w, losses.at_least_float32(w)), params)
    derivative = jax.grad(loss_of_mask)(ones)
    return jax.tree.map(lambda g: g.astype(jnp.float32), derivative)


def _connect(mask: chex.Array, param: chex.Array) -> chex.Array:
    # The product is taken in the mask's float32, so that dL/dc = g * w is too; the
    # loss sees the parameter in its own dtype.
    product = mask * jnp.asarray(param, mask.dtype)
    return product.astype(jnp.result_type(param))


def _mean_of_stacked(
    loss_fn: LossFn, params: chex.ArrayTree, batches: Any, dtype: jnp.dtype
) -> chex.ArrayTree:
    def add(total: chex.ArrayTree, batch: Any) -> tuple[chex.ArrayTree, None]:
        # Or XLA would take what it makes of the parameters alone, such as a copy of
        # another dtype, out of the loop, and have it for all of them at once.
        constant, batch = jax.lax.optimization_barrier((params, batch))
        return _sum(total, _sensitivity(loss_fn, constant, batch)), None

    zeros = jax.tree.map(lambda w: jnp.zeros_like(w, dtype), params)
    total, _ = jax.lax.scan(add, zeros, batches)
    return _divided(total, len(jax.tree.leaves(batches)[0]))


def _mean_sensitivity(
    loss_fn: LossFn, params: chex.ArrayTree, batches: Iterator, dtype: jnp.dtype
) -> chex.ArrayTree:
    total = jax.tree.map(lambda w: jnp.zeros_like(w, dtype), params)
    count = 0
    for batch in batches:
        _check_batch(batch)
        total = _compiled_addition(loss_fn)(total, params, batch)
        count += 1
    if not count:
        raise ValueError(
            "batch is an iterator that yields nothing; pass at least one batch (an "
            "iterator can be read only once)"
        )
    divided = _divided if trees.is_traced(total) else _divided_in_place
    return divided(total, count)


def _sum(total: chex.ArrayTree, more: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(lambda t, m: (t + m).astype(t.dtype), total, more)


def _divided(tree: chex.ArrayTree, divisor: chex.Numeric) -> chex.ArrayTree:
    return jax.tree.map(
        lambda x: (x.astype(jnp.float32) / divisor).astype(x.dtype), tree
    )


def _as(dtype: jnp.dtype, tree: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def _normalized_magnitude(derivative: chex.ArrayTree) -> chex.ArrayTree:
    # In two programs: in one, XLA keeps what both have in common for all leaves.
    divide = (
        _magnitude_over if trees.is_traced(derivative) else _in_place_magnitude_over
    )
    return divide(derivative, *_divisors(derivative))


@jax.jit
def _divisors(
    derivative: chex.ArrayTree,
) -> tuple[chex.Array, chex.Array, chex.Array]:
    """A scale, the largest magnitude by that scale, and the sum relative to it.

    Dividing by the largest first keeps the sum from overflowing, and the scale the
    product of both, which XLA may divide by. Where an entry is not finite, all are 1:
    selection can then name its leaf, and no other.
    """
    leaves = jax.tree.leaves(derivative)
    largest, total = jnp.float32(0.0), jnp.float32(0.0)
    for g in leaves:
        largest = jnp.maximum(largest, jnp.max(jnp.abs(g), initial=0.0))
    largest = jnp.where(jnp.isfinite(largest) & (largest > 0.0), largest, 1.0)
    scale = jnp.where(largest > 2.0**64, 2.0**-64, 1.0)
    largest *= scale
    for g in leaves:
        # Adds nothing: it has a leaf wait for the one before, and take its memory.
        after = scale + 0.0 * total
        total += jnp.sum(jnp.abs(g.astype(jnp.float32) * after) / largest)
    total = jnp.where(jnp.isfinite(total) & (total > 0.0), total, 1.0)
    return scale, largest, total


@jax.jit
def _magnitude_over(
    derivative: chex.ArrayTree,
    scale: chex.Array,
    largest: chex.Array,
    total: chex.Array,
) -> chex.ArrayTree:
    def normalized(g: chex.Array) -> chex.Array:
        magnitude = jnp.abs(g).astype(jnp.float32) * scale
        return (magnitude / largest / total).astype(g.dtype)

    return jax.tree.map(normalized, derivative)


_in_place_magnitude_over = jax.jit(_magnitude_over, donate_argnums=0)
_divided_in_place = jax.jit(_divided, donate_argnums=0)
