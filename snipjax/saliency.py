"""Criteria: how much each connection matters to the loss, before any training.

A criterion is a function ``(loss_fn, params, batch) -> scores``. ``scores`` is a
pytree like ``params`` with float32 leaves, larger where a connection matters more.
Pass one to :func:`snipjax.pruning.prune`, or write your own.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax import losses, trees
from snipjax.losses import Criterion, LossFn, MeanLoss
from snipjax.second_order import obd, obs

__all__ = [
    "Criterion",
    "LossFn",
    "MeanLoss",
    "magnitude",
    "obd",
    "obs",
    "random",
    "sensitivity",
    "snip",
]


def snip(loss_fn: LossFn, params: chex.ArrayTree, batch: Any) -> chex.ArrayTree:
    r"""Returns the connection sensitivity of every parameter.

    With a mask :math:`c` of ones multiplied into the parameters :math:`w`,

    .. math:: s_j = \frac{|g_j|}{\sum_k |g_k|}, \quad
              g_j = \frac{\partial L(c \odot w)}{\partial c_j} \bigg|_{c = 1}.

    The derivative and the sums are in float32 whatever the parameters' dtype.
    Where every derivative is zero the scores are zero.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the loss on a
        mini-batch, without weight decay. It is compiled once per function object,
        so pass the same object again where you call this repeatedly.
      params: pytree of floating-point arrays.
      batch: what ``loss_fn`` takes, any pytree of arrays; or an iterator of those,
        each of the same shapes. The derivative is then averaged over the batches
        before the absolute value is taken, in memory that does not grow with
        their number.

    Returns:
      A pytree like ``params`` of float32 arrays that sum to one.

    Raises:
      ValueError: if the loss is not a floating-point scalar, ``loss_fn`` is not
        hashable, a leaf of ``params`` is not a floating-point array, or the iterator
        is empty.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(params["w"] * x)
      >>> snip(loss_fn, {"w": jnp.array([1.0, -3.0])}, jnp.ones(2))
      {'w': Array([0.25, 0.75], dtype=float32)}

    Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection
    Sensitivity", ICLR 2019, equations 5 and 6.
    """
    return _normalized_magnitude(sensitivity(loss_fn, params, batch))


def sensitivity(loss_fn: LossFn, params: chex.ArrayTree, batch: Any) -> chex.ArrayTree:
    r"""Returns the signed derivative of the loss in each connection.

    .. math:: g_j = \partial L(c \odot w) / \partial c_j |_{c = 1}

    Arguments and errors are those of :func:`snip`, which takes the absolute value
    of this and normalises it.

    Returns:
      A pytree like ``params`` of float32 arrays.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(params["w"] * x)
      >>> sensitivity(loss_fn, {"w": jnp.array([1.0, -3.0])}, jnp.ones(2))
      {'w': Array([ 1., -3.], dtype=float32)}
    """
    trees.check_floating(params, "params")
    losses.check_hashable(loss_fn)
    if isinstance(batch, Iterator):
        return _mean_sensitivity(loss_fn, params, batch)
    trees.check_arrays(
        batch, "batch", "pass a pytree of arrays, or iter(loader) for several batches"
    )
    return _compiled_sensitivity(loss_fn)(params, batch)


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


# Bounded, because a loss function holds on to all that it closes over.
@functools.lru_cache(maxsize=16)
def _compiled_sensitivity(loss_fn: LossFn) -> Callable[..., chex.ArrayTree]:
    return jax.jit(functools.partial(_sensitivity, loss_fn))


def _sensitivity(loss_fn: LossFn, params: chex.ArrayTree, batch: Any) -> chex.ArrayTree:
    # The mean of the gradients is the gradient of the mean, but each batch is gone
    # through once, and nothing is rounded to the parameters' dtype on the way.
    if isinstance(loss_fn, MeanLoss):
        return _mean_of_stacked(loss_fn.loss_fn, params, batch)

    def loss_of_mask(mask: chex.ArrayTree) -> chex.Array:
        loss = loss_fn(jax.tree.map(_connect, mask, params), batch)
        losses.check_scalar(loss)
        return loss

    ones = jax.tree.map(lambda w: jnp.ones_like(w, losses.at_least_float32(w)), params)
    derivative = jax.grad(loss_of_mask)(ones)
    return jax.tree.map(lambda g: g.astype(jnp.float32), derivative)


def _mean_of_stacked(
    loss_fn: LossFn, params: chex.ArrayTree, batches: Any
) -> chex.ArrayTree:
    def add(total: chex.ArrayTree, batch: Any) -> tuple[chex.ArrayTree, None]:
        derivative = _sensitivity(loss_fn, params, batch)
        return jax.tree.map(jnp.add, total, derivative), None

    zeros = jax.tree.map(lambda w: jnp.zeros_like(w, jnp.float32), params)
    total, _ = jax.lax.scan(add, zeros, batches)
    count = len(jax.tree.leaves(batches)[0])
    return jax.tree.map(lambda g: g / count, total)


def _connect(mask: chex.Array, param: chex.Array) -> chex.Array:
    # The product is taken in the mask's float32, so that dL/dc = g * w is too; the
    # loss sees the parameter in its own dtype.
    product = mask * jnp.asarray(param, mask.dtype)
    return product.astype(jnp.result_type(param))


def _mean_sensitivity(
    loss_fn: LossFn, params: chex.ArrayTree, batches: Iterator
) -> chex.ArrayTree:
    total, count = None, 0
    for batch in batches:
        derivative = sensitivity(loss_fn, params, batch)
        total = derivative if total is None else _add(total, derivative)
        count += 1
    if total is None:
        raise ValueError(
            "batch is an iterator that yields nothing; pass at least one batch (an "
            "iterator can be read only once)"
        )
    return jax.tree.map(lambda g: g / count, total)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: chex.ArrayTree, more: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(jnp.add, total, more)


@jax.jit
def _normalized_magnitude(derivative: chex.ArrayTree) -> chex.ArrayTree:
    magnitudes = jax.tree.map(jnp.abs, derivative)
    if not jax.tree.leaves(magnitudes):
        return magnitudes
    # Dividing by the largest first keeps the sum from overflowing. Non-finite
    # entries stay where they are, so that selection can name their leaf.
    finite = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0.0), magnitudes)
    largest = jax.tree.reduce(jnp.maximum, jax.tree.map(_max_or_zero, finite))
    largest = jnp.where(largest > 0.0, largest, 1.0)
    total = sum(jnp.sum(g / largest) for g in jax.tree.leaves(finite))
    total = jnp.where(total > 0.0, total, 1.0)
    return jax.tree.map(lambda g: g / largest / total, magnitudes)


def _max_or_zero(x: chex.Array) -> chex.Array:
    return jnp.max(x, initial=0.0)
