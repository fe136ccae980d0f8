"""A run directory holds everything, and interruptions leave no trace in it."""

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest

from snipjax import build, experiment, io, masks, pruning
from snipjax import config as configs
from snipjax.training import console, loop, rundir
from tests.runs import (
    CHECKPOINTS,
    Finished,
    finished_run,
    named,
    nested,
    quick,
    read_events,
)

# LeNet-300-100 on images of 64 pixels.
PARAMETERS = 64 * 300 + 300 * 100 + 100 * 10 + 300 + 100 + 10

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(
        quick(effective=True), tmp_path_factory.mktemp("runs") / "finished"
    )


def on_paths(mask: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The connections of dense layers between units that lie on a path."""
    kernels = [mask[f"Dense_{i}/kernel"] for i in range(3)]
    biases = [mask[f"Dense_{i}/bias"] for i in range(3)]
    ahead = [np.ones(len(kernels[0]), bool)]
    for kernel in kernels:
        ahead.append((ahead[-1][:, None] & kernel).any(axis=0))
    behind = [np.ones(len(biases[-1]), bool)]
    for kernel in reversed(kernels):
        behind.insert(0, (kernel & behind[0]).any(axis=1))
    layers = zip(kernels, ahead, behind[1:])
    units = zip(biases, ahead[1:], behind[1:])
    return [
        *(kernel & a[:, None] & b for kernel, a, b in layers),
        *(bias & a & b for bias, a, b in units),
    ]


class TestRunDirectory:
    def test_holds_everything(self, finished: Finished) -> None:
        files = {
            str(path.relative_to(finished.workdir))
            for path in finished.workdir.rglob("*")
            if path.is_file() and path.parent.name in ("finished", "seed-0")
        }
        assert files == {
            *("config.json", "data.json", "groups.json", "networks.json"),
            *("metrics.jsonl", "result.json", "scores.npz"),
            *("seed-0/mask.npz", "seed-0/params.npz"),
        }
        checkpoints = finished.workdir / CHECKPOINTS
        assert {path.name for path in checkpoints.iterdir()} == {"20", "40"}
        config = json.loads((finished.workdir / "config.json").read_text())
        assert configs.differences(config, finished.config.to_dict()) == []

    def test_metrics_and_events_have_the_same_scalars_per_evaluation(
        self, finished: Finished
    ) -> None:
        events = read_events(finished.workdir / "tensorboard")
        assert list(events) == [10, 20, 30, 40]
        for row, step in zip(finished.metrics, events, strict=True):
            assert (row["seeds"], row["phase"], row["step"]) == ([0], "train", step)
            for split in ("train", "val", "test"):
                loss, error = row[f"{split}_loss"][0], row[f"{split}_error"][0]
                assert loss > 0.0 and 0.0 <= error <= 100.0
                assert events[step][f"{split}/loss"] == pytest.approx(loss, rel=1e-5)
                assert events[step][f"{split}/error"] == pytest.approx(error, rel=1e-5)

    def test_its_mask_goes_onto_another_network(self, finished: Finished) -> None:
        network = build.model(finished.config, 10)
        images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
        params = jax.eval_shape(network.init, jax.random.key(5), images)["params"]
        mask = io.load_mask(finished.workdir / "seed-0" / rundir.MASK, params)
        assert sum(row.kept for row in masks.summary(mask)) == finished.network["kept"]

    def test_result_is_returned_and_written(self, finished: Finished) -> None:
        result, network = finished.result, finished.network
        assert rundir.read_json(finished.workdir / rundir.RESULT) == result
        expected = {
            **{"dataset": "digits", "model": "lenet_300_100", "method": "snip"},
            **{"prunable": PARAMETERS, "parameters": PARAMETERS},
            **{"steps": 40, "epochs": round(40 / 12, 2)},
        }
        assert {name: result[name] for name in expected} == expected
        assert result["versions"]["jax"] == jax.__version__
        assert result["wall_seconds"] > 0
        assert (network["seed"], network["steps"], network["prunes"]) == (0, 40, 1)
        assert network["kept"] == round(0.1 * PARAMETERS)
        assert network["sparsity"] == pytest.approx(0.9, abs=1e-5)
        kept = {layer["path"]: layer["kept"] for layer in network["layers"]}
        mask = finished.mask()
        assert kept == {name: keep.sum() for name, keep in mask.items()}
        in_paths = sum(keep.sum() for keep in on_paths(mask))
        assert network["effective_sparsity"] == 1 - in_paths / PARAMETERS
        summary = result["summary"]
        assert summary["test_error"] == network["test_error"]
        assert summary["test_error_std"] is None

    def test_errors_are_of_the_best_on_validation_and_of_the_last(
        self, finished: Finished
    ) -> None:
        best = min(reversed(finished.metrics), key=lambda row: row["val_error"][0])
        last, network = finished.metrics[-1], finished.network
        assert network["best_step"] == best["step"]
        assert [network["val_error"]] == best["val_error"]
        assert [network["test_error"]] == best["test_error"]
        assert [network["test_error_last"]] == last["test_error"]
        assert [network["train_error"]] == last["train_error"]

    def test_parameters_are_of_the_best_and_the_digest_of_the_last_in_tree_order(
        self, finished: Finished
    ) -> None:
        finished.check_best(0, {})
        params = jax.tree.map(lambda x: x[0], finished.last_state().params)
        sha = hashlib.sha256()
        for layer in ("Dense_0", "Dense_1", "Dense_2"):
            for name in ("bias", "kernel"):
                sha.update(np.asarray(params[layer][name], np.float32).tobytes())
        assert finished.network["params_sha256"] == sha.hexdigest()

    def test_pruned_entries_are_zero_after_training(self, finished: Finished) -> None:
        state, mask = finished.last_state(), finished.mask()
        params, kept = jax.tree.map(
            lambda x: x[0], (state.params, state.opt_state.mask)
        )
        assert sum(int(keep.sum()) for keep in mask.values()) == 5061
        for arrays in (named(params), finished.params()):
            for name, param in arrays.items():
                np.testing.assert_array_equal(param != 0.0, mask[name])
        for name, keep in named(kept).items():
            np.testing.assert_array_equal(mask[name], keep)

    def test_scores_are_kept_with_their_threshold(self, finished: Finished) -> None:
        drawn = io.load_arrays(
            finished.workdir / rundir.SCORES,
            {"scores": np.zeros(50_610, np.float32), "threshold": np.float32(0)},
        )
        assert np.sum(drawn["scores"] >= drawn["threshold"]) == 5061
        assert np.sum(drawn["scores"]) == pytest.approx(1.0, rel=1e-4)

    def test_a_finished_run_is_only_shown(
        self,
        finished: Finished,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(build, "dataset", None)  # the data are not needed
        before = {p: p.stat().st_mtime_ns for p in finished.workdir.rglob("*")}
        assert experiment.run(finished.config, finished.workdir) == finished.result
        assert {p: p.stat().st_mtime_ns for p in finished.workdir.rglob("*")} == before
        output = capsys.readouterr().out
        assert f"finished before, in {finished.workdir}" in output
        assert "5,061" in output
        assert f"{finished.network['test_error']:.2f}" in output

    def test_settings_that_vary_are_for_another_function(self, tmp_path: Path) -> None:
        config = quick(vary=("prune.sparsity=0.9,0.8",))
        with pytest.raises(ValueError, match=r"snipjax\.sweep\.run_all"):
            experiment.run(config, tmp_path)


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sends this process signals when the progress bar comes to a step."""
    update = console.TrainingProgress.update

    def arrange(step: int, *signals: signal.Signals) -> None:
        def update_and_signal(
            bar: console.TrainingProgress, at: int, *values: float
        ) -> None:
            update(bar, at, *values)
            if at == step:
                for number in signals:
                    os.kill(os.getpid(), number)

        monkeypatch.setattr(console.TrainingProgress, "update", update_and_signal)
        # Or the bar would come to a step only if the device was fast enough.
        monkeypatch.setattr(loop, "_is_ready", lambda metrics: True)

    return arrange


def check_same(run: Finished, expected: Finished) -> None:
    """Two runs differ in nothing but time."""
    timed = ("networks", "wall_seconds")
    for name, value in expected.result.items():
        assert run.result[name] == value or name in timed
    assert {**run.network, "seconds": 0} == {**expected.network, "seconds": 0}
    assert run.metrics == expected.metrics
    events, others = (read_events(x.workdir / "tensorboard") for x in (run, expected))
    assert events.keys() == others.keys()
    for name in (rundir.MASK, rundir.PARAMS):
        arrays = run.arrays(name)
        for path, leaf in expected.arrays(name).items():
            np.testing.assert_array_equal(arrays[path], leaf)


def test_after_a_power_failure_and_a_second_signal_leaves_no_trace(
    finished: Finished,
    signal_at: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append = rundir.append_metrics

    def append_until_power_fails(workdir: Path, row: dict[str, Any]) -> None:
        append(workdir, row)
        if row["step"] == 10:  # before the first checkpoint of training
            with (workdir / rundir.METRICS).open("a") as file:
                file.write('{"step": 4')
            raise RuntimeError("power failure")

    monkeypatch.setattr(rundir, "append_metrics", append_until_power_fails)
    with pytest.raises(RuntimeError, match="power failure"):
        experiment.run(finished.config, tmp_path)
    monkeypatch.undo()
    # Nothing is pruned again, for the mask is in the checkpoint too.
    monkeypatch.setattr(pruning, "score_and_mask", None)
    (tmp_path / "seed-0" / rundir.MASK).unlink()
    signal_at(30, signal.SIGINT, signal.SIGINT)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(finished.config, tmp_path)
    assert signal.getsignal(signal.SIGINT) == handler
    signal_at(-1)
    check_same(finished_run(finished.config, tmp_path), finished)


class Normalized(nn.Module):
    """A small network with batch norm."""

    num_classes: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.Dense(8, kernel_init=self.kernel_init)(x.reshape(x.shape[0], -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(self.num_classes)(x)


@pytest.mark.slow
def test_a_signal_leaves_no_trace_in_batch_norm_and_augmentation_either(
    signal_at: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = quick(batch_norm="batch", flip=True, translate=1)
    config.model.name = f"{__name__}:Normalized"
    expected = finished_run(config, tmp_path / "uninterrupted")
    signal_at(22, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path / "interrupted")
    assert "stopped at step 24" in capsys.readouterr().out
    assert not (tmp_path / "interrupted" / "result.json").exists()
    signal_at(-1)
    run = finished_run(config, tmp_path / "interrupted")
    assert "resuming from step 24" in capsys.readouterr().out
    check_same(run, expected)
    assert run.network["kept"] == round(0.1 * run.result["prunable"])
    # And a scale and a shift of each unit.
    assert run.result["parameters"] == run.result["prunable"] + 2 * 8
    first, second = (one.last_state().batch_stats for one in (run, expected))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    run.check_best(0, nested(run.arrays("batch_stats.npz")))


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("model", "name", "vgg_d", "images are too small for this network"),
        ("dataset", "name", "dgits", "There is no dataset 'dgits'"),
        ("train", "batch_size", 2000, "only 1294 training examples"),
        ("prune", "batch_size", 2000, "only 1294 training examples"),
    ],
)
def test_a_mistake_does_not_take_the_directory(
    section: str, name: str, value: Any, message: str, tmp_path: Path
) -> None:
    config = quick(steps=0)
    config[section][name] = value
    with pytest.raises(ValueError, match=message):
        experiment.run(config, tmp_path, data_dir=str(tmp_path / "none"))
    with experiment.opened(quick(steps=0), tmp_path):
        pass
