"""Masks: which connections are kept.

A mask has the structure of ``params``. A leaf is a bool array of the parameter's
shape, or a scalar ``True`` where the parameter is not prunable, so that
``jax.tree.map(jnp.multiply, mask, params)`` always works.
"""

import dataclasses
import difflib
import fnmatch
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax._src import trees
from snipjax.masks import selection

Prunable = Callable[[trees.KeyPath, Any], bool]
# From the prunable leaves and a sparsity to a bool array of each leaf's shape.
Choose = Callable[[list[chex.Array], float], list[chex.Array]]

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_BIAS = re.compile(r"(.*_)?bias_?\d*", re.IGNORECASE)
# What is called so is a bias only if it is a vector: a matrix "B" may be a weight.
_VECTOR_OF_BIASES = re.compile(r"(.*_)?b_?\d*|\d+", re.IGNORECASE)


def kernels(path: trees.KeyPath, leaf: chex.Array) -> bool:
    """Returns whether a leaf is a weight matrix or kernel: two or more dimensions.

    Args:
      path: the leaf's key path, not looked at.
      leaf: an array.

    Returns:
      A bool, as every predicate that is passed as ``prunable``.

    Example:
      >>> params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
      >>> jax.tree_util.tree_map_with_path(kernels, params)
      {'b': False, 'w': True}
    """
    del path
    return jnp.ndim(leaf) >= 2


def weights_and_biases(path: trees.KeyPath, leaf: chex.Array) -> bool:
    """Returns whether a leaf is a weight or bias, the choice of the SNIP paper.

    That is every array but the parameters of normalisation layers, which are known
    by their names: a part of the path such as ``BatchNorm_0``, ``layer_norm``,
    ``norm2``, ``conv1_bn`` or ``ln_f``, or a leaf called ``scale``. Where your layers
    are called otherwise, pass a predicate of your own.

    Args:
      path: the leaf's key path.
      leaf: an array.

    Returns:
      A bool, as every predicate that is passed as ``prunable``.

    Example:
      >>> params = {"Dense_0": {"bias": jnp.ones(2)}, "norm": {"bias": jnp.ones(2)}}
      >>> jax.tree_util.tree_map_with_path(weights_and_biases, params)
      {'Dense_0': {'bias': True}, 'norm': {'bias': False}}
    """
    parts = trees.path_name(path).split("/")
    is_normalisation = parts[-1].lower() == "scale" or any(
        map(_names_normalisation, parts)
    )
    return jnp.ndim(leaf) >= 1 and not is_normalisation


def excluding(prunable: Prunable, *patterns: str) -> Prunable:
    """Returns a predicate like ``prunable`` that is false where a pattern matches.

    For what is to stay dense, such as embeddings and heads. A pattern is matched
    against the whole name of a leaf, such as ``decoder/layer_3/mlp/kernel``: ``*``
    stands for any text, slashes included, ``?`` for one character and ``[ab]`` for
    one of these, as in :mod:`fnmatch`; case matters.

    Args:
      prunable: predicate ``(key_path, leaf) -> bool``.
      patterns: e.g. ``"*embedding"``, ``"head/*"``.

    Returns:
      A predicate. Where it meets a whole pytree, in a selection, :func:`ones` or
      :func:`are_prunable`, a pattern that matches no leaf raises a ``ValueError``:
      it is most likely misspelt. Wrapped in a function of yours, it only excludes.

    Raises:
      ValueError: for a pattern that is not a string.

    Example:
      >>> params = {"embedding": jnp.ones((2, 2)), "head": {"kernel": jnp.ones((2, 2))}}
      >>> are_prunable(params, excluding(kernels, "*embedding"))
      [False, True]
    """
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(
                f"pattern {pattern!r} is a {type(pattern).__name__}, not a string; a "
                "pattern is matched against a leaf's name, e.g. '*embedding'"
            )
    return _Excluding(prunable, patterns) if patterns else prunable


def are_prunable(params: chex.ArrayTree, prunable: Prunable = kernels) -> list[bool]:
    """Returns whether each leaf is prunable, in tree order.

    Args:
      params: pytree of arrays.
      prunable: predicate ``(key_path, leaf) -> bool``; leaves without a dimension or
        without entries are never prunable.

    Raises:
      ValueError: if a pattern of :func:`excluding` matches no leaf.

    Example:
      >>> are_prunable({"w": jnp.ones((2, 2)), "b": jnp.ones(2)})
      [False, True]
    """
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    _check_patterns(prunable, [trees.path_name(path) for path, _ in paths_and_leaves])
    return [
        jnp.ndim(leaf) >= 1 and jnp.size(leaf) > 0 and bool(prunable(path, leaf))
        for path, leaf in paths_and_leaves
    ]


def global_topk(
    scores: chex.ArrayTree, sparsity: float, prunable: Prunable = kernels
) -> chex.ArrayTree:
    """Returns the mask of the connections with the largest scores of all leaves.

    Exactly ``round(m * (1 - sparsity))`` of the ``m`` prunable connections are kept;
    of equal scores, those of lower flat index in tree order. Nothing is sorted or
    concatenated: the threshold is bracketed, by counting (`selection.py`).

    Args:
      scores: pytree of floating-point arrays, e.g. of :func:`snipjax.saliency.snip`.
      sparsity: the share of connections to prune, in [0, 1).
      prunable: predicate ``(key_path, leaf) -> bool``; scalars are never prunable.

    Returns:
      A pytree like ``scores``: bool arrays, and a scalar ``True`` where a leaf is
      not prunable.

    Raises:
      ValueError: if ``sparsity`` is outside [0, 1), nothing is prunable, a leaf is
        not a floating-point array, or (outside of transformations, where values
        can be looked at) a score is not finite.

    Warns:
      UserWarning: (outside of transformations) if a leaf keeps no connection at
        all, biases aside: it disconnects the network unless a path leads around it.

    Example:
      >>> global_topk({"w": jnp.array([[1.0, 3.0], [2.0, 3.0]])}, 0.5)["w"]
      Array([[False,  True],
             [False,  True]], dtype=bool)

    Lee, Ajanthan, Torr, ICLR 2019, algorithm 1, line 6.
    """
    return selected(scores, sparsity, prunable, _largest)


def layerwise_topk(
    scores: chex.ArrayTree, sparsity: float, prunable: Prunable = kernels
) -> chex.ArrayTree:
    """Returns the mask of the connections with the largest scores of each leaf.

    Exactly ``round(m * (1 - sparsity))`` of the ``m`` connections of every prunable
    leaf are kept. Arguments, ties, errors and warnings are those of
    :func:`global_topk`.

    Example:
      >>> scores = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[8.0, 9.0]])}
      >>> layerwise_topk(scores, 0.5)["a"]
      Array([[False,  True]], dtype=bool)
    """

    def largest_of_each(leaves: list[chex.Array], sparsity: float) -> list[chex.Array]:
        return [mask for leaf in leaves for mask in _largest([leaf], sparsity)]

    return selected(scores, sparsity, prunable, largest_of_each)


def selected(
    scores: chex.ArrayTree, sparsity: float, prunable: Prunable, choose: Choose
) -> chex.ArrayTree:
    """Returns the mask of what a function chooses of the prunable leaves.

    What :func:`global_topk` and its like have in common: their checks and warnings,
    and the place of each leaf's mask in the pytree.

    Args:
      scores: pytree of floating-point arrays.
      sparsity: the share of connections to prune, in [0, 1).
      prunable: predicate ``(key_path, leaf) -> bool``.
      choose: ``(leaves, sparsity) -> masks``, from the prunable leaves to a bool
        array of the shape of each.

    Returns:
      A pytree like ``scores``, as :func:`global_topk` returns it. Errors and warnings
      are those listed there.

    Example:
      >>> def not_least(leaves, sparsity):
      ...     return [leaf > jnp.min(leaf) for leaf in leaves]
      >>> selected({"w": jnp.array([[1.0, 3.0]])}, 0.5, kernels, not_least)
      {'w': Array([[False,  True]], dtype=bool)}
    """
    kept_count(0, sparsity)
    trees.check_floating(scores, "scores")
    named, is_prunable = trees.named_leaves(scores), are_prunable(scores, prunable)
    if not any(is_prunable):
        raise ValueError(
            f"nothing is prunable among the leaves [{', '.join(n for n, _ in named)}]; "
            "pass a predicate `prunable(path, leaf)` that is true for some, e.g. "
            "masks.kernels for leaves of two or more dimensions or "
            "masks.weights_and_biases"
        )
    named = [entry for entry, keep in zip(named, is_prunable) if keep]
    _check_finite(named)
    chosen = iter(choose([leaf for _, leaf in named], sparsity))
    mask = jax.tree.unflatten(
        jax.tree.structure(scores),
        [next(chosen) if keep else jnp.array(True) for keep in is_prunable],
    )
    if not trees.is_traced(mask):
        warn_if_disconnected(mask)
    return mask


def ones(params: chex.ArrayTree, prunable: Prunable = kernels) -> chex.ArrayTree:
    """Returns the mask that keeps every connection: that of the dense network.

    Args:
      params: pytree of arrays.
      prunable: predicate ``(key_path, leaf) -> bool``.

    Returns:
      A pytree like ``params``: bool arrays of ones, and a scalar ``True`` where a
      leaf is not prunable.

    Example:
      >>> ones({"w": jnp.zeros((1, 2)), "b": jnp.zeros(2)})
      {'b': Array(True, dtype=bool), 'w': Array([[ True,  True]], dtype=bool)}
    """
    leaves, treedef = jax.tree.flatten(params)
    is_prunable = are_prunable(params, prunable)
    return jax.tree.unflatten(
        treedef,
        [
            jnp.ones(jnp.shape(leaf) if keep else (), jnp.bool_)
            for leaf, keep in zip(leaves, is_prunable)
        ],
    )


def kept_count(total: int, sparsity: float) -> int:
    """Returns ``round(total * (1 - sparsity))``, the number of connections kept.

    Raises:
      ValueError: if ``sparsity`` is not a number in [0, 1).

    Example:
      >>> kept_count(266_610, 0.95)
      13331
    """
    if isinstance(sparsity, jax.core.Tracer):
        raise ValueError(
            "sparsity is traced, but the number of connections kept must be known; "
            "pass a Python float (close over it, or name it in static_argnames)"
        )
    try:
        value = float(sparsity)
    except (TypeError, ValueError):
        value = float("nan")
    is_number = not isinstance(sparsity, bool | np.bool | str | bytes)
    if not (is_number and 0.0 <= value < 1.0):
        raise ValueError(
            f"sparsity is {sparsity!r}, outside [0, 1); it is the share of connections "
            "to prune, e.g. 0.95 for 95%"
        )
    return round(total * (1 - value))


def apply(mask: chex.ArrayTree, params: chex.ArrayTree) -> chex.ArrayTree:
    """Returns ``params`` with pruned entries exactly zero, whatever they were.

    Args:
      mask: pytree of bools like ``params``; a leaf has the parameter's shape or ().
      params: pytree of arrays.

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


def sparsity(mask: chex.ArrayTree) -> float:
    """Returns the share of prunable connections that are pruned.

    Under a transformation the result is a traced float32 scalar.

    Raises:
      ValueError: if no leaf of the mask is prunable.

    Example:
      >>> sparsity({"w": jnp.array([True, False, False, False]), "b": jnp.array(True)})
      0.75
    """
    leaves = [leaf for _, leaf in _prunable_leaves(mask)]
    total = sum(leaf.size for leaf in leaves)
    if trees.is_traced(leaves):
        return 1.0 - sum(jnp.sum(leaf) for leaf in leaves) / total
    return 1.0 - sum(_kept_counts(leaves)) / total


class Row(NamedTuple):
    """What a mask keeps of one prunable leaf."""

    path: str
    shape: tuple[int, ...]
    kept: int
    total: int
    density: float


class Summary(tuple[Row, ...]):
    """Rows, one per prunable leaf; ``str`` gives them as a table with the total."""

    def __str__(self) -> str:
        total = _row(
            "total", (), sum(row.kept for row in self), sum(row.total for row in self)
        )
        cells = [("path", "shape", "kept", "total", "density")] + [
            (
                row.path,
                "x".join(map(str, row.shape)),
                f"{row.kept:,}",
                f"{row.total:,}",
                f"{100 * row.density:.2f}%",
            )
            for row in (*self, total)
        ]
        return _aligned(cells)


def summary(mask: chex.ArrayTree) -> Summary:
    """Returns what the mask keeps of every prunable leaf, in tree order.

    Args:
      mask: a concrete mask, not a traced one.

    Returns:
      A tuple of rows with fields ``path``, ``shape``, ``kept``, ``total`` and
      ``density``. Printed, it is a table.

    Raises:
      ValueError: if no leaf of the mask is prunable.

    Example:
      >>> print(summary({"w": jnp.eye(2, dtype=bool), "b": jnp.array(True)}))
      path   shape  kept  total  density
      w        2x2     2      4   50.00%
      total            2      4   50.00%
    """
    named = _prunable_leaves(mask)
    counts = _kept_counts([leaf for _, leaf in named])
    return Summary(
        _row(name, tuple(leaf.shape), kept, leaf.size)
        for (name, leaf), kept in zip(named, counts)
    )


def check_mask(mask: chex.ArrayTree, params: chex.ArrayTree) -> None:
    """Raises a ``ValueError`` unless the mask fits the params.

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
    trees.check_same_structure(mask, params, "mask", "params")
    trees.check_arrays(mask, "mask", "a leaf is a bool array of the parameter's shape")
    for (name, keep), param in zip(trees.named_leaves(mask), jax.tree.leaves(params)):
        _check_bool(name, keep)
        if jnp.shape(keep) not in ((), jnp.shape(param)):
            raise ValueError(
                f"mask leaf '{name}' has shape {jnp.shape(keep)}, but the parameter "
                f"has {jnp.shape(param)}; build the mask from scores of these params"
            )


def _check_bool(name: str, leaf: chex.Array) -> None:
    if jnp.result_type(leaf) != jnp.bool_:
        raise ValueError(
            f"mask leaf '{name}' has dtype {jnp.result_type(leaf)}, not bool; convert "
            "it, e.g. with mask > 0"
        )


def _largest(leaves: list[chex.Array], sparsity: float) -> list[chex.Array]:
    count = kept_count(sum(leaf.size for leaf in leaves), sparsity)
    return selection.largest(leaves, count)


@dataclasses.dataclass(frozen=True)
class _Excluding:
    """What :func:`excluding` returns: a predicate that can tell its patterns."""

    prunable: Prunable
    patterns: tuple[str, ...]

    def __call__(self, path: trees.KeyPath, leaf: chex.Array) -> bool:
        name = trees.path_name(path)
        is_excluded = any(fnmatch.fnmatchcase(name, p) for p in self.patterns)
        return not is_excluded and self.prunable(path, leaf)


def _check_patterns(prunable: Prunable, names: list[str]) -> None:
    """Raises a ``ValueError`` for a pattern that matches none of the names."""
    while isinstance(prunable, _Excluding):
        for pattern in prunable.patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                nearest = difflib.get_close_matches(pattern, names, n=5, cutoff=0.0)
                raise ValueError(
                    f"pattern '{pattern}' excludes nothing: it matches no leaf; the "
                    f"names most like it are {', '.join(nearest)} ('*' stands for any "
                    "text)"
                )
        prunable = prunable.prunable


def _names_normalisation(part: str) -> bool:
    """True for BatchNorm_0, post_layernorm, norm1, conv1_bn, ln_f; not for normal."""
    words = [word.lower() for word in _WORD.findall(part)]
    words = [word for word in words if len(word) > 1]
    return any(word in ("bn", "ln") for word in words) or bool(
        words and re.fullmatch(r".*norm(alization)?", words[-1])
    )


def _check_finite(named: list[tuple[str, chex.Array]]) -> None:
    are_finite = _are_finite([leaf for _, leaf in named])
    if trees.is_traced(are_finite):
        return
    bad = [name for (name, _), ok in zip(named, jax.device_get(are_finite)) if not ok]
    if bad:
        raise ValueError(
            f"saliency is not finite in {', '.join(bad)}; the loss or its gradient "
            "overflows on this batch: check the inputs, the initialization and the "
            "dtype"
        )


@jax.jit
def _are_finite(leaves: list[chex.Array]) -> list[chex.Array]:
    # The largest magnitude is NaN or infinite where an entry is.
    return [jnp.isfinite(jnp.max(jnp.abs(leaf), initial=0)) for leaf in leaves]


def warn_if_disconnected(mask: chex.ArrayTree) -> None:
    """Warns of every prunable leaf, other than a bias, that keeps no connection.

    Selections of concrete scores do it by themselves, those of traced scores cannot.

    Args:
      mask: a concrete mask.

    Warns:
      UserWarning: naming the leaf.

    Example:
      >>> warn_if_disconnected({"w": jnp.array([[True, False]])})
    """
    for row in summary(mask):
        if row.kept == 0 and not _is_bias(row):
            warnings.warn(
                f"no connection of '{row.path}' is kept: nothing passes through it, "
                "and unless another path leads around it (a gate, a shortcut) the mask "
                "disconnects the network; prune less, leave this leaf out with "
                "`prunable`, or select with masks.layerwise_topk",
                stacklevel=_level_of_caller(),
            )


def _row(path: str, shape: tuple[int, ...], kept: int, total: int) -> Row:
    return Row(path, shape, kept, total, density=kept / total)


def _is_bias(row: Row) -> bool:
    name = row.path.split("/")[-1]
    if len(row.shape) < 2 and _VECTOR_OF_BIASES.fullmatch(name):
        return True
    return _BIAS.fullmatch(name) is not None


def _level_of_caller() -> int:
    """The ``stacklevel``, for the function calling this, of the code outside snipjax.

    What ``skip_file_prefixes`` does from Python 3.12 on.
    """
    frame, level = sys._getframe(1), 1
    while frame and frame.f_globals.get("__name__", "").startswith("snipjax."):
        frame, level = frame.f_back, level + 1
    return level


def _prunable_leaves(mask: chex.ArrayTree) -> list[tuple[str, chex.Array]]:
    named = [(n, jnp.asarray(x)) for n, x in trees.named_leaves(mask) if jnp.ndim(x)]
    for name, leaf in named:
        _check_bool(name, leaf)
    if not named:
        raise ValueError(
            "no leaf of the mask is prunable: all are scalars; a prunable leaf is a "
            "bool array of the parameter's shape"
        )
    return named


def _kept_counts(leaves: Sequence[chex.Array]) -> list[int]:
    # A mask closed over by a traced function has values to count all the same.
    with jax.ensure_compile_time_eval():
        counts = selection.counts(list(leaves))
    return [int(count) for count in jax.device_get(counts)]


def _aligned(cells: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        )
        for row in cells
    ]
    return "\n".join(lines)
