"""New masks: the weakest connections are dropped, and as many grow elsewhere.

Connections move one by one, or in a structure: as whole blocks or units, which have the
sums of their connections' scores, or so that N of M neighbors are kept.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp

from snipjax._src import trees
from snipjax._src.types import Mask, Scores, Select
from snipjax.masks import candidates
from snipjax.masks.mask import prunable_leaves

# A function such as masks.blocks with its settings bound. It returns a selection, and
# takes the selection among blocks as `select`, unless it has a density of its own.
Structure: TypeAlias = Callable[..., Select]


def relocated(
    mask: Mask,
    scores: Scores,
    growth: Scores,
    fraction: chex.Array,
    *,
    structure: Structure | None = None,
    layerwise: bool = True,
) -> Mask:
    r"""Returns a mask with the weakest connections dropped and as many others grown.

    The :math:`\lfloor n \cdot fraction \rfloor` least scores among the :math:`n` kept
    connections of a leaf are dropped. The same number of pruned ones then grow, by the
    largest growth scores; a connection that was just dropped is a candidate. Ties go
    to the lower flat index, which is kept, and grows. A NaN counts as 0. If it is not
    ``layerwise``, all leaves together keep their number of connections.

    Example:
      >>> mask = {"w": jnp.array([True, True, False, False])}
      >>> scores = {"w": jnp.array([1.0, 3.0, 0.0, 0.0])}
      >>> growth = {"w": jnp.array([2.0, 9.0, 4.0, 5.0])}
      >>> relocated(mask, scores, growth, jnp.float32(0.5))
      {'w': Array([False,  True, False,  True], dtype=bool)}
    """
    items = Items(mask, structure)
    growth = ordered(mask, growth)
    stays = without_weakest(items.mask, items.kept_scores(scores), fraction, layerwise)
    if items.has_own_density:
        return items.select_with(stays, growth)
    dropped = jax.tree.map(lambda old, stay: count([old & ~stay]), items.mask, stays)
    return items.expanded(with_grown(stays, items.sums(growth), dropped, layerwise))


def without_weakest(
    mask: Mask, scores: Scores, fraction: chex.Array, layerwise: bool = True
) -> Mask:
    """Returns the mask less a share of its connections, the ones of least scores."""

    def kept(rows: Sequence[Any]) -> list[chex.Array]:
        old, scores = map(list, zip(*rows))
        number = count(old)
        dropped = jnp.floor(number.astype(jnp.float32) * fraction).astype(jnp.uint32)
        return candidates.largest_among(
            scores, old, number - jnp.minimum(dropped, number)
        )

    return by_leaf(kept, mask, scores, layerwise=layerwise)


def with_grown(
    mask: Mask, growth: Scores, numbers: chex.ArrayTree, layerwise: bool = True
) -> Mask:
    """Returns the mask and some of the pruned connections, the ones of largest growth.

    ``numbers`` has a uint32 scalar for each leaf, which counts for all leaves together
    where it is not layerwise.
    """

    def grown(rows: Sequence[Any]) -> list[chex.Array]:
        stays, growth, numbers = map(list, zip(*rows))
        number = functools.reduce(jnp.add, numbers)
        new = candidates.largest_among(growth, [~stay for stay in stays], number)
        return [stay | grow for stay, grow in zip(stays, new)]

    return by_leaf(grown, mask, growth, numbers, layerwise=layerwise)


class Items:
    """The connections of a mask, or its blocks or units, which move as wholes.

    A structure that ``has_own_density`` says by itself how many are kept.
    """

    def __init__(self, mask: Mask, structure: Structure | None) -> None:
        self._structure, self._connections = structure, mask
        self._prunable = jax.tree.map(lambda keep: jnp.ndim(keep) > 0, mask)
        self._like = jax.tree.map(lambda keep: keep.astype(jnp.float32), mask)
        self.has_own_density = (
            structure is not None
            and "select" not in inspect.signature(structure).parameters
        )
        self.mask = jax.tree.map(lambda kept: kept > 0, self.sums(self._like))

    def sums(self, scores: Scores) -> Scores:
        if self._structure is None or self.has_own_density:
            return scores
        found: list[Scores] = []

        def look(sums: Scores, sparsity: Any, prunable: Any) -> Mask:
            found.append(sums)
            return jax.tree.map(lambda s: jnp.ones(jnp.shape(s), jnp.bool_), sums)

        self._structure(select=look)(scores, None, self._prunable)
        return found[0]

    def kept_scores(self, scores: Scores) -> Scores:
        """Returns the scores of the items, of their kept connections alone."""
        return self.sums(
            jax.tree.map(
                lambda keep, s: jnp.where(keep, s, jnp.finfo(s.dtype).min),
                self._connections,
                ordered(self._connections, scores),
            )
        )

    def expanded(self, mask: Mask) -> Mask:
        """Returns the mask of connections for a mask of items."""
        if self._structure is None or self.has_own_density:
            return mask
        select = self._structure(select=lambda *_: mask)
        return select(self._like, None, self._prunable)

    def select(self, scores: Scores) -> Mask:
        """Returns the mask of a structure that has a density of its own."""
        assert self._structure is not None
        return self._structure()(scores, None, self._prunable)

    def select_with(self, stays: Mask, growth: Scores) -> Mask:
        """Returns the mask of connections that stay and the largest growth scores."""
        return self.select(
            jax.tree.map(lambda keep, g: jnp.where(keep, jnp.inf, g), stays, growth)
        )


def check_movable(mask: Mask, structure: Structure | None) -> None:
    """Raises a ``ValueError`` if there is no mask that can move in a structure.

    That is a mask without a prunable leaf, or one that is not of whole blocks or units,
    or not N of M. A traced mask is not looked at.
    """
    prunable_leaves(mask)
    if structure is None or trees.is_traced(mask):
        return
    with jax.ensure_compile_time_eval():
        mask = jax.tree.map(jnp.asarray, mask)
        items = Items(mask, structure)
        if items.has_own_density:
            like = jax.tree.map(lambda keep: keep.astype(jnp.float32), mask)
            whole = items.select(like)
        else:
            whole = items.expanded(items.mask)
        is_whole = jax.tree.map(lambda old, new: bool(jnp.all(old == new)), mask, whole)
    if not all(jax.tree.leaves(is_whole)):
        wrong = next(name for name, fits in trees.named_leaves(is_whole) if not fits)
        raise ValueError(
            f"mask leaf '{wrong}' is not of the structure that moves: a block or unit "
            "is kept in part, or more or fewer than N of M are; select the mask with "
            "the same structure, e.g. masks.units()(scores, sparsity, prunable)"
        )


def by_leaf(
    function: Callable[[Sequence[Any]], list[chex.Array]],
    mask: Mask,
    *trees: chex.ArrayTree,
    layerwise: bool,
) -> Mask:
    """Returns masks that a function makes of each prunable leaf, or of all together.

    It takes a list of tuples, each with a leaf of every tree. Scalar leaves stay.
    """
    leaves, treedef = jax.tree.flatten(mask)
    columns = [leaves, *(jax.tree.leaves(tree) for tree in trees)]
    rows = [row for row in zip(*columns) if jnp.ndim(row[0])]
    parts = [[row] for row in rows] if layerwise else [rows]
    new = iter([made for part in parts for made in function(part)])
    return jax.tree.unflatten(
        treedef, [next(new) if jnp.ndim(leaf) else leaf for leaf in leaves]
    )


def count(leaves: Sequence[chex.Array]) -> chex.Array:
    """Returns the number of true entries of all leaves, uint32."""
    return functools.reduce(
        jnp.add, [jnp.sum(leaf, dtype=jnp.uint32) for leaf in leaves]
    )


def ordered(mask: Mask, scores: Scores) -> Scores:
    """Returns scores without NaN, and a scalar where a leaf is not prunable."""
    return jax.tree.map(
        lambda keep, s: (
            jnp.where(jnp.isnan(s), 0, s) if jnp.ndim(keep) else jnp.float32(0)
        ),
        mask,
        scores,
    )
