"""Prunes a small pytree with the core's dependencies alone."""

import sys

import jax.numpy as jnp

import snipjax.saliency
from snipjax import masks, pruning

PARAMS = {"w": jnp.arange(1.0, 21.0).reshape(10, 2)}


def loss_fn(params, batch):
    return jnp.mean((batch @ params["w"]) ** 2)


scores = snipjax.saliency.snip(loss_fn, PARAMS, jnp.eye(10))
assert scores["w"].argmax() == 19, scores
params, mask = pruning.prune(loss_fn, PARAMS, jnp.eye(10), sparsity=0.9)
assert params["w"].tolist() == [[0.0, 0.0]] * 9 + [[19.0, 20.0]], params
assert "flax" not in sys.modules
print(f"Python {sys.version.split()[0]}: {masks.sparsity(mask):.0%} pruned")
