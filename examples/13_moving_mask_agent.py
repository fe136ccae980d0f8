"""A reinforcement-learning agent with a tenth of its connections, which RigL moves.

A ball falls, and the agent has to be below it in the end; it learns by REINFORCE.
"""

import jax
import jax.numpy as jnp
import optax

from snipjax import masks, optim, pruning

SIZE, GAMES = 10, 256  # of the field, and games side by side


def logits(params, view):
    hidden = jax.nn.relu(jax.nn.relu(view @ params["in"]) @ params["hidden"])
    return hidden @ params["out"]  # of the actions: left, stay, right


def play(params, key):
    """Returns views and actions of each row ``[SIZE, GAMES, ...]``, and the rewards."""
    ball, paddle = jax.random.randint(key, (2, GAMES), 0, SIZE)

    def fall(paddle, key):
        view = jax.nn.one_hot(jnp.stack([ball, paddle], 1), SIZE).reshape(GAMES, -1)
        action = jax.random.categorical(key, logits(params, view))
        return jnp.clip(paddle + action - 1, 0, SIZE - 1), (view, action)

    paddle, (views, actions) = jax.lax.scan(fall, paddle, jax.random.split(key, SIZE))
    return views, actions, jnp.where(paddle == ball, 1.0, 0.0)


def loss(params, games):
    views, actions, rewards = games
    taken = jax.nn.log_softmax(logits(params, views)) * jax.nn.one_hot(actions, 3)
    return -jnp.mean(jnp.sum(taken, -1) * (rewards - jnp.mean(rewards)))


def main(steps=400):
    keys = jax.random.split(jax.random.key(0), 3 + steps)
    shapes = {"in": (2 * SIZE, 128), "hidden": (128, 128), "out": (128, 3)}
    init = jax.nn.initializers.he_normal()
    params = {name: init(key, shapes[name]) for name, key in zip(shapes, keys)}
    params, mask = pruning.prune(loss, params, play(params, keys[0]), 0.9)
    optimizer = optim.rigl(optax.adam(1e-2), mask, every=20, stop=300)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        games = play(params, key)
        updates, state = optimizer.update(jax.grad(loss)(params, games), state, params)
        return optax.apply_updates(params, updates), state, jnp.mean(games[-1])

    for key in keys[3:]:
        params, state, reward = step(params, state, key)
    print(f"balls caught: {reward:.0%}, sparsity {masks.sparsity(state.mask):.1%}")


if __name__ == "__main__":
    main()
