"""Layers of the paper's networks: fast convolutions and weights of scaled variance."""

import functools
from collections.abc import Callable

import chex
import flax.linen as nn
import jax.numpy as jnp

from snipjax import ops
from snipjax.initializers import fan_in

Dense = functools.partial(nn.Dense, kernel_init=fan_in)
Conv = functools.partial(
    nn.Conv,
    kernel_init=fan_in,
    conv_general_dilated=ops.conv_general_dilated,
)
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9)
max_pool = functools.partial(ops.max_pool, window_shape=(2, 2), strides=(2, 2))


def normalized(
    x: chex.Array, train: bool, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    """Returns ``relu(batch_norm(x))``, with the batch's own statistics if training."""
    return nn.relu(BatchNorm(use_running_average=not train, dtype=dtype)(x))


def rematerialized(
    module: type[nn.Module],
    policy: Callable[..., bool] | None,
    static_argnums: tuple[int, ...] = (),
) -> type[nn.Module]:
    """Returns a module that recomputes intermediate values for the gradient.

    ``policy``, of ``jax.checkpoint_policies``, says which values are saved and not
    recomputed; with None, the result is ``module``, which saves all of them. In
    ``static_argnums``, ``self`` is 0. Give instances names: their automatic names
    differ from the names of the module's own instances.
    """
    if policy is None:
        return module
    return nn.remat(module, policy=policy, static_argnums=static_argnums)


def flatten(x: chex.Array) -> chex.Array:
    """Returns images or feature maps as vectors ``[batch, features]``."""
    _check_size(x)
    return x.reshape(x.shape[0], -1)


def mean_over_pixels(x: chex.Array) -> chex.Array:
    """Returns the means of channels as vectors ``[batch, channels]``."""
    _check_size(x)
    return flatten(ops.avg_pool(x, x.shape[1:3]))


def _check_size(x: chex.Array) -> None:
    if 0 in x.shape[1:]:
        raise ValueError(
            "the images are too small for this network: nothing is left of them after "
            f"its convolutions and pooling, shape {x.shape[1:]}; choose another network"
        )
