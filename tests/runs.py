"""Small runs on the digits, and the files that they leave."""

import shutil
import struct
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorboardX.proto import event_pb2

from snipjax import assembly, experiment, training
from snipjax import config as configs
from snipjax.training import rundir

TIMINGS = ("seconds", "steps_per_second")
CHECKPOINTS = Path("checkpoints", "seeds-0-0")


def quick(**fields: Any) -> ConfigDict:
    """Returns forty steps on the digits, in two checkpoints.

    Args:
      **fields: values by the last part of a field's name.
    """
    config = configs.default()
    config.train.update(
        steps=40, steps_per_dispatch=2, eval_every=10, checkpoint_every=20
    )
    for name, value in fields.items():
        sections = (config, config.train, config.prune, config.optimizer)
        sections += (config.optimizer.sparse,)
        next(section for section in sections if name in section)[name] = value
    return config


class Finished(NamedTuple):
    """A finished run and its directory."""

    config: ConfigDict
    workdir: Path
    result: dict[str, Any]

    @property
    def network(self) -> dict[str, Any]:
        """The entry of the first network."""
        return self.result["networks"][0]

    @property
    def digests(self) -> list[str]:
        return [entry["params_sha256"] for entry in self.result["networks"]]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows without their times."""
        rows = rundir.read_metrics(self.workdir)
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]

    def arrays(self, name: str, seed: int | None = None) -> dict[str, np.ndarray]:
        """The arrays in a file of a network, by default of the first."""
        seed = self.config.seed if seed is None else seed
        return dict(np.load(self.workdir / f"seed-{seed}" / name))

    def mask(self, seed: int | None = None) -> dict[str, np.ndarray]:
        return self.arrays(rundir.MASK, seed)

    def params(self, seed: int | None = None) -> dict[str, np.ndarray]:
        return self.arrays(rundir.PARAMS, seed)

    def last_state(self) -> training.TrainState:
        """The state of the networks in the last checkpoint."""
        seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        place = assembly.assemble(self.config).placement(seeds)
        with (
            experiment.opened(self.config, self.workdir) as session,
            experiment.saved_work(place, session) as saved,
        ):
            assert saved.state is not None
            return saved.state

    def check_best(self, seed: int, batch_stats: chex.ArrayTree) -> None:
        """The saved parameters have the errors that the result reports."""
        setup = assembly.assemble(self.config)
        assert setup.arrays is not None
        (entry,) = (e for e in self.result["networks"] if e["seed"] == seed)
        for split, name in (("validation", "val_error"), ("test", "test_error")):
            metrics = training.evaluate(
                nested(self.params(seed)),
                batch_stats,
                getattr(setup.arrays, split),
                model=setup.task.model,
                preprocess=setup.task.preprocess,
            )
            assert entry[name] == pytest.approx(100 * float(metrics.error), abs=1e-3)


def finished_run(config: ConfigDict, workdir: Path) -> Finished:
    """Runs an experiment."""
    return Finished(config, workdir, experiment.run(config, workdir))


def interrupted(workdir: Path, copy: Path, step: int) -> Path:
    """A copy of a finished run as it was when it had written that checkpoint."""
    shutil.copytree(workdir, copy)
    for name in (rundir.RESULT, rundir.NETWORKS):
        (copy / name).unlink()
    for path in (copy / CHECKPOINTS).iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    return copy


def events_in(path: Path) -> list[event_pb2.Event]:
    """Reads TFRecords: length, its checksum, the bytes, their checksum."""
    data, events, position = path.read_bytes(), [], 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        start = position + 12
        events.append(event_pb2.Event.FromString(data[start : start + length]))
        position = start + length + 4
    return events


def read_events(directory: Path) -> dict[int, dict[str, float]]:
    """Scalars by step, as TensorBoard takes them from the files in their order."""
    scalars: dict[int, dict[str, float]] = {}
    for event in (e for path in sorted(directory.iterdir()) for e in events_in(path)):
        if event.HasField("session_log"):
            scalars = {s: v for s, v in scalars.items() if s < event.step}
        for value in event.summary.value:
            scalars.setdefault(event.step, {})[value.tag] = value.simple_value
    return scalars


def named(tree: chex.ArrayTree) -> dict[str, np.ndarray]:
    """Returns the leaves of nested dicts by their names."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def nested(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Returns the nested dicts whose leaves have these names."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, leaf in arrays.items():
        layer, kind = name.split("/")
        tree.setdefault(layer, {})[kind] = leaf
    return tree
