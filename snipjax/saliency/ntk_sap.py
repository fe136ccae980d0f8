"""NTK-SAP: what a connection does to the spectrum of the neural tangent kernel."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import checks, trees
from snipjax._src.types import LossFn, Scores
from snipjax.saliency.gradient import at_least_float32, zeros_to_add


def ntk_sap(
    loss_fn: LossFn | None,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
    apply_fn: Callable[[chex.ArrayTree, Any], chex.Array],
    inputs: Any,
    init_fn: Callable[[chex.PRNGKey], chex.ArrayTree],
    normalized_by: Callable[[chex.ArrayTree, Any], Callable[..., chex.Array]]
    | None = None,
    num_samples: int = 5,
    epsilon: float = 1e-2,
) -> Scores:
    r"""Returns the sensitivity of outputs' changes under small changes of all weights.

    .. math:: s_j = \left| m_j \frac{\partial}{\partial m_j} E \,
              \| f(z; w \odot m) - f(z; (w + \epsilon n) \odot m) \|^2 \right|

    The expectation is over Gaussian inputs :math:`z`, Gaussian changes :math:`n` and
    samples :math:`w` of the weights. Divided by :math:`\epsilon^2` it is the trace of
    the neural tangent kernel, to first order. Neither data nor the values of ``params``
    are used: :math:`m` is where they are not zero, so that zeros are pruned
    connections. Scores of zeros are zero.

    It is meant for rounds: the paper takes twenty.

    Args:
      loss_fn: ignored.
      params: pytree of floating-point arrays, in which a zero is a pruned connection.
      batch: ignored.
      key: PRNG key of inputs, changes and weights.
      apply_fn: ``(params, inputs) -> outputs [n, ...]``, the network in evaluation
        mode.
      inputs: array ``[n, ...]`` or pytree of arrays, of floating-point dtypes; of its
        values none is used.
      init_fn: ``key -> params``, a sample of the weights.
      normalized_by: ``(params, inputs) -> apply_fn``, the network with the batch
        statistics that these params have on these inputs: :math:`w \odot m` and
        :math:`z`, for both of the outputs, as in the paper's code. A sparse network
        with batch norm needs it: with the statistics of initialization its outputs
        vanish, and so do the scores. By default it is ``apply_fn``.
      num_samples: number of samples that the expectation is the mean of.
      epsilon: standard deviation of a change.

    Returns:
      A pytree like ``params`` of float32 arrays.

    Raises:
      ValueError: if there is no key, ``num_samples`` is not a positive integer, a leaf
        of ``params`` or ``inputs`` is not a floating-point array, or ``init_fn`` makes
        another pytree.

    Example:
      >>> scores = ntk_sap(
      ...     None, {"w": jnp.array([1.0, 0.0])}, None, key=jax.random.key(0),
      ...     apply_fn=lambda params, x: x * params["w"], inputs=jnp.ones((5, 2)),
      ...     init_fn=lambda key: {"w": jax.random.normal(key, (2,))})
      >>> (scores["w"] > 0).tolist()
      [True, False]

    Wang, Li, Sun, "NTK-SAP: Improving neural network pruning by aligning training
    dynamics", ICLR 2023, equation 9 and algorithm 1.
    """
    del loss_fn, batch
    key = checks.check_key(key, "ntk_sap")
    checks.check_positive_integer(num_samples, "num_samples")
    checks.check_floating(params, "params")
    checks.check_floating(inputs, "inputs")
    checks.check_examples(inputs)
    params = jax.tree.map(jnp.asarray, params)
    like = jax.eval_shape(init_fn, key)
    checks.check_same_shapes(like, params, "the sample of init_fn", "params")

    def masked(mask: chex.ArrayTree, tree: chex.ArrayTree) -> chex.ArrayTree:
        return jax.tree.map(
            lambda m, w: (m * w.astype(m.dtype)).astype(w.dtype), mask, tree
        )

    def distance(mask: chex.ArrayTree, key: chex.PRNGKey) -> chex.Array:
        input_key, weight_key, change_key = jax.random.split(key, 3)
        z = _normal(input_key, inputs)
        weights = init_fn(weight_key)
        changes = _normal(change_key, params)
        changed = jax.tree.map(lambda w, n: w + epsilon * n, weights, changes)
        network = apply_fn
        if normalized_by is not None:
            network = normalized_by(jax.lax.stop_gradient(masked(mask, weights)), z)
        here, there = (network(masked(mask, tree), z) for tree in (weights, changed))
        difference = (here - there).astype(at_least_float32(here))
        return jnp.sum(difference**2) / len(here)

    def add(total: chex.ArrayTree, key: chex.PRNGKey) -> tuple[chex.ArrayTree, None]:
        gradient = jax.grad(distance)(mask, key)
        return jax.tree.map(jnp.add, total, gradient), None

    mask = jax.tree.map(lambda w: (w != 0).astype(at_least_float32(w)), params)
    keys = jax.random.split(key, num_samples)
    total, _ = jax.lax.scan(add, zeros_to_add(mask), keys)
    return jax.tree.map(
        lambda m, t: jnp.abs(m * t / num_samples).astype(jnp.float32), mask, total
    )


def _normal(key: chex.PRNGKey, like: chex.ArrayTree) -> chex.ArrayTree:
    return trees.sampled_like(
        like,
        key,
        lambda key, x: jax.random.normal(key, jnp.shape(x), jnp.result_type(x)),
    )
