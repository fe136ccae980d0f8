"""One training step, many in one program, and the evaluation of a network."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from snipjax.training.losses import Loss, apply_training, cross_entropy
from snipjax.training.state import Batch, Metrics, TrainState

Preprocess = Callable[[chex.Array], chex.Array]
"""The type of preprocessing, ``images -> inputs``.

``images`` are a batch as it is stored, e.g. uint8 ``[n, height, width, channels]``, and
``inputs`` a batch as the model takes it, of a floating-point dtype.

Example:
  >>> def preprocess(images):
  ...     return images.astype(jnp.float32) / 255
  >>> preprocess(jnp.array([0, 255], jnp.uint8))
  Array([0., 1.], dtype=float32)
"""
Augment = Callable[[chex.PRNGKey, chex.Array], chex.Array]
"""The type of augmentation, ``(key, inputs) -> inputs``, of the same shape and dtype.

``key`` is the PRNG key of a step, and ``inputs`` are preprocessed images
``[n, height, width, channels]``.

Example:
  >>> def mirror(key, images):
  ...     is_mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  ...     return jnp.where(is_mirrored, images[:, :, ::-1], images)
  >>> mirror(jax.random.key(0), jnp.zeros((2, 4, 4, 3))).shape
  (2, 4, 4, 3)
"""
Prepare = Callable[[chex.PRNGKey, Any], Any]
"""The type of preparation, ``(key, stored batch) -> batch``, as a step takes it.

``key`` is the PRNG key of a step, and both batches are pytrees of arrays with a leading
axis of examples.

Example:
  >>> prepare = preparation(lambda images: images / 255)
  >>> batch = Batch(jnp.full((1, 2, 2, 1), 255.0), jnp.array([1]))
  >>> prepare(jax.random.key(0), batch).images.max()
  Array(1., dtype=float32)
"""
Transform = Callable[[Callable[..., Any]], Callable[..., Any]]
"""The type of a transformation, a function to a function of the same values.

It takes a function ``params -> (loss, aux)`` and returns one like it, as
:func:`jax.checkpoint` does.

Example:
  >>> transform = jax.checkpoint  # recomputes the forward pass for the gradient
  >>> jax.grad(transform(lambda w: w**2))(3.0)
  Array(6., dtype=float32, weak_type=True)
"""


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    loss: Loss = cross_entropy,
    transform: Transform = lambda loss_fn: loss_fn,
) -> tuple[TrainState, Metrics]:
    r"""Returns the state after one step on a preprocessed batch, and its metrics.

    .. math:: w_{t+1} = w_t + u(\nabla L(w_t; B_t))

    for the params :math:`w`, the batch :math:`B` and the update :math:`u` of the
    optimizer.

    Args:
      state: the state before the step.
      batch: images as the model takes them, and labels.
      model: a Flax module, called with ``train``.
      optimizer: the optimizer that made ``state.opt_state``.
      loss: ``(logits, labels) -> scalar``, the mean over examples.
      transform: wraps the loss, a function of the params, before differentiation,
        e.g. ``jax.checkpoint``.

    Returns:
      ``(state, metrics)``; the metrics are of the params before the step.

    Example:
      >>> from snipjax import models, training
      >>> model = models.create("lenet_300_100", num_classes=2)
      >>> batch = Batch(jnp.zeros((3, 2, 2, 1)), jnp.array([0, 1, 1]))
      >>> optimizer = optax.sgd(0.1)
      >>> variables = model.init(jax.random.key(0), batch.images)
      >>> state = training.init_state(variables, optimizer, jax.random.key(1))
      >>> state, metrics = train_step(state, batch, model=model, optimizer=optimizer)
      >>> int(state.step), round(float(metrics.loss), 4)
      (1, 0.6931)
    """

    def loss_fn(params: chex.ArrayTree, batch: Batch) -> tuple[chex.Array, Any]:
        logits, batch_stats = apply_training(
            model, params, state.batch_stats, batch.images
        )
        return loss(logits, batch.labels), (logits, batch_stats)

    def value_fn(params: chex.ArrayTree) -> tuple[chex.Array, Any]:
        return loss_fn(params, batch)

    value_and_grad = jax.value_and_grad(transform(value_fn), has_aux=True)
    (value, (logits, batch_stats)), grads = value_and_grad(state.params)
    # A criterion by which a mask moves may look at the loss.
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads,
        state.opt_state,
        state.params,
        loss_fn=lambda params, batch: loss_fn(params, batch)[0],
        batch=batch,
    )
    params = optax.apply_updates(state.params, updates)
    error = jnp.mean(jnp.argmax(logits, axis=-1) != batch.labels)
    state = TrainState(state.step + 1, params, batch_stats, opt_state, state.key)
    return state, Metrics(value, error)


def preparation(preprocess: Preprocess, augment: Augment | None = None) -> Prepare:
    r"""Returns ``(key, stored batch) -> preprocessed and augmented batch``.

    .. math:: x \mapsto augment(key, preprocess(x))

    on the images; labels stay.

    Args:
      preprocess: takes stored images to the inputs of the model.
      augment: ``(key, images) -> images`` of preprocessed ones; None for none.

    Returns:
      A function of a PRNG key and a :class:`Batch` to a :class:`Batch`.

    Example:
      >>> prepare = preparation(lambda x: x / 255, lambda key, x: x[:, :, ::-1])
      >>> batch = Batch(jnp.array([0.0, 255.0]).reshape(1, 1, 2, 1), jnp.array([3]))
      >>> prepare(jax.random.key(0), batch).images.ravel()
      Array([1., 0.], dtype=float32)
    """

    def prepare(key: chex.PRNGKey, batch: Batch) -> Batch:
        images = preprocess(batch.images)
        return Batch(images if augment is None else augment(key, images), batch.labels)

    return prepare


def over_batches(
    step: Callable[[Any, Any, chex.PRNGKey], tuple[Any, Any]],
    carry: Any,
    examples: Any,
    *,
    start: chex.Numeric,
    key: chex.PRNGKey,
    num_steps: int,
    batch_size: int,
    prepare: Prepare = lambda key, batch: batch,
) -> tuple[Any, Any]:
    r"""Runs a step function on mini-batches in a random order, in one program.

    .. math:: carry_{t+1}, m_t = step(carry_t, prepare(k_t, B_t), k_t), \qquad
              t = start, \dots, start + steps - 1

    for the batch :math:`B_t` and the key :math:`k_t` of each step.

    Every epoch takes the examples in an order of its own, and leaves out the rest that
    does not fill a batch. The randomness of a step depends on the key and its number
    alone, so that any division of the steps into calls gives the same result.

    Args:
      step: ``(carry, prepared batch, key of this step) -> (carry, metrics)``.
      carry: the state before the first step, any pytree.
      examples: the training set as it is stored, any pytree of arrays with a leading
        axis of examples.
      start: the number of the first step, an integer scalar.
      key: the PRNG key of the training run.
      num_steps: the number of steps, static.
      batch_size: the number of examples in a batch, static.
      prepare: ``(key, stored batch) -> batch``: preprocessing and augmentation.

    Returns:
      ``(carry, metrics)``, the metrics averaged over the steps.

    Raises:
      ValueError: if there are fewer examples than a batch holds.

    Example:
      >>> add = lambda total, batch, key: (total + batch.sum(), None)
      >>> total, _ = over_batches(
      ...     add, 0.0, jnp.arange(4.0), start=0, key=jax.random.key(0), num_steps=4,
      ...     batch_size=2)
      >>> float(total)  # two epochs of 0 + 1 + 2 + 3
      12.0
    """
    order_key, augment_key = jax.random.split(key)
    num_examples = len(jax.tree.leaves(examples)[0])
    steps_per_epoch = epoch_length(num_examples, batch_size)
    first_epoch = start // steps_per_epoch
    orders = _epoch_orders(order_key, start, num_steps, steps_per_epoch, num_examples)

    def body(
        numbered: tuple[chex.Array, Any], _: None
    ) -> tuple[tuple[chex.Array, Any], Any]:
        number, carry = numbered
        begin = (number % steps_per_epoch) * batch_size
        indices = jax.lax.dynamic_slice(
            orders, (number // steps_per_epoch - first_epoch, begin), (1, batch_size)
        )[0]
        # Augmentation makes the children 0 and 1 of this key, the step has 2.
        step_key = jax.random.fold_in(augment_key, number)
        batch = prepare(step_key, jax.tree.map(lambda x: x[indices], examples))
        carry, metrics = step(carry, batch, jax.random.fold_in(step_key, 2))
        return (number + 1, carry), metrics

    start = jnp.asarray(start, jnp.int32)
    (_, carry), metrics = jax.lax.scan(body, (start, carry), length=num_steps)
    return carry, jax.tree.map(jnp.mean, metrics)


def evaluate(
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    examples: Batch,
    *,
    model: nn.Module,
    preprocess: Preprocess,
    loss: Loss = cross_entropy,
    batch_size: int = 500,
) -> Metrics:
    r"""Returns the mean loss and error over all examples, in inference mode.

    .. math:: loss = \frac{1}{n} \sum_{i=1}^n \ell(f(w, x_i), y_i), \qquad
              error = \frac{1}{n} \sum_{i=1}^n
              \mathbb{1}[\arg\max_k f(w, x_i)_k \ne y_i]

    Args:
      params: the parameters of the model.
      batch_stats: the statistics of its batch norms, ``{}`` without any.
      examples: the data set as it is stored, at least one example.
      model: a Flax module, called with ``train``.
      preprocess: takes stored images to the inputs of the model.
      loss: ``(logits, labels) -> scalar``, the mean over examples.
      batch_size: the number of examples in memory at a time, static. The means depend
        on it by rounding only.

    Returns:
      Float32 scalars.

    Example:
      >>> from snipjax import models
      >>> model = models.create("lenet_300_100", num_classes=2)
      >>> examples = Batch(jnp.zeros((3, 2, 2, 1)), jnp.array([0, 1, 1]))
      >>> params = model.init(jax.random.key(0), examples.images)["params"]
      >>> metrics = evaluate(params, {}, examples, model=model, preprocess=lambda x: x)
      >>> round(float(metrics.loss), 4), round(float(metrics.error), 4)
      (0.6931, 0.6667)
    """
    total = examples.labels.shape[0]
    batch_size = min(batch_size, total)
    padding = -total % batch_size

    def batched(x: chex.Array) -> chex.Array:
        x = jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(-1, batch_size, *x.shape[1:])

    def sums(batch: tuple[Batch, chex.Array]) -> Metrics:
        (images, labels), counted = batch
        batch = Batch(preprocess(images), labels)
        return metric_sums(params, batch_stats, batch, counted, model=model, loss=loss)

    batches = jax.tree.map(batched, (examples, jnp.ones(total, jnp.bool_)))
    return jax.tree.map(lambda x: jnp.sum(x) / total, jax.lax.map(sums, batches))


def metric_sums(
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    batch: Batch,
    counted: chex.Array,
    *,
    model: nn.Module,
    loss: Loss = cross_entropy,
) -> Metrics:
    r"""Returns the sums of losses and of errors over the examples that count.

    .. math:: \sum_{i \in C} \ell(f(w, x_i), y_i), \qquad
              \sum_{i \in C} \mathbb{1}[\arg\max_k f(w, x_i)_k \ne y_i]

    Args:
      params: the parameters of the model.
      batch_stats: the statistics of its batch norms, ``{}`` without any.
      batch: ``n`` preprocessed examples.
      counted: bools ``[n]``, true for the examples :math:`C`; the others fill up the
        batch.
      model: a Flax module, called with ``train``.
      loss: ``(logits, labels) -> scalar``, the mean over examples.

    Returns:
      Scalars: a float32 sum of losses, and an int32 number of errors.

    Example:
      >>> from snipjax import models
      >>> model = models.create("lenet_300_100", num_classes=2)
      >>> batch = Batch(jnp.zeros((3, 2, 2, 1)), jnp.array([0, 1, 1]))
      >>> params = model.init(jax.random.key(0), batch.images)["params"]
      >>> counted = jnp.array([True, True, False])
      >>> sums = metric_sums(params, {}, batch, counted, model=model)
      >>> round(float(sums.loss), 4), int(sums.error)  # 2 log 2, and the second example
      (1.3863, 1)
    """
    variables = {"params": params, "batch_stats": batch_stats}
    logits: Any = model.apply(variables, batch.images, train=False)
    logits = logits.astype(jnp.float32)
    losses = jax.vmap(loss)(logits[:, None], batch.labels[:, None])
    wrong = jnp.argmax(logits, axis=-1) != batch.labels
    return Metrics(jnp.sum(jnp.where(counted, losses, 0.0)), jnp.sum(wrong & counted))


def epoch_length(num_examples: int, batch_size: int) -> int:
    r"""Returns the number of whole batches in an epoch, at least one.

    .. math:: \lfloor n / b \rfloor

    Args:
      num_examples: number of training examples :math:`n`.
      batch_size: number of examples in a batch :math:`b`.

    Raises:
      ValueError: if there are fewer examples than a batch holds.

    Example:
      >>> epoch_length(1_294, 100)
      12
    """
    if num_examples < batch_size:
        raise ValueError(
            f"batch_size is {batch_size}, but there are only {num_examples} training "
            "examples; make it smaller"
        )
    return num_examples // batch_size


def _epoch_orders(
    key: chex.PRNGKey,
    step: chex.Array,
    num_steps: int,
    steps_per_epoch: int,
    num_examples: int,
) -> chex.Array:
    """Returns orders of the examples for the steps' epochs: ``[epochs, n]``."""
    first = step // steps_per_epoch
    last = (step + num_steps - 1) // steps_per_epoch

    def order(epoch: chex.Array) -> chex.Array:
        # One sort of 32 random bits; jax.random.permutation takes two.
        bits = jax.random.bits(jax.random.fold_in(key, epoch), (num_examples,))
        return jnp.argsort(bits)

    def order_if_needed(epoch: chex.Array) -> chex.Array:
        unused = functools.partial(jnp.zeros, num_examples, jnp.int32)
        return jax.lax.cond(epoch <= last, order, lambda _: unused(), epoch)

    most = (num_steps - 1) // steps_per_epoch + 2
    return jax.lax.map(order_if_needed, first + jnp.arange(most))
