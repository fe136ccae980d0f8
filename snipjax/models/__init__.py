"""Networks of the paper and larger ones, a file for each family.

A model is a Flax Linen module, called as ``model.apply(variables, x, train=...)`` on
images ``[batch, height, width, channels]``; it returns logits ``[batch, classes]``.
"""

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import chex
import flax.linen as nn
import jax.numpy as jnp

from snipjax.initializers import fan_in
from snipjax.models import alexnet, lenet, recurrent, resnet, vgg, vit, wide_resnet
from snipjax.models.narrow import narrow

__all__ = ["MODELS", "create", "narrow"]

MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "lenet_300_100": lenet.LeNet300,
        "lenet_5_caffe": lenet.LeNet5,
        "vgg_c": vgg.vgg_c,
        "vgg_d": vgg.vgg_d,
        "vgg_like": vgg.vgg_like,
        "vgg_11_bn": vgg.vgg_11_bn,
        "vgg_16_bn": vgg.vgg_16_bn,
        "vgg_19_bn": vgg.vgg_19_bn,
        "alexnet_s": alexnet.alexnet_s,
        "alexnet_b": alexnet.alexnet_b,
        "wrn_16_8": wide_resnet.wrn_16_8,
        "wrn_16_10": wide_resnet.wrn_16_10,
        "wrn_22_2": wide_resnet.wrn_22_2,
        "wrn_22_8": wide_resnet.wrn_22_8,
        "lstm_s": recurrent.lstm_s,
        "lstm_b": recurrent.lstm_b,
        "gru_s": recurrent.gru_s,
        "gru_b": recurrent.gru_b,
        "resnet_18_cifar": resnet.resnet_18_cifar,
        "resnet_20": resnet.resnet_20,
        "resnet_32": resnet.resnet_32,
        "resnet_56": resnet.resnet_56,
        "resnet_18": resnet.resnet_18,
        "resnet_50": resnet.resnet_50,
        "vit_ti_16": vit.vit_ti_16,
        "vit_s_16": vit.vit_s_16,
        "vit_b_16": vit.vit_b_16,
    }
)
"""The networks by name, the choices of ``config.model.name``.

A value is a function with the keyword arguments ``num_classes``, ``dtype`` and
``kernel_init`` that returns a Flax module, of one of the classes

- :class:`snipjax.models.lenet.LeNet300` and :class:`snipjax.models.lenet.LeNet5`,
- :class:`snipjax.models.vgg.VGG` and :class:`snipjax.models.alexnet.AlexNet`,
- :class:`snipjax.models.wide_resnet.WideResNet` (``wrn_...``),
- :class:`snipjax.models.recurrent.Recurrent` (``lstm_...``, ``gru_...``),
- :class:`snipjax.models.resnet.ResNet` and :class:`snipjax.models.vit.ViT`.

Example:
  >>> model = MODELS["vgg_like"](num_classes=10)
  >>> model.dense_units
  (512,)
"""


def create(
    name: str,
    num_classes: int,
    *,
    dtype: chex.ArrayDType = jnp.float32,
    kernel_init: nn.initializers.Initializer = fan_in,
) -> nn.Module:
    """Returns the network of that name.

    Args:
      name: a key of :data:`MODELS`.
      num_classes: number of logits.
      dtype: dtype of the computation; parameters are always float32.
      kernel_init: initializer of every kernel, recurrent ones included. Biases are
        zero, except in a GRU's gates, where they are one.

    Returns:
      A Flax module from images ``[batch, height, width, channels]`` to logits
      ``[batch, num_classes]``.

    Raises:
      ValueError: if the name is unknown; the message gives the nearest one.

    Example:
      >>> model = create("lenet_300_100", num_classes=10)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> model.apply(variables, jnp.zeros((2, 28, 28, 1))).shape
      (2, 10)
    """
    if name not in MODELS:
        longer = [model for model in MODELS if model.startswith(name)]
        closest = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)
        raise ValueError(
            f"unknown model '{name}'; did you mean '{[*longer, *closest][0]}'? "
            f"There are {', '.join(MODELS)}"
        )
    return MODELS[name](num_classes=num_classes, dtype=dtype, kernel_init=kernel_init)
