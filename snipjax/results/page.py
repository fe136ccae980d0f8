"""The report of many runs: one HTML page that needs no other file, and Markdown."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd

import snipjax
from snipjax.results import conclusions, pictures, published, reading, summary, words
from snipjax.results.pictures import Picture
from snipjax.results.rows import Row, aggregate, by_network

_MEASURED = (
    "Measured test errors beside the published ones. A row is one network trained from "
    "several seeds. Sparsity is the share of prunable connections that are pruned. "
    "Test error is on test data, of the checkpoint chosen on validation data; standard "
    "deviations are of a sample (n - 1). Training error is over the steps between the "
    "last evaluation and the one before. Dense is the same network unpruned and "
    "trained the same way; on random labels the two are compared by training error. A "
    "point is a percentage point."
)
_PRINTED = (
    "Published test errors of the networks in the table of results. In the number of "
    "prunings, many means about as many as there are training steps, and soft that "
    "Bayesian methods prune gradually. Errors of Dense and SNIP are of the best "
    "checkpoint on test data."
)


class Cell(NamedTuple):
    """Text of a table, with a reference beside it where there is one.

    The best figure of a column is bold.
    """

    text: str
    reference: str = ""
    link: str = ""
    is_best: bool = False


Line = Mapping[str, str | Cell]  # by column


class Section(NamedTuple):
    """A part of a page; empty fields are not shown."""

    title: str
    caption: str = ""
    lines: Sequence[Line] = ()
    sentences: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    commands: Sequence[str] = ()


def report(
    paths: Sequence[Path | str], out: Path | str = "report"
) -> tuple[Path, Path]:
    """Writes the report of runs as an HTML page and as Markdown.

    Args:
      paths: run directories, or directories that hold some.
      out: the files without their suffixes, or a directory for ``report.html`` and
        ``report.md``.

    Returns:
      The paths of the HTML page and of the Markdown file.

    Raises:
      ValueError: if a path is a damaged run or holds none.

    Example:
      .. code-block:: python

        from snipjax import results

        page, markdown = results.report(["runs"], "runs/report")
    """
    runs, sweeps = reading.find(*paths)
    metrics = reading.metrics(runs)
    networks = reading.with_finite(reading.networks(runs), metrics)
    table = aggregate(networks)
    rows = list(table.itertuples())
    shown = pd.concat([*table["networks"]]) if rows else networks
    unfinished = _unfinished_lines(runs, metrics)
    drawn = [*pictures.of_rows(table, metrics), *pictures.of_signals(runs)]
    sections = [
        Section(
            "Summary",
            summary.CAPTION,
            summary.lines(table),
            summary.sentences(table, len(networks) - len(shown), len(unfinished)),
        ),
        Section(
            "Results",
            _MEASURED,
            [line(row) for row in rows],
            commands=commands(rows),
        ),
        Section("Pictures", pictures=drawn),
        Section("Published figures", _PRINTED, _published_lines(rows)),
        Section("Unfinished runs", lines=unfinished),
        *(
            Section(f"Pictures of {name}", pictures=own)
            for places in (sweeps, runs)
            for path, name, *_ in places
            if (own := pictures.in_directory(path))
        ),
        Section("Conclusion", sentences=conclusions.conclusion(table)),
    ]
    out = Path(out)
    out = out / "report" if out.is_dir() else out
    out = out.with_suffix("") if out.suffix in (".html", ".md") else out
    title = "Pruning at initialization: measured and published"
    return write(title, about(shown), sections, out)


def about(networks: pd.DataFrame) -> str:
    trained = words.counted(summary.count_trained(networks), "trained network")
    devices = networks.get("device", pd.Series(dtype=str)).dropna().unique()
    where = f" on {words.listed(sorted(devices))}" if len(devices) else ""
    return f"{trained}{where}; snipjax {snipjax.__version__}."


def line(row: Row) -> dict[str, str | Cell]:
    """Returns the cells of a row of the table by their columns."""
    seeds = [int(seed) for seed in row.networks["seed"]]
    source = published.METHODS.get(published.NAMES.get(row.method, ""))
    links = (source.reference, source.link) if source and row.method != "none" else ()
    figure = Cell(words.plain(row.published, ""), row.reference, row.link)
    return {
        "Network": words.network_name(row.model),
        "Data set": words.dataset_name(row.dataset),
        "Method": Cell(words.kind(row), *links),
        "Sparsity (%)": words.share(row.sparsity),
        "Parameters of the dense network": words.between(row.networks["parameters"]),
        "Connections kept": words.between([row.networks["kept"].mean()]),
        "Seeds": f"{len(seeds)} ({words.ranges(seeds)})",
        "Test error, mean (%)": words.plain(row.error) + summary.mark(row),
        "Test error, standard deviation (points)": words.plain(row.std),
        "Test error at the last step, mean (%)": words.plain(row.last_error),
        "Test error at the last step, standard deviation (points)": words.plain(
            row.last_std
        ),
        "Training error before the last evaluation, mean (%)": words.plain(
            row.train_error
        ),
        "Published test error (%)": figure,
        "Measured less published (points)": words.signed(row.difference),
        "Measured less dense (points)": words.signed(row.loss),
        "Training (epochs)": words.between(row.networks["epochs"]),
        "Training (steps)": words.between(row.networks["steps"]),
    }


def commands(rows: Sequence[Row]) -> list[str]:
    """Returns the commands that made rows, each with the name of its row."""
    return [
        f"{command}  # {words.title(row)}"
        for row in rows
        for command in row.networks.get("command", pd.Series()).dropna().unique()
    ]


def write(
    title: str, about: str, sections: Sequence[Section], out: Path
) -> tuple[Path, Path]:
    """Writes a page with the suffixes ``.html`` and ``.md``, and returns the paths."""
    out.parent.mkdir(parents=True, exist_ok=True)
    html, markdown = (out.with_name(out.name + end) for end in (".html", ".md"))
    values = {"title": title, "about": about, "sections": sections}
    _write_text(html, _template().render(values))
    parts = [f"# {title}", plain(about)]
    for section in sections:
        body = [
            plain(" ".join(section.sentences)),
            *([plain(section.caption)] if section.lines else []),
            markdown_table(section.lines),
            "\n".join(f"    {command}" for command in section.commands),
            *(f"![{plain(p.caption)}]({p.file})" for p in section.pictures if p.file),
        ]
        if any(body):
            parts += [f"## {section.title}", *filter(None, body)]
    _write_text(markdown, "\n\n".join(parts) + "\n")
    return html, markdown


def markdown_table(lines: Sequence[Line]) -> str:
    """Returns lines as a table of Markdown; nothing without lines."""
    if not lines:
        return ""
    heads = [*lines[0]]
    rows = [
        [plain(head) for head in heads],
        ["---"] * len(heads),
        *([_markdown_cell(each[head]) for head in heads] for each in lines),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plain(text: str) -> str:
    """Returns text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]|<>])", r"\\\1", text)


def _markdown_cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return plain(cell)
    link = f" [{plain(cell.reference)}]({cell.link})" if cell.link else ""
    text = plain(cell.text)
    return ((f"**{text}**" if cell.is_best else text) + link).strip()


def _write_text(path: Path, text: str) -> None:
    # Names of directories may have bytes that are no text.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("snipjax.results"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _published_lines(rows: Sequence[Row]) -> list[Line]:
    """Returns the published errors of the networks of a table."""
    places = [(group[0].model, group[0].dataset) for group in by_network(rows)]
    lines: list[Line] = []
    for place in places:
        for row in published.ROWS:
            if (row.network, row.dataset) == place:
                method = published.METHODS[row.method]
                name = f"{method.name}: {method.full_name}"
                lines.append(
                    {
                        "Network": words.network_name(row.network),
                        "Data set": words.dataset_name(row.dataset),
                        "Method": Cell(name, row.reference, row.link),
                        "Sparsity (%)": words.share(row.sparsity),
                        "Test error (%)": str(row.error),
                        **properties(method),
                    }
                )
    return lines


def properties(method: published.Method) -> dict[str, str]:
    return {
        "Criterion": method.criterion,
        "Needs pretraining": method.pretraining,
        "Number of prunings": method.prunings,
        "Additional hyperparameters": method.hyperparameters,
        "Augments the training objective": method.objective,
        "Depends on the architecture": method.constraints,
    }


def _unfinished_lines(
    runs: Iterable[reading.Run], metrics: pd.DataFrame
) -> list[dict[str, Any]]:
    lines = []
    for run in (run for run in runs if not run.result):
        own = metrics[metrics["directory"] == str(run.path)]
        step = own["total_step"].iloc[-1] if len(own) else 0
        error = own[own["total_step"] == step]["test_error"].mean()
        lines.append(
            {
                "Run": run.name,
                "Steps done": f"{step:,.0f}",
                "Steps asked for": f"{run.config['train.steps']:,}",
                "Test error at the last evaluation (%)": words.plain(error),
            }
        )
    return lines
