"""Networks of several kinds, and masks that prune units of them at random."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snipjax import masks, shrink


class Network(NamedTuple):
    """A function of parameters and inputs, with both."""

    apply_fn: Callable[..., Any]
    params: chex.ArrayTree
    inputs: chex.Array


def noise(shape: tuple[int, ...], seed: int = 0) -> chex.Array:
    return jax.random.normal(jax.random.key(seed), shape)


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


def check_same(network: Network, mask: chex.ArrayTree) -> chex.ArrayTree:
    """Checks the smaller network, its gradient too; returns its parameters."""
    apply_fn, params, inputs = network
    small_apply, small_params = shrink.shrink(apply_fn, params, mask, inputs)
    masked = masks.apply(mask, params)
    expected = jax.jit(apply_fn)(masked, inputs)
    check_close(jax.jit(small_apply)(small_params, inputs), expected)
    removed = shrink.removed(shrink.units(apply_fn, params, inputs), mask)

    def gradient(apply_fn: Callable[..., Any], params: chex.ArrayTree) -> Any:
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(apply_fn(p, inputs)))))(
            params
        )

    found, expected = gradient(small_apply, small_params), gradient(apply_fn, masked)
    jax.tree.map(check_close, found, removed.params(expected))
    return small_params


def check_close(found: chex.Array, expected: chex.Array) -> None:
    assert found.shape == expected.shape and bool(jnp.isfinite(expected).all())
    scale = float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale + 1e-7)
