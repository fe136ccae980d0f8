"""A recurrent network with a tenth of its connections, which SET moves.

The cell is one's own, in a scan. It learns to add up two marked numbers of a sequence.
"""

import jax
import jax.numpy as jnp
import optax

from snipjax import masks, optim, saliency

LENGTH, BATCH, WIDTH = 20, 128, 128


def sequences(key):
    """Returns numbers with their marks ``[BATCH, LENGTH, 2]``, and sums ``[BATCH]``."""
    number_key, mark_key = jax.random.split(key)
    numbers = jax.random.uniform(number_key, (BATCH, LENGTH))
    places = jax.random.randint(mark_key, (BATCH, 2), 0, LENGTH // 2)  # in each half
    marks = jax.nn.one_hot(places, LENGTH // 2).reshape(BATCH, LENGTH)
    return jnp.stack([numbers, marks], axis=-1), jnp.sum(numbers * marks, axis=-1)


def loss_fn(params, batch):
    inputs, targets = batch

    def cell(h, x):  # a minimal gated unit
        gate = jax.nn.sigmoid(jnp.concatenate([h, x], -1) @ params["gate"])
        new = jnp.tanh(jnp.concatenate([gate * h, x], -1) @ params["state"])
        return (1 - gate) * h + gate * new, None

    h, _ = jax.lax.scan(cell, jnp.zeros((BATCH, WIDTH)), jnp.swapaxes(inputs, 0, 1))
    return jnp.mean((jnp.squeeze(h @ params["out"], -1) - targets) ** 2)


def main(steps=600):
    keys = jax.random.split(jax.random.key(0), 6)
    wide = (WIDTH + 2, WIDTH)  # from the state and the inputs
    shapes = {"gate": wide, "state": wide, "out": (WIDTH, 1)}
    init = jax.nn.initializers.lecun_normal()
    params = {name: init(key, shapes[name]) for name, key in zip(shapes, keys)}
    scores = saliency.random(None, params, None, key=keys[3])
    mask = masks.by_allocation(masks.erk)(scores, 0.9, masks.kernels)
    params = masks.apply(mask, params)
    optimizer = optim.set(optax.adam(1e-2), mask, every=20, stop=450, key=keys[4])

    @jax.jit
    def step(params, state, key):
        loss, gradient = jax.value_and_grad(loss_fn)(params, sequences(key))
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    for key in jax.random.split(keys[5], steps):
        params, state, loss = step(params, state, key)
    print(f"squared error: {loss:.4f}, sparsity {masks.sparsity(state.mask):.1%}")


if __name__ == "__main__":
    main()
