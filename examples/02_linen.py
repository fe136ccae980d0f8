"""Prunes a Flax Linen network with batch norm and dropout.

Statistics and the key for dropout are no parameters: the loss closes over them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from snipjax import optim, pruning

images, labels = load_digits(return_X_y=True)
batch = jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(100, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(10)(x)


model = Net()
variables = model.init(jax.random.key(0), batch[0], train=False)
params, statistics = variables["params"], variables["batch_stats"]


def loss_fn(params, batch, statistics, key):
    images, labels = batch
    logits, new = model.apply(
        {"params": params, "batch_stats": statistics},
        *(images, True),
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, new["batch_stats"]


def scalar_loss(params, batch):
    return loss_fn(params, batch, statistics, jax.random.key(1))[0]


params, mask = pruning.prune(scalar_loss, params, batch, sparsity=0.9)
optimizer = optim.sparse(optax.adam(1e-2), mask)
state = optimizer.init(params)


@jax.jit
def step(params, state, statistics, key):
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, statistics), gradient = gradient_fn(params, batch, statistics, key)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, statistics, loss


for i in range(100):
    params, state, statistics, loss = step(params, state, statistics, jax.random.key(i))

kernels = [params[name]["kernel"] for name in ("Dense_0", "Dense_1")]
nonzero = sum(int(jnp.count_nonzero(kernel)) for kernel in kernels)
print(f"loss {loss:.2f} with {nonzero} of 7400 connections")
