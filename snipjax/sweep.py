"""A run for each combination of several settings."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from snipjax import assembly, build, experiment, initializers, scored_examples
from snipjax import config as schema
from snipjax.training import console, rundir

__all__ = ["run_all"]


def run_all(
    config: ConfigDict,
    workdir: Path | str,
    *,
    data_dir: str | None = None,
    command: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Runs an experiment for each combination of ``config.vary``.

    An interrupted sweep goes on where it was, and runs nothing again that is finished.

    Args:
      config: a configuration with entries ``<field>=<value>,<value>,...`` in ``vary``.
      workdir: the directory of the sweep; each combination has a directory in it.
      data_dir: the TFDS data directory.
      command: the command line, to keep with the results.

    Returns:
      The contents of each run's ``result.json`` by the name of its combination.

    Raises:
      ValueError: if the configuration, the data or the directory is invalid.
      OSError: if a file cannot be written, or another process has died.
      KeyboardInterrupt: after an interrupt, once a checkpoint is written.

    Example:
      Runs two sparsities, in some seconds:

      .. code-block:: python

        from snipjax import config, sweep

        settings = config.default()
        settings.train.steps = 200
        settings.vary = ("prune.sparsity=0.9,0.98",)
        results = sweep.run_all(settings, "runs/sparsities")
        print(results["prune.sparsity=0.98"]["networks"][0]["test_error"])
    """
    schema.validate(config)
    if not config.vary:
        raise ValueError("config.vary is empty; use snipjax.experiment.run")
    cells = schema.cells(config)
    check(cells.values(), data_dir)
    workdir, results = Path(workdir), {}
    differences = functools.partial(schema.differences, config.to_dict())
    with rundir.claim(workdir, differences):
        rundir.write_json(workdir / rundir.CONFIG, config.to_dict())
        for number, (name, cell) in enumerate(cells.items(), 1):
            console.say(f"run {number} of {len(cells)}: {name}")
            directory = workdir / directory_name(name)
            results[name] = experiment.run(
                cell, directory, data_dir=data_dir, command=command
            )
            if cell.signal_seeds and not (directory / rundir.SIGNAL).exists():
                signal = measured_signal(assembly.assemble(cell, data_dir))
                print(signal)
                rundir.write_json(
                    directory / rundir.SIGNAL, initializers.to_json(signal)
                )
    return results


def check(cells: Iterable[ConfigDict], data_dir: str | None) -> None:
    """Raises a ``ValueError`` for anything that would stop one of the runs early."""
    datasets: dict[str, Any] = {}
    for cell in cells:
        build.model(cell, 1)
        if (name := cell.dataset.name) not in datasets:
            datasets[name] = build.dataset(cell, data_dir)
        scored_examples.check_number(cell, datasets[name])


def directory_name(name: str) -> str:
    """Returns the name of a combination's directory.

    >>> directory_name("prune.sparsity=0.9 init.scored&init.trained=he")
    'prune.sparsity=0.9_init.scored+init.trained=he'
    """
    return name.replace(" ", "_").replace("&", "+").replace("/", "-")


def measured_signal(setup: assembly.Setup) -> initializers.Signal:
    """Returns the signal of the initialization that saliency is computed on."""
    config = setup.config
    seeds = range(config.seed, config.seed + config.signal_seeds)
    batch = assembly.saliency_batch(setup, config.seed)
    if config.prune.num_batches > 1:
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    return initializers.signal(
        build.with_initializer(setup.task.model, config.init.scored),
        jnp.stack([assembly.make_keys(seed).scored_init for seed in seeds]),
        batch,
        config.prune.sparsity,
        prunable=build.prunable(config),
    )
