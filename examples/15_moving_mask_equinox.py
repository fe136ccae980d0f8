"""An Equinox model that loses nine tenths of its connections while it trains.

Its arrays are the params, which gradual magnitude pruning takes from dense to sparse.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from snipjax import masks, optim


def spirals(key, number=256):
    """Returns points in the plane ``[number, 2]``, and to which spiral they belong."""
    label, turn = jax.random.uniform(key, (2, number))
    label = jnp.round(label)
    angle = 3 * jnp.pi * turn**0.5 + jnp.pi * label
    return (turn**0.5 * jnp.stack([jnp.cos(angle), jnp.sin(angle)])).T, label


def main(steps=1000, stop=750):
    model = eqx.nn.MLP(2, "scalar", width_size=128, depth=3, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch):
        points, labels = batch
        logits = jax.vmap(eqx.combine(params, static))(points)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))

    dense = masks.ones(params)
    optimizer = optim.gradual_magnitude(
        optax.adam(3e-3), dense, sparsity=0.9, every=20, stop=stop
    )

    @jax.jit
    def step(params, state, key):
        gradient = jax.grad(loss_fn)(params, spirals(key))
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), steps):
        params, state = step(params, state, key)
    model = eqx.combine(params, static)  # pruned connections are zero
    points, labels = spirals(jax.random.key(2))
    correct = jnp.mean((jax.vmap(model)(points) > 0) == labels)
    print(f"correct: {correct:.1%}, sparsity {masks.sparsity(state.mask):.1%}")


if __name__ == "__main__":
    main()
