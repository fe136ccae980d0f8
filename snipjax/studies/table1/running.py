"""Runs the cells of table 1, and keeps the table of the finished ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from snipjax import assembly, experiment
from snipjax import config as configs
from snipjax.io import arrays
from snipjax.results import reading
from snipjax.studies.table1 import page
from snipjax.studies.table1.cells import (
    FAILURE,
    RIVALS,
    Cell,
    cells,
    differences,
    experiment_config,
    failures,
    finished,
    is_finished,
    validate,
)
from snipjax.training import console, rundir


def make(
    config: ConfigDict,
    workdir: Path | str,
    *,
    data_dir: str | None = None,
    command: str | None = None,
) -> dict[str, str]:
    """Runs the unfinished cells of table 1, and writes table and pictures.

    The same directory takes more methods, networks, seeds and sparsities later on. A
    cell that fails is noted in the table, the others go on, and the same command tries
    it again. Finished cells of other settings that are not asked for are left out, and
    so are copies of cells under other names.

    Args:
      config: a configuration like the default.
      workdir: the directory of the table; each cell has a directory in it.
      data_dir: the TFDS data directory.
      command: the command line, to keep with the table.

    Returns:
      The reason of each failure by the name of the cell.

    Raises:
      ValueError: for a wrong configuration, data that cannot be had, a damaged cell,
        or a directory that holds something else, such as a cell of other settings.
      KeyboardInterrupt: after an interrupt; the same call goes on.

    Example:
      Measures two methods with a fraction of the steps, in some minutes:

      .. code-block:: python

        from snipjax.studies import table1

        config = table1.default()
        config.methods, config.quick = "snip,lwc", True
        failures = table1.make(config, "runs/table1-quick")
    """
    validate(config)
    workdir, asked = Path(workdir), cells(config)
    with rundir.claim(workdir, _differences_of_studies):
        _check_settings(config, workdir, [cell.name for cell in asked])
        if not all(is_finished(workdir / cell.name) for cell in asked):
            for cell in {cell.network: cell for cell in asked}.values():
                first = experiment_config(config, cell, workdir)
                assembly.abstract_state(assembly.assemble(first, data_dir))
        rundir.write_json(workdir / rundir.CONFIG, config.to_dict())
        for number, cell in enumerate(asked, 1):
            if not is_finished(workdir / cell.name):
                console.say(f"cell {number} of {len(asked)}: {cell.name}")
                _run(config, cell, workdir, data_dir=data_dir, command=command)
                page.make(config, workdir, command)
        table = page.make(config, workdir, command)
    page.show(table)
    failed = failures(workdir, config)
    for name, message in failed.items():
        console.say(f"failed: {name}: {message}")
    if failed:
        console.say(f"{len(failed)} cells failed; the same command tries them again")
    console.say(f"everything is in {workdir}")
    return failed


def _run(config: ConfigDict, cell: Cell, workdir: Path, **options: Any) -> None:
    """Runs the experiment of a cell, and writes its failure if it fails."""
    directory = workdir / cell.name
    (directory / FAILURE).unlink(missing_ok=True)
    try:
        if cell.method in RIVALS and not is_finished(workdir / cell.dense.name):
            raise ValueError(
                "there is no dense network to start from in "
                f"'{workdir / cell.dense.name}'"
            )
        experiment.run(experiment_config(config, cell, workdir), directory, **options)
        _check_finite(cell, directory)
    except Exception as error:  # of one method
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        directory.mkdir(exist_ok=True)
        rundir.write_json(directory / FAILURE, {"message": message})
        console.say(f"failed: {message}")


def _check_settings(config: ConfigDict, workdir: Path, asked: list[str]) -> None:
    """Raises a ``ValueError`` for an asked cell that was made with other settings."""
    begun = [
        reading.read_run(path)
        for path in (workdir / name for name in asked)
        if (path / rundir.CONFIG).exists() and not is_finished(path)
    ]
    for run in [*begun, *finished(workdir)]:
        if not (lines := differences(config, run, workdir)):
            continue
        if run.path.name in asked:
            raise ValueError(
                f"'{run.path}' was made with other settings ({'; '.join(lines)}); "
                "choose another directory with --workdir, or remove that one to run it "
                "again"
            )
        why = f"made with other settings ({'; '.join(lines)})"
        console.say(f"left out of the table: {run.path.name}, {why}")


def _check_finite(cell: Cell, directory: Path) -> None:
    """Raises an error for a network that diverged, so that none starts from it."""
    params = arrays.read_named(directory / f"seed-{cell.seed}" / rundir.PARAMS)
    if all(np.isfinite(array).all() for array in params.values()):
        return
    own = [name for name in configs.default().get(cell.method, {}) if "rate" in name]
    rate = "snip_learning_rate" if cell.method == "snip" else "learning_rate"
    fields = [f"{cell.method}.{name}" for name in own] or [f"{cell.network}.{rate}"]
    raise FloatingPointError(
        "parameters are not finite, for training diverged; lower "
        f"{' or '.join(f'config.{name}' for name in fields)}, and remove '{directory}'"
    )


def _differences_of_studies(written: Mapping[str, Any]) -> list[str]:
    # Each cell says how it was made.
    is_table = written.get("study") == "table1"
    return [] if is_table else ["study: table1 here, absent there"]
