"""Run directories: finding and reading them, and the networks in them."""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from snipjax import config as configs
from snipjax.initializers import signals
from snipjax.results.report.values import finite, printable
from snipjax.training import rundir


class Layer(NamedTuple):
    """How many connections of a parameter are kept."""

    path: str
    shape: tuple[int, ...]
    kept: int
    total: int


class Member(NamedTuple):
    """One trained network. Errors are in percent, None where there is none."""

    dataset: str
    model: str
    method: str  # "none" where nothing is pruned, whatever was asked to
    sparsity: float
    seed: int
    parameters: int
    kept: int
    layers: tuple[Layer, ...]
    test_error: float | None
    test_error_last: float | None
    steps: int
    epochs: float


class Run(NamedTuple):
    """A run directory. It has no members as long as the run is unfinished."""

    path: Path
    name: str
    config: dict[str, Any]  # by dotted name, with defaults where it was silent
    result: dict[str, Any]
    members: list[Member]
    metrics: list[dict[str, Any]]  # of many seeds, a line for each with its "seed"
    signal: signals.Signal | None = None  # of the initialization, where measured


class Sweep(NamedTuple):
    """A directory of runs of several settings, and of pictures that compare them."""

    path: Path
    name: str
    varied: tuple[str, ...]  # fields and values, as ``config.vary`` has them


class NotARunError(ValueError):
    """Valid JSON, but not of a run that a report can show."""


def gather(paths: Sequence[Path]) -> list[Run]:
    """Reads the runs in directories, each once.

    Raises:
      ValueError: if one is a damaged run, or neither a run nor holds one, or nothing
        is left. A run that was found in a directory and is damaged, or not one that a
        report can show, is warned of and left out.
    """
    runs: dict[Path, Run] = {}
    for path in paths:
        found = list(find_runs(path))
        for directory in found:
            try:
                run = read_run(directory, _name_within(directory, path))
            except ValueError as error:
                if directory == path:
                    raise
                warnings.warn(f"left out: {error}", stacklevel=2)
                continue
            runs.setdefault(directory.resolve(), run)
        if not found:
            raise ValueError(
                f"there is no run in '{path}': a run is a directory with a "
                f"{rundir.CONFIG}; make one with train.py, or give another directory"
            )
    if not runs:
        raise ValueError(f"there is no run in '{paths[0]}' that a report can show")
    return list(runs.values())


def gather_sweeps(paths: Sequence[Path]) -> list[Sweep]:
    """Returns the sweeps in directories, each once.

    Raises:
      ValueError: if one is not a directory.
    """
    sweeps: dict[Path, Sweep] = {}
    for path in paths:
        for directory, varied in _walk(path):
            if varied:
                name = printable(_name_within(directory, path))
                sweep = Sweep(directory, name, varied)
                sweeps.setdefault(directory.resolve(), sweep)
    return list(sweeps.values())


def find_runs(path: Path) -> Iterator[Path]:
    """Yields the run directories in a directory in order, itself if it is one.

    Raises:
      ValueError: if it is not a directory.
    """
    for directory, varied in _walk(path):
        if not varied:
            yield directory


def _walk(path: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Runs and sweeps in a directory, with what varies in a sweep."""
    if not path.is_dir():
        raise ValueError(
            f"'{path}' is not a directory; give run directories or one that holds some"
        )
    for directory, subdirectories, files in os.walk(path):
        varied = _varied(Path(directory)) if rundir.CONFIG in files else ()
        if varied:
            yield Path(directory), varied
        elif rundir.CONFIG in files or rundir.RESULT in files:
            # Not checkpoints and events, but the runs of a sweep whose file is damaged.
            subdirectories[:] = [
                name
                for name in subdirectories
                if Path(directory, name, rundir.CONFIG).is_file()
            ]
            yield Path(directory), ()
        subdirectories.sort()


def _varied(directory: Path) -> tuple[str, ...]:
    """What varies in a directory of several runs; nothing in one of a single run."""
    try:
        entries = _read_json(directory / rundir.CONFIG).get("vary")
    except (ValueError, AttributeError):
        return ()
    entries = entries if isinstance(entries, list) else []
    return tuple(printable(entry) for entry in entries if isinstance(entry, str))


def _name_within(directory: Path, path: Path) -> str:
    return directory.resolve().relative_to(path.resolve().parent).as_posix()


def read_run(path: Path, name: str | None = None) -> Run:
    """Reads a run directory, finished or not.

    Args:
      path: the directory.
      name: what the report calls it; by default the directory's name.

    Raises:
      ValueError: if ``config.json`` or ``result.json`` is missing or damaged.
    """
    if not (path / rundir.CONFIG).is_file():
        raise NotARunError(
            f"'{path}' has no {rundir.CONFIG}, so it is not a run; leave it out"
        )
    config = _read_json(path / rundir.CONFIG)
    flat = _fields(config)
    names = ("dataset.name", "model.name", "prune.method")
    if not all(isinstance(flat.get(name), str) for name in names):
        raise NotARunError(
            f"'{path / rundir.CONFIG}' is not a configuration of snipjax; leave it out"
        )
    result = None
    if (path / rundir.RESULT).exists():
        result = _read_json(path / rundir.RESULT)
    try:
        trained = [] if result is None else members(result)
    except ValueError as error:
        raise NotARunError(
            f"'{path / rundir.RESULT}' is not a result that a report can show "
            f"({error}); leave it out, or remove it and run again"
        ) from None
    return Run(
        path=path,
        name=printable(name or path.resolve().name),
        config=dict(configs.fields(configs.default())) | flat,
        result=result or {},
        members=trained,
        metrics=[*_read_metrics(path / rundir.METRICS), *_metrics_of_seeds(path)],
        signal=signals.read(path / signals.FILE),
    )


def members(result: Any) -> list[Member]:
    """Returns the networks of a ``result.json``: of one run, or of many at once.

    Args:
      result: its contents. Networks trained at once are under ``members``; what they
        have in common, e.g. ``dataset``, stands beside it.

    Raises:
      ValueError: naming the first field that is missing or off.

    Example:
      >>> common = {"dataset": "mnist", "model": "gru_s", "method": "snip",
      ...           "parameters": 100, "steps": 9, "epochs": 1.0}
      >>> many = [{"seed": seed, "sparsity": 0.9, "kept": 10, "test_error": 2.0 + seed}
      ...         for seed in (0, 1)]
      >>> [(m.seed, m.test_error) for m in members(common | {"members": many})]
      [(0, 2.0), (1, 3.0)]
    """
    if not isinstance(result, dict):
        raise ValueError("it is not a JSON object")
    many = result.get("members", [result])
    is_list = isinstance(many, list) and all(isinstance(one, dict) for one in many)
    if not (many and is_list):
        raise ValueError("field 'members' is not a list of objects")
    return [_member({**result, **one}) for one in many]


def _member(result: dict[str, Any]) -> Member:
    def text(name: str) -> str:
        if not isinstance(result.get(name), str):
            raise ValueError(f"field '{name}' is missing or no text")
        return printable(result[name])

    def number(name: str) -> float:
        if (value := finite(result.get(name))) is None:
            raise ValueError(f"field '{name}' is missing or no number")
        return value

    def error(name: str) -> float | None:
        if (value := finite(result.get(name))) is None:
            return None
        if not 0.0 <= value <= 100.0:
            raise ValueError(f"field '{name}' is {value:g}, outside [0, 100] percent")
        return value

    method = text("method")
    try:
        layers = [
            Layer(
                printable(str(layer["path"])),
                tuple(layer["shape"]),
                int(layer["kept"]),
                int(layer["total"]),
            )
            for layer in result.get("layers") or ()
        ]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError("field 'layers' is not a list of layers") from None
    for layer in layers:
        if not 0 <= layer.kept <= layer.total:
            raise ValueError(
                f"field 'layers' has '{layer.path}' with {layer.kept} of "
                f"{layer.total} connections kept"
            )
    sparsity = 0.0 if method == "none" else number("sparsity")
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"field 'sparsity' is {sparsity:g}, outside [0, 1)")
    return Member(
        dataset=text("dataset"),
        model=text("model"),
        method=method if sparsity else "none",
        sparsity=sparsity,
        seed=int(number("seed")),
        parameters=int(number("parameters")),
        kept=int(number("kept")),
        layers=tuple(layer for layer in layers if layer.total),
        test_error=error("test_error"),
        test_error_last=error("test_error_last"),
        steps=int(number("steps")),
        epochs=number("epochs"),
    )


def _fields(config: Any) -> dict[str, Any]:
    """A configuration's fields by dotted name; none if it is not like snipjax's."""
    try:
        flat = dict(configs.fields(config)) if isinstance(config, dict) else {}
    except RecursionError:
        return {}
    values = [
        item
        for value in flat.values()
        for item in (value if isinstance(value, list) else [value])
    ]
    return {} if any(isinstance(value, list | dict) for value in values) else flat


def _read_json(path: Path) -> Any:
    try:
        return rundir.read_json(path)
    except RecursionError:
        reason = "it is nested too deeply"
    except OSError as error:
        reason = error.strerror
    raise ValueError(f"'{path}' cannot be read ({reason}); leave '{path.parent}' out")


def metrics_of(run: Run, member: Member) -> list[dict[str, Any]]:
    """Returns a network's lines of its run's metrics, in the order of training.

    Without a seed of its own, a line is of every network of the run.
    """
    return [
        line
        for line in run.metrics
        if line.get("seed", member.seed) == member.seed
        and abs((finite(line.get("sparsity")) or member.sparsity) - member.sparsity)
        < 0.0005
    ]


def _metrics_of_seeds(path: Path) -> list[dict[str, Any]]:
    """Lines of all groups of seeds, which hold the seeds' own under ``members``."""
    return [
        {**row, "step": line["step"], "seed": seeds[0] + index}
        for seeds in rundir.groups(path)
        for line in _read_metrics(rundir.group_directory(path, seeds) / rundir.METRICS)
        if isinstance(line.get("members"), list)
        for index, row in enumerate(line["members"])
        if isinstance(row, dict)
    ]


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a line cut off by a crash costs itself
        if isinstance(row, dict) and finite(row.get("step")) is not None:
            lines.append(row)
    return lines
