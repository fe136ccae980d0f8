"""Runs end as they did before: masks bit for bit, metrics to rounding.

The goldens are the masks and metrics of an earlier version for fixed seeds. The
parameters are compared bit for bit with the JAX and processor they were made on.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import build, experiment, masks
from snipjax import config as configs
from snipjax.training import rundir
from tests import devices

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "goldens"
GOLDENS = json.loads((FOLDER / "goldens.json").read_text())
MASKS = np.load(FOLDER / "masks.npz")

pytestmark = pytest.mark.usefixtures("compile_once")


def golden_config(kind: str) -> configs.ConfigDict:
    config = configs.default()
    config.train.update(steps=100, eval_every=50)
    if kind == "seeds":
        config.seeds = 4
    if kind == "mesh":
        config.mesh = "data=4,model=2"
        config.prune.batch_size = config.train.batch_size = 104
        config.train.update(
            steps=20, eval_every=10, checkpoint_every=200, steps_per_dispatch=20
        )
    return config


def is_same_machine() -> bool:
    """Whether rounding is the same as where the goldens were made."""
    path = Path("/proc/cpuinfo")
    processors = path.read_text() if path.exists() else ""
    return jax.__version__ == GOLDENS["jax"] and GOLDENS["cpu"] in processors


def check(kind: str, workdir: Path) -> None:
    golden = GOLDENS["runs"][kind]
    result = json.loads((workdir / rundir.RESULT).read_text())
    for network in result["networks"]:
        seed = network["seed"]
        with np.load(workdir / f"seed-{seed}" / rundir.MASK) as archive:
            mask = np.concatenate([archive[n].ravel() for n in sorted(archive.files)])
        np.testing.assert_array_equal(np.packbits(mask), MASKS[f"{kind}-{seed}"])
    rows = rundir.read_metrics(workdir)
    assert len(rows) == len(golden["metrics"])
    for row, expected in zip(rows, golden["metrics"]):
        assert [row["step"]] * len(row["seeds"]) == expected["step"]
        for name, values in expected.items():
            np.testing.assert_allclose(row[name], values, rtol=0.02, atol=0.6)
    digests = [network["params_sha256"] for network in result["networks"]]
    if kind == "single" and is_same_machine():
        assert digests == golden["params_sha256"]


@pytest.mark.parametrize("kind", ["single", "seeds", "mesh"])
def test_networks_of_the_digits(kind: str, tmp_path: Path) -> None:
    environment = devices(8 if kind == "mesh" else 1)
    if kind == "single":  # bit for bit with the optimizations it was compiled with
        environment["XLA_FLAGS"] = ""
    command = [sys.executable, "-m", "tests.test_goldens", kind, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    check(kind, tmp_path)


@pytest.mark.parametrize("name", GOLDENS["networks"])
def test_counts_of_every_network(name: str) -> None:
    golden: dict[str, Any] = GOLDENS["networks"][name]
    config = configs.default()
    config.model.name = name
    images = jnp.zeros((1, *golden["image_shape"]))
    model = build.model(config, 1000 if images.shape[1] == 224 else 10)
    init = lambda: model.init(jax.random.key(0), images, train=False)  # noqa: E731
    params = jax.eval_shape(init)["params"]
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    assert sum(sizes) == golden["parameters"]
    for name in ("weights_and_biases", "kernels"):
        are_prunable = masks.are_prunable(params, getattr(masks, name))
        total = sum(size for size, keep in zip(sizes, are_prunable) if keep)
        assert total == golden[name]
    assert masks.kept_count(golden["weights_and_biases"], 0.95) == golden["kept_at_95"]


if __name__ == "__main__":
    experiment.run(golden_config(sys.argv[1]), sys.argv[2])
