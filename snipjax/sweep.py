"""A run for each combination of settings: sweeps and studies.

``config.vary`` names the fields and their values; each combination is a run of its
own in a directory of its own (of many seeds, where the configuration has them), so
that a grid interrupted at any moment goes on where it was.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from snipjax import config as configs
from snipjax import experiment, initializers, models
from snipjax.data import datasets
from snipjax.initializers import signals
from snipjax.results import plots
from snipjax.training import console, rundir, seeds

TABLE = "sweep.json"


class Cell(NamedTuple):
    """What a combination of settings came to."""

    name: str
    settings: dict[str, Any]
    density: float
    kept: int
    seeds: int
    test_error: float | None  # percent; the mean over seeds, of the checkpoint chosen
    test_error_std: float | None
    test_error_last: float | None
    train_error_last: float | None


def run(
    config: ConfigDict,
    workdir: Path | str,
    *,
    data_dir: str | None = None,
    command: str | None = None,
) -> list[Cell]:
    """Runs every combination of ``config.vary``, and compares them.

    Args:
      config: like :func:`snipjax.config.default`'s, with ``vary``.
      workdir: directory of the grid: ``config.json``, ``sweep.json`` and ``sweep.md``
        with the table, pictures, and a directory for each combination.
      data_dir: TFDS data directory, where the data set is not the embedded one.
      command: the command line, to be kept with the results.

    Returns:
      The table, a row for each combination in the order of the values.

    Raises:
      ValueError: as :func:`snipjax.experiment.run` does.
      KeyboardInterrupt: after an interrupt; the same call goes on.

    Example:
      >>> config = snipjax.config.default()
      >>> config.vary = ("prune.sparsity=0.9,0.95,0.98",)
      >>> table = run(config, "runs/sweep")  # doctest: +SKIP
    """
    configs.validate(config)
    if not config.vary:
        raise ValueError(
            "config.vary is empty; use snipjax.experiment.run, or snipjax.training.seeds.run"
        )
    named = configs.cells(config)
    check(list(named.values()), data_dir)
    workdir = Path(workdir)
    with rundir.claim(workdir, config):
        rundir.write_json(workdir / rundir.CONFIG, config.to_dict())
        table = []
        for number, (name, cell) in enumerate(named.items(), 1):
            console.say(f"run {number} of {len(named)}: {name}")
            directory = workdir / directory_name(name)
            run_cell(cell, directory, data_dir=data_dir, command=command)
            table.append(read_cell(name, directory))
        write(workdir, table)
    show(table)
    console.say(f"everything is in {workdir}")
    return table


def check(cells: Sequence[ConfigDict], data_dir: str | None) -> None:
    """Raises a ``ValueError`` for what would stop one of the runs at its start."""
    labels: dict[str, np.ndarray] = {}
    for cell in cells:
        models.create(cell.model.name, 1)
        name = cell.dataset.name
        if name not in labels:
            labels[name] = datasets.load(name, data_dir).train.labels
        experiment.check_batch_sizes(cell, labels[name])


def run_cell(config: ConfigDict, workdir: Path, **kwargs: Any) -> None:
    """Runs one configuration, of one seed or of many, and measures its signal."""
    one_or_many = seeds.run if config.seeds > 1 else experiment.run
    one_or_many(config, workdir, **kwargs)
    if config.signal_seeds and not (workdir / signals.FILE).exists():
        parts = experiment.assemble(config, kwargs.get("data_dir"))
        signal = measured_signal(parts)
        print(signal)
        rundir.write_json(workdir / signals.FILE, signals.as_json(signal))


def measured_signal(parts: experiment.Parts) -> initializers.Signal:
    """Returns the signal of the initialization that saliency is computed on."""
    config = parts.config
    kernel_init = initializers.by_name(config.init.scored)
    keys = [
        experiment.keys_of(config.seed + offset).scored_init
        for offset in range(config.signal_seeds)
    ]
    batch = experiment.saliency_batch(parts)
    if config.prune.num_batches > 1:
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    return initializers.signal(
        parts.model.clone(kernel_init=kernel_init),
        jax.numpy.stack(keys),
        batch,
        config.prune.sparsity,
        prunable=parts.prunable,
    )


def directory_name(name: str) -> str:
    """Returns the name of a combination's directory.

    Example:
      >>> directory_name("prune.sparsity=0.9 init.scored&init.trained=he")
      'prune.sparsity=0.9_init.scored+init.trained=he'
    """
    return name.replace(" ", "_").replace("&", "+").replace("/", "-")


def read_cell(name: str, workdir: Path) -> Cell:
    """Returns what the run in a directory came to."""
    result = rundir.read_json(workdir / rundir.RESULT)
    train_errors = [
        member["train_error"]
        for path in (workdir, *rundir.group_directories(workdir))
        for row in rundir.read_metrics(path)[-1:]
        for member in row.get("members", [row])
    ]
    if "members" in result:
        of = result["summary"][0]
    else:
        of = {**result, "seeds": 1, "test_error_std": None}
    settings = dict(part.split("=", 1) for part in name.split(" ")) if name else {}
    return Cell(
        name=name,
        settings=settings,
        density=of["kept"] / result["prunable"],
        kept=of["kept"],
        seeds=of["seeds"],
        test_error=of["test_error"],
        test_error_std=of["test_error_std"],
        test_error_last=of["test_error_last"],
        train_error_last=float(np.mean(train_errors)) if train_errors else None,
    )


def write(workdir: Path, table: Sequence[Cell]) -> None:
    """Writes the table as JSON and Markdown, and the pictures that fit it."""
    rundir.write_json(workdir / TABLE, [cell._asdict() for cell in table])
    head, *rows = cells_of(table)
    lines = [head, ["---"] * len(head), *rows]
    rundir.write_text(
        workdir / "sweep.md",
        "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines),
    )
    directories = {label(cell): workdir / directory_name(cell.name) for cell in table}
    draw = experiment.draw
    errors, curves = _by_density(table), _curves(directories)
    if errors and len({cell.density for cell in table}) > 1:
        draw(plots.errors_by_density, errors, workdir / "errors.png")
    if any(curves.values()):
        draw(plots.compared_curves, curves, workdir / "curves.png")
    counts = {name: first_layer(path) for name, path in directories.items()}
    if all(count is not None for count in counts.values()):
        draw(plots.first_layers, counts, workdir / "first_layers.png")
    measured = {
        name: signals.read(path / signals.FILE) for name, path in directories.items()
    }
    measured = {name: signal for name, signal in measured.items() if signal}
    if measured:
        draw(plots.signals, measured, workdir / "signals.png")


def label(cell: Cell) -> str:
    """Returns a name for pictures: values, and of numbers what they are numbers of.

    Example:
      >>> settings = {"prune.sparsity": "0.9", "init.scored&init.trained": "he"}
      >>> label(Cell("", settings, 0.1, 10, 1, None, None, None, None))
      'sparsity 0.9, he'
    """
    return ", ".join(
        value if value.isidentifier() else f"{field.split('.')[-1]} {value}"
        for field, value in cell.settings.items()
    ).replace("_", " ")


def first_layer(workdir: Path) -> np.ndarray | None:
    """Returns how many connections each input pixel keeps, the mean over seeds."""
    path = workdir / "first_layer.npy"  # of one seed
    return np.load(path) if path.exists() else seeds.first_layer(workdir)


def show(table: Sequence[Cell]) -> None:
    """Prints the table."""
    head, *rows = cells_of(table)
    console.show_table("Runs", head, rows)


def cells_of(table: Sequence[Cell]) -> list[list[str]]:
    """Returns the table as text, the first row its head."""

    fields = list(table[0].settings)
    head = [
        *fields,
        "density (%)",
        "kept",
        "seeds",
        "test error (%)",
        "standard deviation",
        "at the last step (%)",
        "training error (%)",
    ]
    rows = [
        [
            *(cell.settings[field] for field in fields),
            f"{100 * cell.density:.2f}",
            f"{cell.kept:,}",
            str(cell.seeds),
            console.percent(cell.test_error),
            console.percent(cell.test_error_std),
            console.percent(cell.test_error_last),
            console.percent(cell.train_error_last),
        ]
        for cell in table
    ]
    return [head, *rows]


def _by_density(
    table: Sequence[Cell],
) -> dict[str, list[tuple[float, float, float]]]:
    """Density, error and deviation (0 for one seed) by what else varies."""
    named: dict[str, list[tuple[float, float, float]]] = {}
    for cell in table:
        settings = {k: v for k, v in cell.settings.items() if k != "prune.sparsity"}
        name = label(cell._replace(settings=settings))
        if cell.test_error is not None:
            point = (cell.density, cell.test_error, cell.test_error_std or 0.0)
            named.setdefault(name, []).append(point)
    return named


def _curves(directories: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Metrics of each run; of many seeds, the means."""
    return {
        name: rundir.read_metrics(path) or seeds.mean_metrics(path)
        for name, path in directories.items()
    }
