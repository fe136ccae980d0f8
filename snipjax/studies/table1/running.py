"""Runs the cells of table 1, and keeps the table of those that are finished."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from snipjax import experiment, methods
from snipjax.config import differences as all_differences
from snipjax.experiment import Parts, StopRequest
from snipjax.studies.table1 import config as configs
from snipjax.studies.table1 import files, left_out, output
from snipjax.studies.table1.aggregation import Row, rows
from snipjax.studies.table1.cell import Cell
from snipjax.training import console, rundir


class Results(NamedTuple):
    """What a run of the table came to."""

    rows: list[Row]
    failures: dict[str, str]  # by name of the cell, why it failed


def run(
    config: ConfigDict,
    workdir: Path | str,
    *,
    data_dir: str | None = None,
    command: str | None = None,
) -> Results:
    """Runs what is not finished of table 1, and writes table and pictures.

    An interrupted run starts again the cell it was at. The same directory takes more
    methods, networks, seeds and sparsities later on. A cell that fails is noted in
    the table, the others go on, and the same command tries it again.

    Args:
      config: like :func:`snipjax.studies.table1.default`'s.
      workdir: directory of the table: ``config.json``, ``table1.md``, ``table1.csv``,
        ``table1.html``, ``cells.csv``, pictures, and a directory for each cell.
      data_dir: TFDS data directory, where the data set is not the embedded one.
      command: the command line, to be kept with the results.

    Returns:
      The rows of the table, and which cells failed.

    Raises:
      ValueError: for a configuration that is off, a data set that cannot be had, or a
        directory that holds something else, such as a cell of other hyperparameters.
      KeyboardInterrupt: after an interrupt; the same call goes on.

    Example:
      >>> from snipjax.studies import table1
      >>> config = table1.default()
      >>> config.methods, config.quick = "snip,lwc", True
      >>> results = run(config, "runs/table1-quick")  # doctest: +SKIP
    """
    configs.validate(config)
    workdir = Path(workdir)
    cells = configs.cells(config)
    with (
        rundir.claim(
            workdir,
            config,
            differences=differences,
            describes_itself=lambda workdir: bool(files.finished(workdir)),
        ),
        experiment.stop_requests() as stop,
    ):
        check_settings(config, cells, workdir)
        if reasons := left_out.reasons(config, workdir):
            console.say(left_out.sentence(reasons))
        parts = functools.cache(functools.partial(parts_of, config, data_dir))
        if any(files.read(workdir / cell.name) is None for cell in cells):
            for network in dict.fromkeys(cell.network for cell in cells):
                # Does the network take the images?
                methods.abstract_params(parts(network))
        rundir.write_json(workdir / rundir.CONFIG, config.to_dict())
        try:
            _run_cells(config, cells, workdir, parts, stop, command)
        except KeyboardInterrupt:
            done = sum(files.read(workdir / cell.name) is not None for cell in cells)
            console.say(
                f"stopped; {done} of {len(cells)} cells are finished, and the same "
                "command goes on"
            )
            raise
        table = rows(config, workdir)
        output.write(config, table, workdir, command)
    output.show(table)
    failures = {
        cell.name: message
        for cell in cells
        if (message := files.read_failure(workdir / cell.name)) is not None
    }
    for name, message in failures.items():
        console.say(f"failed: {name}: {message}")
    if failures:
        console.say(
            f"{len(failures)} of {len(cells)} cells failed; the same command tries "
            "them again"
        )
    console.say(f"everything is in {workdir}")
    return Results(table, failures)


def differences(config: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """Returns a line per field that has to be the same for all cells, and is not.

    Those of networks and methods are looked at cell by cell, in
    :func:`check_settings`.
    """
    names = {"dataset"} | {
        name
        for name, value in config.items()
        if name not in configs.MAY_DIFFER and not isinstance(value, dict)
    }
    return all_differences(
        *({name: of[name] for name in names if name in of} for of in (config, written))
    )


def check_settings(config: ConfigDict, cells: Sequence[Cell], workdir: Path) -> None:
    """Raises a ``ValueError`` for a finished cell that was made with other settings."""
    for cell in cells:
        result = files.read(workdir / cell.name)
        if result is None:
            continue
        if differing := configs.differing_settings(config, cell, result["settings"]):
            raise ValueError(
                f"'{workdir / cell.name}' was made with {differing[0]}; choose another "
                "directory with --workdir, or remove that one to run it again"
            )


def outcome_of(
    config: ConfigDict, cell: Cell, parts: Parts, workdir: Path
) -> methods.Outcome:
    """Runs a cell's method, from the dense network of its seed if it needs one."""
    method = configs.function(cell.method)
    if not needs_dense(cell.method):
        return method(parts, cell.sparsity, **config[cell.method])
    dense = workdir / cell._replace(method="dense", sparsity=0.0).name
    if files.read(dense) is None:
        raise ValueError(f"there is no dense network to start from in '{dense}'")
    pretrained = files.read_outcome(dense, methods.abstract_params(parts))
    return method(parts, cell.sparsity, pretrained=pretrained, **config[cell.method])


def needs_dense(method: str) -> bool:
    """Whether a method starts from a trained network.

    Example:
      >>> needs_dense("obd"), needs_dense("snip")
      (True, False)
    """
    return configs.METHODS[method].pretraining == "yes"


def check_finite(outcome: methods.Outcome, cell: Cell) -> None:
    """Raises an error for a network that is lost, so that none starts from it."""
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(outcome.params)):
        names = " or ".join(f"config.{name}" for name in learning_rates(cell))
        raise FloatingPointError(
            f"parameters are not finite, for training diverged; lower {names}"
        )


def learning_rates(cell: Cell) -> list[str]:
    """Returns the fields of the learning rates that a cell's method trains with.

    Example:
      >>> learning_rates(Cell("lenet_5_caffe", "snip", 0.98, 0))
      ['lenet_5_caffe.snip_learning_rate']
    """
    own = [
        f"{cell.method}.{name}"
        for name in configs.default()[cell.method]
        if "learning_rate" in name
    ]
    prefix = "snip_" if cell.method == "snip" else ""
    return own or [f"{cell.network}.{prefix}learning_rate"]


def parts_of(config: ConfigDict, data_dir: str | None, network: str) -> Parts:
    """Returns the parts of an experiment with a network, of the first seed."""
    dense = Cell(network, "dense", 0.0, config.seed)
    return experiment.assemble(configs.experiment_config(config, dense), data_dir)


def _run_cells(
    config: ConfigDict,
    cells: Sequence[Cell],
    workdir: Path,
    assembled: Callable[[str], Parts],
    stop: StopRequest,
    command: str | None,
) -> None:
    started = time.monotonic()
    for number, cell in enumerate(cells):
        directory = workdir / cell.name
        if files.read(directory) is not None:
            continue
        so_far = time.monotonic() - started
        console.say(
            f"cell {number + 1} of {len(cells)}: {described(cell)} "
            f"({progress(so_far, to_go(cells[number:], cells, workdir))})"
        )
        of_cell = configs.experiment_config(config, cell)
        parts = assembled(cell.network)._replace(
            config=of_cell,
            keys=experiment.keys_of(cell.seed),
            optimizer=experiment.optimizer_of(of_cell),
        )
        began = time.monotonic()
        try:
            outcome = outcome_of(config, cell, parts, workdir)
            check_finite(outcome, cell)
        except Exception as error:  # of one method, which costs itself
            if stop.is_made:
                raise KeyboardInterrupt from None
            files.write_failure(directory, error)
            console.say(f"failed: {files.read_failure(directory)}")
        else:
            wall_seconds = round(time.monotonic() - began, 2)
            files.write(
                directory,
                cell,
                parts,
                outcome,
                configs.settings(config, cell),
                wall_seconds=wall_seconds,
                command=command,
            )
            result = files.read(directory)
            console.say(
                f"test error {result['test_error']:.2f}%, kept {result['kept']:,} of "
                f"{result['prunable']:,} connections, {result['prunes']:,} prunings, "
                f"{result['steps']:,} steps, {wall_seconds:,.0f} s"
            )
        output.write(config, rows(config, workdir), workdir, command)
        if stop.is_made:
            raise KeyboardInterrupt


def described(cell: Cell) -> str:
    """Returns a cell in words.

    Example:
      >>> described(Cell("lenet_5_caffe", "obd", 0.92, 0))
      'lenet_5_caffe obd 92% seed 0'
    """
    sparsity = "" if cell.method == "dense" else f" {100 * cell.sparsity:g}%"
    return f"{cell.network} {cell.method}{sparsity} seed {cell.seed}"


def to_go(
    waiting: Sequence[Cell], cells: Sequence[Cell], workdir: Path
) -> float | None:
    """Returns the seconds that cells will about take; None before any is finished.

    A cell takes as long as the others of its network, and where there is none yet, as
    those of any: the mean of what is finished.
    """
    walls: dict[str, list[float]] = {}
    for cell in cells:
        if (result := files.read(workdir / cell.name)) is not None:
            walls.setdefault(cell.network, []).append(result["wall_seconds"])
    if not walls:
        return None
    every = [wall for of_network in walls.values() for wall in of_network]
    return sum(
        statistics.fmean(walls.get(cell.network, every))
        for cell in waiting
        if files.read(workdir / cell.name) is None
    )


def progress(so_far: float, left: float | None) -> str:
    """Returns how long a run took and will take, in words.

    Example:
      >>> progress(720.0, 3000.0)
      '12 min so far, about 50 min to go'
    """
    text = f"{_duration(so_far)} so far"
    return text if left is None else f"{text}, about {_duration(left)} to go"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
