"""The module of a smaller network: its layers have the widths of its parameters."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import chex
import flax.linen as nn

from snipjax.models import alexnet, lenet, recurrent, resnet, vgg, vit, wide_resnet
from snipjax.models.transformer import BlockSizes, Transformer, block_sizes

_Params = Mapping[str, Any]


def narrow(model: nn.Module, variables: Mapping[str, chex.ArrayTree]) -> nn.Module:
    r"""Returns a network whose layers have the widths of smaller variables.

    ``init`` of the network returned has variables of these shapes. ``apply`` on the
    variables that :func:`snipjax.shrink.shrink` returns equals the masked network up to
    rounding, in training too.

    .. math:: f_\mathrm{narrow}(w_\mathrm{small}, x) = f(c \odot w, x)

    for the mask :math:`c` that the variables are smaller by.

    Args:
      model: a network of :mod:`snipjax.models`, as wide as it was before, or narrowed.
      variables: ``{"params": params, ...}``, smaller variables of the model; shapes
        are enough.

    Returns:
      A Flax module of the same class.

    Raises:
      ValueError: if ``variables`` has no params; if the network is another's, or an
        attention of one head lost some of its units:
        :func:`snipjax.shrink.shrink` returns a function for both.

    Example:
      >>> from snipjax import models, shrink
      >>> model, x = models.lenet.LeNet300(num_classes=10), jnp.ones((1, 28, 28, 1))
      >>> variables = model.init(jax.random.key(0), x)
      >>> units = shrink.units(model.apply, variables, x)
      >>> scores = shrink.layerwise(shrink.unit_scores(variables, units))
      >>> mask = shrink.keep(scores, units, 0.25)
      >>> _, small_variables = shrink.shrink(model.apply, variables, mask, x)
      >>> small = narrow(model, small_variables)
      >>> small.dense_units
      (75, 25)
      >>> small.apply(small_variables, x).shape
      (1, 10)
    """
    if "params" not in variables:
        raise ValueError(
            "variables has no 'params'; pass all variables of the model, "
            "narrow(model, {'params': params})"
        )
    return _narrow(model, variables["params"])


@functools.singledispatch
def _narrow(model: nn.Module, params: Any) -> nn.Module:
    raise ValueError(
        f"{type(model).__name__} is no network of snipjax.models, whose widths are "
        "known; take the function that shrink.shrink returns"
    )


@_narrow.register
def _(model: lenet.LeNet300, params: _Params) -> nn.Module:
    return model.clone(dense_units=_hidden_units(params))


@_narrow.register(lenet.LeNet5)
@_narrow.register(alexnet.AlexNet)
def _(model: Any, params: _Params) -> nn.Module:
    channels = _widths(params, "Conv")
    return model.clone(channels=channels, dense_units=_hidden_units(params))


@_narrow.register
def _(model: vgg.VGG, params: _Params) -> nn.Module:
    channels = iter(_widths(params, "Conv"))
    blocks = tuple(
        tuple((size, next(channels)) for size, _ in block) for block in model.blocks
    )
    return model.clone(blocks=blocks, dense_units=_hidden_units(params))


@_narrow.register
def _(model: recurrent.Recurrent, params: _Params) -> nn.Module:
    (row_units,) = _hidden_units(params)
    # The rows of the last kernel are the outputs of the cell.
    units = params["Dense_1"]["kernel"].shape[0]
    return model.clone(units=units, row_units=row_units)


@_narrow.register
def _(model: resnet.ResNet, params: _Params) -> nn.Module:
    blocks = (
        f"group_{group}_block_{i}"
        for group, number in enumerate(model.blocks)
        for i in range(number)
    )
    return model.clone(channels=_channels(params, blocks))


@_narrow.register
def _(model: wide_resnet.WideResNet, params: _Params) -> nn.Module:
    blocks = (f"Block_{i}" for i in range(3 * model.blocks))
    return model.clone(channels=_channels(params, blocks))


@_narrow.register
def _(model: vit.ViT, params: _Params) -> nn.Module:
    sizes = model.blocks or block_sizes(model.width, model.depth, model.heads)
    (width,) = params["class_token"].shape
    return model.clone(width=width, blocks=_blocks(params, sizes))


@_narrow.register
def _(model: Transformer, params: _Params) -> nn.Module:
    _, _, *standard = model.config
    sizes = model.blocks or block_sizes(*standard)
    config = model.config._replace(width=params["tokens"]["embedding"].shape[1])
    return model.clone(config=config, blocks=_blocks(params, sizes))


def _width(layer: _Params) -> int:
    return layer["kernel"].shape[-1]


def _widths(params: _Params, kind: str) -> tuple[int, ...]:
    """Returns the widths of the layers ``kind_0``, ``kind_1``, and so on."""
    number = sum(name.startswith(f"{kind}_") for name in params)
    return tuple(_width(params[f"{kind}_{i}"]) for i in range(number))


def _hidden_units(params: _Params) -> tuple[int, ...]:
    *hidden, _ = _widths(params, "Dense")
    return tuple(hidden)


def _channels(params: _Params, blocks: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    parts = [params, *(params[block] for block in blocks)]
    return tuple(_widths(part, "Conv") for part in parts)


def _blocks(params: _Params, sizes: Sequence[BlockSizes]) -> tuple[BlockSizes, ...]:
    found = []
    for i, (_, head_units, _) in enumerate(sizes):
        block = params[f"block_{i}"]
        queries, values = _width(block["query"]), _width(block["value"])
        if queries != values or queries % head_units:
            raise ValueError(
                f"'block_{i}' has queries of {queries} and values of {values} units, "
                f"which are no whole heads of {head_units}; keep the units of an "
                "attention of one head, or take the function that shrink.shrink returns"
            )
        mlp_units = _width(block["mlp_in"])
        found.append(BlockSizes(queries // head_units, head_units, mlp_units))
    return tuple(found)
