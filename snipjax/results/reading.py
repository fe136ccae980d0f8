"""Run directories as tables: a row for each network, and a row for each evaluation."""

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from snipjax import config as configs
from snipjax.results import published
from snipjax.results.words import printable

CONFIG, RESULT = "config.json", "result.json"
METRICS, SIGNAL = "metrics.jsonl", "signal.json"
_OF_SIGNAL = ("activation_variance", "gradient_variance", "density")
_NAMED = ("dataset.name", "model.name", "prune.method")
_TEXTS = ("dataset", "model", "method")
# Least and largest value.
_OF_RUN = {"parameters": (0, math.inf), "epochs": (0, math.inf)}
_OF_NETWORK = {
    **dict.fromkeys(("seed", "kept", "steps"), (0, math.inf)),
    "sparsity": (0, math.nextafter(1, 0)),
}
# In percent; None of a network that was not evaluated.
_ERRORS = ("test_error", "test_error_last", "val_error", "train_error")
_QUANTITIES = [f"{s}_{q}" for s in ("train", "val", "test") for q in ("loss", "error")]


class Run(NamedTuple):
    """A run directory; an unfinished one has no result."""

    path: Path
    name: str
    config: dict[str, Any]  # by dotted name, with defaults for missing fields
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
      >>> networks = read("runs")  # doctest: +SKIP
      >>> networks.groupby("prune.sparsity").test_error.mean()  # doctest: +SKIP
    """
    return networks(find(*paths))


def networks(runs: Iterable[Run]) -> pd.DataFrame:
    """Returns the networks of runs as a table, a row for each."""
    rows = []
    for run in runs:
        of_run = dict(run.result or {})
        for network in of_run.pop("networks", ()):
            row = {**run.config, **of_run, **network}
            row |= {"run": run.name, "directory": str(run.path)}
            asked = row["prune.sparsity"]
            figure = published.find(row["dataset"], row["model"], row["method"], asked)
            rows.append({**row, "published": figure.error if figure else math.nan})
    table = pd.DataFrame(rows)
    for name in _ERRORS:
        values = table.get(name, pd.Series(index=table.index, dtype=float))
        table[name] = values.astype(float)  # None is NaN
    return table


def read_metrics(*paths: Path | str) -> pd.DataFrame:
    """Returns the evaluations of all runs in directories, a row for each network.

    Args:
      *paths: run directories, or directories that hold some.

    Returns:
      A table with columns ``directory``, ``seed``, ``phase``, ``step`` within the
      phase, ``total_step`` over all phases, ``train_loss``, ``train_error``,
      ``val_loss``, ... Values that are not finite are NaN.

    Raises:
      ValueError: if a path is a damaged run or holds none.

    Example:
      >>> metrics = read_metrics("runs/mine")  # doctest: +SKIP
    """
    return metrics(find(*paths))


def metrics(runs: Iterable[Run]) -> pd.DataFrame:
    """Returns the evaluations of runs as a table, a row for each network."""
    tables = [
        tidy(_lines(run.path / METRICS)).assign(directory=str(run.path)) for run in runs
    ]
    filled = [table for table in tables if len(table)]
    return pd.concat(filled or tables, ignore_index=True)


def tidy(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns lines of ``metrics.jsonl`` as a table, a row for each network."""
    found: list[dict[str, Any]] = []
    before: dict[int, float] = {}
    last: dict[int, tuple[Any, float]] = {}
    for row in rows:
        for place, seed in enumerate(row["seeds"]):
            try:
                network = {
                    name: value[place] if isinstance(value, list) else value
                    for name, value in row.items()
                    if name != "seeds"
                }
            except IndexError:
                continue
            step, phase = finite(network.get("step")), network.get("phase", "train")
            if math.isnan(step):
                continue
            if seed in last and last[seed][0] != phase:
                before[seed] = before.get(seed, 0) + last[seed][1]
            last[seed] = phase, step
            place_of = {"seed": seed, "total_step": before.get(seed, 0) + step}
            found.append({**network, "phase": phase, **place_of})
    table = pd.DataFrame(found)
    for name in ("seed", "step", "total_step", "phase", *_QUANTITIES):
        values = table.get(name, pd.Series(index=table.index, dtype=float))
        table[name] = values if name == "phase" else pd.to_numeric(values, "coerce")
    return table


def find(*paths: Path | str) -> list[Run]:
    """Returns the runs in directories, finished or not, each once.

    A damaged run, or a run of another program, is left out with a warning, unless its
    own path was given.
    """
    runs: dict[Path, Run] = {}
    for path in map(Path, paths):
        is_empty = True
        for directory, varied in _walk(path):
            if varied:
                continue
            is_empty = False
            try:
                run = read_run(directory, _name(directory, path))
            except ValueError as error:
                if directory == path:
                    raise
                warnings.warn(f"left out: {error}", stacklevel=2)
                continue
            runs.setdefault(directory.resolve(), run)
        if is_empty:
            raise ValueError(
                f"there is no run in '{path}': a run is a directory with a {CONFIG}; "
                "make one with train.py, or give another directory"
            )
    if not runs:
        raise ValueError(f"there is no run in '{paths[0]}' that can be shown")
    return list(runs.values())


def find_sweeps(*paths: Path | str) -> list[Sweep]:
    """Returns the sweeps in directories, each once."""
    sweeps: dict[Path, Sweep] = {}
    for path in map(Path, paths):
        for directory, varied in _walk(path):
            if varied and varied != _STUDY:
                sweep = Sweep(directory, _name(directory, path), varied)
                sweeps.setdefault(directory.resolve(), sweep)
    return list(sweeps.values())


def read_signal(directory: Path) -> SimpleNamespace | None:
    """Returns the signal of an initialization that a run measured, None without one.

    A damaged signal counts as none, with a warning. Fields are named as in
    :class:`snipjax.initializers.Signal`: names of ``layers``, arrays
    ``[seeds, layers]``, and ``rank_correlation`` ``[layers]``.
    """
    path = directory / SIGNAL
    if not path.is_file():
        return None
    try:
        values = _read_json(path)
        layers = tuple(map(str, values["layers"]))
        arrays = {name: np.array(values[name], float) for name in _OF_SIGNAL}
        ranks = np.array(values["rank_correlation"], float)
        shapes = {(*array.shape[:1], len(layers)) for array in arrays.values()}
        fits = {array.shape for array in arrays.values()} == shapes and len(shapes) == 1
        if not fits or ranks.shape != (len(layers),) or 0 in shapes.pop():
            raise ValueError("layers, seeds and values do not fit")
    except (KeyError, TypeError, ValueError) as error:
        warnings.warn(f"left out: '{path}' is no signal: {error}", stacklevel=2)
        return None
    return SimpleNamespace(layers=layers, rank_correlation=ranks, **arrays)


def finite(value: Any) -> float:
    """Returns a finite number as a float, and NaN for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if is_number and math.isfinite(value) else math.nan
    except OverflowError:  # an integer beyond floats
        return math.nan


_STUDY = ("a study",)


def _walk(path: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yields runs, sweeps and studies in a directory, and the variation of each."""
    if not path.is_dir():
        raise ValueError(
            f"'{path}' is not a directory; give run directories or one that holds some"
        )
    for directory, subdirectories, files in os.walk(path):
        varied = _varied(Path(directory)) if CONFIG in files else ()
        if varied:
            yield Path(directory), varied
        elif CONFIG in files or RESULT in files:
            # Not checkpoints and events, but the runs of a sweep whose file is damaged.
            subdirectories[:] = [
                name
                for name in subdirectories
                if Path(directory, name, CONFIG).is_file()
            ]
            yield Path(directory), ()
        subdirectories.sort()


def _varied(directory: Path) -> tuple[str, ...]:
    try:
        config = json.loads((directory / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):
        return ()
    if not isinstance(config, dict):
        return ()
    varied = config.get("vary")
    if isinstance(varied, list) and varied:
        return tuple(printable(str(entry)) for entry in varied)
    return _STUDY if isinstance(config.get("study"), str) else ()


def _name(directory: Path, path: Path) -> str:
    name = path.resolve().name
    return printable(str(Path(name, directory.relative_to(path))))


def read_run(path: Path, name: str = "") -> Run:
    """Returns the run in a directory, or raises a ``ValueError`` if it is damaged."""
    config = _fields(_read_json(path / CONFIG))
    if not all(isinstance(config.get(name), str) for name in _NAMED):
        raise ValueError(
            f"'{path / CONFIG}' is not a configuration of snipjax; leave it out"
        )
    result = None
    if (path / RESULT).exists():
        result = _read_json(path / RESULT)
        if fault := _fault(result):
            raise ValueError(
                f"'{path / RESULT}' is not a result of snipjax ({fault}); leave it "
                "out, or remove it and run again"
            )
    defaults = dict(configs.fields(configs.default()))
    return Run(path, name, defaults | config, result)


def _fields(config: Any) -> dict[str, Any]:
    """Returns fields by dotted name; none of a configuration unlike snipjax's."""
    flat = dict(configs.fields(config)) if isinstance(config, dict) else {}
    for name, value in flat.items():
        flat[name] = tuple(value) if isinstance(value, list) else value
        if any(isinstance(item, list | dict) for item in _items(flat[name])):
            return {}
    return flat


def _items(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _fault(result: Any) -> str | None:
    """Returns what is wrong with a result; None if nothing is."""
    if not isinstance(result, dict):
        return "it is not a JSON object"
    for name in _TEXTS:
        if not isinstance(result.get(name), str):
            return f"field '{name}' is missing or no text"
    networks = result.get("networks")
    if not (networks and isinstance(networks, list)):
        return "field 'networks' is not a list of networks"
    checks = [(result, _OF_RUN), *((network, _OF_NETWORK) for network in networks)]
    for values, bounds in checks:
        if not isinstance(values, dict):
            return "field 'networks' is not a list of networks"
        for name, (least, most) in bounds.items():
            if not least <= finite(values.get(name)) <= most:
                return f"field '{name}' is {values.get(name)}, not a number in bounds"
    for network in networks:
        for name in _ERRORS:
            value = network.get(name)
            if value is not None and not 0 <= finite(value) <= 100:
                return f"field '{name}' is {value}, outside [0, 100] percent"
        for layer in network.get("layers") or ():
            try:
                shape, kept, total = layer["shape"], layer["kept"], layer["total"]
                is_layer = isinstance(layer["path"], str) and len(shape) >= 0
                if not (is_layer and 0 <= finite(kept) <= finite(total)):
                    return (
                        f"field 'layers' has '{layer['path']}' with {kept} of {total}"
                    )
            except (KeyError, TypeError):
                return "field 'layers' is not a list of layers"
    return None


def _made_printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_made_printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): _made_printable(item) for key, item in value.items()}
    return value


def _read_json(path: Path) -> Any:
    try:
        return _made_printable(json.loads(path.read_text()))
    except RecursionError:
        reason = "it is nested too deeply"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ValueError(f"'{path}' is damaged ({reason}); leave '{path.parent}' out")


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns lines of metrics; one cut off by a crash costs itself."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("seeds"), list):
            rows.append(row)
    return rows
