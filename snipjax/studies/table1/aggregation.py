"""Rows of table 1: a network, method and sparsity, over all seeds."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from snipjax.results import published
from snipjax.studies.table1 import config as configs
from snipjax.studies.table1 import files, left_out
from snipjax.studies.table1.cell import Cell
from snipjax.studies.table1.config import METHODS

# Of every evaluation; what else a history has is a method's own.
_STANDARD = {"phase", "step", "sparsity"} | {
    f"{split}_{quantity}"
    for split in ("train", "val", "test")
    for quantity in ("loss", "error")
}


class Row(NamedTuple):
    """What a method came to on a network; errors in percent, means over seeds."""

    dataset: str
    network: str
    method: str
    wanted: float  # sparsity
    hyperparameters: int  # beside those of dense training
    cells: int  # that are asked for, or finished
    results: tuple[dict[str, Any], ...]  # by seed
    costs: tuple[float, ...]  # seconds as a share of the dense network's of that seed
    failures: tuple[str, ...]
    published: published.Row | None

    @property
    def described(self) -> published.Method:
        """The method as it is published."""
        return METHODS[self.method]

    @property
    def is_in_paper(self) -> bool:
        """Whether the method is published at this sparsity of the network."""
        return self.wanted in configs.published_sparsities(self.network, self.method)

    @property
    def sparsity(self) -> float:
        """Measured where there is a result, else what is wanted."""
        return mean(self.values("measured_sparsity"), self.wanted)

    @property
    def error(self) -> float | None:
        """Of the checkpoint chosen on validation data."""
        return mean(self.values("test_error"))

    @property
    def std(self) -> float | None:
        """Its standard deviation over seeds, of a sample; None for fewer than two."""
        errors = self.values("test_error")
        return statistics.stdev(errors) if len(errors) > 1 else None

    @property
    def last_error(self) -> float | None:
        """Of the last step."""
        return mean(self.values("test_error_last"))

    @property
    def cost(self) -> float | None:
        """Seconds of training and pruning in those of dense training."""
        return mean(self.costs)

    def values(self, name: str) -> list[float]:
        """Returns the values of a field of the results, of those that have one."""
        return [value for of in self.results if (value := of.get(name)) is not None]


def rows(config: ConfigDict, workdir: Path) -> list[Row]:
    """Returns the rows of a directory's cells, by method, network and sparsity.

    Args:
      config: like :func:`snipjax.studies.table1.default`'s; what it asks for has a row, and
        so has what else was finished before with the same settings.
      workdir: directory of the table.
    """
    grouped: dict[tuple[str, str, float], list[Cell]] = {}
    found = left_out.differences(config, workdir).items()
    finished = [cell for cell, differing in found if not differing]
    for cell in sorted({*configs.cells(config), *finished}):
        grouped.setdefault((cell.method, cell.network, cell.sparsity), []).append(cell)
    order = list(METHODS)
    return sorted(
        (_row(config, cells, workdir) for cells in grouped.values()),
        key=lambda row: (order.index(row.method), row.network, row.wanted),
    )


def _row(config: ConfigDict, cells: Sequence[Cell], workdir: Path) -> Row:
    network, method, sparsity, _ = cells[0]
    results, costs, failures = [], [], []
    for cell in cells:
        result = files.read(workdir / cell.name)
        if result is None:
            failures.append(files.read_failure(workdir / cell.name))
            continue
        results.append(result)
        dense = files.read(workdir / cell._replace(method="dense", sparsity=0.0).name)
        if dense and dense["seconds"] > 0:
            costs.append(result["seconds"] / dense["seconds"])
    return Row(
        dataset=config.dataset.name,
        network=network,
        method=method,
        wanted=sparsity,
        hyperparameters=configs.hyperparameters(config, network, method),
        cells=len(cells),
        results=tuple(results),
        costs=tuple(costs),
        failures=tuple(message for message in failures if message is not None),
        published=published.find(
            config.dataset.name, network, METHODS[method].name, sparsity
        ),
    )


def mean(values: Iterable[float], otherwise: float | None = None) -> float | None:
    """Returns the mean of values, or something else where there are none."""
    values = list(values)
    return statistics.fmean(values) if values else otherwise


def own_figures(row: Row) -> dict[str, float]:
    """Returns what a method's histories say beyond errors: means over seeds.

    Of each figure it is the last one of a history; so is the error of a network made
    of the trained one, as by quantising.

    Example:
      >>> history = [{"step": 0, "bits": 9.0}, {"step": 5, "bits": 2.0}]
      >>> row = Row("", "", "", 0.9, 0, 1, ({"history": history},), (), (), None)
      >>> own_figures(row)
      {'bits': 2.0}
    """
    found: dict[str, list[float]] = {}
    for result in row.results:
        last: dict[str, float] = {}
        for line in result["history"]:
            last |= {
                name: value
                for name, value in line.items()
                if name not in _STANDARD
                and isinstance(value, int | float)
                and not isinstance(value, bool)
            }
        for line in result["history"][-1:]:
            if line is not files.last_row(result["history"]):
                last[f"{line['phase']} test error (%)"] = line["test_error"]
        for name, value in last.items():
            found.setdefault(name, []).append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}
