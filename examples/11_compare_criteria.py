"""Compares criteria: the loss of networks that each of them pruned, after training."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from snipjax import masks, optim, pruning, saliency

images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels)
train, test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])

keys = jax.random.split(jax.random.key(0))
dense = {
    "hidden": jax.random.normal(keys[0], (64, 100)) / 8,
    "out": jax.random.normal(keys[1], (100, 10)) / 10,
}


def network(params, images):
    return jax.nn.relu(images @ params["hidden"]) @ params["out"]


def loss_fn(params, batch):
    images, labels = batch
    logits = network(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def trained(params, mask):
    optimizer = optim.sparse(optax.adam(1e-2), mask)

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(loss_fn)(params, train)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=100)[0][0]


train_jitted = jax.jit(trained)
criteria = [saliency.snip, saliency.grasp, saliency.magnitude, saliency.random]
print("criterion   kept of hidden   kept of out   test error (%)")
for criterion in criteria:
    params, mask = pruning.prune(
        *(loss_fn, dense, train, 0.95), criterion=criterion, key=jax.random.key(1)
    )
    params = train_jitted(params, mask)
    error = 100 * jnp.mean(network(params, test[0]).argmax(1) != test[1])
    hidden, out = masks.summary(mask)
    print(f"{criterion.__name__:10} {hidden.kept:14} {out.kept:13} {error:16.1f}")
