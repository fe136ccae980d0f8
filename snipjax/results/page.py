"""The report of many runs: one HTML page that needs no other file, and Markdown."""

import functools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd

import snipjax
from snipjax.results import conclusions, pictures, published, reading, words
from snipjax.results.commands import commands
from snipjax.results.rows import aggregate, by_network


class Cell(NamedTuple):
    """Text of a table, with a reference beside it where there is one."""

    text: str
    reference: str = ""
    link: str = ""
    is_best: bool = False


class Column(NamedTuple):
    """Head of a column; columns of one group stand below the group's name."""

    name: str
    is_number: bool = False
    group: str = ""

    @property
    def full_name(self) -> str:
        """Returns the name where no group stands above it."""
        return f"{self.group}: {self.name}" if self.group else self.name


COLUMNS = (
    Column("Network"),
    Column("Data set"),
    Column("Method"),
    Column("Sparsity (%)", True),
    Column("Parameters of the dense network", True),
    Column("Connections kept", True),
    Column("Seeds"),
    Column("Test error, mean (%)", True),
    Column("Test error, standard deviation (points)", True),
    Column("Test error at the last step, mean (%)", True),
    Column("Test error at the last step, standard deviation (points)", True),
    Column("Training error before the last evaluation, mean (%)", True),
    Column("Published test error (%)", True),
    Column("Measured less published (points)", True),
    Column("Measured less dense (points)", True),
    Column("Training (epochs)", True),
    Column("Training (steps)", True),
)
PUBLISHED_COLUMNS = (
    *map(Column, ("Reference", "Method", "Criterion", "Network", "Data set")),
    *(Column("Sparsity (%)", True), Column("Test error (%)", True)),
    Column("Needs pretraining"),
    Column("Number of prunings"),
    Column("Additional hyperparameters"),
    Column("Augments the training objective"),
    Column("Depends on the architecture"),
)
UNFINISHED_COLUMNS = (
    Column("Run"),
    Column("Steps done", True),
    Column("Steps asked for", True),
    Column("Test error at the last evaluation (%)", True),
)


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
      >>> report(["runs"], "runs/report")  # doctest: +SKIP
      (PosixPath('runs/report.html'), PosixPath('runs/report.md'))
    """
    runs, sweeps = reading.find(*paths), reading.find_sweeps(*paths)
    values = content(runs, sweeps)
    out = Path(out)
    out = out / "report" if out.is_dir() else out
    out.parent.mkdir(parents=True, exist_ok=True)
    out = out.with_suffix("") if out.suffix in (".html", ".md") else out
    files = out.with_name(out.name + ".html"), out.with_name(out.name + ".md")
    for file in files:
        text = render(f"page{file.suffix}.j2", values)
        file.write_text(text, encoding="utf-8")
    return files


def content(
    runs: Sequence[reading.Run], sweeps: Sequence[reading.Sweep]
) -> dict[str, Any]:
    """Returns the values of a report's templates: tables, sentences, pictures."""
    networks, metrics = reading.networks(runs), reading.metrics(runs)
    table = aggregate(networks)
    rows = list(table.itertuples())
    finished = [run for run in runs if run.result]
    known = {(run.result or {}).get("device") for run in finished}
    devices = sorted(device for device in known if isinstance(device, str))
    trained = sum((row.networks["steps"] > 0).sum() for row in rows)
    about = (
        f"{words.counted(finished, 'finished run')}, "
        f"{words.counted(int(trained), 'trained network')}, "
        f"{words.counted(rows, 'row')}"
        + (f", made on {words.listed(devices)}" if devices else "")
        + f". Put together by snipjax {snipjax.__version__}."
    )
    return {
        "about": about,
        "columns": COLUMNS,
        "rows": [_cells(row) for row in rows],
        "commands": [commands(row) for row in rows],
        "analysis": conclusions.analysis(table),
        "pictures": [*pictures.of_rows(table, metrics), *pictures.of_signals(runs)],
        "layer_sentences": conclusions.layer_sentences(table),
        "published_columns": PUBLISHED_COLUMNS,
        "published_rows": _published_cells(rows),
        "unfinished_columns": UNFINISHED_COLUMNS,
        "unfinished_rows": _unfinished_cells(runs, metrics),
        "sweeps": pictures.galleries((s.path, s.name, s.varied) for s in sweeps),
        "runs": pictures.galleries((run.path, run.name, ()) for run in runs),
        "conclusion": conclusions.conclusion(table),
    }


def render(template: str, values: dict[str, Any]) -> str:
    """Returns a template of this package with values; HTML is escaped."""
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("snipjax.results"),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plain = re.compile(r"([\\`*_\[\]|<>])")
    environment.filters["plain"] = lambda text: plain.sub(r"\\\1", text)
    environment.filters["code"] = lambda t: t.replace("`", "'").replace("|", r"\|")
    return environment


def _cells(row: Any) -> list[Cell]:
    seeds = [int(seed) for seed in row.networks["seed"]]
    source = words.origin(row.method)
    errors = row.error, row.std, row.last_error, row.last_std, row.train_error
    return [
        Cell(words.network_name(row.model)),
        Cell(words.dataset_name(row.dataset)),
        Cell(words.kind(row), *((source.reference, source.link) if source else ())),
        Cell(words.share(row.sparsity)),
        Cell(words.between(row.networks["parameters"])),
        Cell(words.between([row.networks["kept"].mean()])),
        Cell(f"{len(seeds)} ({words.ranges(seeds)})"),
        *(Cell(words.plain(error)) for error in errors),
        Cell("-")
        if math.isnan(row.published)
        else Cell(str(row.published), row.reference, row.link),
        Cell(words.signed(row.difference)),
        Cell(words.signed(row.loss)),
        Cell(words.between(row.networks["epochs"])),
        Cell(words.between(row.networks["steps"])),
    ]


def _published_cells(rows: Sequence[Any]) -> list[list[Cell]]:
    """Returns the published errors of the networks of a table."""
    lines = []
    for group in by_network(rows):
        place = group[0].model, group[0].dataset
        for row in published.ROWS:
            if (row.network, row.dataset) != place:
                continue
            method = published.METHODS[row.method]
            texts = (
                *(f"{method.name}: {method.full_name}", method.criterion),
                *(words.network_name(row.network), words.dataset_name(row.dataset)),
                *(words.share(row.sparsity), str(row.error)),
                *(method.pretraining, method.prunings, method.hyperparameters),
                *(method.objective, method.constraints),
            )
            lines.append([Cell("", row.reference, row.link), *map(Cell, texts)])
    return lines


def _unfinished_cells(
    runs: Iterable[reading.Run], metrics: pd.DataFrame
) -> list[list[Cell]]:
    lines = []
    for run in runs:
        if run.result:
            continue
        own = metrics[metrics["directory"] == str(run.path)]
        step = own["total_step"].iloc[-1] if len(own) else 0
        error = own[own["total_step"] == step]["test_error"].mean()
        asked = words.flag_value(run.config["train.steps"])
        texts = run.name, f"{step:,.0f}", asked, words.plain(error)
        lines.append([*map(Cell, texts)])
    return lines
