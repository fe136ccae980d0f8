"""Runs the cells of table 1, and keeps the table of the finished ones."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from snipjax import config as configs
from snipjax.results import reading, words
from snipjax.studies.table1 import page
from snipjax.studies.table1.cells import (
    FAILURE,
    RIVALS,
    Cell,
    cells,
    differences,
    experiment_config,
    failure,
    finished_cells,
    is_finished,
    validate,
)

_SHOWN = 5  # cells of a reason


class Results(NamedTuple):
    """The table of a run of the study, and its failures by the name of the cell."""

    table: pd.DataFrame
    failures: dict[str, str]


def make(
    config: ConfigDict,
    workdir: Path | str,
    *,
    data_dir: str | None = None,
    command: str | None = None,
) -> Results:
    """Runs the unfinished cells of table 1, and writes table and pictures.

    The same directory takes more methods, networks, seeds and sparsities later on. A
    cell that fails is noted in the table, the others go on, and the same command tries
    it again. Cells of other settings that are not asked for are left out.

    Args:
      config: a configuration like the default.
      workdir: the directory of the table: ``config.json``, ``table1.md``,
        ``table1.csv``, ``table1.html``, ``cells.csv``, pictures, and a run directory
        for each cell.
      data_dir: the TFDS data directory.
      command: the command line, to keep with the results.

    Returns:
      The rows of the table, and which cells failed.

    Raises:
      ValueError: for a wrong configuration, data that cannot be had, a damaged cell,
        or a directory that holds something else, such as a cell of other settings.
      KeyboardInterrupt: after an interrupt; the same call goes on.

    Example:
      >>> from snipjax.studies import table1
      >>> config = table1.default()
      >>> config.methods, config.quick = "snip,lwc", True
      >>> results = table1.make(config, "runs/table1-quick")  # doctest: +SKIP
    """
    validate(config)
    from snipjax.training import console, rundir

    workdir, asked = Path(workdir), cells(config)
    with rundir.claim(
        workdir,
        _differences_of_studies,
        describes_itself=lambda workdir: bool(finished_cells(workdir)),
    ):
        check_settings(config, asked, workdir)
        if reasons := left_out(config, workdir):
            console.say(reasons)
        if not all(is_finished(workdir / cell.name) for cell in asked):
            _check_networks(config, asked, workdir, data_dir)
        rundir.write_json(workdir / rundir.CONFIG, config.to_dict())
        try:
            _run_cells(config, asked, workdir, data_dir, command)
        except KeyboardInterrupt:
            done = sum(is_finished(workdir / cell.name) for cell in asked)
            console.say(
                f"stopped; {done} of {len(asked)} cells are finished, and the same "
                "command goes on"
            )
            raise
        table = page.write(config, workdir, command)
    page.show(table)
    failures = {
        cell.name: message
        for cell in asked
        if (message := failure(workdir / cell.name)) is not None
    }
    for name, message in failures.items():
        console.say(f"failed: {name}: {message}")
    if failures:
        console.say(
            f"{len(failures)} of {len(asked)} cells failed; the same command tries "
            "them again"
        )
    console.say(f"everything is in {workdir}")
    return Results(table, failures)


def check_settings(config: ConfigDict, asked: Sequence[Cell], workdir: Path) -> None:
    """Raises a ``ValueError`` for a cell in a directory of other settings."""
    for cell in asked:
        directory = workdir / cell.name
        if not (directory / reading.CONFIG).exists():
            continue
        if differing := differences(config, cell, workdir):
            raise ValueError(
                f"'{directory}' was made with other settings ({'; '.join(differing)}); "
                "choose another directory with --workdir, or remove that one to run it "
                "again"
            )


def left_out(config: ConfigDict, workdir: Path) -> str:
    """Returns a line that names the finished cells of other settings, and why."""
    reasons: dict[str, list[str]] = {}
    for cell in finished_cells(workdir):
        if differing := differences(config, cell, workdir):
            reasons.setdefault("; ".join(differing), []).append(cell.name)
    parts = []
    for reason, names in reasons.items():
        more = len(names) - _SHOWN
        shown = [*names[:_SHOWN], *([f"{more} more"] if more > 0 else [])]
        parts.append(f"{words.listed(shown)}, made with other settings ({reason})")
    return f"left out of the table: {'; '.join(parts)}" if parts else ""


def time_left(
    waiting: Sequence[Cell], cells: Sequence[Cell], workdir: Path
) -> float | None:
    """Returns the seconds that cells will take, None before any is finished.

    A cell takes as long as the mean of the finished ones of its network, and where
    there is none yet, of all.
    """
    finished = [cell for cell in cells if is_finished(workdir / cell.name)]
    walls: dict[str, list[float]] = {}
    for cell in finished:
        result = reading.read_run(workdir / cell.name).result or {}
        walls.setdefault(cell.network, []).append(result["wall_seconds"])
    if not finished:
        return None
    overall = statistics.mean(seconds for each in walls.values() for seconds in each)
    known = {network: statistics.mean(each) for network, each in walls.items()}
    return sum(
        known.get(cell.network, overall) for cell in waiting if cell not in finished
    )


def _run_cells(
    config: ConfigDict,
    asked: Sequence[Cell],
    workdir: Path,
    data_dir: str | None,
    command: str | None,
) -> None:
    from snipjax import experiment
    from snipjax.training import console, rundir

    started = time.monotonic()
    for number, cell in enumerate(asked):
        directory = workdir / cell.name
        if is_finished(directory):
            continue
        left = time_left(asked[number:], asked, workdir)
        console.say(
            f"cell {number + 1} of {len(asked)}: {cell.name} "
            f"({_duration(time.monotonic() - started)} so far"
            + ("" if left is None else f", about {_duration(left)} to go")
            + ")"
        )
        (directory / FAILURE).unlink(missing_ok=True)
        try:
            if cell.method in RIVALS and not is_finished(workdir / cell.dense.name):
                raise ValueError(
                    "there is no dense network to start from in "
                    f"'{workdir / cell.dense.name}'"
                )
            experiment_of = experiment_config(config, cell, workdir)
            options = {"data_dir": data_dir, "command": command}
            experiment.run(experiment_of, directory, **options)
            check_finite(directory, cell)
        except Exception as error:  # of one method, which costs itself
            lines = " ".join(str(error).split())
            directory.mkdir(exist_ok=True)
            message = f"{type(error).__name__}: {lines[:500]}"
            rundir.write_json(directory / FAILURE, {"message": message})
            console.say(f"failed: {message}")
        page.write(config, workdir, command)


def check_finite(directory: Path, cell: Cell) -> None:
    """Raises an error for a network that is lost, so that none starts from it."""
    with np.load(directory / f"seed-{cell.seed}" / "params.npz") as arrays:
        if all(np.isfinite(arrays[name]).all() for name in arrays):
            return
    own = [name for name in configs.default().get(cell.method, {}) if "rate" in name]
    rate = "snip_learning_rate" if cell.method == "snip" else "learning_rate"
    fields = [f"{cell.method}.{name}" for name in own] or [f"{cell.network}.{rate}"]
    names = " or ".join(f"config.{name}" for name in fields)
    raise FloatingPointError(
        f"parameters are not finite, for training diverged; lower {names}, and remove "
        f"'{directory}'"
    )


def _differences_of_studies(written: Mapping[str, Any]) -> list[str]:
    # Each cell says how it was made.
    is_table = written.get("study") == "table1"
    return [] if is_table else ["study: table1 here, absent there"]


def _check_networks(
    config: ConfigDict, asked: Sequence[Cell], workdir: Path, data_dir: str | None
) -> None:
    """Raises a ``ValueError`` for a network that does not take the images."""
    from snipjax import assembly

    for cell in {cell.network: cell.dense for cell in asked}.values():
        setup = assembly.assemble(experiment_config(config, cell, workdir), data_dir)
        assembly.abstract_state(setup)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
