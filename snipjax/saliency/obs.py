"""Optimal brain surgeon: the inverse of the loss's curvature."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax._src import checks, trees
from snipjax._src.types import LossFn, Scores
from snipjax.saliency.hessian import Entries, hessian_product, hessian_rows


def obs(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
    damping: float = 1e-4,
    per_leaf: bool = False,
    max_size: int = 2048,
) -> Scores:
    r"""Returns optimal brain surgeon's saliency of every parameter.

    .. math:: s_j = \frac{w_j^2}{2 [(H_+ + \alpha I)^{-1}]_{jj}}

    is by how much the loss grows where connection ``j`` of a trained network is
    removed and all others make up for it as well as they can. :math:`H_+` is the
    Hessian of the loss without its negative eigenvalues.

    Args:
      loss_fn: ``(params, batch) -> scalar``, a pure function: the loss of a batch.
      params: pytree of floating-point arrays, the parameters of a trained network.
      batch: any pytree that ``loss_fn`` takes.
      key: ignored.
      damping: :math:`\alpha`, in units of curvature.
      per_leaf: whether only connections of the same leaf make up for each other: the
        Hessian is then one block for each leaf, instead of one of all parameters.
      max_size: number of parameters that one block may have; its memory grows with
        their square, and its time with their cube.

    Returns:
      A pytree like ``params`` of float32 arrays.

    Raises:
      ValueError: if ``damping`` is not positive, ``max_size`` is not a positive
        integer, a block has more parameters, the loss is not a floating-point scalar,
        or a leaf of ``params`` is not a floating-point array.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(x * params["w"] ** 2)
      >>> scores = obs(loss_fn, {"w": jnp.array([1.0, -3.0])}, jnp.array([2.0, 1.0]))
      >>> [round(s, 2) for s in scores["w"].tolist()]
      [2.0, 9.0]

    Hassibi, Stork, "Second order derivatives for network pruning: Optimal Brain
    Surgeon", NIPS 1992, equation 5.
    """
    del key
    if isinstance(damping, bool) or not damping > 0.0 or not np.isfinite(damping):
        raise ValueError(
            f"damping is {damping!r}; it must be a positive number, e.g. 1e-4: without "
            "it a Hessian that is singular has no inverse"
        )
    checks.check_positive_integer(max_size, "max_size")
    checks.check_floating(params, "params")
    params = jax.tree.map(jnp.asarray, params)
    leaves, treedef = jax.tree.flatten(params)
    _check_sizes(params, per_leaf, max_size)
    product = hessian_product(loss_fn, params, batch)

    def flat_row(row: list[chex.Array], _: chex.Array) -> chex.Array:
        return jnp.concatenate([x.astype(jnp.float32).ravel() for x in row])

    def row_of(number: int) -> Entries:
        return lambda row, _: row[number].ravel()

    numbers = [i for i, leaf in enumerate(leaves) if leaf.size]
    if per_leaf:
        blocks = [hessian_rows(product, params, i, row_of(i)) for i in numbers]
    else:
        rows = [hessian_rows(product, params, i, flat_row) for i in numbers]
        blocks = [jnp.concatenate(rows)] if rows else []
    diagonals = [_inverse_diagonal(b.astype(jnp.float32), damping) for b in blocks]
    if not per_leaf and numbers:
        ends = np.cumsum([leaves[i].size for i in numbers])[:-1]
        diagonals = jnp.split(diagonals[0], ends)
    scores = [leaf.astype(jnp.float32) for leaf in leaves]
    for i, diagonal in zip(numbers, diagonals):
        scores[i] = 0.5 * scores[i] ** 2 / diagonal.reshape(scores[i].shape)
    return jax.tree.unflatten(treedef, scores)


def _inverse_diagonal(block: chex.Array, damping: float) -> chex.Array:
    values, vectors = jnp.linalg.eigh(block)
    inverse = 1.0 / (jnp.maximum(values, 0.0) + damping)
    return jnp.sum(vectors**2 * inverse[None], axis=1)


def _check_sizes(params: chex.ArrayTree, per_leaf: bool, max_size: int) -> None:
    sizes = {name: leaf.size for name, leaf in trees.named_leaves(params)}
    if not sizes:
        return
    name = max(sizes, key=lambda name: sizes[name])
    largest, total = sizes[name], sum(sizes.values())
    if largest > max_size:
        raise ValueError(
            f"params leaf '{name}' has {largest:,} parameters, and the Hessian of a "
            f"block can have {max_size:,} (max_size); score large networks with "
            "saliency.obd, which needs the diagonal alone, prune dense and "
            "convolutional layers with methods.lobs, or raise max_size if memory "
            "holds its square"
        )
    if not per_leaf and total > max_size:
        raise ValueError(
            f"params have {total:,} parameters, the leaf '{name}' the most "
            f"({largest:,}), and the Hessian of all can have {max_size:,} (max_size); "
            "pass per_leaf=True for a block of each leaf, or raise max_size if memory "
            "holds its square"
        )
