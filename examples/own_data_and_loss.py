"""A data set and a loss of one's own, which a command names by import path.

From the directory of this file::

    python ../train.py --config ../configs/digits_lenet300.py \
        --config.dataset.name=own_data_and_loss:load \
        --config.train.loss=own_data_and_loss:smoothed
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from snipjax import data


def load() -> data.Dataset:
    """Returns images of noisy stripes, to be told horizontal from vertical.

    A function that takes ``data_dir`` is given the flag of that name.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=1000).astype(np.int32)
    stripes = np.tile(np.array([[0], [200]], np.uint8), (4, 8))
    images = np.where(labels[:, None, None], stripes.T, stripes)
    images = images + rng.integers(0, 55, images.shape)
    parts = [
        data.Arrays(images[some, ..., None].astype(np.uint8), labels[some])
        for some in (slice(800), slice(800, 900), slice(900, 1000))
    ]
    return data.Dataset("stripes", *parts, 2, ("horizontal", "vertical"))


def smoothed(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Returns the mean cross entropy with labels that are 90% sure.

    Any function from logits ``[n, classes]`` and integer labels ``[n]`` to their mean
    loss takes this place, in training as in the scores.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))
