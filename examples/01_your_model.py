"""Prunes a network of your own by 90% in five lines, and trains it."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from snipjax import masks, optim, pruning

images, labels = load_digits(return_X_y=True)
batch = jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels)

keys = jax.random.split(jax.random.key(0))
params = {
    "hidden": jax.random.normal(keys[0], (64, 100)) / 8,
    "out": jax.random.normal(keys[1], (100, 10)) / 10,
}


def loss_fn(params, batch):
    images, labels = batch
    logits = jax.nn.relu(images @ params["hidden"]) @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# The five lines: prune; an optimizer that keeps pruned entries at zero; and its use.
params, mask = pruning.prune(loss_fn, params, batch, sparsity=0.9)
optimizer = optim.sparse(optax.adam(1e-2), mask)
state = optimizer.init(params)


@jax.jit
def step(params, state):
    loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


for _ in range(100):
    params, state, loss = step(params, state)

print(masks.summary(mask))
nonzero = sum(int(jnp.count_nonzero(w)) for w in jax.tree.leaves(params))
print(f"loss {loss:.2f} with {nonzero} of 7400 connections")
