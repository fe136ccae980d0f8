"""Inner states in which connections that go or return have no past."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax


def fresh_where(
    changed: chex.ArrayTree,
    inner: optax.GradientTransformation,
    state: optax.OptState,
    params: chex.ArrayTree,
) -> optax.OptState:
    """Returns an inner state that is as at the start where a mask has changed.

    Every leaf of the state that is like a parameter takes there the value that
    ``inner.init(params)`` has: zero for moments, Adagrad's initial accumulator, the
    weight itself for slow weights. Leaves of several entries along a leading axis for
    each connection do too. Leaves of other shapes, such as the factors of Adafactor's
    second moments, stay.

    A ``ValueError`` says if ``inner`` does not tell which leaves of its state are like
    a parameter, as ``optax.lbfgs`` and ``optax.flatten`` do not.

    Example:
      >>> params = {"w": jnp.array([0.5, 0.0])}
      >>> state = optax.TraceState({"w": jnp.array([3.0, 4.0])})
      >>> changed = {"w": jnp.array([False, True])}
      >>> fresh_where(changed, optax.trace(0.9), state, params).trace["w"]
      Array([3., 0.], dtype=float32)
    """
    start = inner.init(params)

    def of_params(like: Any, changed: chex.ArrayTree) -> Any:
        # A state may have several leaves for a parameter, or none.
        return jax.tree.map(
            lambda where, part: jax.tree.map(lambda _: where, part), changed, like
        )

    try:
        places = optax.tree.map_params(
            inner,
            of_params,
            start,
            changed,
            transform_non_params=lambda _: False,
            is_leaf=lambda _: True,
        )
    except (IndexError, ValueError) as error:  # of optax.lbfgs and optax.flatten
        raise ValueError(
            "inner does not tell which entries of its state belong to a connection "
            f"({error}); take one without optax.flatten and without a line search"
        ) from error

    def mixed(where: Any, old: Any, new: Any) -> Any:
        if where is False or not _ends_with(jnp.shape(old), jnp.shape(where)):
            return old
        return jnp.where(where, new, old)

    return jax.tree.map(mixed, places, state, start)


def _ends_with(shape: tuple[int, ...], end: tuple[int, ...]) -> bool:
    return shape[len(shape) - len(end) :] == end
