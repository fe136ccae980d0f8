"""Networks with smaller widths, against the masked ones."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks, models, shrink
from snipjax.models import (
    alexnet,
    lenet,
    recurrent,
    resnet,
    transformer,
    vgg,
    vit,
    wide_resnet,
)
from tests.models.equations import shapes
from tests.shrink.networks import check_close, from_module, noise, random_mask

TOKENS = jnp.array([[3, 1, 4, 1], [5, 5, 5, 5]])
LANGUAGE = transformer.Transformer(transformer.Config(11, 4, 8, 1, 2))
NETWORKS: dict[str, tuple[nn.Module, chex.Array]] = {
    "lenet_300_100": (lenet.LeNet300(3), noise((2, 4, 4, 1))),
    "lenet_5_caffe": (lenet.LeNet5(3, (4, 6), (8,)), noise((2, 16, 16, 1))),
    "vgg": (vgg.VGG(3, (((3, 4), (1, 6)), ((3, 8),)), (10,)), noise((2, 4, 4, 3))),
    "alexnet": (alexnet.AlexNet(3, (4, 6, 8, 6, 4), (8,)), noise((2, 8, 8, 3))),
    "lstm": (recurrent.Recurrent(3, units=6, row_units=4), noise((2, 3, 4, 1))),
    "gru": (recurrent.Recurrent(3, recurrent.GRUCell, units=6), noise((2, 3, 4, 1))),
    "resnet": (
        resnet.ResNet(
            3, (1, 1), is_for_small_images=True, channels=((4,), (6, 4), (8, 10))
        ),
        noise((2, 4, 4, 3)),
    ),
    "bottleneck": (resnet.ResNet(3, (1, 1), True, 4), noise((2, 16, 16, 3))),
    "wide_resnet": (
        wide_resnet.WideResNet(3, 1, 2, ((4,), (6, 8), (4, 6), (4, 2))),
        noise((2, 8, 8, 3)),
    ),
    "vit": (vit.ViT(3, width=8, depth=1, heads=2, patch=4), noise((2, 4, 8, 1))),
    "transformer": (LANGUAGE, TOKENS),
}


def step(
    model: nn.Module, variables: chex.ArrayTree, x: chex.Array
) -> tuple[chex.Array, dict[str, Any]]:
    """Logits of inference, gradients in training mode, and new batch statistics."""
    train: Any = {} if isinstance(model, transformer.Transformer) else {"train": True}

    def loss_fn(params: chex.ArrayTree) -> tuple[chex.Array, Any]:
        logits, updates = model.apply(
            {**variables, "params": params}, x, mutable=["batch_stats"], **train
        )
        return jnp.sum(jnp.sin(logits)), updates

    grads, updates = jax.grad(loss_fn, has_aux=True)(variables["params"])
    return model.apply(variables, x), {**updates, "params": grads}


QUICK = "resnet", "lstm", "transformer"
OTHERS = [pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
def test_a_smaller_network_infers_and_trains_like_the_masked_one(name: str) -> None:
    model, x = NETWORKS[name]
    network = from_module(model, x)
    units = shrink.units(*network)
    mask = random_mask(units)
    removed, masked = shrink.removed(units, mask), masks.apply(mask, network.params)
    variables = removed.params(masked)

    small = models.narrow(model, variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes(small, x), variables)
    logits, changes = jax.jit(functools.partial(step, small))(variables, x)
    whole_logits, whole_changes = jax.jit(functools.partial(step, model))(masked, x)
    check_close(logits, whole_logits)
    for found, expected in zip(
        jax.tree.leaves(changes), jax.tree.leaves(removed.params(whole_changes))
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)


def with_two_units_a_layer(units: shrink.Units) -> chex.ArrayTree:
    scores = {layer.name: jnp.arange(layer.size) for layer in units.layers}
    density = 2 * len(scores) / sum(layer.size for layer in units.layers)
    return shrink.keep(scores, units, density, least=2)


@pytest.mark.parametrize(
    "name",
    [*NETWORKS, *(pytest.param(n, marks=pytest.mark.slow) for n in models.MODELS)],
)
def test_every_network_has_smaller_widths(name: str) -> None:
    """Equal ones too, in which a shortcut still has its own convolution."""
    if name in NETWORKS:
        model, x = NETWORKS[name]
    else:
        model = models.create(name, 10)
        x = jnp.zeros((1, 28, 28, 1) if name.startswith("lenet") else (1, 32, 32, 3))
    whole = shapes(model, x)
    units = shrink.units(model.apply, whole, x)
    removed = shrink.removed(units, with_two_units_a_layer(units))
    variables = jax.eval_shape(removed.params, whole)
    small = models.narrow(model, variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes(small, x), variables)
    assert models.narrow(small, variables) == small
    chex.assert_trees_all_equal_shapes(shapes(models.narrow(model, whole), x), whole)


def test_a_transformer_may_lose_features_of_its_norms() -> None:
    network = from_module(LANGUAGE, TOKENS)
    units = shrink.units(*network, over_means=True)
    removed = shrink.removed(units, random_mask(units))
    variables = removed.params(network.params)
    small = models.narrow(LANGUAGE, variables)
    assert (small.config.width, small.blocks) == (4, ((1, 4, 16),))
    expected = jax.jit(removed.function(network.apply_fn))(variables, TOKENS)
    check_close(jax.jit(small.apply)(variables, TOKENS), expected)


def test_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="no 'params'; pass all variables"):
        models.narrow(models.create("lenet_300_100", 10), {"Dense_0": {}})
    with pytest.raises(ValueError, match="Dense is no network of"):
        models.narrow(nn.Dense(3), {"params": {}})


def test_an_attention_of_one_head_stays_whole() -> None:
    model, x = vit.ViT(3, width=8, depth=1, heads=1, patch=4), jnp.zeros((1, 4, 4, 1))
    whole = shapes(model, x)
    units = shrink.units(model.apply, whole, x)
    removed = shrink.removed(units, random_mask(units))
    with pytest.raises(ValueError, match=r"'block_0' .* no whole heads of 8"):
        models.narrow(model, jax.eval_shape(removed.params, whole))
