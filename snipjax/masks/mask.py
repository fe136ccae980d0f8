"""Masks of connections: applying, counting and checking them."""

import chex
import jax
import jax.numpy as jnp

from snipjax._src import checks, trees
from snipjax._src.types import Mask, Prunable
from snipjax.masks import counting
from snipjax.masks.prunable import are_prunable, kernels


def apply(mask: Mask, params: chex.ArrayTree) -> chex.ArrayTree:
    r"""Returns ``params`` with pruned entries exactly zero, whatever they were.

    .. math:: w'_j = \begin{cases} w_j & c_j = 1 \\ 0 & c_j = 0 \end{cases}

    for the mask :math:`c`: not a product, which a NaN or an infinity would survive.

    Args:
      mask: pytree of bools like ``params``; a leaf has the parameter's shape or ().
      params: pytree of arrays.

    Returns:
      A pytree like ``params``, of the same dtypes.

    Raises:
      ValueError: if the structures or shapes do not match.

    Example:
      >>> apply({"w": jnp.array([True, False])}, {"w": jnp.array([1.5, 2.5])})
      {'w': Array([1.5, 0. ], dtype=float32)}
    """
    check_mask(mask, params)
    return jax.tree.map(
        lambda keep, w: jnp.where(keep, w, jnp.zeros_like(w)), mask, params
    )


def ones(params: chex.ArrayTree, prunable: Prunable = kernels) -> Mask:
    r"""Returns the mask of the dense network, which keeps every connection.

    .. math:: c_j = 1 \quad \text{for all } j

    Args:
      params: pytree of arrays.
      prunable: predicate ``(key_path, leaf) -> bool``, or pytree of bools like
        ``params``.

    Returns:
      A pytree like ``params``: bool arrays of ones, and a scalar ``True`` where a
      leaf is not prunable.

    Example:
      >>> ones({"w": jnp.zeros((1, 2)), "b": jnp.zeros(2)})
      {'b': Array(True, dtype=bool), 'w': Array([[ True,  True]], dtype=bool)}
    """
    leaves, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(
        treedef,
        [
            jnp.ones(jnp.shape(leaf) if is_prunable else (), jnp.bool_)
            for leaf, is_prunable in zip(leaves, are_prunable(params, prunable))
        ],
    )


def kept_count(total: int, sparsity: float) -> int:
    r"""Returns the number of connections that a sparsity keeps.

    .. math:: \kappa = \mathrm{round}(m (1 - sparsity))

    Args:
      total: number of prunable connections :math:`m`.
      sparsity: share of connections to prune, in [0, 1).

    Returns:
      An integer.

    Raises:
      ValueError: if ``sparsity`` is not a number in [0, 1).

    Example:
      >>> kept_count(266_610, 0.95)
      13331
    """
    meaning = "the share of connections to prune, e.g. 0.95 for 95%"
    return round(total * (1 - checks.check_fraction(sparsity, "sparsity", meaning)))


def sparsity(mask: Mask) -> float:
    r"""Returns the share of prunable connections that are pruned.

    .. math:: 1 - \frac{1}{m} \sum_{j=1}^{m} c_j

    for the mask :math:`c` of :math:`m` prunable connections.

    Args:
      mask: pytree of bools; scalar leaves are not prunable.

    Returns:
      A float, or a float32 scalar under a transformation.

    Raises:
      ValueError: if no leaf of the mask is prunable.

    Example:
      >>> sparsity({"w": jnp.array([True, False, False, False]), "b": jnp.array(True)})
      0.75
    """
    leaves = [leaf for _, leaf in prunable_leaves(mask)]
    total = sum(leaf.size for leaf in leaves)
    if trees.is_traced(leaves):
        return 1.0 - sum(jnp.sum(leaf) for leaf in leaves) / total
    return 1.0 - sum(counting.counts(counting.is_true, leaves)) / total


def check_mask(mask: Mask, params: chex.ArrayTree) -> None:
    """Raises a ``ValueError`` unless the mask fits the parameters.

    It fits if the structures are equal and each leaf is a bool array of the
    parameter's shape, or a bool scalar.

    Args:
      mask: pytree that may be a mask of ``params``.
      params: pytree of arrays.

    Raises:
      ValueError: if it does not fit; the message names a leaf that does not.

    Example:
      >>> params = {"w": jnp.ones((2, 3))}
      >>> check_mask({"w": jnp.ones((2, 3), bool)}, params)
      >>> check_mask({"w": jnp.ones(3, bool)}, params)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: mask leaf 'w' has shape (3,), but the parameter has (2, 3); ...
    """
    checks.check_same_structure(mask, params, "mask", "params")
    checks.check_arrays(mask, "mask", "a leaf is a bool array of the parameter's shape")
    for (name, keep), param in zip(trees.named_leaves(mask), jax.tree.leaves(params)):
        _check_bool(name, keep)
        if jnp.shape(keep) not in ((), jnp.shape(param)):
            raise ValueError(
                f"mask leaf '{name}' has shape {jnp.shape(keep)}, but the parameter "
                f"has {jnp.shape(param)}; build the mask from scores of these params"
            )


def prunable_leaves(mask: Mask) -> list[tuple[str, chex.Array]]:
    """Returns ``(name, bool array)`` of a mask's prunable leaves, in tree order."""
    named = [(n, jnp.asarray(x)) for n, x in trees.named_leaves(mask) if jnp.ndim(x)]
    for name, leaf in named:
        _check_bool(name, leaf)
    if not named:
        raise ValueError(
            "no leaf of the mask is prunable: all are scalars; a prunable leaf is a "
            "bool array of the parameter's shape"
        )
    return named


def _check_bool(name: str, leaf: chex.Array) -> None:
    if jnp.result_type(leaf) != jnp.bool_:
        raise ValueError(
            f"mask leaf '{name}' has dtype {jnp.result_type(leaf)}, not bool; convert "
            "it, e.g. with mask > 0"
        )
