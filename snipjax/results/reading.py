"""Run directories as tables: a row for each network, and a row for each evaluation."""

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from snipjax import config as configs
from snipjax.results import published
from snipjax.schema import FIELDS
from snipjax.training import rundir

ERRORS = ("test_error", "test_error_last", "val_error", "train_error")
_QUANTITIES = [f"{s}_{q}" for s in ("train", "val", "test") for q in ("loss", "error")]
_LOSSES = [name for name in _QUANTITIES if name.endswith("loss")]


class Run(NamedTuple):
    """A run directory; an unfinished one has no result."""

    path: Path
    name: str
    config: dict[str, Any]  # by dotted name
    result: dict[str, Any] | None


class Sweep(NamedTuple):
    """A directory of runs of several settings, with pictures that compare them."""

    path: Path
    name: str
    varied: tuple[str, ...]  # fields and values, as ``config.vary`` has them


def read(*paths: Path | str) -> pd.DataFrame:
    """Returns the networks of all finished runs in directories, a row for each.

    Args:
      *paths: run directories, or directories that hold some.

    Returns:
      A table with the columns of a network in ``result.json`` (``seed``,
      ``sparsity``, ``kept``, ``test_error``, ...), of its run (``dataset``,
      ``model``, ``method``, ``parameters``, ``epochs``, ...), every field of the
      configuration by its dotted name, the directory of the run in ``directory`` and
      the published error in ``published``. Errors are in percent.

    Raises:
      ValueError: if a path is a damaged run or holds none.

    Example:
      .. code-block:: python

        from snipjax import results

        networks = results.read("runs")
        print(networks.groupby("prune.sparsity").test_error.mean())
    """
    return networks(find(*paths)[0])


def networks(runs: Iterable[Run]) -> pd.DataFrame:
    rows = []
    for run in runs:
        of_run = dict(run.result or {})
        for network in of_run.pop("networks", ()):
            row = {**run.config, **of_run, **network}
            row |= {"run": run.name, "directory": str(run.path)}
            asked = row["prune.sparsity"]
            figure = None
            if row["optimizer.sparse.name"] == "static":
                network = row["dataset"], row["model"], row["method"]
                figure = published.find(*network, asked)
            rows.append({**row, "published": figure.error if figure else math.nan})
    table = pd.DataFrame(rows)
    # A copy has one block for all columns of a dtype, to which pandas adds fast.
    return table.astype(dict.fromkeys(ERRORS, float)).copy() if rows else table


def read_metrics(*paths: Path | str) -> pd.DataFrame:
    """Returns the evaluations of all runs in directories, a row for each network.

    Args:
      *paths: run directories, or directories that hold some.

    Returns:
      A table with columns ``directory``, ``seed``, ``phase``, ``step`` within the
      phase, ``total_step`` over all phases, ``train_loss``, ``train_error``,
      ``val_loss``, ... Values that are not finite are NaN, and ``finite`` is False
      where a loss is one of them.

    Raises:
      ValueError: if a path is a damaged run or holds none.

    Example:
      .. code-block:: python

        from snipjax import results

        metrics = results.read_metrics("runs/mine")
        metrics.pivot(index="step", columns="seed", values="val_error").plot()
    """
    return metrics(find(*paths)[0])


def metrics(runs: Iterable[Run]) -> pd.DataFrame:
    tables = [
        tidy(rundir.read_metrics(run.path)).assign(directory=str(run.path))
        for run in runs
    ]
    return pd.concat([table for table in tables if len(table)] or tables)


def tidy(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns lines of ``metrics.jsonl`` as a table, a row for each network."""
    found = pd.DataFrame(
        [
            {
                "phase": "train",
                **(values := _at(row, place)),
                "seed": seed,
                "finite": all(values.get(name, 0) is not None for name in _LOSSES),
            }
            for row in rows
            for place, seed in enumerate(row["seeds"])
        ]
    )
    columns = dict.fromkeys(["seed", "phase", "step", *_QUANTITIES, "finite", *found])
    table = found.reindex(columns=[name for name in columns if name != "seeds"])
    table = table.astype(dict.fromkeys(_QUANTITIES, float) | {"finite": bool})
    ends = table.groupby(["seed", "phase"], sort=False)["step"].max()
    before = (ends.groupby("seed").cumsum() - ends).rename("total_step")
    table = table.join(before, on=["seed", "phase"])
    table["total_step"] += table["step"]
    return table


def _at(row: Mapping[str, Any], place: int) -> dict[str, Any]:
    return {k: v[place] if isinstance(v, list) else v for k, v in row.items()}


def with_finite(networks: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Returns networks with a column ``finite``, whether all their losses were."""
    if networks.empty:
        return networks
    diverged = metrics[~metrics["finite"]]
    pairs = {*zip(diverged["directory"], diverged["seed"])}
    each = zip(networks["directory"], networks["seed"])
    return networks.assign(finite=[pair not in pairs for pair in each])


def find(*paths: Path | str) -> tuple[list[Run], list[Sweep]]:
    """Returns the runs in directories, finished or not, and the sweeps, each once.

    A damaged run is left out with a warning, unless its own path was given.
    """
    runs: dict[Path, Run] = {}
    sweeps: dict[Path, Sweep] = {}
    for path in map(Path, paths):
        directories = [file.parent for file in sorted(path.rglob(rundir.CONFIG))]
        for directory in directories:
            place = directory.resolve()
            name = str(Path(path.resolve().name, directory.relative_to(path)))
            try:
                config = read_config(directory)
                if config.get("vary"):
                    varied = checked_config(directory)["vary"]
                    sweeps.setdefault(place, Sweep(directory, name, varied))
                elif "study" not in config:
                    runs.setdefault(place, read_run(directory, name))
            except (ValueError, OSError) as error:
                if directory == path:
                    raise
                warnings.warn(f"left out: {error}", stacklevel=2)
        if not directories:
            raise ValueError(
                f"there is no run in '{path}': a run is a directory with a "
                f"{rundir.CONFIG}; make one with train.py, or give another directory"
            )
    if not runs:
        raise ValueError(f"there is no run in '{paths[0]}' that can be shown")
    return list(runs.values()), list(sweeps.values())


def read_run(path: Path, name: str = "") -> Run:
    """Returns the run in a directory, or raises a ``ValueError`` if it is damaged."""
    config, result = checked_config(path), None
    if (file := path / rundir.RESULT).exists():
        remedy = f"leave '{path}' out, or remove it and run again"
        result = rundir.read_json(file, remedy)
    return Run(path, name, config, result)


def checked_config(path: Path) -> dict[str, Any]:
    """Returns the configuration of a run or sweep, with every field of its type."""
    config = read_config(path)
    try:
        configs.check_types(config, FIELDS)
        [configs.parse_entry(str(entry)) for entry in config["vary"]]
    except ValueError as error:
        file = path / rundir.CONFIG
        raise rundir.damaged(file, error, f"leave '{path}' out") from None
    return config


def read_config(path: Path) -> dict[str, Any]:
    """Returns the fields of a directory's configuration by their dotted names."""
    config = rundir.read_json(path / rundir.CONFIG, f"leave '{path}' out")
    return {
        k: tuple(v) if isinstance(v, list) else v for k, v in configs.fields(config)
    }
