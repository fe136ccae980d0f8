"""Table 1 as Markdown, CSV, an HTML page and pictures: a pivot of the results."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

import snipjax
from snipjax.results import conclusions, figures, published, reading, words
from snipjax.results.page import Cell as Entry
from snipjax.results.page import Column, render
from snipjax.results.pictures import embedded
from snipjax.results.rows import COLUMNS, aggregate
from snipjax.studies.table1.cells import (
    METHODS,
    QUICK,
    Cell,
    cells,
    failure,
    hyperparameters,
    included,
    published_sparsities,
    training,
)

ERROR, PUBLISHED = "Test error, mean (%)", "Published test error (%)"
_PER_NETWORK = (
    *("Sparsity (%)", ERROR, "Standard deviation (points)", PUBLISHED),
    "Training cost (dense trainings)",
)
_BEFORE = ("Reference", "Method", "Criterion")
_AFTER = (
    Column("Needs pretraining"),
    Column("Number of prunings", True),
    Column("Additional hyperparameters", True),
    Column("Augments the training objective"),
    Column("Depends on the architecture"),
)
_DETAILS = (
    *("Network", "Method", "Sparsity (%)", "Connections kept", "Seeds", ERROR),
    *("Standard deviation (points)", "Test error at the last step, mean (%)"),
    *(PUBLISHED, "Measured less published (points)", "Number of prunings"),
    *("Training (steps)", "Training and pruning (seconds)"),
    "Training cost (dense trainings)",
)
_PICTURE = (
    "Test error against the share of connections kept, {}. Filled marks are measured, "
    "bars their standard deviations over seeds; hollow marks of the same shape are "
    "published; the dotted line is the published one of sparse momentum."
)
_SHOWN = ("Network", "Method", "Sparsity (%)", "Seeds", ERROR, PUBLISHED, _DETAILS[-1])
# Columns of every evaluation; the others are a method's own.
_STANDARD = {"directory", "seed", "phase", "step", "total_step", "sparsity"} | {
    *("seconds", "steps_per_second"),
    *(f"{s}_{q}" for s in ("train", "val", "test") for q in ("loss", "error")),
}


def write(config: ConfigDict, workdir: Path, command: str | None) -> pd.DataFrame:
    """Writes the tables and the pictures of the finished cells."""
    table = rows(config, workdir)
    networks = list(dict.fromkeys(table["model"]))
    files = {network: workdir / f"frontier_{network}.png" for network in networks}
    for network, file in files.items():
        figures.draw(_draw_frontier, table[table["model"] == network], file)
    lines, details = pivot(table), detail_rows(table)
    heads = columns(networks)
    _csv(heads, lines).to_csv(workdir / "table1.csv", index=False)
    details.to_csv(workdir / "cells.csv", index=False)
    measured = list(table.dropna(subset="error").itertuples())
    values = {
        "caption": caption(config, table),
        "columns": heads,
        "rows": lines,
        "notes": notes(table),
        "paragraphs": conclusions.paragraphs_of_table_1(measured),
        "pictures": [
            embedded(file, _PICTURE.format(words.network_name(network)), file.name)
            for network, file in files.items()
        ],
        "detail_columns": [Column(name, name not in _DETAILS[:2]) for name in details],
        "detail_rows": [[*map(Entry, row)] for row in details.to_numpy().tolist()],
        "about": _about(table),
        "command": command or "",
    }
    for suffix in ("md", "html"):
        text = render(f"table1.{suffix}.j2", values)
        (workdir / f"table1.{suffix}").write_text(text, encoding="utf-8")
    return table


def show(table: pd.DataFrame) -> None:
    """Prints the figures of every network, method and sparsity."""
    print(detail_rows(table)[list(_SHOWN)].to_string(index=False))


def rows(config: ConfigDict, workdir: Path) -> pd.DataFrame:
    """Returns a row for each network, method and sparsity, over all seeds.

    The cells of the configuration have a row, and so have other finished ones of the
    same settings. The table has the columns of :func:`snipjax.results.aggregate`, with
    ``none`` for the ``method`` of a dense network, and also ``name`` in this table,
    ``cost`` in dense trainings of the same seed, numbers of ``hyperparameters`` and
    ``cells``, ``failures``, and ``in_paper``, whether the sparsity is published.
    """
    found = included(config, workdir)
    networks = reading.networks(reading.read_run(workdir / c.name) for c in found)
    table = aggregate(networks)
    keys = zip(table["model"], table["method"], table["asked"])
    measured = dict(zip(keys, table.to_dict("records")))
    seconds = {}
    if len(networks):
        dense = networks[networks["method"] == "none"]
        seconds = dense.set_index(["model", "seed"])["seconds"].to_dict()
    groups: dict[tuple[str, str, float], list[Cell]] = {}
    for cell in sorted({*cells(config), *found}):
        groups.setdefault((cell.method, cell.network, cell.sparsity), []).append(cell)
    order = list(METHODS)
    records = [
        _row(config, group, workdir, measured, seconds)
        for _, group in sorted(
            groups.items(), key=lambda item: (order.index(item[0][0]), *item[0][1:])
        )
    ]
    return pd.DataFrame(records)


def _row(
    config: ConfigDict,
    group: Sequence[Cell],
    workdir: Path,
    measured: dict[tuple[str, str, float], dict[str, Any]],
    seconds: dict[tuple[str, int], float],
) -> dict[str, Any]:
    network, name, sparsity, _ = group[0]
    method = "none" if name == "dense" else name
    dataset = config.dataset.name
    figure = published.find(dataset, network, method, sparsity)
    empty = {**dict.fromkeys(COLUMNS, math.nan), "settings": "", "training": ""}
    empty |= {"dataset": dataset, "model": network, "method": method}
    empty |= {"asked": sparsity, "sparsity": sparsity, "random_labels": False}
    empty |= {"networks": pd.DataFrame(columns=["seed", "seconds", "test_error"])}
    row = {**empty, **measured.get((network, method, sparsity), {})}
    costs = [
        own.seconds / seconds[network, own.seed]
        for own in row["networks"].itertuples()
        if seconds.get((network, own.seed))
    ]
    failures = [failure(workdir / cell.name) for cell in group]
    return {
        **row,
        "name": name,
        "published": figure.error if figure else math.nan,
        "cost": pd.Series(costs, dtype=float).mean(),
        "hyperparameters": hyperparameters(config, network, name),
        "cells": len(group),
        "failures": tuple(filter(None, failures)),
        "in_paper": sparsity in published_sparsities(network, name),
    }


def columns(networks: Sequence[str]) -> list[Column]:
    """Returns the columns of table 1, those of a network below its name."""
    return [
        *map(Column, _BEFORE),
        *(
            Column(name, True, words.network_name(network))
            for network in networks
            for name in _PER_NETWORK
        ),
        *_AFTER,
    ]


def pivot(table: pd.DataFrame) -> list[list[Entry]]:
    """Returns the lines of table 1: methods by networks, at the published sparsities.

    The first published sparsity of each network stands in a method's first line, and
    so on, as in the paper. The smallest error of the pruned networks is marked.
    """
    paper = table[table["in_paper"]].copy()
    paper["line"] = paper.groupby(["name", "model"]).cumcount()
    pruned = paper[paper["name"] != "dense"]
    best = pruned.groupby("model")[["error", "published"]].min().round(2)
    lines = []
    for (name, _), group in paper.groupby(["name", "line"], sort=False):
        by_network = {row.model: row for row in group.itertuples()}
        method, is_dense = METHODS[name], name == "dense"
        found = list(by_network.values())
        prunes = [n for row in found for n in row.networks.get("prunes", ())]
        count = max(row.hyperparameters for row in found)
        lines.append(
            [
                Entry("", method.reference, method.link),
                Entry(f"{method.name}: {method.full_name}"),
                Entry(method.criterion),
                *(
                    entry
                    for network in dict.fromkeys(table["model"])
                    for entry in _of_network(by_network.get(network), best)
                ),
                Entry(method.pretraining),
                Entry("-" if is_dense else words.between(prunes)),
                Entry("-" if is_dense else str(count)),
                Entry(method.objective),
                Entry(method.constraints),
            ]
        )
    return lines


def _of_network(row: Any, best: pd.DataFrame) -> list[Entry]:
    if row is None:
        return [Entry("-")] * len(_PER_NETWORK)

    def is_best(column: str, value: float) -> bool:
        return row.name != "dense" and round(value, 2) == best[column][row.model]

    printed = "-" if math.isnan(row.published) else str(row.published)
    return [
        Entry("-" if row.name == "dense" else words.share(row.sparsity)),
        Entry(_error_text(row), is_best=is_best("error", row.error)),
        Entry(words.plain(row.std)),
        Entry(printed, is_best=is_best("published", row.published)),
        Entry(words.plain(row.cost)),
    ]


def detail_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the second table as text: a line for each row, grouped by network."""
    rows = sorted(table.itertuples(), key=lambda row: row.model)
    return pd.DataFrame([_details(row) for row in rows], columns=[*_DETAILS], dtype=str)


def _details(row: Any) -> list[str]:
    def mean(name: str) -> str:
        values = row.networks.get(name, pd.Series(dtype=float))
        if values.empty:
            return "-"
        form = ",.0f" if values.mean() >= 10 else ".2g"
        return f"{values.mean():{form}}"

    return [
        words.network_name(row.model),
        METHODS[row.name].name,
        words.share(row.sparsity),
        words.between(row.networks.get("kept", ())),
        str(len(row.networks)),
        _error_text(row),
        words.plain(row.std),
        words.plain(row.last_error),
        "-" if math.isnan(row.published) else str(row.published),
        words.signed(row.error - row.published),
        words.between(row.networks.get("prunes", ())),
        mean("steps"),
        mean("seconds"),
        words.plain(row.cost),
    ]


def caption(config: ConfigDict, table: pd.DataFrame) -> str:
    """Returns the caption: data, training, seeds, and how many cells are finished."""
    networks = list(dict.fromkeys(table["model"]))
    dense = {network: training(config, network, "dense") for network in networks}
    steps = [
        f"{fields['train.steps']:,} steps of {words.network_name(network)} at a "
        f"learning rate of {fields['optimizer.learning_rate']:g}"
        for network, fields in dense.items()
    ]
    seeds = [len(row.networks) for row in table.itertuples() if len(row.networks)]
    plural = "" if set(seeds) == {1} else "s"
    dataset = words.dataset_name(config.dataset.name)
    sentences = [
        f"Pruning LeNets on {dataset}: measured, and published beside. A dense "
        f"training is {words.listed(steps)}; figures are means over "
        f"{words.between(seeds or [0])} seed{plural}."
    ]
    sentences += [
        f"SNIP trains {words.network_name(network)} at {rate:g}."
        for network in networks
        if (rate := config[network].snip_learning_rate) != config[network].learning_rate
    ]
    if config.quick:
        shares = [
            f"1/{QUICK[network]} of the steps of {words.network_name(network)}"
            for network in networks
        ]
        sentences.append(
            f"Quick form, {words.listed(shares)}: the errors show that the methods "
            "run, not how good they are."
        )
    asked, failed = table["cells"].sum(), sum(map(len, table["failures"]))
    if sum(seeds) < asked:
        sentences.append(
            f"{sum(seeds)} of {asked} cells are finished"
            + (f", {failed} failed" if failed else "")
            + "; - stands where there is nothing yet."
        )
    return " ".join(sentences)


def notes(table: pd.DataFrame) -> list[str]:
    """Returns figures that only some methods have, and why cells failed."""
    found = []
    for row in table.itertuples():
        figures = [
            f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in _own_figures(row.networks).items()
        ]
        if figures:
            found.append(f"{words.title(row)}, at the end: {words.listed(figures)}.")
        found += [
            f"{words.title(row)} failed: {text}" for text in dict.fromkeys(row.failures)
        ]
    return found


def _own_figures(networks: pd.DataFrame) -> dict[str, float]:
    """Returns the last figures of evaluations beyond errors, means over seeds.

    So is the error of a network made of the trained one, as by quantizing.
    """
    rows = []
    for directory in networks.get("directory", ()):
        metrics = reading.metrics([reading.read_run(Path(directory))])
        numbers = metrics.select_dtypes("number")
        own = numbers.drop(columns=[*_STANDARD & {*numbers}]).ffill().tail(1)
        figures = own.dropna(axis=1).squeeze(axis=0).to_dict() if len(own) else {}
        last = metrics.tail(1).to_dict("records")
        if last and last[0]["step"] == 0 and len(metrics) > 1:
            figures[f"{last[0]['phase']} test error (%)"] = last[0]["test_error"]
        rows.append(figures)
    return pd.DataFrame(rows).mean().to_dict() if any(rows) else {}


def _draw_frontier(table: pd.DataFrame, path: Path) -> None:
    measured: dict[str, list[tuple[float, float, float]]] = {}
    printed: dict[str, list[tuple[float, float]]] = {}
    dense: dict[str, float] = {}
    for row in table.itertuples():
        name = METHODS[row.name].name
        if row.name == "dense":
            dense = {} if math.isnan(row.error) else {name: row.error}
            continue
        if not math.isnan(row.error):
            std = 0.0 if math.isnan(row.std) else row.std
            measured.setdefault(name, []).append((1 - row.sparsity, row.error, std))
        if not math.isnan(row.published):
            printed.setdefault(name, []).append((1 - row.asked, row.published))
    line = conclusions.line_to_beat(row.dataset, row.model)
    points = [(1 - sparsity, error) for sparsity, error in line.items()]
    to_beat = ("Sparse momentum, published", points)
    draw, to_beat = figures.errors_by_density, ("Sparse momentum, published", points)
    draw(measured, path, published=printed, dense=dense, to_beat=to_beat)


def _csv(heads: Sequence[Column], lines: Iterable[Sequence[Entry]]) -> pd.DataFrame:
    """Returns the first table as text, with a column for every mark in it."""
    rows = []
    for line in lines:
        row = {}
        for head, entry in zip(heads, line):
            row[head.full_name] = entry.text or entry.reference
            if head.name in (ERROR, PUBLISHED):
                mark = "yes" if entry.is_best else "no"
                row[f"{head.full_name}, smallest"] = mark
        rows.append(row)
    return pd.DataFrame(rows)


def _error_text(row: Any) -> str:
    if math.isnan(row.error):
        return "failed" if row.failures else "-"
    return words.plain(row.error)


def _about(table: pd.DataFrame) -> str:
    devices = dict.fromkeys(d for n in table["networks"] for d in n.get("device", ()))
    where = f" on {', '.join(devices)}." if devices else "."
    return f"Measured with snipjax {snipjax.__version__}{where}"
