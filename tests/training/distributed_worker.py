"""A process of test_distributed.py: ``<port> <processes> <id> <directory>``.

Trains a run, makes the mistakes of processes, and prints the results.
"""

import contextlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from snipjax import config as configs
from snipjax import experiment
from snipjax.training import checkpoints, distributed


def config_of(processes: int) -> configs.ConfigDict:
    config = configs.default()
    config.mesh = f"data={processes}"
    config.train.update(steps=2, eval_every=2, checkpoint_every=2, steps_per_dispatch=1)
    return config


def message(function: Callable[..., Any], *arguments: Any) -> str:
    """The error of a call, or that there was none."""
    try:
        return f"returned {function(*arguments)}"
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def with_other_configs(processes: int, process_id: int, directory: Path) -> None:
    config = config_of(processes)
    config.optimizer.learning_rate = [0.1, 0.2][process_id]
    experiment.run(config, directory / "other_configs")


def with_other_data(
    processes: int, process_id: int, directory: Path, is_missing: bool = False
) -> None:
    """Each host has its own photos, process 1 one more than process 0, or none."""
    host = directory / f"host_{process_id}"
    for split in ("train", "validation", "test"):
        for name in ["1", "2", "3"][: 2 + process_id]:
            file = host / "photos" / split / "cat" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file)
    if process_id and is_missing:
        shutil.rmtree(host)
        host.mkdir()
    config = config_of(processes)
    config.dataset.update(name="folder:photos", stream=True, image_size=8)
    config.train.batch_size = config.prune.batch_size = 2
    with contextlib.chdir(host):
        experiment.run(config, directory / "other_data")


def part_of_a_step(seconds: float, steps: list[str], name: str) -> None:
    meet = distributed.meeting(name)
    for step in steps:
        time.sleep(seconds)
        meet(key=step, timeout_ms=60_000)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def on_a_full_disk(limited: int, process_id: int, directory: Path) -> dict[str, Any]:
    """What the processes are told, after how long, and what is restored then."""
    devices = np.array(jax.devices())
    placed = NamedSharding(Mesh(devices, "data"), PartitionSpec("data"))
    size = len(devices) * 10_000

    def state(value: int) -> dict[str, jax.Array]:
        key = jax.random.key(value)  # which cannot be compressed
        draw = jax.jit(lambda: jax.random.bits(key, (size,)), out_shardings=placed)
        return {"w": draw()}

    def saved() -> None:
        with checkpoints.open_directory(directory) as manager:
            checkpoints.save(manager, 1, state(1), {})
            checkpoints.wait(manager)
            with full_disk() if process_id == limited else contextlib.nullcontext():
                checkpoints.save(manager, 2, state(2), {})
                checkpoints.save(manager, 3, state(3), {})

    said = message(saved)
    with checkpoints.open_directory(directory) as manager:
        restored, _ = checkpoints.restore_latest(manager, state(0))
    is_intact = bool(jnp.array_equal(restored["w"], state(1)["w"]))
    return {"said": said, "is_intact": is_intact}


def main(port: str, *arguments: str) -> None:
    processes, process_id = map(int, arguments[:2])
    directory = Path(arguments[2])
    logging.set_verbosity(logging.FATAL)  # as train.py does: what is wrong is raised
    distributed.initialize(f"localhost:{port}", processes, process_id)
    distributed._AGREEING_MS = 3_000  # for each failure below takes as long
    here = processes, process_id, directory
    # In process 1, a step takes time, or is left out.
    slow, failed = 0.5 * process_id, ["written", "closed"][process_id:]
    printed = {
        "trained": experiment.run(config_of(processes), directory / "run"),
        "other_configs": message(with_other_configs, *here),
        "other_data": message(with_other_data, *here),
        "missing_data": message(with_other_data, *here, True),
        "slow": message(part_of_a_step, slow, ["written", "closed"], "slow"),
        "failed": message(part_of_a_step, slow, failed, "failed"),
        "full_disks": [
            on_a_full_disk(limited, process_id, directory / f"full_{limited}")
            for limited in range(processes)
        ],
    }
    print(f"\n{json.dumps(printed)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
