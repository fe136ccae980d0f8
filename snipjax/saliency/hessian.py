"""Products with the Hessian of the loss, which criteria of the curvature share."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import batches, checks
from snipjax._src.types import LossFn
from snipjax.saliency.gradient import at_least_float32

# (leaves of a row of the Hessian, index of the row) -> entries of the row
Entries = Callable[[list[chex.Array], chex.Array], chex.Array]


def hessian_product(
    loss_fn: LossFn, params: chex.ArrayTree, batch: Any
) -> Callable[[chex.ArrayTree], chex.ArrayTree]:
    """Returns the function that multiplies a pytree with the Hessian of the loss.

    The products are in float32 or wider. Each recomputes the
    gradient and stores nothing for the next, so memory is constant.
    """
    _, product = gradient_and_product(loss_fn, params, batch)
    return product


def gradient_and_product(
    loss_fn: LossFn, params: chex.ArrayTree, batch: Any
) -> tuple[Callable[[], chex.ArrayTree], Callable[[chex.ArrayTree], chex.ArrayTree]]:
    """Returns a function of the loss's gradient, and one that multiplies its Hessian.

    Both are in float32 or wider.
    """
    batch = batches.as_arrays(batch)
    wide = jax.tree.map(lambda w: w.astype(at_least_float32(w)), params)

    def loss_of(wide: chex.ArrayTree) -> chex.Array:
        narrow = jax.tree.map(lambda v, w: v.astype(w.dtype), wide, params)
        return checks.check_loss(loss_fn(narrow, batch))

    gradient = jax.grad(loss_of)

    def multiply(tree: chex.ArrayTree) -> chex.ArrayTree:
        tangents = jax.tree.map(lambda v, w: v.astype(w.dtype), tree, wide)
        return jax.jvp(gradient, (wide,), (tangents,))[1]

    return lambda: gradient(wide), multiply


def hessian_rows(
    product: Callable[[chex.ArrayTree], chex.ArrayTree],
    params: chex.ArrayTree,
    number: int,
    entries: Entries,
) -> chex.Array:
    """Returns entries of the Hessian's rows of one leaf, ``[leaf.size, ...]``.

    Rows are made one at a time. The leaf is not empty; ``number`` counts in tree order.
    """
    leaves, treedef = jax.tree.flatten(params)

    def row(j: chex.Array) -> chex.Array:
        basis = [jnp.zeros_like(leaf) for leaf in leaves]
        leaf = leaves[number]
        basis[number] = jnp.zeros_like(leaf.ravel()).at[j].set(1).reshape(leaf.shape)
        return entries(jax.tree.leaves(product(jax.tree.unflatten(treedef, basis))), j)

    return jax.lax.map(row, jnp.arange(leaves[number].size))
