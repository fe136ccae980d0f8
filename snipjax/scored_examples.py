"""The training examples whose loss scores connections."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from snipjax import data, training

_choose = jax.jit(jax.random.choice, static_argnames=("shape", "replace"))


@functools.partial(jax.jit, static_argnames=("number", "num_classes"))
def _choose_of_each(
    key: chex.PRNGKey, labels: chex.Array, number: int, num_classes: int
) -> chex.Array:
    """Returns indices of so many examples of each class, an example of each in turn."""
    order = jax.random.permutation(key, len(labels))
    by_class = order[jnp.argsort(labels[order], stable=True)]
    starts = jnp.searchsorted(labels[by_class], jnp.arange(num_classes))
    return by_class[starts + jnp.arange(number)[:, None]].ravel()


def choose(
    config: ConfigDict, key: chex.PRNGKey, labels: chex.Array, num_classes: int
) -> chex.Array:
    prune = config.prune
    if prune.per_class:
        number = prune.per_class * prune.num_batches
        return _choose_of_each(key, labels, number, num_classes)
    shape = (prune.batch_size * prune.num_batches,)
    return _choose(key, scorable(config, labels), shape=shape, replace=False)


def scorable(config: ConfigDict, labels: chex.Array) -> np.ndarray:
    """Returns the indices of the training examples that saliency may use."""
    if config.prune.batch_class < 0:
        return np.arange(len(labels))
    return np.flatnonzero(np.asarray(labels) == config.prune.batch_class)


def check_number(config: ConfigDict, dataset: data.Dataset) -> None:
    training.epoch_length(len(dataset.train), config.train.batch_size)
    size, count = config.prune.batch_size, config.prune.num_batches
    available, of_class, name = len(dataset.train), "", "batch_size"
    if config.prune.per_class and config.prune.batch_class >= 0:
        raise ValueError(
            "config.prune.per_class takes examples of every class, and config.prune."
            "batch_class of one; leave one of the two at its default"
        )
    if config.prune.per_class:
        size, name = config.prune.per_class, "per_class"
        of_classes = np.bincount(dataset.train.labels, minlength=dataset.num_classes)
        available, of_class = of_classes.min(), f" of class {of_classes.argmin()}"
    if config.prune.batch_class >= 0:
        available = len(scorable(config, dataset.train.labels))
        of_class = f" of class {config.prune.batch_class}"
        if not available:
            raise ValueError(
                f"config.prune.batch_class is {config.prune.batch_class}, but the "
                f"classes of {config.dataset.name} are 0 to {dataset.num_classes - 1}; "
                "-1 is all of them"
            )
    if size * count > available:
        raise ValueError(
            f"config.prune.{name} * num_batches is {size * count}, but there are only "
            f"{available} training examples{of_class}; make them smaller"
        )
