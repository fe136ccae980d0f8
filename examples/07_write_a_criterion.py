"""Writes a criterion: the score of each connection is a function of loss and batch.

This one is the standard deviation of SNIP's gate derivative over the examples: it
keeps what the examples disagree about.
"""

import functools

import jax
import jax.numpy as jnp

from snipjax import masks, pruning


def by_disagreement(loss_fn, params, batch, *, key=None, power=1.0):
    """Returns the deviation of ``g * w`` over examples; larger scores are kept."""
    del key  # for criteria that draw random numbers

    def of_example(example):
        gradient = jax.grad(loss_fn)(params, jax.tree.map(lambda x: x[None], example))
        return jax.tree.map(jnp.multiply, gradient, params)

    moments = jax.vmap(of_example)(batch)
    return jax.tree.map(lambda m: jnp.std(m, axis=0) ** power, moments)


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2)


keys = jax.random.split(jax.random.key(0), 4)
params = {
    "in": jax.random.normal(keys[0], (8, 64)),
    "out": jax.random.normal(keys[1], (64, 1)),
}
batch = jax.random.normal(keys[2], (100, 8)), jax.random.normal(keys[3], (100, 1))

# It works in rounds, on several batches and on a mesh as it stands.
criterion = functools.partial(by_disagreement, power=2.0)
params, mask = pruning.prune(
    loss_fn, params, batch, sparsity=0.9, criterion=criterion, rounds=3
)
print(masks.summary(mask))
