"""One training step, many in one program, and the evaluation of a network."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from snipjax.training.losses import apply_training, cross_entropy
from snipjax.training.state import Batch, Metrics, TrainState

Preprocess = Callable[[chex.Array], chex.Array]
Augment = Callable[[chex.PRNGKey, chex.Array], chex.Array]
# From a function of the parameters to one of the same values, as jax.checkpoint is.
Transform = Callable[[Callable[..., Any]], Callable[..., Any]]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    transform: Transform = lambda loss_fn: loss_fn,
) -> tuple[TrainState, Metrics]:
    """Returns the state after one step on a preprocessed batch, and its metrics.

    Args:
      state: where to start from.
      batch: images as the model takes them, and labels.
      model: a network of :mod:`snipjax.models`.
      optimizer: the one that ``state`` was made with.
      transform: what is done to the loss, a function of the params, before its
        gradient is taken, e.g. ``jax.checkpoint``.

    Returns:
      ``(state, metrics)``; the metrics are those of the params before the step.

    Example:
      >>> from snipjax import models
      >>> model = models.create("lenet_300_100", num_classes=2)
      >>> batch = Batch(jnp.zeros((3, 2, 2, 1)), jnp.array([0, 1, 1]))
      >>> optimizer = optax.sgd(0.1)
      >>> variables = model.init(jax.random.key(0), batch.images)
      >>> state = init_state(variables, optimizer, jax.random.key(1))
      >>> state, metrics = train_step(state, batch, model=model, optimizer=optimizer)
      >>> int(state.step), round(float(metrics.loss), 4)
      (1, 0.6931)
    """

    def loss_fn(params: chex.ArrayTree) -> tuple[chex.Array, Any]:
        logits, batch_stats = apply_training(
            model, params, state.batch_stats, batch.images
        )
        return cross_entropy(logits, batch.labels), (logits, batch_stats)

    value_and_grad = jax.value_and_grad(transform(loss_fn), has_aux=True)
    (loss, (logits, batch_stats)), grads = value_and_grad(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    error = jnp.mean(jnp.argmax(logits, axis=-1) != batch.labels)
    state = TrainState(state.step + 1, params, batch_stats, opt_state, state.key)
    return state, Metrics(loss, error)


def train_steps(
    state: TrainState,
    examples: Batch,
    *,
    num_steps: int,
    batch_size: int,
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    preprocess: Preprocess,
    augment: Augment | None = None,
) -> tuple[TrainState, Metrics]:
    """Returns the state after ``num_steps`` steps, and the mean metrics over them.

    Every epoch takes the examples in an order that depends on the state's key and
    the epoch; what does not fill a batch is left out. Augmentation depends on the
    key and the step. So it makes no difference in how many calls the steps are done.

    Args:
      state: where to start from.
      examples: the training set, as it is stored.
      num_steps: how many steps, static.
      batch_size: examples in a batch, static.
      model: a network of :mod:`snipjax.models`.
      optimizer: e.g. of :func:`snipjax.optim.sparse`.
      preprocess: from stored images to what the model takes.
      augment: ``(key, preprocessed images) -> images``.

    Returns:
      ``(state, metrics)``.

    Raises:
      ValueError: if there are fewer examples than a batch holds.
    """

    def step(
        state: TrainState, batch: Batch, key: chex.PRNGKey
    ) -> tuple[TrainState, Metrics]:
        del key
        return train_step(state, batch, model=model, optimizer=optimizer)

    return over_batches(
        step,
        state,
        examples,
        start=state.step,
        key=state.key,
        num_steps=num_steps,
        batch_size=batch_size,
        preprocess=preprocess,
        augment=augment,
    )


def over_batches(
    step: Callable[[Any, Batch, chex.PRNGKey], tuple[Any, Any]],
    carry: Any,
    examples: Batch,
    *,
    start: chex.Numeric,
    key: chex.PRNGKey,
    num_steps: int,
    batch_size: int,
    preprocess: Preprocess,
    augment: Augment | None = None,
) -> tuple[Any, Any]:
    """Returns what ``num_steps`` of any step come to, on batches in a random order.

    The order of the examples is that of :func:`train_steps`: it depends on the key
    and the number of the step alone.

    Args:
      step: ``(carry, preprocessed batch, key of this step) -> (carry, metrics)``.
      carry: what the first step starts from; any pytree.
      examples: the training set, as it is stored.
      start: the number of the first step, an integer scalar.
      key: PRNG key of the training run.
      num_steps: how many steps, static.
      batch_size: examples in a batch, static.
      preprocess: from stored images to what the model takes.
      augment: ``(key, preprocessed images) -> images``.

    Returns:
      ``(carry, metrics)``, the metrics averaged over the steps.

    Raises:
      ValueError: if there are fewer examples than a batch holds.

    Example:
      >>> examples = Batch(jnp.arange(4.0).reshape(4, 1, 1, 1), jnp.zeros(4, int))
      >>> count = lambda total, batch, key: (total + batch.images.sum(), None)
      >>> total, _ = over_batches(
      ...     count, 0.0, examples, start=0, key=jax.random.key(0), num_steps=4,
      ...     batch_size=2, preprocess=lambda x: x)
      >>> float(total)  # two epochs of 0 + 1 + 2 + 3
      12.0
    """
    order_key, augment_key = jax.random.split(key)
    steps_per_epoch = epoch_length(examples.labels.shape[0], batch_size)
    first_epoch = start // steps_per_epoch
    orders = _epoch_orders(
        order_key, start, num_steps, steps_per_epoch, examples.labels.shape[0]
    )

    def body(
        numbered: tuple[chex.Array, Any], _: None
    ) -> tuple[tuple[chex.Array, Any], Any]:
        number, carry = numbered
        begin = (number % steps_per_epoch) * batch_size
        indices = jax.lax.dynamic_slice(
            orders, (number // steps_per_epoch - first_epoch, begin), (1, batch_size)
        )[0]
        images = preprocess(examples.images[indices])
        # Of this key `flip_and_translate` makes the children 0 and 1, the step has 2.
        step_key = jax.random.fold_in(augment_key, number)
        if augment is not None:
            images = augment(step_key, images)
        batch = Batch(images, examples.labels[indices])
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
    batch_size: int = 500,
) -> Metrics:
    """Returns the mean loss and error over all examples, in inference mode.

    Args:
      params: of the model.
      batch_stats: of the model, ``{}`` if it has none.
      examples: the data set, as it is stored; at least one example.
      model: a network of :mod:`snipjax.models`.
      preprocess: from stored images to what the model takes.
      batch_size: examples looked at at a time, static; the means do not depend on
        it beyond rounding.

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
        return metric_sums(params, batch_stats, batch, counted, model=model)

    batches = jax.tree.map(batched, (examples, jnp.ones(total, jnp.bool_)))
    return jax.tree.map(lambda x: jnp.sum(x) / total, jax.lax.map(sums, batches))


def metric_sums(
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    batch: Batch,
    counted: chex.Array,
    *,
    model: nn.Module,
) -> Metrics:
    """Returns the sums of loss and errors over the examples that count.

    Args:
      params: of the model.
      batch_stats: of the model, ``{}`` if it has none.
      batch: images as the model takes them, and labels.
      counted: bools ``[n]``; the others fill up the batch.
      model: a network of :mod:`snipjax.models`.

    Returns:
      The sum of cross entropies, a float32 scalar, and the number of errors, an
      integer one.

    Example:
      >>> from snipjax import models
      >>> model = models.create("lenet_300_100", num_classes=2)
      >>> batch = Batch(jnp.zeros((3, 2, 2, 1)), jnp.array([0, 1, 1]))
      >>> params = model.init(jax.random.key(0), batch.images)["params"]
      >>> counted = jnp.array([True, True, False])
      >>> sums = metric_sums(params, {}, batch, counted, model=model)
      >>> round(float(sums.loss), 4), int(sums.error)  # 2 log 2
      (1.3863, 1)
    """
    variables = {"params": params, "batch_stats": batch_stats}
    logits = model.apply(variables, batch.images, train=False).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    wrong = jnp.argmax(logits, axis=-1) != batch.labels
    return Metrics(jnp.sum(jnp.where(counted, loss, 0.0)), jnp.sum(wrong & counted))


def epoch_length(num_examples: int, batch_size: int) -> int:
    """Returns the number of whole batches in an epoch.

    Args:
      num_examples: how many there are.
      batch_size: how many of them fill a batch.

    Raises:
      ValueError: if there are fewer examples than a batch holds.
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
    """Orders of the examples for the epochs the steps fall in: ``[epochs, n]``."""
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
