"""Methods that prune a trained network, as experiments by their names."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import assembly, experiment, io, masks, methods, records, rivals
from snipjax import config as configs
from snipjax.training import rundir
from tests import FEW_OPTIMIZATIONS, runs, test_goldens
from tests.runs import Finished, finished_run

pytestmark = pytest.mark.usefixtures("compile_once")

GOLDENS: dict[str, dict[str, Any]] = test_goldens.GOLDENS["table1"]
RIVALS = [name for name in GOLDENS if not name.startswith(("dense", "snip"))]
FAST = ("dns",)


def golden_config(method: str, **prune: Any) -> ConfigDict:
    """The training of the goldens: LeNet-300-100 on the digits, sixty steps."""
    config = configs.default()
    config.train.update(steps=60, eval_every=60)
    config.optimizer.decay_every = 20
    config.prune.update(method=method, **prune)
    return config


# Goldens were compiled with all optimizations.
optimized = pytest.mark.skipif(
    FEW_OPTIMIZATIONS in os.environ["XLA_FLAGS"],
    reason="run by test_goldens_with_all_optimizations, in a process of its own",
)


@pytest.mark.slow
def test_goldens_with_all_optimizations() -> None:
    options = ["-q", "-m", "not slow", "-k", "as_it_was or as_they_did"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, __file__],
        env={**os.environ, "XLA_FLAGS": ""},
        cwd=Path(__file__).parents[1],
        check=True,
    )


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the dense network that the goldens start from."""
    setup = assembly.assemble(golden_config("none"))
    outcome = methods.dense(rivals.problem(setup, 0))
    workdir = tmp_path_factory.mktemp("dense")
    (workdir / "seed-0").mkdir()
    params = masks.apply(outcome.mask, outcome.params)
    io.save_arrays(params, workdir / "seed-0" / rundir.PARAMS)
    row = outcome.history.rows[-1]
    entry = records.network(
        0,
        params,
        outcome.mask,
        best=row,
        last=row,
        steps=outcome.history.steps,
        prunes=0,
        seconds=1.5,
    )
    rundir.write_json(workdir / rundir.RESULT, records.summarize(setup, [entry]))
    return workdir


@optimized
def test_the_dense_network_is_as_it_was(dense: Path) -> None:
    (network,) = rundir.read_json(dense / rundir.RESULT)["networks"]
    golden = GOLDENS["dense-seed0"]
    assert network["steps"] == golden["steps"]
    if test_goldens.is_same_machine():
        assert network["params_sha256"] == golden["params_sha256"]


@optimized
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if GOLDENS[name]["method"] in FAST else pytest.mark.slow
        )
        for name in RIVALS
    ],
)
def test_rivals_end_as_they_did(name: str, dense: Path, tmp_path: Path) -> None:
    golden = GOLDENS[name]
    config = golden_config(golden["method"], sparsity=golden["sparsity"])
    config.prune.pretrained = str(dense)
    result = experiment.run(config, tmp_path)
    (network,) = result["networks"]
    assert result["method"] == golden["method"]
    for figure in ("kept", "prunes", "steps"):
        assert network[figure] == golden[figure]
    assert network["seconds"] > 1.5  # the dense network's are counted
    if test_goldens.is_same_machine() and golden["method"] != "lobs":
        # Inverses of matrices are rounded by the number of cores, too.
        assert network["params_sha256"] == golden["params_sha256"]
        assert network["test_error"] == golden["test_error"]
        with np.load(tmp_path / "seed-0" / rundir.MASK) as mask:
            bits = np.concatenate([mask[n].ravel() for n in sorted(mask.files)])
        expected = test_goldens.MASKS[f"table1-{name}"]
        np.testing.assert_array_equal(np.packbits(bits), expected)


def quick(**prune: Any) -> ConfigDict:
    """LWC on the digits, of a few steps and two seeds."""
    config = runs.quick(seeds=2, steps=6, eval_every=6)
    config.lwc.rounds = 1
    config.prune.update({"method": "lwc", **prune})
    return config


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    config = quick(method="none")
    config.train.steps = 0
    return finished_run(config, tmp_path_factory.mktemp("runs") / "dense")


def test_without_pruning_or_training_there_is_an_evaluation(
    dense_run: Finished,
) -> None:
    for entry in dense_run.result["networks"]:
        assert (entry["sparsity"], entry["prunes"], entry["best_step"]) == (0, 0, 0)
        assert 50 < entry["test_error"] <= 100


def test_an_interrupted_run_begins_again_from_the_networks_of_its_seeds(
    dense_run: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    config = quick(pretrained=str(dense_run.workdir))
    monkeypatch.setattr(records, "network", killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path)
    monkeypatch.undo()
    finished = finished_run(config, tmp_path)
    networks = finished.result["networks"]
    assert [entry["seed"] for entry in networks] == [0, 1]
    for entry in networks:
        assert entry["kept"] == 5061
        assert (entry["steps"], entry["prunes"]) == (2, 1)
        params = finished.params(entry["seed"])
        for name, keep in finished.mask(entry["seed"]).items():
            assert not params[name][~keep].any()
        finished.check_best(entry["seed"], {})
        start = dense_run.params(entry["seed"])["Dense_0/kernel"]
        trained = params["Dense_0/kernel"]
        assert np.abs(trained - start)[trained != 0].max() < 0.05
    assert [row["seeds"] for row in finished.metrics] == [[0], [1]]
    for row in finished.metrics:
        assert (row["phase"], row["step"]) == ("retrain 1", 2)
        assert row["sparsity"] == [pytest.approx(0.9, abs=1e-4)]
        assert row["test_error"][0] >= 0


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"model.name": "tests.test_experiment:Normalized"},
            r"batch norm.*lenet_5_caffe",
        ),
        ({"mesh": "data=1"}, "'lwc' trains on data in memory"),
        ({"dataset.stream": True}, "'lwc' trains on data in memory"),
        (
            {"prune.pretrained": "no/such/run"},
            "no finished run with a network of seed 0",
        ),
        (
            {"model.name": "lstm_s", "prune.pretrained": "{dense}"},
            "it was written from another network",
        ),
    ],
)
def test_other_networks_data_and_pretrained_runs_are_refused(
    fields: dict[str, Any], problem: str, dense_run: Finished, tmp_path: Path
) -> None:
    config = quick()
    config.seeds = 1
    for name, value in fields.items():
        text = str(value).format(dense=dense_run.workdir)
        config.update_from_flattened_dict({name: value if value is True else text})
    with pytest.raises(ValueError, match=problem):
        experiment.run(config, tmp_path / "run")
