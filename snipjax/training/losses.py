"""Losses of a Flax network on a batch of images and labels."""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from snipjax.training.state import Batch

Loss = Callable[[chex.Array, chex.Array], chex.Array]
r"""The type of a loss of logits, ``(logits, labels) -> scalar``, a mean of examples.

.. math:: \frac{1}{n} \sum_{i=1}^n \ell(z_i, y_i)

for logits ``[n, classes]`` of a floating-point dtype and integer labels ``[n]``.

Example:
  >>> def squared_error(logits, labels):
  ...     return jnp.mean((logits - jax.nn.one_hot(labels, 2)) ** 2)
  >>> squared_error(jnp.zeros((3, 2)), jnp.array([0, 1, 1]))
  Array(0.5, dtype=float32)
"""


def cross_entropy(logits: chex.Array, labels: chex.Array) -> chex.Array:
    r"""Returns the mean cross entropy in nats, in float32.

    .. math:: -\frac{1}{n} \sum_{i=1}^n
              \Big(z_{i y_i} - \log \sum_k e^{z_{ik}}\Big)

    for the logits :math:`z_i` and the label :math:`y_i` of each example.

    Args:
      logits: ``[n, classes]``, of any floating-point dtype.
      labels: integers ``[n]``.

    Returns:
      A float32 scalar.

    Example:
      >>> loss = cross_entropy(jnp.zeros((1, 2)), jnp.array([0]))
      >>> round(float(loss), 4)  # log 2
      0.6931
    """
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), labels
        )
    )


def inference_loss(
    model: nn.Module, batch_stats: chex.ArrayTree, *, loss: Loss = cross_entropy
) -> Callable[[chex.ArrayTree, Batch], chex.Array]:
    r"""Returns ``(params, batch) -> loss`` with batch norm in inference mode.

    .. math:: L(w; B) = \frac{1}{n} \sum_{(x, y) \in B} \ell(f(w, x), y)

    With the statistics of initialization, mean 0 and variance 1, batch norm is then
    the identity: the loss of the paper's saliency pass.

    Args:
      model: a Flax module, called with ``train``.
      batch_stats: the statistics of its batch norms, ``{}`` without any.
      loss: ``(logits, labels) -> scalar``, the mean over examples.

    Returns:
      A loss function, as criteria take it.

    Example:
      >>> from snipjax import models
      >>> model = models.create("lenet_300_100", num_classes=2)
      >>> batch = Batch(jnp.zeros((3, 2, 2, 1)), jnp.array([0, 1, 1]))
      >>> params = model.init(jax.random.key(0), batch.images)["params"]
      >>> loss_fn = inference_loss(model, {})
      >>> round(float(loss_fn(params, batch)), 4)  # log 2, of inputs that are 0
      0.6931
    """

    def loss_fn(params: chex.ArrayTree, batch: Batch) -> chex.Array:
        variables = {"params": params, "batch_stats": batch_stats}
        return loss(model.apply(variables, batch.images, train=False), batch.labels)

    return loss_fn


def batch_loss(
    model: nn.Module, batch_stats: chex.ArrayTree, *, loss: Loss = cross_entropy
) -> Callable[[chex.ArrayTree, Batch], chex.Array]:
    r"""Returns ``(params, batch) -> loss`` with batch norm over the batch itself.

    .. math:: L(w; B) = \frac{1}{n} \sum_{(x, y) \in B} \ell(f(w, x; B), y)

    New statistics are dropped.

    Args:
      model: a Flax module, called with ``train``.
      batch_stats: the statistics of its batch norms, ``{}`` without any.
      loss: ``(logits, labels) -> scalar``, the mean over examples.

    Returns:
      A loss function, as criteria take it.

    Example:
      >>> from snipjax import models
      >>> model = models.create("lenet_300_100", num_classes=2)
      >>> batch = Batch(jnp.zeros((3, 2, 2, 1)), jnp.array([0, 1, 1]))
      >>> params = model.init(jax.random.key(0), batch.images)["params"]
      >>> round(float(batch_loss(model, {})(params, batch)), 4)  # log 2
      0.6931
    """

    def loss_fn(params: chex.ArrayTree, batch: Batch) -> chex.Array:
        logits, _ = apply_training(model, params, batch_stats, batch.images)
        return loss(logits, batch.labels)

    return loss_fn


def apply_training(
    model: nn.Module,
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    images: chex.Array,
) -> tuple[chex.Array, chex.ArrayTree]:
    logits, changed = model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
    )
    return logits, changed.get("batch_stats", batch_stats)


def batch_statistics(
    model: nn.Module,
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    images: chex.Array,
) -> chex.ArrayTree:
    r"""Returns the statistics that batch norms take of a batch.

    A step takes running statistics from :math:`r` to
    :math:`\alpha r + (1 - \alpha) s`. From zero and from one it takes them to
    :math:`a` and :math:`b`, so that :math:`s = a / (1 - (b - a))`.

    Args:
      model: a Flax module, called with ``train``.
      params: its parameters.
      batch_stats: statistics of its batch norms, of which the shapes and dtypes are
        used; ``{}`` without any.
      images: the batch ``[n, ...]``.

    Returns:
      A pytree like ``batch_stats``.

    Example:
      >>> class Norm(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, train):
      ...         return nn.BatchNorm(use_running_average=not train)(x)
      >>> images = jnp.array([[1.0], [3.0], [8.0]])
      >>> variables = Norm().init(jax.random.key(0), images, train=False)
      >>> found = batch_statistics(Norm(), **variables, images=images)["BatchNorm_0"]
      >>> round(float(found["mean"][0]), 3), round(float(found["var"][0]), 3)
      (4.0, 8.667)
    """

    def after(start: chex.Array) -> chex.ArrayTree:
        begun = jax.tree.map(lambda x: jnp.full_like(x, start), batch_stats)
        return apply_training(model, params, begun, images)[1]

    # The share is the same in all entries of a leaf; a large s leaves few digits of it.
    # Only the last line of a batch norm depends on the start and is computed twice.
    return jax.tree.map(
        lambda x: x[0] / (1 - jnp.median(x[1] - x[0])), jax.vmap(after)(jnp.arange(2.0))
    )
