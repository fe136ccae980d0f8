"""Networks of several kinds, and masks that prune units of them at random."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snipjax import masks, shrink
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


class Network(NamedTuple):
    """A function of parameters and inputs, with both."""

    apply_fn: Callable[..., Any]
    params: chex.ArrayTree
    inputs: chex.Array


def noise(shape: tuple[int, ...], seed: int = 0) -> chex.Array:
    # Drawn by NumPy, since jax.random compiles for each shape.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def from_module(module: nn.Module, inputs: chex.Array) -> Network:
    """A Flax module with parameters that are nowhere zero; variances stay positive."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(
            (0.5 + rng.random(leaf.shape)) * rng.choice([0.2, 0.3], leaf.shape)
            if leaf.ndim == 1
            else rng.normal(size=leaf.shape)
            / np.sqrt(max(1, leaf.size / leaf.shape[-1])),
            jnp.float32,
        ),
        shapes,
    )
    return Network(lambda params, x: module.apply(params, x), params, inputs)


def random_mask(
    units: shrink.Units, share: float = 0.5, seed: int = 0
) -> chex.ArrayTree:
    """A mask without a share of the units of each layer, at random."""
    rng = np.random.default_rng(seed)
    leaves = [np.ones(leaf.shape, bool) for leaf in jax.tree.leaves(units.like)]
    for layer in units.layers:
        pruned = rng.permutation(layer.size)[: int(share * layer.size)]
        for member in layer.members:
            positions = member.positions[pruned].ravel()
            leaves[member.leaf][(slice(None),) * member.axis + (positions,)] = False
    return jax.tree.unflatten(jax.tree.structure(units.like), map(jnp.asarray, leaves))


def check_same(network: Network, mask: chex.ArrayTree = None) -> chex.ArrayTree:
    """Checks the smaller network, its gradient too; returns its parameters.

    The mask is random by default.
    """
    apply_fn, params, inputs = network
    units = shrink.units(*network)
    mask = random_mask(units) if mask is None else mask
    removed, masked = shrink.removed(units, mask), masks.apply(mask, params)

    def both(apply_fn: Callable[..., Any], params: chex.ArrayTree) -> Any:
        def loss(params: chex.ArrayTree) -> Any:
            outputs = apply_fn(params, inputs)
            return jnp.sum(jnp.sin(outputs)), outputs

        gradient, outputs = jax.jit(jax.grad(loss, has_aux=True))(params)
        return outputs, gradient

    small_params = removed.params(masked)
    found, gradient = both(removed.function(apply_fn), small_params)
    expected, whole_gradient = both(apply_fn, masked)
    check_close(found, expected)
    jax.tree.map(check_close, gradient, removed.params(whole_gradient))
    return small_params


def check_close(found: chex.Array, expected: chex.Array) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape and np.isfinite(expected).all()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale + 1e-7)


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


@functools.cache
def network_of(name: str) -> Network:
    return from_module(*NETWORKS[name])


@functools.cache
def units_of(name: str) -> shrink.Units:
    return shrink.units(*network_of(name))
