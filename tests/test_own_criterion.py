"""A criterion of one's own runs by its name, wherever the networks are."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import assembly, experiment, pruning
from snipjax.training import rundir
from tests import devices, runs

pytestmark = pytest.mark.usefixtures("compile_once")
ROOT = Path(__file__).parents[1]


def gradient_norm(
    loss_fn: Any, params: chex.ArrayTree, batch: Any, *, key: Any = None
) -> chex.ArrayTree:
    """Scores a connection by the size of its loss's gradient."""
    del key
    return jax.tree.map(jnp.abs, jax.grad(loss_fn)(params, batch))


def own(**fields: Any) -> ConfigDict:
    """Scores, and no step unless asked for."""
    config = runs.quick(**{"steps": 0, **fields})
    config.prune.method = f"{__name__}:gradient_norm"
    config.prune.batch_size = config.train.batch_size = 104
    return config


PLACES: dict[str, dict[str, Any]] = {
    "one network": {"steps": 2, "num_batches": 2, "rounds": 3},
    "four seeds at once": {"seeds": 4, "num_batches": 2, "rounds": 3},
    "a mesh": {"steps": 2, "num_batches": 2, "mesh": "data=4,model=2", "rounds": 3},
}


def expected_mask(config: ConfigDict, seed: int) -> dict[str, np.ndarray]:
    """The mask by the core's functions alone, all batches at once in each round."""
    setup = assembly.assemble(config)
    key = assembly.make_keys(seed).scored_init
    params = setup.init(key, "fan_in")["params"]
    images, labels = assembly.saliency_batch(setup, seed)
    if config.prune.num_batches > 1:
        images = images.reshape(-1, *images.shape[2:])
    labels = labels.ravel()
    if setup.stream is not None:
        images = setup.task.preprocess(images)

    def loss_fn(params: chex.ArrayTree, images: chex.Array) -> chex.Array:
        logits = setup.task.model.apply({"params": params}, images)
        losses = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
        return -jnp.mean(losses)

    _, mask = pruning.score_and_mask(
        loss_fn,
        params,
        images,
        config.prune.sparsity,
        criterion=gradient_norm,
        prunable=lambda path, leaf: True,
        rounds=config.prune.rounds,
    )
    return runs.named(mask)


def check(place: str, workdir: Path) -> None:
    config = own(**PLACES[place])
    result = experiment.run(config, workdir)
    assert result["method"] == "tests.test_own_criterion:gradient_norm"
    for network in result["networks"]:
        assert network["kept"] == round(0.1 * result["prunable"])
        assert network["steps"] == config.train.steps
    seed = config.seeds - 1
    with np.load(workdir / f"seed-{seed}" / rundir.MASK) as mask:
        for name, keep in expected_mask(config, seed).items():
            # Sums may be rounded otherwise, and swap those at the threshold.
            assert (mask[name] != keep).sum() <= 4, name


@pytest.mark.parametrize("place", [name for name in PLACES if name != "a mesh"])
def test_runs_by_name(place: str, tmp_path: Path) -> None:
    check(place, tmp_path)
    config = json.loads((tmp_path / rundir.CONFIG).read_text())
    assert config["prune"]["method"] == f"{__name__}:gradient_norm"


def test_runs_by_name_on_a_mesh_of_eight_devices(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from tests import test_own_criterion
test_own_criterion.check("a mesh", Path(sys.argv[1]))
"""
    subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=devices(8),
        cwd=ROOT,
        check=True,
    )
