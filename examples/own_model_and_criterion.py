"""A network and a criterion of one's own, which a command names by import path.

From the directory of this file::

    python ../train.py --config ../configs/digits_lenet300.py \
        --config.model.name=own_model_and_criterion:Net \
        --config.prune.method=own_model_and_criterion:criterion
"""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp


class Net(nn.Module):
    """A network of two dense layers on images.

    A class or function that a configuration names is called with ``num_classes``, and
    with ``dtype`` if it takes that. Add a field ``kernel_init`` to choose initializers
    by ``config.init``.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(self.num_classes)(x)


def criterion(
    loss_fn: Any, params: chex.ArrayTree, batch: Any, *, key: chex.PRNGKey | None = None
) -> chex.ArrayTree:
    """Returns the magnitude of the loss's gradient in each parameter.

    Any function of this form is a criterion: larger scores are kept, and ``key`` is
    there for a criterion that draws random numbers.
    """
    del key
    return jax.tree.map(jnp.abs, jax.grad(loss_fn)(params, batch))
