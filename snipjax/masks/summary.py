"""Tables of what a mask keeps, and the warning that it keeps nothing of a leaf."""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snipjax._src import text, trees
from snipjax._src.types import Mask
from snipjax.masks import counting
from snipjax.masks.mask import prunable_leaves
from snipjax.masks.prunable import is_bias


class Row(NamedTuple):
    """Counts the connections that a mask keeps of one prunable leaf.

    Attributes:
      path: name of the leaf, such as ``Dense_0/kernel``.
      shape: shape of the leaf.
      kept: number of connections kept.
      total: number of connections.
      density: ``kept / total``.

    Example:
      >>> summary({"w": jnp.eye(2, dtype=bool)})[0]
      Row(path='w', shape=(2, 2), kept=2, total=4, density=0.5)
    """

    path: str
    shape: tuple[int, ...]
    kept: int
    total: int
    density: float


class Summary(tuple[Row, ...]):
    """Holds a row for each prunable leaf, and prints as a table with their total.

    It is a tuple of :class:`Row`, in tree order.

    Attributes:
      dense: names of the leaves that are not prunable.

    Example:
      >>> table = summary({"w": jnp.eye(2, dtype=bool), "b": jnp.array(True)})
      >>> len(table), table[0].kept, table.dense
      (1, 2, ('b',))
    """

    dense: tuple[str, ...] = ()

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
        table = text.aligned(cells)
        return (
            f"{table}\nnot prunable: {', '.join(self.dense)}" if self.dense else table
        )


def summary(mask: Mask) -> Summary:
    r"""Returns how much the mask keeps of every prunable leaf, in tree order.

    .. math:: d_l = \frac{kept_l}{total_l} = \frac{1}{n_l} \sum_{j=1}^{n_l} c_{lj}

    for the mask :math:`c_l` of leaf :math:`l`, of :math:`n_l` connections.

    Args:
      mask: a concrete mask, not a traced one.

    Returns:
      A tuple of rows with fields ``path``, ``shape``, ``kept``, ``total`` and
      ``density``. Printed, it is a table, with the names of all other leaves below.

    Raises:
      ValueError: if no leaf of the mask is prunable.

    Example:
      >>> print(summary({"w": jnp.eye(2, dtype=bool), "b": jnp.array(True)}))
      path   shape  kept  total  density
      w        2x2     2      4   50.00%
      total            2      4   50.00%
      not prunable: b
    """
    named = prunable_leaves(mask)
    counts = counting.counts(counting.is_true, [leaf for _, leaf in named])
    rows = Summary(
        _row(name, tuple(leaf.shape), kept, leaf.size)
        for (name, leaf), kept in zip(named, counts)
    )
    rows.dense = tuple(
        name for name, leaf in trees.named_leaves(mask) if not jnp.ndim(leaf)
    )
    return rows


def warn_if_disconnected(mask: Mask, *, stacklevel: int = 2) -> None:
    """Warns of every prunable leaf, other than a bias, that keeps no connection.

    Args:
      mask: a concrete mask.
      stacklevel: that the warning points at the caller (2), or the caller's caller (3).

    Warns:
      UserWarning: naming the leaf.

    Example:
      >>> warn_if_disconnected({"w": jnp.array([[True, False]])})
    """
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(mask)
    biases = {
        trees.path_name(path) for path, leaf in paths_and_leaves if is_bias(path, leaf)
    }
    for row in summary(mask):
        if row.kept == 0 and row.path not in biases:
            warnings.warn(
                f"no connection of '{row.path}' is kept: nothing passes through it, "
                "and unless another path leads around it (a gate, a shortcut) the mask "
                "disconnects the network; prune less, leave this leaf out with "
                "`prunable`, or select with masks.layerwise_topk",
                stacklevel=stacklevel,
            )


def _row(path: str, shape: tuple[int, ...], kept: int, total: int) -> Row:
    return Row(path, shape, kept, total, density=kept / total)
