"""Columns, captions and cells of the tables, whatever they are written in."""

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from snipjax.results import published
from snipjax.results.report.aggregation import Row, by_network
from snipjax.results.report.runs import Run
from snipjax.results.report.titles import (
    DATASETS,
    dataset_name,
    name_and_origin,
    network_name,
    row_kind,
)
from snipjax.results.report.values import finite, flag_value, printable
from snipjax.results.report.wording import between, plain, ranges, signed


class Cell(NamedTuple):
    """Text of a table, with a reference behind it where there is one."""

    text: str
    reference: str = ""
    link: str = ""


COLUMNS = (
    "Network",
    "Data set",
    "Method",
    "Sparsity (%)",
    "Parameters of the dense network",
    "Connections kept",
    "Seeds",
    "Test error, mean (%)",
    "Test error, standard deviation (points)",
    "Test error at the last step, mean (%)",
    "Test error at the last step, standard deviation (points)",
    "Training error before the last evaluation, mean (%)",
    "Published test error (%)",
    "Measured less published (points)",
    "Measured less dense (points)",
    "Training (epochs)",
    "Training (steps)",
)
CAPTION = (
    "Measured test errors beside the published ones. A row is one network trained from "
    "several seeds. Sparsity is the share of prunable connections that are pruned. "
    "Test error is that of the checkpoint chosen on validation data; standard "
    "deviations are of a sample (n - 1). Training error is over the steps between the "
    "last evaluation and the one before. Dense is the same network unpruned and "
    "trained the same way; on random labels the two are compared by training error, "
    "for test error is there of guessing; a point is a percentage point; - stands "
    "where there is nothing to give. Below each row is the command that made it, paths "
    "shortened."
)
PUBLISHED_COLUMNS = (
    "Reference",
    "Method",
    "Criterion",
    "Network",
    "Data set",
    "Sparsity (%)",
    "Test error (%)",
    "Needs pretraining",
    "Number of prunings",
    "Additional hyperparameters",
    "Augments the training objective",
    "Depends on the architecture",
)
PUBLISHED_CAPTION = (
    "Published test errors of the networks in table 1. Of the number of prunings, many "
    "means about as many as there are training steps, and soft that Bayesian methods "
    "prune gradually; - stands where the SNIP paper's table says nothing. Dense and "
    "SNIP errors are of the best checkpoint on test data."
)
UNFINISHED_COLUMNS = (
    "Run",
    "Steps done",
    "Steps wanted",
    "Test error at the last evaluation (%)",
)


def cells(row: Row) -> list[Cell]:
    """Returns the cells of a row of the first table, one per column."""
    _, described = name_and_origin(row.method)
    seeds = [member.seed for member in row.members]
    errors = row.error, row.std, row.last_error, row.last_std, row.train_error
    figure = row.published
    return [
        Cell(network_name(row)),
        Cell(dataset_name(row)),
        Cell(
            row_kind(row),
            described.reference if described else "",
            described.link if described else "",
        ),
        Cell(f"{100 * row.sparsity:.4g}"),
        Cell(between([member.parameters for member in row.members])),
        Cell(between([statistics.fmean(member.kept for member in row.members)])),
        Cell(f"{len(seeds)} ({ranges(seeds)})"),
        *map(Cell, map(plain, errors)),
        Cell(str(figure.error), *figure[:2]) if figure else Cell("-"),
        Cell(signed(row.difference)),
        Cell(signed(row.loss)),
        Cell(between([member.epochs for member in row.members])),
        Cell(between([member.steps for member in row.members])),
    ]


def published_cells(table: Sequence[Row]) -> list[list[Cell]]:
    """Returns rows of the second table: what is published of the first's networks."""
    networks = by_network(table)  # in the first table's order
    found = [
        row
        for network in networks
        for row in published.ROWS
        if (row.network, row.dataset) == network
    ]
    lines = []
    for row in found:
        method = published.METHODS[row.method]
        cells_of = [
            Cell("", row.reference, row.link),
            Cell(f"{method.name}: {method.full_name}"),
            Cell(method.criterion),
            Cell(published.NETWORKS[row.network]),
            Cell(DATASETS[row.dataset]),
            Cell(f"{100 * row.sparsity:.4g}"),
            Cell(str(row.error)),
            Cell(method.pretraining),
            Cell(method.prunings),
            Cell(method.hyperparameters),
            Cell(method.objective),
            Cell(method.constraints),
        ]
        lines.append(cells_of)
    return lines


def unfinished(runs: Iterable[Run]) -> list[list[str]]:
    """Returns name, steps done, steps wanted and last test error of unfinished runs.

    The error is the mean over the seeds, where a run has several.
    """
    lines = []
    for run in runs:
        if run.members:
            continue
        step = run.metrics[-1]["step"] if run.metrics else 0
        # Of many seeds there is a line for each.
        errors = [
            error
            for line in run.metrics
            if line["step"] == step
            and (error := finite(line.get("test_error"))) is not None
        ]
        lines.append(
            [
                run.name,
                f"{step:,.0f}",
                printable(flag_value(run.config["train.steps"])),
                plain(statistics.fmean(errors) if errors else None),
            ]
        )
    return lines
