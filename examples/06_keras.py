"""Prunes a Keras 3 model, and trains it with ``model.fit``; it needs no adapter.

A dict of the variables by their paths tells kernels from norms. Keras's optimizers
apply the constraint of a variable after each step: here, that of the mask. With
``use_ema=True`` they end with averages of values before it, hence the mask after fit.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax.numpy as jnp
import keras
from sklearn.datasets import load_digits

from snipjax import pruning

images, labels = load_digits(return_X_y=True)
batch = jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels)

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(100, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Dense(10),
    ]
)
cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
trained = model.trainable_variables
statistics = [variable.value for variable in model.non_trainable_variables]


def loss_fn(params, batch):
    images, labels = batch
    values = [params[variable.path] for variable in trained]
    logits, _ = model.stateless_call(values, statistics, images, training=True)
    return cross_entropy(labels, logits)


params = {variable.path: variable.value for variable in trained}
assert len(params) == len(trained), "layers side by side need names of their own"
params, mask = pruning.prune(loss_fn, params, batch, sparsity=0.9)
for variable in trained:
    variable.assign(params[variable.path])
    variable.constraint = lambda value, keep=mask[variable.path]: value * keep

model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=cross_entropy)
history = model.fit(*batch, batch_size=256, epochs=10, verbose=0)
for variable in trained:
    variable.assign(variable.constraint(variable.value))

kernels = [variable.value for variable in trained if variable.name == "kernel"]
nonzero = sum(int(jnp.count_nonzero(kernel)) for kernel in kernels)
print(f"loss {history.history['loss'][-1]:.2f} with {nonzero} of 7400 connections")
