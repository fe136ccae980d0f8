"""Networks with smaller widths, against the masked ones."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from snipjax import masks, models, shrink
from snipjax.models import transformer, vit
from tests.models.equations import shapes
from tests.shrink.networks import (
    LANGUAGE,
    NETWORKS,
    TOKENS,
    check_close,
    from_module,
    network_of,
    random_mask,
    units_of,
)


def outputs(
    model: nn.Module, variables: chex.ArrayTree, x: chex.Array
) -> tuple[chex.Array, chex.Array, chex.ArrayTree]:
    """Logits of inference and of training, and new batch statistics."""
    train: Any = {} if isinstance(model, transformer.Transformer) else {"train": True}
    logits, updates = model.apply(variables, x, mutable=["batch_stats"], **train)
    return model.apply(variables, x), logits, {**variables, **updates}


QUICK = "resnet", "lstm", "transformer"
OTHERS = [pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n not in QUICK]
LARGE = [
    pytest.param(name, marks=() if name == "vgg_like" else pytest.mark.slow)
    for name in models.MODELS
    if name not in NETWORKS
]


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
def test_a_smaller_network_infers_and_trains_like_the_masked_one(name: str) -> None:
    model, x = NETWORKS[name]
    network, units = network_of(name), units_of(name)
    mask = random_mask(units)
    removed, masked = shrink.removed(units, mask), masks.apply(mask, network.params)
    variables = removed.params(masked)

    small = models.narrow(model, variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes(small, x), variables)
    found = jax.jit(functools.partial(outputs, small))(variables, x)
    *logits, changes = jax.jit(functools.partial(outputs, model))(masked, x)
    jax.tree.map(check_close, found, (*logits, removed.params(changes)))


def with_two_units_a_layer(units: shrink.Units) -> chex.ArrayTree:
    scores = {layer.name: jnp.arange(layer.size) for layer in units.layers}
    density = 2 * len(scores) / sum(layer.size for layer in units.layers)
    return shrink.keep(scores, units, density, least=2)


@pytest.mark.parametrize("name", [*NETWORKS, *LARGE])
def test_every_network_has_smaller_widths(name: str) -> None:
    """Equal ones too, in which a shortcut still has its own convolution."""
    if name in NETWORKS:
        model, x = NETWORKS[name]
    else:
        model = models.create(name, 10)
        x = jnp.zeros((1, 32, 32, 3))
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
