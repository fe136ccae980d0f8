"""Synaptic flow: the share of all paths through a network that a connection is on."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import checks, scaled
from snipjax._src.types import LossFn, Scores
from snipjax.saliency.gradient import at_least_float32


def synflow(
    loss_fn: LossFn | None,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
    apply_fn: Callable[[chex.ArrayTree, Any], Any],
    inputs: Any,
) -> Scores:
    r"""Returns the synaptic flow through every parameter, which sees no data.

    .. math:: s_j = \left| \frac{w_j}{R} \frac{\partial R}{\partial |w_j|} \right|,
              \quad R = \sum_k f(1; |w|)_k

    is the share of the paths from inputs to outputs that lead through connection ``j``,
    a path weighing the product of its magnitudes. Without biases the scores of each
    layer that all paths cross sum to one. The reference does not divide by
    :math:`R`; the order is the same.

    Numbers have an exponent of their own, so that a network of a hundred layers neither
    over- nor underflows, written out or as a scan.

    It is meant for rounds: the paper takes a hundred. Taken once, it empties layers at
    high sparsity.

    Args:
      loss_fn: ignored.
      params: pytree of floating-point arrays.
      batch: ignored.
      key: ignored.
      apply_fn: ``(params, inputs) -> outputs``, the network in evaluation mode, with
        logits as outputs: probabilities sum to one whatever the weights are.
      inputs: array ``[n, ...]`` or pytree of arrays that the network takes; only their
        shapes and dtypes are used.

    Returns:
      A pytree like ``params`` of float32 arrays; zeros where no path is left.

    Raises:
      ValueError: if a leaf of ``params`` is not a floating-point array, or ``inputs``
        have no example.

    Example:
      >>> apply_fn = lambda params, x: x @ params["w"] @ params["v"]
      >>> params = {"w": jnp.array([[1.0, -3.0]]), "v": jnp.array([[2.0], [2.0]])}
      >>> x = jnp.ones((5, 1))
      >>> scores = synflow(None, params, None, apply_fn=apply_fn, inputs=x)
      >>> scores["w"].tolist(), scores["v"].ravel().tolist()
      ([[0.25, 0.75]], [0.25, 0.75])

    Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by
    iteratively conserving synaptic flow", NeurIPS 2020, equation 2 and algorithm 1.
    """
    del loss_fn, batch, key
    checks.check_floating(params, "params")
    return _flow(apply_fn, inputs, params, jnp.abs)


def synflow_l2(
    loss_fn: LossFn | None,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
    apply_fn: Callable[[chex.ArrayTree, Any], Any],
    inputs: Any,
) -> Scores:
    r"""Returns the synaptic flow of squared weights through every parameter.

    .. math:: s_j = \left| \frac{w_j^2}{R} \frac{\partial R}{\partial w_j^2} \right|,
              \quad R = \sum_k f(1; w^2)_k

    A path weighs the product of the squares of its weights. The sum over all is the
    part of the trace of the neural tangent kernel that the weights alone decide.

    Args:
      loss_fn: ignored.
      params: pytree of floating-point arrays.
      batch: ignored.
      key: ignored.
      apply_fn: ``(params, inputs) -> outputs``, the network in evaluation mode, with
        logits as outputs: probabilities sum to one whatever the weights are.
      inputs: array ``[n, ...]`` or pytree of arrays that the network takes; only their
        shapes and dtypes are used.

    Returns:
      A pytree like ``params`` of float32 arrays; zeros where no path is left.

    Raises:
      ValueError: if a leaf of ``params`` is not a floating-point array, or ``inputs``
        have no example.

    Example:
      >>> apply_fn = lambda params, x: x @ params["w"]
      >>> params = {"w": jnp.array([[2.0], [-2.0]])}
      >>> synflow_l2(None, params, None, apply_fn=apply_fn, inputs=jnp.ones((5, 2)))
      {'w': Array([[0.5],
             [0.5]], dtype=float32)}

    Patil, Dovrolis, "PHEW: Constructing Sparse Networks that Learn Fast and Generalize
    Well Without Training Data", ICML 2021, section 3; Gebhart, Saxena, Schrater, "A
    Unified Paths Perspective for Pruning at Initialization", 2021.
    """
    del loss_fn, batch, key
    checks.check_floating(params, "params")
    return _flow(apply_fn, inputs, params, jnp.square)


def _flow(
    apply_fn: Callable[[chex.ArrayTree, Any], Any],
    inputs: Any,
    params: chex.ArrayTree,
    weigh: Callable[[chex.Array], chex.Array],
) -> Scores:
    """Returns the gradient of log |R| in the logarithm of each weight's size."""
    checks.check_examples(inputs)
    params = jax.tree.map(jnp.asarray, params)
    sizes = jax.tree.map(lambda w: weigh(w.astype(at_least_float32(w))), params)
    ones = jax.tree.map(lambda x: jnp.ones_like(x[:1]), inputs)

    def total(sizes: chex.ArrayTree) -> chex.Array:
        narrow = jax.tree.map(lambda v, w: v.astype(w.dtype), sizes, params)
        outputs = jax.tree.leaves(apply_fn(narrow, ones))
        return sum(jnp.sum(leaf.astype(at_least_float32(leaf))) for leaf in outputs)

    def log_total(sizes: chex.ArrayTree) -> chex.Array:
        # The exponent is a constant of no gradient.
        r = scaled.evaluate(total)(sizes).value
        return jnp.log(jnp.where(r == 0, 1.0, jnp.abs(r)))

    gradient = jax.grad(log_total)(sizes)
    return jax.tree.map(
        lambda v, g: jnp.abs(v * g).astype(jnp.float32), sizes, gradient
    )
