"""The report as an HTML page that needs no other file."""

import html
from collections.abc import Iterable, Sequence

import snipjax
from snipjax.results.report.aggregation import Row, members_of
from snipjax.results.report.drawing import pictures, signal_pictures
from snipjax.results.report.galleries import run_gallery, sweep_gallery
from snipjax.results.report.html_parts import document, figure, paragraph, wide_figure
from snipjax.results.report.runs import Run, Sweep
from snipjax.results.report.sentences import analysis, conclusion, layer_sentences
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
from snipjax.results.report.values import printable
from snipjax.results.report.wording import counted, listed

_NUMBERS = (
    "Parameters of the dense network",
    "Connections kept",
    "Steps done",
    "Steps wanted",
)


def page(
    runs: Sequence[Run], table: Sequence[Row], sweeps: Sequence[Sweep] = ()
) -> str:
    """Returns the report as an HTML page that loads nothing from elsewhere.

    Args:
      runs: as :func:`snipjax.results.report.gather` returns them.
      table: their rows.
      sweeps: whose own pictures are shown too.
    """
    finished = [run for run in runs if run.members]
    made_on = sorted(
        {
            printable(device)
            for run in finished
            if isinstance(device := run.result.get("device"), str)
        }
    )
    trained = [member for member in members_of(table) if member.steps > 0]
    about = (
        f"{counted(finished, 'finished run')}, "
        f"{counted(trained, 'trained network')}, {counted(table, 'row')}"
        + (f", made on {listed(made_on)}" if made_on else "")
        + f". Put together by snipjax {snipjax.__version__}."
    )
    parts = [
        "<h1>Pruning at initialization: measured and published</h1>",
        paragraph(about),
    ]
    if table:
        bodies = [_html_row(cells(row), COLUMNS, commands(row)) for row in table]
        parts += [
            "<h2>Results</h2>",
            _html_table(f"Table 1: {CAPTION}", COLUMNS, bodies),
            paragraph(" ".join(["In table 1:", *analysis(table)])),
        ]
    drawn, signals = pictures(table), signal_pictures(runs)
    if drawn or signals:
        figures = [figure(uri, caption, caption) for uri, caption in drawn]
        figures += [wide_figure(uri, caption, caption) for uri, caption in signals]
        parts += [
            "<h2>Pictures</h2>",
            f'<div class="figures">{"".join(figures)}</div>',
            paragraph(" ".join(layer_sentences(table))),
        ]
    if lines := published_cells(table):
        bodies = [_html_row(line, PUBLISHED_COLUMNS) for line in lines]
        parts += [
            "<h2>Published figures</h2>",
            _html_table(f"Table 2: {PUBLISHED_CAPTION}", PUBLISHED_COLUMNS, bodies),
        ]
    if waiting := unfinished(runs):
        bodies = [_html_row(map(Cell, line), UNFINISHED_COLUMNS) for line in waiting]
        caption = "Runs that have no result yet, with how far they are."
        parts += [
            "<h2>Unfinished runs</h2>",
            _html_table(caption, UNFINISHED_COLUMNS, bodies),
        ]
    if galleries := [*filter(None, (sweep_gallery(each, runs) for each in sweeps))]:
        parts += ["<h2>Pictures of each sweep</h2>", *galleries]
    if galleries := [*filter(None, map(run_gallery, runs))]:
        parts += ["<h2>Pictures of each run</h2>", *galleries]
    parts += ["<h2>Conclusion</h2>", paragraph(" ".join(conclusion(table)))]
    return document("Pruning at initialization", parts)


def _html_table(caption: str, columns: Sequence[str], bodies: Iterable[str]) -> str:
    heads = "".join(
        f'<th scope="col"{_class(name)}>{html.escape(name)}</th>' for name in columns
    )
    return (
        f'<div class="table"><table><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead>\n{''.join(bodies)}</table></div>"
    )


def _html_row(
    line: Iterable[Cell], columns: Sequence[str], lines: Sequence[str] = ()
) -> str:
    """A row, with commands below it; names of columns for where there is no head."""
    tds = []
    for name, cell in zip(columns, line):
        link = (
            f'<a href="{html.escape(cell.link)}">{html.escape(cell.reference)}</a>'
            if cell.link
            else ""
        )
        text = html.escape(cell.text)
        content = f"{text} <small>{link}</small>" if text and link else text or link
        tds.append(
            f'<td{_class(name)} data-label="{html.escape(name)}">'
            f"<span>{content}</span></td>"
        )
    below = "<br>".join(f"<code>{html.escape(line)}</code>" for line in lines)
    below = below and (
        f'<tr><td class="command" colspan="{len(columns)}">{below}</td></tr>'
    )
    return f"<tbody><tr>{''.join(tds)}</tr>{below}</tbody>\n"


def _class(column: str) -> str:
    is_number = column.endswith(("(%)", "(points)", "(epochs)", "(steps)"))
    return ' class="number"' if is_number or column in _NUMBERS else ""
