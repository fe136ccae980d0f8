"""Prunes a Haiku network with batch norm; it needs no adapter."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from snipjax import optim, pruning

images, labels = load_digits(return_X_y=True)
batch = jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels)


@hk.transform_with_state
def network(x):
    x = hk.Linear(100, with_bias=False, name="hidden")(x)
    x = hk.BatchNorm(True, True, decay_rate=0.9)(x, is_training=True)
    return hk.Linear(10, name="out")(jax.nn.relu(x))


params, statistics = network.init(jax.random.key(0), batch[0])


def loss_fn(params, batch, statistics):
    images, labels = batch
    logits, statistics = network.apply(params, statistics, None, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), statistics


def scalar_loss(params, batch):
    return loss_fn(params, batch, statistics)[0]


params, mask = pruning.prune(scalar_loss, params, batch, sparsity=0.9)
optimizer = optim.sparse(optax.adam(1e-2), mask)
state = optimizer.init(params)


@jax.jit
def step(params, state, statistics):
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, statistics), gradient = gradient_fn(params, batch, statistics)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, statistics, loss


for _ in range(100):
    params, state, statistics, loss = step(params, state, statistics)

kernels = [params[name]["w"] for name in ("hidden", "out")]
nonzero = sum(int(jnp.count_nonzero(kernel)) for kernel in kernels)
print(f"loss {loss:.2f} with {nonzero} of 7400 connections")
