"""Batches that a loss takes: of any library's arrays, one or several."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snipjax._src import checks, trees
from snipjax._src.types import KeyPath


def stack(batches: Iterator, num_batches: int | None) -> tuple[Any, int]:
    """Returns the batches of an iterator along a new leading axis, and their number."""
    if num_batches is not None:
        raise ValueError(
            "num_batches is for a batch with a leading axis; leave it out where batch "
            "is an iterator"
        )
    read = [as_arrays(batch) for batch in batches]
    if not read:
        raise ValueError(
            "batch is an iterator that yields nothing; pass at least one batch (an "
            "iterator can be read only once)"
        )
    for number, batch in enumerate(read):
        checks.check_same_structure(batch, read[0], f"batch {number}", "the first")
        shapes, first = (
            [*map(jnp.shape, jax.tree.leaves(b))] for b in (batch, read[0])
        )
        if shapes != first:
            raise ValueError(
                f"batch {number} of the iterator has arrays of shapes {shapes}, and "
                f"the first has {first}; make all batches equally large, e.g. drop a "
                "last, smaller one, which would weigh as much as the others"
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *read), len(read)


def as_arrays(batch: Any) -> Any:
    """Returns the batch with arrays of other libraries, e.g. PyTorch's, as NumPy's.

    Raises a ``ValueError`` that names the first leaf which is no array of any library.
    """

    def as_array(path: KeyPath, leaf: Any) -> Any:
        try:
            jax.typeof(leaf)
        except (TypeError, ValueError):
            if hasattr(leaf, "__array__"):
                return np.asarray(leaf)
            where = f" leaf '{trees.path_name(path)}'" if path else ""
            raise ValueError(
                f"batch{where} is a {type(leaf).__name__}, not an array; pass a pytree "
                "of arrays; pruning.prune takes several batches, as iter(loader)"
            ) from None
        return leaf

    return jax.tree_util.tree_map_with_path(
        as_array, batch, is_leaf=lambda x: isinstance(x, Iterator)
    )


def check_number(batch: Any, num_batches: int) -> None:
    """Raises a ``ValueError`` unless so many batches are along the leading axis."""
    checks.check_positive_integer(num_batches, "num_batches")
    if not jax.tree.leaves(batch):
        raise ValueError(
            f"batch has no arrays, but num_batches={num_batches} asks for that many "
            "along their leading axis; leave num_batches out"
        )
    for name, leaf in trees.named_leaves(batch):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != num_batches:
            raise ValueError(
                f"batch leaf '{name}' has shape {shape}, but num_batches={num_batches} "
                "asks for that many along its leading axis; stack the batches there"
            )
