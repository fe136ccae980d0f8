"""The report as Markdown."""

import re
from collections.abc import Iterable, Sequence

from snipjax.results.report.aggregation import Row
from snipjax.results.report.runs import Run
from snipjax.results.report.sentences import analysis, conclusion
from snipjax.results.report.tables import (
    CAPTION,
    COLUMNS,
    PUBLISHED_CAPTION,
    PUBLISHED_COLUMNS,
    UNFINISHED_COLUMNS,
    Cell,
    cells,
    published_cells,
    unfinished,
)
from snipjax.results.report.train_commands import commands


def markdown(runs: Sequence[Run], table: Sequence[Row]) -> str:
    """Returns the tables, the analysis and the conclusion as Markdown."""
    commands_of = [
        "; ".join(f"`{_code(line)}`" for line in commands(row)) for row in table
    ]
    parts = ["# Pruning at initialization: measured and published"]
    if table:
        lines = [
            [*map(_markdown_cell, cells(row)), of_row]
            for row, of_row in zip(table, commands_of)
        ]
        caption = CAPTION.replace("Below each row", "In the last column")
        parts += [
            f"Table 1: {caption}",
            markdown_table([*COLUMNS, "Command"], lines),
            markdown_text(" ".join(["In table 1:", *analysis(table)])),
        ]
    if lines := published_cells(table):
        parts += [
            f"Table 2: {PUBLISHED_CAPTION}",
            markdown_table(
                PUBLISHED_COLUMNS, [[*map(_markdown_cell, line)] for line in lines]
            ),
        ]
    if waiting := unfinished(runs):
        parts += [
            "Unfinished runs:",
            markdown_table(
                UNFINISHED_COLUMNS,
                [[*map(markdown_text, line)] for line in waiting],
            ),
        ]
    parts += ["## Conclusion", markdown_text(" ".join(conclusion(table)))]
    return "\n\n".join(parts) + "\n"


def markdown_table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Returns a table of cells that are Markdown."""
    return "\n".join(
        f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines)
    )


def _markdown_cell(cell: Cell) -> str:
    reference = f"[{markdown_text(cell.reference)}]({cell.link})" if cell.link else ""
    return " ".join(filter(None, (markdown_text(cell.text), reference)))


def markdown_text(text: str) -> str:
    """Returns text with what means something to Markdown made plain."""
    return re.sub(r"([\\`*_\[\]|<>])", r"\\\1", text)


def _code(text: str) -> str:
    return text.replace("`", "'").replace("|", r"\|")
