"""Steps per second inside an experiment, against the bare jitted step in a loop."""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import networks, timing
from snipjax import config as configs
from snipjax import experiment
from snipjax.training import rundir

STEPS, REPEATS = 5400, 5


def seconds_inside(dataset: str, data_dir: str | None) -> float:
    """Returns seconds per step between two evaluations of a run, after a first one."""
    config = configs.default()
    config.dataset.name = dataset
    config.train.steps = 2 * STEPS
    config.train.eval_every = STEPS
    config.train.steps_per_dispatch = 540
    config.train.checkpoint_every = STEPS
    with tempfile.TemporaryDirectory() as directory:
        workdir = Path(directory) / "run"
        experiment.run(config, workdir, data_dir=data_dir)
        _, row = rundir.read_metrics(workdir)
    return 1 / row["steps_per_second"]


def seconds_bare(step: Callable[[], Any]) -> float:
    """Returns seconds per step of the jitted masked step, called in a loop."""
    jax.block_until_ready(step())
    start = time.perf_counter()
    jax.block_until_ready(timing.repeated(step, STEPS)())
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="mnist", help="as config.dataset.name")
    parser.add_argument("--data_dir", help="as that of train.py")
    arguments = parser.parse_args()
    step = networks.training_step("lenet_300_100", networks.five_percent)
    pairs = [
        (
            seconds_inside(arguments.dataset, arguments.data_dir),
            seconds_bare(step),
        )
        for _ in range(REPEATS)
    ]
    row = timing.row(
        "seconds per step inside train.py, lenet_300_100",
        "the bare jitted step in a loop",
        *zip(*pairs),
        target=1 / 0.9,
    )
    timing.report("loop", [row])


if __name__ == "__main__":
    main()
