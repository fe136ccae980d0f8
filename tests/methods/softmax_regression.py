"""One layer on four examples, so that NumPy can train it too, by difference quotients.

Every batch has all of the examples, whose order then does not matter.
"""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from snipjax import config as configs
from snipjax import experiment, masks, training
from snipjax.methods import History, Outcome

IMAGES = np.array([[0.5, -1.0], [1.5, 0.3], [-0.7, 0.8], [0.2, 1.1]])
LABELS = np.array([0, 1, 1, 0])
WEIGHTS = np.array([[1.0, -0.9], [-0.8, 0.7]])


class Linear(nn.Module):
    """Outputs are images times weights."""

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        return nn.Dense(2, use_bias=False)(x.reshape(len(x), -1))


def parts(*, steps: int, learning_rate: float = 1.0) -> experiment.Parts:
    """An experiment by SGD, without momentum, decay of weights or augmentation."""
    config = configs.default()
    config.train.update(
        steps=steps,
        eval_every=steps,
        batch_size=len(LABELS),
        learning_rate=learning_rate,
        momentum=0.0,
        weight_decay=0.0,
    )
    images = jnp.asarray(IMAGES, jnp.float32).reshape(-1, 1, 2, 1)
    examples = training.Batch(images, jnp.asarray(LABELS))
    keys = experiment.Keys(*jax.random.split(jax.random.key(0), 5))
    return experiment.Parts(
        config, Linear(), *[examples] * 3, lambda x: x, None, None, keys
    )


def params_of(weights: np.ndarray) -> chex.ArrayTree:
    return {"Dense_0": {"kernel": jnp.asarray(weights, jnp.float32)}}


def pretrained() -> Outcome:
    params = params_of(WEIGHTS)
    return Outcome(params, masks.ones(params, masks.kernels), History())


def cross_entropy(weights: np.ndarray) -> float:
    """The mean over the four examples."""
    logits = IMAGES @ weights.reshape(2, 2)
    return -special.log_softmax(logits, axis=1)[np.arange(4), LABELS].mean()


def gradient(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """By central differences."""
    steps = 1e-5 * np.eye(at.size).reshape(-1, *at.shape)
    slopes = [(function(at + step) - function(at - step)) / 2e-5 for step in steps]
    return np.array(slopes).reshape(at.shape)
