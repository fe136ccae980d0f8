"""Prunes an Equinox module with batch norm in one call, and trains it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from snipjax import optim
from snipjax.adapters.equinox import prune

images, labels = load_digits(return_X_y=True)
batch = jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels)


class Net(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.hidden = eqx.nn.Linear(64, 100, use_bias=False, key=keys[0])
        self.norm = eqx.nn.BatchNorm(100, "batch", mode="batch")
        self.out = eqx.nn.Linear(100, 10, key=keys[1])

    def __call__(self, x, norm_state):
        x, norm_state = self.norm(self.hidden(x), norm_state)
        return self.out(jax.nn.relu(x)), norm_state


def loss_fn(model, norm_state, batch):
    images, labels = batch
    axes = (0, None)  # the state is one for all examples
    over_batch = jax.vmap(model, in_axes=axes, out_axes=axes, axis_name="batch")
    logits, norm_state = over_batch(images, norm_state)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), norm_state


model, norm_state = eqx.nn.make_with_state(Net)(jax.random.key(0))


def scalar_loss(model, batch):
    return loss_fn(model, norm_state, batch)[0]


model, mask = prune(scalar_loss, model, batch, sparsity=0.9)
optimizer = optim.sparse(optax.adam(1e-2), mask)
state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))


@eqx.filter_jit
def step(model, norm_state, state):
    gradient_fn = eqx.filter_value_and_grad(loss_fn, has_aux=True)
    (loss, norm_state), gradient = gradient_fn(model, norm_state, batch)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, state = optimizer.update(gradient, state, params)
    return eqx.apply_updates(model, updates), norm_state, state, loss


for _ in range(100):
    model, norm_state, state, loss = step(model, norm_state, state)

kernels = (model.hidden.weight, model.out.weight)
nonzero = sum(int(jnp.count_nonzero(kernel)) for kernel in kernels)
print(f"loss {loss:.2f} with {nonzero} of 7400 connections")
