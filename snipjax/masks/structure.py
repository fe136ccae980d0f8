"""Selections of a structure: N of M neighbors, blocks, and whole units.

A structure is a selection ``(scores, sparsity, prunable) -> mask``. Blocks and units
are selected by the sum of their scores as connections are by theirs, with any selection
in turn: of all leaves together, leaf by leaf, or with the densities of an allocation.
"""

import collections
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from snipjax._src import checks, trees
from snipjax._src.types import KeyPath, Mask, Prunable, Scores, Select
from snipjax.masks import topk
from snipjax.masks.prunable import are_prunable, kernels


def n_of_m(n: int, m: int, *, axis: int = -2) -> Select:
    r"""Returns a selection that keeps ``n`` of every ``m`` neighbors along an axis.

    .. math:: \sum_{k=0}^{m-1} c_{m i + k} = n \quad \text{for every } i

    along the axis. Among entries :math:`m i, \dots, m i + m - 1`, the ``n`` with the
    largest scores are kept; of equal scores, the first. Every leaf has the density
    :math:`n / m`, whatever sparsity the selection is called with.

    Args:
      n: number of connections kept of each group.
      m: size of a group, which divides the axis of every prunable leaf.
      axis: axis of the groups; by default the inputs of a kernel ``[..., inputs,
        outputs]``, along which hardware with 2:4 sparsity groups weights.

    Returns:
      ``(scores, sparsity, prunable) -> mask``, which raises a ``ValueError`` that names
      a prunable leaf without the axis, or with one that ``m`` does not divide.

    Raises:
      ValueError: unless ``n`` and ``m`` are integers, ``1 <= n <= m``.

    Example:
      >>> scores = {"w": jnp.array([[1.0], [4.0], [3.0], [2.0]])}
      >>> n_of_m(2, 4)(scores, 0.5, kernels)["w"].ravel()
      Array([False,  True,  True, False], dtype=bool)

    Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.
    """
    checks.check_positive_integer(n, "n")
    checks.check_positive_integer(m, "m")
    if n > m:
        raise ValueError(f"n is {n} and m is {m}; of {m}, at most {m} can be kept")

    def rule(
        leaves: list[tuple[KeyPath, chex.Array]], sparsity: float
    ) -> list[chex.Array]:
        del sparsity
        return [
            _largest_of_groups(jnp.asarray(leaf), n, m, _axis(path, leaf, axis, m))
            for path, leaf in leaves
        ]

    def select_n_of_m(
        scores: Scores, sparsity: float, prunable: Prunable = kernels
    ) -> Mask:
        return topk.select_leaves(scores, sparsity, prunable, rule)

    return select_n_of_m


def blocks(shape: tuple[int, ...], *, select: Select = topk.global_topk) -> Select:
    r"""Returns a selection of whole blocks, by the sum of the scores in each.

    Blocks tile the last axes of a leaf. The score of a block :math:`b` is

    .. math:: S_b = \sum_{j \in b} s_j.

    With the default, exactly
    ``round(number of blocks * (1 - sparsity))`` blocks of all leaves together are kept;
    of equal sums, the first in row-major order.

    Args:
      shape: sizes of a block along the last axes of a leaf, which they divide.
      select: selection among the blocks, ``(scores, sparsity, prunable) -> mask`` of a
        pytree like the scores with an entry for each block.

    Returns:
      ``(scores, sparsity, prunable) -> mask``, which raises a ``ValueError`` that names
      a prunable leaf that the blocks do not tile.

    Raises:
      ValueError: unless ``shape`` is a sequence of positive integers.

    Example:
      >>> scores = {"w": jnp.array([[1.0, 1.0, 5.0, 0.0], [1.0, 2.0, 0.0, 1.0]])}
      >>> blocks((2, 2))(scores, 0.5, kernels)["w"]
      Array([[False, False,  True,  True],
             [False, False,  True,  True]], dtype=bool)

    Gray, Radford, Kingma, "GPU Kernels for Block-Sparse Weights", 2017.
    """
    if not isinstance(shape, Sequence):
        raise ValueError(f"shape is {shape}; pass a size for each axis, e.g. (4, 4)")
    for size in shape:
        checks.check_positive_integer(size, "size of a block")

    def select_blocks(
        scores: Scores, sparsity: float, prunable: Prunable = kernels
    ) -> Mask:
        checks.check_floating(scores, "scores")
        chosen = jax.tree.unflatten(
            jax.tree.structure(scores), are_prunable(scores, prunable)
        )
        sums = jax.tree_util.tree_map_with_path(
            lambda path, s, is_prunable: (
                _block_sums(path, jnp.asarray(s), shape) if is_prunable else s
            ),
            scores,
            chosen,
        )
        return jax.tree.map(
            lambda keep, s: _repeated(keep, jnp.shape(s)) if jnp.ndim(keep) else keep,
            select(sums, sparsity, chosen),
            scores,
        )

    return select_blocks


def units(
    axis: int = -1,
    *,
    group: Callable[[str], str] = lambda name: name,
    select: Select = topk.global_topk,
) -> Select:
    r"""Returns a selection of whole units, by the sum of their scores.

    A unit is all entries of a leaf at one index of an axis: an output channel or
    feature of a kernel ``[..., inputs, outputs]``. Its score is

    .. math:: S_u = \sum_{j \in u} s_j.

    With the default, exactly ``round(number of units * (1 - sparsity))`` units of all
    leaves together are kept, so that ``sparsity`` is the share of units to prune; of
    equal sums, the first.

    Args:
      axis: axis of the units in every leaf; -2 for the heads of an attention's query,
        key and value ``[inputs, heads, width]``. An output projection ``[heads, width,
        outputs]`` has its heads elsewhere: leave it out of ``prunable``, or remove
        heads by :mod:`snipjax.shrink`. Layers that are stacked in one leaf have their
        units in common.
      group: from the name of a leaf, such as ``Dense_0/kernel``, to the name of a
        group. Leaves of one group have their units in common: a kernel and its bias
        with ``lambda name: name.rpartition("/")[0]``. By default each leaf has its own.
      select: selection among the units, ``(scores, sparsity, prunable) -> mask`` of a
        dictionary with a vector of sums for each group.

    Returns:
      ``(scores, sparsity, prunable) -> mask``, which raises a ``ValueError`` that names
      a prunable leaf without the axis, or leaves of a group with different numbers.

    Example:
      >>> scores = {"v": jnp.array([[1.0, 9.0], [1.0, 9.0]]), "w": jnp.ones((2, 2))}
      >>> mask = units()(scores, 0.75, kernels)
      >>> mask["v"].tolist(), bool(mask["w"].any())
      ([[False, True], [False, True]], False)

    Verdenius, Stol, Forré, "Pruning via Iterative Ranking of Sensitivity Statistics",
    2020 (SNAP-it), with the score of a unit as the sum of its connections'.
    """

    def select_units(
        scores: Scores, sparsity: float, prunable: Prunable = kernels
    ) -> Mask:
        chosen = are_prunable(scores, prunable)
        checks.check_floating(scores, "scores")
        paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(scores)
        # In the order of the leaves, so that ties are broken as everywhere.
        sums: dict[str, chex.Array] = collections.OrderedDict()
        for (path, leaf), is_prunable in zip(paths_and_leaves, chosen):
            if is_prunable:
                place = _axis(path, leaf, axis, 1)
                others = tuple(i for i in range(jnp.ndim(leaf)) if i != place)
                name = group(trees.path_name(path))
                found = _sum(jnp.asarray(leaf), others)
                if name in sums and sums[name].shape != found.shape:
                    raise ValueError(
                        f"'{trees.path_name(path)}' has {found.size} units along axis "
                        f"{axis}, but others of its group '{name}' have "
                        f"{sums[name].size}; put it into a group of its own"
                    )
                sums[name] = sums[name] + found if name in sums else found
        kept = select(sums, sparsity, jax.tree.map(lambda _: True, sums))
        return jax.tree.unflatten(
            treedef,
            [
                _along(
                    kept[group(trees.path_name(path))],
                    jnp.shape(leaf),
                    _axis(path, leaf, axis, 1),
                )
                if is_prunable
                else jnp.array(True)
                for (path, leaf), is_prunable in zip(paths_and_leaves, chosen)
            ],
        )

    return select_units


def _largest_of_groups(x: chex.Array, n: int, m: int, axis: int) -> chex.Array:
    """Returns the mask of the n largest of every m entries along an axis."""
    if n == m:
        return jnp.full(x.shape, True)
    groups = x.reshape(*x.shape[:axis], -1, m, *x.shape[axis + 1 :])
    members = [jax.lax.index_in_dim(groups, i, axis + 1) for i in range(m)]
    index = jax.lax.broadcasted_iota(jnp.int32, groups.shape, axis + 1)
    # An entry comes after the larger ones of its group and the equal ones before it.
    before = sum(
        ((member > groups) | ((member == groups) & (i < index))).astype(jnp.int32)
        for i, member in enumerate(members)
    )
    return (before < n).reshape(x.shape)


def _block_sums(path: KeyPath, x: chex.Array, shape: tuple[int, ...]) -> chex.Array:
    if x.ndim < len(shape):
        raise ValueError(
            f"'{trees.path_name(path)}' has shape {x.shape}, which has fewer "
            f"dimensions than a block {shape}; leave it out with `prunable`"
        )
    first = x.ndim - len(shape)
    tiles, axes = list(x.shape[:first]), []
    for place, size in enumerate(shape, start=first):
        _axis(path, x, place, size)
        tiles += [x.shape[place] // size, size]
        axes.append(len(tiles) - 1)
    return _sum(x.reshape(tiles), tuple(axes))


def _sum(x: chex.Array, axes: tuple[int, ...]) -> chex.Array:
    """Returns sums in float32 at least, of the entries that were not pruned before.

    In rounds, pruned connections have the least score there is. They do not count,
    unless all of a block are: it comes after every other.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    is_kept = x != jnp.finfo(x.dtype).min  # nor is a NaN, which is told later
    sums = jnp.sum(jnp.where(is_kept, x.astype(dtype), 0.0), axes)
    # Still finite as the sum of as many as a thousand leaves of a group.
    least = float(jnp.finfo(dtype).min) / 1024
    return jnp.where(jnp.any(is_kept, axes), sums, least)


def _repeated(keep: chex.Array, shape: tuple[int, ...]) -> chex.Array:
    """Returns the mask of blocks at the size of their leaf."""
    for axis, size in enumerate(shape):
        keep = jnp.repeat(keep, size // keep.shape[axis], axis)
    return keep


def _along(keep: chex.Array, shape: tuple[int, ...], axis: int) -> chex.Array:
    """Returns a vector of units along an axis, the same at all other indices."""
    others = tuple(i for i in range(len(shape)) if i != axis)
    return jnp.broadcast_to(jnp.expand_dims(keep, others), shape)


def _axis(path: KeyPath, leaf: chex.Array, axis: int, size: int) -> int:
    """Returns the axis counted from the first; it is there, and the size divides it."""
    shape = jnp.shape(leaf)
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"'{trees.path_name(path)}' has shape {shape}, without an axis {axis}; "
            "leave it out with `prunable`, e.g. masks.kernels"
        )
    if shape[axis] % size:
        raise ValueError(
            f"'{trees.path_name(path)}' has {shape[axis]} entries along axis {axis}, "
            f"which {size} does not divide; leave it out with `prunable`, e.g. "
            f"masks.excluding(masks.kernels, '{trees.path_name(path)}')"
        )
    return axis % len(shape)
