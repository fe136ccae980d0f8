"""One layer on four examples, so that NumPy can train it too, by difference quotients.

Every batch has all of the examples, whose order then does not matter.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import special

from snipjax import masks
from snipjax.methods import Aux, History, Outcome, Problem
from snipjax.training import Metrics

IMAGES = np.array([[0.5, -1.0], [1.5, 0.3], [-0.7, 0.8], [0.2, 1.1]])
LABELS = np.array([0, 1, 1, 0])
WEIGHTS = np.array([[1.0, -0.9], [-0.8, 0.7]])


def problem(
    *, steps: int, learning_rate: float = 1.0, weight_decay: float = 0.0
) -> Problem:
    """Training by SGD without momentum."""
    examples = (jnp.asarray(IMAGES, jnp.float32), jnp.asarray(LABELS))

    def loss_fn(params: chex.ArrayTree, batch: Any) -> tuple[chex.Array, Aux]:
        images, labels = batch
        logits = images @ params["w"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        error = jnp.mean(jnp.argmax(logits, axis=1) != labels)
        return jnp.mean(losses), Aux(error, logits)

    def evaluate(params: chex.ArrayTree) -> dict[str, Metrics]:
        loss, aux = loss_fn(params, examples)
        return {"val": Metrics(loss, aux.error), "test": Metrics(loss, aux.error)}

    def optimizer(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(weight_decay)
        return optax.chain(decay, optax.sgd(rate))

    return Problem(
        loss_fn,
        params(WEIGHTS),
        examples,
        evaluate,
        optimizer,
        learning_rate=learning_rate,
        steps=steps,
        decay_every=steps,
        decay_factor=0.1,
        eval_every=steps,
        batch_size=len(LABELS),
        prunable=masks.kernels,
        key=jax.random.key(0),
    )


def params(weights: np.ndarray) -> chex.ArrayTree:
    return {"w": jnp.asarray(weights, jnp.float32)}


def pretrained(weights: np.ndarray = WEIGHTS) -> Outcome:
    start = params(weights)
    return Outcome(start, masks.ones(start, masks.kernels), History())


def cross_entropy(weights: np.ndarray) -> float:
    """The mean over the four examples."""
    logits = IMAGES @ weights.reshape(2, 2)
    return -special.log_softmax(logits, axis=1)[np.arange(4), LABELS].mean()


def gradient(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """By central differences."""
    steps = 1e-5 * np.eye(at.size).reshape(-1, *at.shape)
    slopes = [(function(at + step) - function(at - step)) / 2e-5 for step in steps]
    return np.array(slopes).reshape(at.shape)
