"""What the other methods start from: the dense network, or what is given for it."""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from snipjax import experiment, masks, methods
from snipjax.models import recurrent

Method = Callable[..., methods.Outcome]
KEY = jax.random.key(0)
STARTED_FROM = (
    methods.lwc,
    methods.dns,
    methods.lc,
    methods.sws,
    methods.sparse_vd,
    methods.obd,
    methods.lobs,
)


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(10)(x)


def untrained(parts: experiment.Parts) -> methods.Outcome:
    images = parts.preprocess(parts.train.images[:1])
    shapes = jax.eval_shape(parts.model.init, KEY, images)["params"]
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    mask = masks.ones(params, parts.prunable)
    return methods.Outcome(params, mask, methods.History())


@pytest.mark.parametrize("method", STARTED_FROM)
def test_batch_norm_is_refused_of_a_trained_network_too(
    method: Method, digits: experiment.Parts
) -> None:
    parts = digits._replace(model=Normalized())
    with pytest.raises(ValueError, match="the network has batch norm"):
        method(parts, 0.5, pretrained=untrained(parts))


@pytest.mark.parametrize("method", (methods.dense, *STARTED_FROM))
def test_parameters_of_another_network_are_no_start(
    method: Method, digits: experiment.Parts
) -> None:
    narrow = untrained(digits._replace(model=nn.Sequential([nn.Dense(3)])))
    target = 0.0 if method is methods.dense else 0.5
    with pytest.raises(ValueError, match="pretrained is of another network"):
        method(digits, target, pretrained=narrow)


@pytest.mark.parametrize("method", (methods.sparse_vd, methods.lobs))
@pytest.mark.parametrize("cell", (recurrent.LSTMCell, recurrent.GRUCell))
def test_gates_have_neither_noise_nor_a_hessian(
    method: Method, cell: type[nn.Module], digits: experiment.Parts
) -> None:
    model = recurrent.Recurrent(num_classes=10, cell=cell, units=4)
    parts = digits._replace(model=model)
    with pytest.raises(ValueError, match=r"'cell/.*' is prunable, but"):
        method(parts, 0.5, pretrained=untrained(parts))
