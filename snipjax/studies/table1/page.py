"""Table 1 as Markdown, CSV and an HTML page, and error against density as pictures."""

import itertools
import math
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from snipjax.results import conclusions, pictures, reading, words
from snipjax.results.page import Cell, Section, about, line, properties, write
from snipjax.results.rows import Row, aggregate, by_network
from snipjax.studies.table1.cells import (
    METHODS,
    QUICK,
    RIVALS,
    cells,
    failures,
    finished,
    hyperparameters,
    published_sparsities,
    training,
)

_SHOWN = ("Network", "Method", "Sparsity (%)", "Seeds", "Test error, mean (%)")
_IN_CSV_ALONE = (
    *("Data set", "Parameters of the dense network", "Training (epochs)"),
    "Test error at the last step, standard deviation (points)",
    "Training error before the last evaluation, mean (%)",
)
_MARKED = {
    "Test error, mean (%)": "error",
    "Published test error (%)": "published",
}
_OWN = ("kept_by_rule", "bits_per_weight", "layer_", "output_")  # beginnings of names
_OWN_CAPTION = (
    "Figures that only some methods have, by their names in metrics.jsonl: the last of "
    "each seed, and the mean over seeds. The rule of SWS and SVD alone would keep "
    "kept_by_rule connections. Bounds and errors of L-OBS are root mean squares of the "
    "change that the last round makes in the output of a layer or of the network."
)
_CAPTION = (
    "The smallest errors of pruned networks are bold. Cost is in seconds of training "
    "and pruning, pretraining included, per second of training the dense network with "
    "the same seed. Seconds are of wall time: costs can be compared only if all runs "
    "had the machine alike. Prunings were counted while running. Additional "
    "hyperparameters are the fields of the method's section of the configuration; SNIP "
    "has one if it trains the network at another learning rate than the dense one. "
    "Published errors of Dense and SNIP are of the best checkpoint on test data, "
    "measured ones of the checkpoint chosen on validation data. Standard deviations "
    "are of a sample (n - 1)."
)


def make(config: ConfigDict, workdir: Path, command: str | None) -> pd.DataFrame:
    """Writes the tables and pictures of the finished cells, and returns their rows.

    They are rows of :func:`snipjax.results.aggregate`, with a ``cost`` in dense
    trainings as well. Cells that were made with other settings are left out.
    """
    table = rows(config, workdir)
    lines = [_line(config, row) for row in table.itertuples()]
    is_in_paper = [
        row.asked in published_sparsities(row.model, _name(row))
        for row in table.itertuples()
    ]
    texts = _texts(lines)
    texts[is_in_paper].to_csv(workdir / "table1.csv", index=False)
    texts.to_csv(workdir / "cells.csv", index=False)
    shown = [
        {head: cell for head, cell in each.items() if head not in _IN_CSV_ALONE}
        for each in lines
    ]
    in_paper = list(itertools.compress(shown, is_in_paper))
    more = [each for each in shown if each not in in_paper]
    _mark_smallest(in_paper, table.loc[is_in_paper])
    networks = pd.concat([*table["networks"]]) if len(table) else pd.DataFrame()
    names = {Path(path).name for path in networks.get("directory", ())}
    failed = failures(workdir, config)
    named = [f"{name} failed: {why}." for name, why in failed.items()]
    sections = [
        Section("Results", f"{caption(config, names)} {_CAPTION}", in_paper),
        Section("More sparsities", "At sparsities that are not published.", more),
        Section("The methods' own figures", _OWN_CAPTION, _own_figures(table)),
        Section("Failures", sentences=named),
        Section("Conclusions", sentences=conclusions.on_table_1([*table.itertuples()])),
        Section(
            "Error against density",
            pictures=[
                pictures.of_errors(group, workdir / f"frontier_{group[0].model}.png")
                for group in by_network(table.itertuples())
            ],
        ),
        Section("Command", commands=[command] if command else []),
    ]
    title = "Table 1 of SNIP: measured and published"
    write(title, about(networks), sections, workdir / "table1")
    return table


def rows(config: ConfigDict, workdir: Path) -> pd.DataFrame:
    """Returns a row for each network, method and sparsity that has finished cells."""
    networks = reading.networks(finished(workdir, config))
    if len(networks):
        dense = networks[networks["method"] == "none"]
        seconds = dense.set_index(["model", "seed"])["seconds"]
        same_seed = pd.MultiIndex.from_frame(networks[["model", "seed"]])
        networks["cost"] = networks["seconds"] / seconds.reindex(same_seed).to_numpy()
    table = aggregate(networks)
    return table.assign(cost=[own["cost"].mean() for own in table["networks"]])


def show(table: pd.DataFrame) -> None:
    lines = _texts([line(row) for row in table.itertuples()])
    print(lines[[name for name in _SHOWN if name in lines]].to_string(index=False))


def caption(config: ConfigDict, measured: Collection[str]) -> str:
    """Returns how networks were trained, and how many of the cells are finished."""
    asked = cells(config)
    count = sum(cell.name in measured for cell in asked)
    dense = {cell.network: training(config, cell.network, "dense") for cell in asked}
    steps = [
        f"{fields['train.steps']:,} steps of {words.network_name(network)} at a "
        f"learning rate of {fields['optimizer.learning_rate']:g}"
        for network, fields in dense.items()
    ]
    own_rates = [
        f" SNIP trains {words.network_name(network)} at {rate:g}."
        for network in {cell.network: 0 for cell in asked if cell.method == "snip"}
        if (rate := config[network].snip_learning_rate) != config[network].learning_rate
    ]
    quick = words.listed(f"1/{QUICK[network]}" for network in dense)
    return (
        f"LeNets on {words.dataset_name(config.dataset.name)}: a dense training is "
        f"{words.listed(steps)}."
        + "".join(own_rates)
        + (
            f" Quick form, {quick} of the steps: the errors show that the methods run, "
            "not how good they are."
            if config.quick
            else ""
        )
        + (
            f" {count} of {len(asked)} cells are finished."
            if count < len(asked)
            else ""
        )
    )


def _name(row: Row) -> str:
    return "dense" if row.method == "none" else row.method


def _line(config: ConfigDict, row: Row) -> dict[str, str | Cell]:
    """Returns the cells of a row: a report's, and the columns of table 1."""
    method, is_dense = METHODS[_name(row)], row.method == "none"
    count = hyperparameters(config, row.model, _name(row))
    return {
        **line(row),
        **properties(method),
        "Number of prunings": "-"
        if is_dense
        else words.between(row.networks["prunes"]),
        "Additional hyperparameters": "-" if is_dense else str(count),
        "Training and pruning (seconds)": words.plain(
            row.networks["seconds"].mean(), ",.0f"
        ),
        "Training cost (dense trainings)": words.plain(row.cost),
    }


def _mark_smallest(lines: Sequence[dict[str, str | Cell]], table: pd.DataFrame) -> None:
    """Marks the smallest errors of each network among the lines of pruned rows."""
    pruned = table.reset_index(drop=True).query("method != 'none'")
    for head, name in _MARKED.items():
        errors = pruned[name].astype(float).round(2)
        least = errors.groupby(pruned["model"]).transform("min")
        for number in errors.index[errors == least]:
            cell = lines[number][head]
            cell = Cell(cell) if isinstance(cell, str) else cell
            lines[number][head] = cell._replace(is_best=True)


def _own_figures(table: pd.DataFrame) -> list[dict[str, str]]:
    """Returns a line for each figure of a row that other methods do not have."""
    lines = []
    for row in (row for row in table.itertuples() if row.method in RIVALS):
        metrics = reading.read_metrics(*row.networks["directory"])
        last = metrics.groupby("seed").last().mean(numeric_only=True).dropna()
        figures = {name: last[name] for name in last.index if name.startswith(_OWN)}
        quantized = metrics[metrics["phase"] == "quantized"]["test_error"].mean()
        if not math.isnan(quantized):
            figures["test_error of the quantized network (%)"] = quantized
        lines += [
            {
                "Network": words.network_name(row.model),
                "Method": words.label(row),
                "Figure": name,
                "Mean": f"{figure:{',.0f' if figure >= 1000 else '.3g'}}",
            }
            for name, figure in figures.items()
        ]
    return lines


def _texts(lines: list[dict[str, str | Cell]]) -> pd.DataFrame:
    return pd.DataFrame(
        {head: cell if isinstance(cell, str) else cell.text for head, cell in x.items()}
        for x in lines
    )
