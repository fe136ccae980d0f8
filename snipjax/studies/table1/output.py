"""Table 1 as files: Markdown, CSV, an HTML page, and pictures."""

import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

import snipjax
from snipjax import experiment
from snipjax.results import plots, published
from snipjax.results.report.drawing import data_uri
from snipjax.results.report.html_parts import document, figure, paragraph
from snipjax.results.report.markdown_page import markdown_table, markdown_text
from snipjax.studies.table1.aggregation import Row
from snipjax.studies.table1.config import METHODS
from snipjax.studies.table1.sentences import analysis, to_beat
from snipjax.studies.table1.tables import (
    DETAIL_CAPTION,
    DETAIL_COLUMNS,
    LEGEND,
    Column,
    Entry,
    caption,
    columns,
    csv_lines,
    detail_lines,
    lines,
    networks,
    notes,
)
from snipjax.training import console, rundir

_TITLE = "Table 1 of SNIP: measured and published"
_FRONTIER_CAPTION = (
    "Test error against the share of connections kept, {network}. Filled marks are "
    "measured, bars their standard deviations over seeds; hollow marks of the same "
    "shape are published; the line to beat is what sparse momentum published."
)
_STYLE = """
body { max-width: 1500px; } .best { color: #17692f; font-weight: 700; }
dl { font-size: .8125rem; line-height: 1.4; max-width: 95ch; display: grid;
  grid-template-columns: minmax(8rem, 15rem) 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; } ul { font-size: .8125rem; }
.figures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 560px), 1fr)); }
.best::before { font-weight: 400; }
@media (min-width: 1331px) {
  table { font-size: .75rem; line-height: 1.3; } th, td { padding: .3rem; }
  td:nth-child(-n + 2):not(.number) { min-width: 6.5rem; }
  td:not(.number), th:not(.number) { padding-left: .6rem; }
  th.group { text-align: center; border-bottom: 1px solid #1c2530; }
  .first { border-left: 1px solid #c6ced6; padding-left: .5rem; }
}
"""


def write(
    config: ConfigDict, table: Sequence[Row], workdir: Path, command: str | None
) -> None:
    """Writes the tables and the pictures of the cells there are.

    Args:
      config: like :func:`snipjax.studies.table1.default`'s.
      table: rows of it.
      workdir: directory of the table.
      command: the command line, to be shown.
    """
    for network in networks(table):
        _draw_frontier(table, network, workdir / picture_name(network))
    rundir.write_text(workdir / "table1.csv", _csv(csv_lines(table)))
    details = [list(DETAIL_COLUMNS), *detail_lines(table)]
    rundir.write_text(workdir / "cells.csv", _csv(details))
    rundir.write_text(workdir / "table1.md", markdown(config, table, command))
    rundir.write_text(workdir / "table1.html", page(config, table, workdir, command))


def show(table: Sequence[Row]) -> None:
    """Prints the second table, which fits a terminal."""
    shown = {
        "network": 0,
        "method": 1,
        "sparsity (%)": 2,
        "seeds": 4,
        "error (%)": 5,
        "deviation": 6,
        "published (%)": 8,
        "prunings": 10,
        "cost (dense = 1)": 13,
    }
    console.show_table(
        "Table 1",
        list(shown),
        [[line[place] for place in shown.values()] for line in detail_lines(table)],
    )


def picture_name(network: str) -> str:
    """Returns the name of a network's picture."""
    return f"frontier_{network}.png"


def markdown(config: ConfigDict, table: Sequence[Row], command: str | None) -> str:
    """Returns both tables, their legend and the analysis as Markdown."""
    body = [[_markdown_entry(entry) for entry in line] for line in lines(table)]
    parts = [
        f"# {_TITLE}",
        f"Table 1: {markdown_text(caption(config, table))}",
        markdown_table([column.full_name for column in columns(table)], body),
        "\n".join(f"- {name}: {markdown_text(text)}" for name, text in LEGEND),
        "\n".join(f"- {markdown_text(note)}" for note in notes(table)),
        *map(markdown_text, analysis(table)),
        *(
            f"![Frontier of {published.NETWORKS[network]}]({picture_name(network)})\n\n"
            f"*{_FRONTIER_CAPTION.format(network=published.NETWORKS[network])}*"
            for network in networks(table)
        ),
        f"Table 2: {DETAIL_CAPTION}",
        markdown_table(
            DETAIL_COLUMNS,
            [list(map(markdown_text, line)) for line in detail_lines(table)],
        ),
        f"`{command}`" if command else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def page(
    config: ConfigDict, table: Sequence[Row], workdir: Path, command: str | None
) -> str:
    """Returns the same as an HTML page that loads nothing from elsewhere."""
    figures = [
        figure(
            data_uri(path.read_bytes(), "image/png"),
            _FRONTIER_CAPTION.format(network=published.NETWORKS[network]),
            f"Test error against density of {published.NETWORKS[network]}",
        )
        for network in networks(table)
        if (path := workdir / picture_name(network)).exists()
    ]
    legend = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"
        for name, text in LEGEND
    )
    remarks = "".join(f"<li>{html.escape(note)}</li>" for note in notes(table))
    devices = dict.fromkeys(of["device"] for row in table for of in row.results)
    about = f"Measured with snipjax {snipjax.__version__}" + (
        f" on {', '.join(devices)}." if devices else "."
    )
    detail_columns = [Column("", name) for name in DETAIL_COLUMNS]
    details = [
        # A network's name is one word.
        [
            Entry(text.replace("-", "\N{NON-BREAKING HYPHEN}") if not place else text)
            for place, text in enumerate(line)
        ]
        for line in detail_lines(table)
    ]
    return document(
        _TITLE,
        [
            f"<h1>{_TITLE}</h1>",
            paragraph(about),
            _html_table(
                f"Table 1: {caption(config, table)}", columns(table), lines(table)
            ),
            f"<dl>{legend}</dl>",
            f"<ul>{remarks}</ul>" if remarks else "",
            "<h2>What the tables say</h2>",
            *map(paragraph, analysis(table)),
            "<h2>Error against density</h2>",
            f'<div class="figures">{"".join(figures)}</div>',
            "<h2>Every network, method and sparsity</h2>",
            _html_table(f"Table 2: {DETAIL_CAPTION}", detail_columns, details),
            f"<p><code>{html.escape(command)}</code></p>" if command else "",
        ],
        _STYLE,
    )


def _draw_frontier(table: Sequence[Row], network: str, path: Path) -> None:
    rows = [row for row in table if row.network == network and row.error is not None]
    measured = {
        METHODS[method].name: [
            (1 - row.sparsity, row.error, row.std or 0.0)
            for row in rows
            if row.method == method
        ]
        for method in METHODS
        if method != "dense"
    }
    printed: dict[str, list[tuple[float, float]]] = {}
    for row in table:
        if row.network == network and row.published and row.method != "dense":
            point = (1 - row.published.sparsity, row.published.error)
            printed.setdefault(row.described.name, []).append(point)
    dense = next((row.error for row in rows if row.method == "dense"), None)
    line = [
        (1 - sparsity, error)
        for row in rows[:1]
        for sparsity, error in to_beat(row.dataset, network).items()
    ]
    experiment.draw(
        plots.frontier,
        measured,
        printed,
        ("Sparse momentum, published", line),
        dense,
        path,
    )


def _html_table(
    caption: str, columns: Sequence[Column], body: Sequence[Sequence[Entry]]
) -> str:
    """A table whose columns of a network stand below the network's name."""
    grouped: list[tuple[str, int]] = []  # name of the network, number of columns
    for column in columns:
        if grouped and column.network and grouped[-1][0] == column.network:
            grouped[-1] = (column.network, grouped[-1][1] + 1)
        else:
            grouped.append((column.network, 1))
    has_groups = any(name for name, _ in grouped)
    upper, position = [], 0
    for name, width in grouped:
        column = columns[position]
        if name:
            upper.append(
                f'<th scope="colgroup" colspan="{width}" class="group first">'
                f"{html.escape(name)}</th>"
            )
        else:
            rows = ' rowspan="2"' if has_groups else ""
            upper.append(
                f'<th scope="col"{rows}{_class(columns, position)}>{_head(column)}</th>'
            )
        position += width
    lower = "".join(
        f'<th scope="col"{_class(columns, number)}>{_head(column)}</th>'
        for number, column in enumerate(columns)
        if column.network
    )
    bodies = "".join(
        "<tbody><tr>"
        + "".join(
            f'<td{_class(columns, number, entry)} data-label="'
            f'{html.escape(columns[number].full_name)}">{_html_entry(entry)}</td>'
            for number, entry in enumerate(line)
        )
        + "</tr></tbody>\n"
        for line in body
    )
    return (
        f'<div class="table"><table><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{''.join(upper)}</tr>"
        f"{f'<tr>{lower}</tr>' if lower else ''}</thead>\n{bodies}</table></div>"
    )


def _head(column: Column) -> str:
    # Where long words may break.
    return (
        html.escape(column.name)
        .replace("pretraining", "pre&shy;training")
        .replace("hyperparameters", "hyper&shy;parameters")
        .replace("architecture", "archi&shy;tecture")
    )


def _class(columns: Sequence[Column], number: int, entry: Entry | None = None) -> str:
    column = columns[number]
    is_number = column.name.endswith(")") or column.name in (
        "Connections kept",
        "Seeds",
        "Number of prunings",
        "Additional hyperparameters",
    )
    is_first = number > 0 and columns[number - 1].network != column.network
    classes = [
        name
        for name, holds in (
            ("number", is_number),
            ("first", is_first),
            ("best", entry is not None and entry.is_best),
        )
        if holds
    ]
    return f' class="{" ".join(classes)}"' if classes else ""


def _html_entry(entry: Entry) -> str:
    text = html.escape(entry.text)
    return f'<a href="{html.escape(entry.link)}">{text}</a>' if entry.link else text


def _markdown_entry(entry: Entry) -> str:
    text = markdown_text(entry.text)
    if entry.link:
        return f"[{text}]({entry.link})"
    return f"**{text}**" if entry.is_best else text


def _csv(rows: Sequence[Sequence[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()
