"""Prunes a Flax NNX module in one call, and trains it with ``nnx.Optimizer``.

The adapter takes care of batch norm's statistics and dropout's counters.
"""

import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from snipjax import optim
from snipjax.adapters.nnx import prune

images, labels = load_digits(return_X_y=True)
batch = jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 100, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(100, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(100, 10, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def loss_fn(model, batch):
    images, labels = batch
    logits = model(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


model, mask = prune(loss_fn, Net(nnx.Rngs(0)), batch, sparsity=0.9)
sparse_adam = optim.sparse(optax.adam(1e-2), mask)
optimizer = nnx.Optimizer(model, sparse_adam, wrt=nnx.Param)


@nnx.jit
def step(model, optimizer):
    loss, gradient = nnx.value_and_grad(loss_fn)(model, batch)
    optimizer.update(model, gradient)
    return loss


for _ in range(100):
    loss = step(model, optimizer)

kernels = (model.hidden.kernel[...], model.out.kernel[...])
nonzero = sum(int(jnp.count_nonzero(kernel)) for kernel in kernels)
print(f"loss {loss:.2f} with {nonzero} of 7400 connections")
