"""Where pruning takes place: the share kept in every layer of a network."""

import re
import statistics
from collections.abc import Sequence
from typing import Any

from snipjax.results.report.aggregation import Row, by_network
from snipjax.training import console


def layer_densities(row: Row) -> list[tuple[str, float]]:
    """Returns name and share kept, in percent, of every weight matrix or kernel.

    They are means over the seeds, from the first layer to the last. Biases are left
    out: but for those of a GRU's gates they start at zero, so that their saliency is
    zero and SNIP prunes them all.
    """
    kept: dict[str, list[float]] = {}
    for member in row.members:
        for layer in member.layers:
            if len(layer.shape) > 1:
                name = layer.path.removesuffix("/kernel")
                kept.setdefault(name, []).append(100 * layer.kept / layer.total)
    is_recurrent = any(name.startswith("cell/") for name in kept)
    names = sorted(kept, key=lambda name: _depth(name, is_recurrent))
    return [(name, statistics.fmean(kept[name])) for name in names]


def _depth(name: str, is_recurrent: bool) -> tuple[Any, ...]:
    """Sorts layers of snipjax.models as data passes them.

    Trees are sorted by name: Conv_10 before Conv_2, and a cell after both dense layers.
    """
    kind = re.split(r"[_/]", name)[0]
    place = {"Conv": 0, "Block": 1, "Dense": 3}.get(kind, 2)
    if is_recurrent and name == "Dense_0":
        place = 0
    return place, console.natural_order(name)


def one_per_network(table: Sequence[Row]) -> list[Row]:
    """Returns a pruned row of each network, at the sparsity that most of them have.

    SNIP's as the defaults have it where there is one.
    """
    pruned = [row for row in table if row.method != "none" and layer_densities(row)]
    networks = by_network(pruned).values()
    have = [sparsity for rows in networks for sparsity in {r.sparsity for r in rows}]
    common = max(have, key=lambda value: (have.count(value), value), default=0.0)

    def unfitness(row: Row) -> tuple[Any, ...]:
        return row.method != "snip", row.settings != "", abs(row.sparsity - common)

    return [min(rows, key=unfitness) for rows in networks]
