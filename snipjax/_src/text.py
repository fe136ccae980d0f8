"""Names and tables as readers see them."""

import re
from collections.abc import Sequence


def natural_order(name: str) -> list[str | int]:
    """Returns a key that sorts names as readers count: 2 before 10.

    >>> sorted(["Conv_10", "Conv_2", "Dense_0"], key=natural_order)
    ['Conv_2', 'Conv_10', 'Dense_0']
    """
    parts = re.split(r"(\d+)", name)  # numbers at odd places
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table, with the first column aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        )
        for row in rows
    )
