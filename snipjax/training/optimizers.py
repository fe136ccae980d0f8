"""The optimizers of a dense network, the paper's first."""

import chex
import jax
import optax

from snipjax import masks


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> optax.GradientTransformation:
    r"""Returns the paper's optimizer: SGD with momentum and weight decay.

    .. math:: v \leftarrow momentum \cdot v + \nabla L(w) + decay \cdot w, \qquad
              w \leftarrow w - \eta v

    It descends the loss plus ``weight_decay / 2`` times the squared norm of weights and
    biases (:func:`snipjax.masks.weights_and_biases`).

    Args:
      learning_rate: a number, or a schedule ``step -> number``; the paper divides 0.1
        by 10 every 25,000 steps.
      momentum: the momentum of SGD, without Nesterov's correction.
      weight_decay: twice the factor of the squared norm in the loss.

    Returns:
      An optimizer whose ``update`` needs the params.

    Example:
      >>> params = {"w": jnp.array([1.0, 2.0])}
      >>> optimizer = sgd(0.1, weight_decay=0.5)
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> updates  # -0.1 * (gradient + 0.5 * params)
      {'w': Array([-0.15, -0.3 ], dtype=float32)}

    Lee, Ajanthan, Torr, ICLR 2019, appendix A.
    """
    return optax.chain(_penalty(weight_decay), optax.sgd(learning_rate, momentum))


def adam(
    learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """Returns Adam of the loss plus half the decay times the squared norm."""
    return optax.chain(_penalty(weight_decay), optax.adam(learning_rate, b1=momentum))


def adamw(
    learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """Returns Adam with decoupled weight decay."""
    return optax.adamw(
        learning_rate, b1=momentum, weight_decay=weight_decay, mask=_decayed
    )


def lamb(
    learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """Returns LAMB, Adam with a trust ratio for each leaf, for large batches."""
    return optax.lamb(
        learning_rate, b1=momentum, weight_decay=weight_decay, mask=_decayed
    )


def _penalty(weight_decay: float) -> optax.GradientTransformation:
    return optax.add_decayed_weights(weight_decay, mask=_decayed)


def _decayed(params: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree_util.tree_map_with_path(masks.weights_and_biases, params)
