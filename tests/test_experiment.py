"""A run directory holds everything, and interruptions leave no trace in it."""

import contextlib
import functools
import hashlib
import json
import os
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorboardX.proto import event_pb2

from snipjax import config as configs
from snipjax import experiment, masks
from snipjax.data import datasets
from snipjax.results import plots
from snipjax.training import checkpoints, console, rundir

RESULT_KEYS = {
    "dataset",
    "model",
    "method",
    "sparsity",
    "prunable",
    "kept",
    "test_error",
    "test_error_last",
    "val_error",
    "steps",
    "seed",
    "wall_seconds",
    "versions",
    "params_sha256",
}
PICTURES = {"densities.png", "saliency.png", "curves.png", "first_layer.png"}
TIMINGS = {"seconds", "steps_per_second"}

# LeNet-300-100 on images of 64 pixels.
WEIGHTS = 64 * 300 + 300 * 100 + 100 * 10
BIASES = 300 + 100 + 10


pytestmark = pytest.mark.usefixtures("compile_once")


def quick(**fields: Any) -> ConfigDict:
    """Forty steps on the digits, in two checkpoints; fields by their last name."""
    config = configs.default()
    config.train.update(
        steps=40, steps_per_dispatch=2, eval_every=10, checkpoint_every=20
    )
    for name, value in fields.items():
        section = next(s for s in (config.train, config.prune, config) if name in s)
        section[name] = value
    return config


class Finished(NamedTuple):
    """A run that nothing interrupted."""

    config: ConfigDict
    workdir: Path
    result: dict[str, Any]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return rundir.read_metrics(self.workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    config, workdir = quick(), tmp_path_factory.mktemp("runs") / "finished"
    return Finished(config, workdir, experiment.run(config, workdir))


def last_checkpoint(workdir: Path, config: ConfigDict) -> Any:
    abstract = experiment.abstract_state(experiment.assemble(config))
    with checkpoints.open_directory(workdir / "checkpoints") as manager:
        state, _ = checkpoints.restore_latest(manager, abstract)
    return state


def read_events(workdir: Path) -> dict[int, dict[str, float]]:
    """Scalars by step, as TensorBoard takes them from the files in their order."""
    scalars: dict[int, dict[str, float]] = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            record = data[position + 12 : position + 12 + length]
            event = event_pb2.Event.FromString(record)
            position += length + 16
            if event.HasField("session_log"):
                scalars = {s: v for s, v in scalars.items() if s < event.step}
            for value in event.summary.value:
                scalars.setdefault(event.step, {})[value.tag] = value.simple_value
    return scalars


def without_timings(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in metrics]


class TestRunDirectory:
    def test_holds_everything(self, finished: Finished) -> None:
        assert {path.name for path in finished.workdir.iterdir()} == PICTURES | {
            "config.json",
            "metrics.jsonl",
            "tensorboard",
            "result.json",
            "checkpoints",
            "mask.npz",
            "first_layer.npy",
        }
        for name in PICTURES:
            header = (finished.workdir / name).read_bytes()[:8]
            assert header == b"\x89PNG\r\n\x1a\n"

    def test_config_is_that_of_the_run(self, finished: Finished) -> None:
        config = json.loads((finished.workdir / "config.json").read_text())
        assert configs.differences(config, finished.config.to_dict()) == []

    def test_metrics_have_a_line_per_evaluation(self, finished: Finished) -> None:
        assert [row["step"] for row in finished.metrics] == [10, 20, 30, 40]
        for row in finished.metrics:
            for split in ("train", "val", "test"):
                assert row[f"{split}_loss"] > 0.0
                assert 0.0 <= row[f"{split}_error"] <= 100.0

    def test_events_have_the_same_scalars(self, finished: Finished) -> None:
        events = read_events(finished.workdir)
        assert list(events) == [10, 20, 30, 40]
        for row in finished.metrics:
            for name in ("train_loss", "val_error", "test_error"):
                value = events[row["step"]][name.replace("_", "/")]
                assert value == pytest.approx(row[name], rel=1e-5)

    def test_result_is_returned_and_written(self, finished: Finished) -> None:
        result = json.loads((finished.workdir / "result.json").read_text())
        assert result == finished.result
        assert result.keys() >= RESULT_KEYS
        assert {
            name: result[name]
            for name in ("dataset", "model", "method", "steps", "seed", "prunable")
        } == {
            "dataset": "digits",
            "model": "lenet_300_100",
            "method": "snip",
            "steps": 40,
            "seed": 0,
            "prunable": WEIGHTS + BIASES,
        }
        assert result["kept"] == round(0.1 * (WEIGHTS + BIASES))
        assert result["sparsity"] == pytest.approx(0.9, abs=1e-5)
        assert result["versions"]["jax"] == jax.__version__
        assert result["wall_seconds"] > 0

    def test_errors_are_of_the_best_on_validation_and_of_the_last(
        self, finished: Finished
    ) -> None:
        best = min(reversed(finished.metrics), key=lambda row: row["val_error"])
        assert finished.result["val_error"] == best["val_error"]
        assert finished.result["test_error"] == best["test_error"]
        assert finished.result["test_error_last"] == finished.metrics[-1]["test_error"]

    def test_digest_is_of_the_last_parameters_in_tree_order(
        self, finished: Finished
    ) -> None:
        params = last_checkpoint(finished.workdir, finished.config).params
        sha = hashlib.sha256()
        for layer in ("Dense_0", "Dense_1", "Dense_2"):
            for name in ("bias", "kernel"):
                sha.update(np.asarray(params[layer][name], np.float32).tobytes())
        assert finished.result["params_sha256"] == sha.hexdigest()

    def test_pruned_entries_are_zero_after_training(self, finished: Finished) -> None:
        state = last_checkpoint(finished.workdir, finished.config)
        with np.load(finished.workdir / "mask.npz") as mask:
            assert sum(int(keep.sum()) for keep in mask.values()) == 5061
            for layer, arrays in state.params.items():
                for name, param in arrays.items():
                    keep = mask[f"{layer}/{name}"]
                    assert keep.shape == param.shape
                    assert np.all(np.asarray(param)[~keep] == 0.0)
                    assert np.all(np.asarray(param)[keep] != 0.0)
                    np.testing.assert_array_equal(
                        keep, state.opt_state.mask[layer][name]
                    )

    def test_several_runs_are_for_other_functions(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"snipjax\.seeds\.run"):
            experiment.run(quick(seeds=2), tmp_path)

    def test_the_command_is_kept(self, tmp_path: Path) -> None:
        result = experiment.run(quick(steps=0), tmp_path, command="python train.py")
        assert result["command"] == "python train.py"

    def test_a_finished_run_is_only_shown(
        self,
        finished: Finished,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def unexpected(*arguments: Any) -> None:
            raise AssertionError("the data is not needed")

        monkeypatch.setattr(datasets, "load", unexpected)
        before = {p: p.stat().st_mtime_ns for p in finished.workdir.rglob("*")}
        assert experiment.run(finished.config, finished.workdir) == finished.result
        assert {p: p.stat().st_mtime_ns for p in finished.workdir.rglob("*")} == before
        output = capsys.readouterr().out
        assert "finished before" in output
        assert "5,061" in output
        assert f"{finished.result['test_error']:.2f}" in output


def top(scores: dict[str, np.ndarray], kept: int) -> dict[str, np.ndarray]:
    """The mask of the largest scores by a stable sort, ties to the lower index."""
    flat = np.concatenate([leaf.ravel() for leaf in scores.values()])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:kept]] = True
    ends = np.cumsum([leaf.size for leaf in scores.values()])[:-1]
    parts = zip(scores.items(), np.split(mask, ends))
    return {name: part.reshape(leaf.shape) for (name, leaf), part in parts}


def named(tree: chex.ArrayTree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


class TestPruning:
    """What is pruned, against NumPy; zero steps, so that it is all there is."""

    def run(self, workdir: Path, **fields: Any) -> tuple[Any, dict[str, np.ndarray]]:
        config = quick(steps=0, **fields)
        result = experiment.run(config, workdir)
        assert result["steps"] == 0
        assert result["test_error"] is None
        with np.load(workdir / "mask.npz") as mask:
            return last_checkpoint(workdir, config), dict(mask)

    def test_snip_is_the_gradient_times_the_weight(self, tmp_path: Path) -> None:
        state, mask = self.run(tmp_path)
        parts = experiment.assemble(quick(steps=0))
        scored = experiment.init_variables(parts, parts.keys.scored_init)["params"]
        batch = experiment.saliency_batch(parts)

        def loss_fn(params: chex.ArrayTree) -> chex.Array:
            logits = parts.model.apply({"params": params}, batch.images)
            correct = jax.nn.log_softmax(logits)[jnp.arange(100), batch.labels]
            return -jnp.mean(correct)

        gradient = jax.grad(loss_fn)(scored)
        scores = named(jax.tree.map(lambda g, w: jnp.abs(g * w), gradient, scored))
        expected = top(scores, kept=5061)
        differing = sum(int((expected[name] != mask[name]).sum()) for name in mask)
        assert differing <= 4, "but for rounding at the threshold"
        assert not any(mask[f"Dense_{i}/bias"].any() for i in range(3))
        self.check_fresh(parts, state, mask)

    @staticmethod
    def check_fresh(
        parts: experiment.Parts, state: Any, mask: dict[str, np.ndarray]
    ) -> None:
        fresh = named(experiment.init_variables(parts, parts.keys.fresh_init)["params"])
        for name, param in named(state.params).items():
            np.testing.assert_array_equal(param, np.where(mask[name], fresh[name], 0))

    def test_magnitude_without_a_fresh_sample(self, tmp_path: Path) -> None:
        fields = {"method": "magnitude", "fresh_init": False, "prunable": "kernels"}
        state, mask = self.run(tmp_path, **fields)
        parts = experiment.assemble(quick(steps=0, **fields))
        scored = named(experiment.init_variables(parts, parts.keys.scored_init))
        weights = {
            name.removeprefix("params/"): value
            for name, value in scored.items()
            if name.endswith("kernel")
        }
        magnitudes = {name: np.abs(value) for name, value in weights.items()}
        expected = top(magnitudes, kept=round(0.1 * WEIGHTS))
        params = named(state.params)
        for name, keep in expected.items():
            np.testing.assert_array_equal(mask[name], keep)
            np.testing.assert_array_equal(
                params[name], np.where(keep, weights[name], 0)
            )
        assert all(mask[f"Dense_{i}/bias"].shape == () for i in range(3))

    def test_random_layerwise(self, tmp_path: Path) -> None:
        _, mask = self.run(tmp_path, method="random", select="layerwise")
        for keep in mask.values():
            assert keep.sum() == round(keep.size * (1 - 0.9))
        # Of 64 binomial counts with mean 30 and deviation 5.2, none is 5 of those off.
        counts = mask["Dense_0/kernel"].sum(axis=1)
        assert np.all(np.abs(counts - 30) < 26)
        assert len(set(counts)) > 5

    def test_what_is_excluded_stays_dense_and_no_layer_falls_below_a_minimum(
        self, tmp_path: Path
    ) -> None:
        _, mask = self.run(
            tmp_path,
            sparsity=0.995,
            prunable="kernels",
            exclude=("Dense_2/*",),
            min_density=0.0049,
        )
        assert mask["Dense_2/kernel"].shape == ()
        first, second = (mask[f"Dense_{i}/kernel"].sum() for i in range(2))
        assert first >= 0.0049 * 64 * 300
        assert second >= 0.0049 * 300 * 100
        assert first + second == round(0.005 * (64 * 300 + 300 * 100))

    def test_none_keeps_everything(self, tmp_path: Path) -> None:
        _, mask = self.run(tmp_path, method="none")
        assert all(keep.all() for keep in mask.values())
        assert rundir.read_json(tmp_path / "result.json")["sparsity"] == 0.0

    def test_the_scored_and_the_trained_sample_have_initializers_of_their_own(
        self, tmp_path: Path
    ) -> None:
        config = quick(steps=0)
        config.init.scored, config.init.trained = "he", "heuristic_uniform"
        experiment.run(config, tmp_path)
        params = last_checkpoint(tmp_path, config).params
        # U[-1/8, 1/8] for 64 inputs; He's normal has 3 of 1000 beyond 0.53.
        kernel = np.asarray(params["Dense_0"]["kernel"])
        assert 0.12 < np.abs(kernel).max() <= 0.125
        parts = experiment.assemble(config)
        scored = experiment.init_variables(parts, parts.keys.scored_init, "he")
        assert np.std(scored["params"]["Dense_0"]["kernel"]) == pytest.approx(
            np.sqrt(2 / 64), rel=0.02
        )
        fan_in = quick(steps=0)
        experiment.run(fan_in, tmp_path / "fan_in")
        mask = dict(np.load(tmp_path / "mask.npz"))
        other = dict(np.load(tmp_path / "fan_in" / "mask.npz"))
        assert any((mask[name] != other[name]).any() for name in mask)

    def test_saliency_of_one_class(self) -> None:
        config = quick(batch_class=7)
        config.prune.batch_size = 50
        batch = experiment.saliency_batch(experiment.assemble(config))
        assert batch.images.shape == (50, 8, 8, 1)
        assert np.all(np.asarray(batch.labels) == 7)

    def test_a_class_without_examples_is_refused(self) -> None:
        with pytest.raises(ValueError, match="classes of digits are 0 to 9"):
            experiment.assemble(quick(batch_class=10))

    def test_random_labels_have_nothing_to_do_with_the_images(self) -> None:
        config = quick()
        true = experiment.assemble(config)
        config.dataset.random_labels = True
        random = experiment.assemble(config)
        labels, others = np.asarray(random.train.labels), np.asarray(true.train.labels)
        # 1,294 draws with probability 1/10 agree 129 times, with a deviation of 11.
        assert 80 < (labels == others).sum() < 180
        np.testing.assert_array_equal(random.train.images, true.train.images)
        np.testing.assert_array_equal(random.test.labels, true.test.labels)

    def test_rounds_over_several_batches(self, tmp_path: Path) -> None:
        _, mask = self.run(tmp_path, rounds=2, num_batches=3, sparsity=0.97)
        kept = sum(int(keep.sum()) for keep in mask.values())
        assert kept == round(0.03 * (WEIGHTS + BIASES))


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
        monkeypatch.setattr(experiment, "is_ready", lambda metrics: True)

    return arrange


class TestResuming:
    @pytest.mark.parametrize(
        ("at", "number", "stopped"),
        [(20, signal.SIGINT, 20), (22, signal.SIGTERM, 24), (40, signal.SIGINT, 40)],
        ids=["at a checkpoint", "between evaluations", "at the end"],
    )
    def test_leaves_no_trace(
        self,
        at: int,
        number: signal.Signals,
        stopped: int,
        finished: Finished,
        signal_at: Callable[..., None],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        signal_at(at, number)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(finished.config, tmp_path)
        assert f"stopped at step {stopped}" in capsys.readouterr().out
        assert not (tmp_path / "result.json").exists()

        signal_at(-1)
        result = experiment.run(finished.config, tmp_path)
        assert f"resuming from step {stopped}" in capsys.readouterr().out
        assert result["params_sha256"] == finished.result["params_sha256"]
        assert {**result, "wall_seconds": 0} == {**finished.result, "wall_seconds": 0}
        metrics = rundir.read_metrics(tmp_path)
        assert without_timings(metrics) == without_timings(finished.metrics)
        assert read_events(tmp_path).keys() == read_events(finished.workdir).keys()
        with (
            np.load(tmp_path / "mask.npz") as mask,
            np.load(finished.workdir / "mask.npz") as other,
        ):
            assert all(np.array_equal(mask[name], other[name]) for name in other)

    def test_a_second_signal_stops_at_once(
        self, finished: Finished, signal_at: Callable[..., None], tmp_path: Path
    ) -> None:
        signal_at(30, signal.SIGINT, signal.SIGINT)
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(finished.config, tmp_path)
        assert signal.getsignal(signal.SIGINT) == handler
        signal_at(-1)
        result = experiment.run(finished.config, tmp_path)
        assert result["params_sha256"] == finished.result["params_sha256"]

    def test_a_signal_before_training_stops_though_its_exception_gets_lost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def plot(*arguments: Any) -> None:
            with contextlib.suppress(KeyboardInterrupt):  # as a callback of JAX does
                os.kill(os.getpid(), signal.SIGTERM)
                signal.getsignal(signal.SIGTERM)

        monkeypatch.setattr(plots, "layer_densities", plot)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(quick(), tmp_path)
        assert not (tmp_path / "metrics.jsonl").read_text()

    def test_work_after_the_last_checkpoint_is_done_again(
        self, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        append = rundir.append_metrics

        def append_until_power_fails(workdir: Path, row: dict[str, Any]) -> None:
            append(workdir, row)
            if row["step"] == 30:
                with (workdir / rundir.METRICS).open("a") as file:
                    file.write('{"step": 4')
                raise RuntimeError("power failure")

        monkeypatch.setattr(rundir, "append_metrics", append_until_power_fails)
        with pytest.raises(RuntimeError, match="power failure"):
            experiment.run(finished.config, tmp_path)
        monkeypatch.undo()
        result = experiment.run(finished.config, tmp_path)
        assert result["params_sha256"] == finished.result["params_sha256"]
        metrics = rundir.read_metrics(tmp_path)
        assert without_timings(metrics) == without_timings(finished.metrics)


class Normalized(nn.Module):
    """A small network with batch norm."""

    num_classes: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.Conv(4, (3, 3), kernel_init=self.kernel_init)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


@pytest.fixture
def with_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, num_classes: int, *, dtype: chex.ArrayDType) -> nn.Module:
        return Normalized(num_classes)

    monkeypatch.setattr(experiment.models, "create", create)


@pytest.mark.usefixtures("with_batch_norm")
def test_resuming_with_batch_norm_and_augmentation_leaves_no_trace(
    signal_at: Callable[..., None], tmp_path: Path
) -> None:
    config = quick(batch_norm="batch", flip=True, translate=1)
    expected = experiment.run(config, tmp_path / "uninterrupted")
    signal_at(22, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path / "interrupted")
    signal_at(-1)
    result = experiment.run(config, tmp_path / "interrupted")
    assert result["params_sha256"] == expected["params_sha256"]
    assert result["test_error_last"] == expected["test_error_last"]
    assert result["kept"] == round(0.1 * result["prunable"])
    assert result["parameters"] == result["prunable"] + 2 * 4  # scale and shift
    first, second = (
        last_checkpoint(tmp_path / name, config).batch_stats
        for name in ("uninterrupted", "interrupted")
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


class TestWhatGoesWrong:
    def test_a_loss_that_is_not_finite_is_said_once_and_the_run_completes(
        self, tmp_path: Path
    ) -> None:
        with pytest.warns(UserWarning, match="the loss is not finite") as warnings:
            result = experiment.run(quick(learning_rate=1e9), tmp_path)
        said = [w for w in warnings if "not finite" in str(w.message)]
        assert len(said) == 1
        assert result["steps"] == 40

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        for text in ((tmp_path / "result.json").read_text(), *lines):
            json.loads(text, parse_constant=refuse)
        assert rundir.read_metrics(tmp_path)[-1]["train_loss"] is None
        assert (tmp_path / "curves.png").exists()

    def test_a_picture_that_fails_costs_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*arguments: Any) -> None:
            raise TypeError("no such font")

        for name in ("layer_densities", "saliency_histogram", "training_curves"):
            monkeypatch.setattr(plots, name, broken)
        with pytest.warns(UserWarning, match="was not drawn: no such font"):
            result = experiment.run(quick(steps=2), tmp_path)
        assert rundir.read_json(tmp_path / "result.json") == result

    @pytest.mark.parametrize(
        ("section", "name", "value", "message"),
        [
            ("model", "name", "lenet", "unknown model 'lenet'"),
            ("model", "name", "vgg_d", "images are too small for this network"),
            ("dataset", "name", "dgits", "There is no dataset 'dgits'"),
            ("train", "batch_size", 2000, "only 1294 training examples"),
            ("prune", "batch_size", 2000, "only 1294 training examples"),
            ("prune", "sparsity", 1.0, "outside"),
        ],
    )
    def test_a_mistake_does_not_take_the_directory(
        self, section: str, name: str, value: Any, message: str, tmp_path: Path
    ) -> None:
        config = quick(steps=0)
        config[section][name] = value
        with pytest.raises(ValueError, match=message):
            experiment.run(config, tmp_path, data_dir=str(tmp_path / "none"))
        experiment.run(quick(steps=0), tmp_path)

    def test_a_layer_without_connections_is_named(self, tmp_path: Path) -> None:
        with pytest.warns(UserWarning, match="no connection of 'Dense_0/kernel'"):
            result = experiment.run(quick(steps=2, sparsity=0.99999), tmp_path)
        assert result["kept"] == 1


def test_runs_outside_of_the_main_thread(tmp_path: Path) -> None:
    results = []
    run = functools.partial(experiment.run, quick(steps=2), tmp_path)
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    thread.join()
    assert results[0]["steps"] == 2


def test_the_bar_moves_though_every_dispatch_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(
        console.TrainingProgress,
        "update",
        lambda bar, step, loss, error: shown.append((step, loss, error)),
    )
    experiment.run(quick(steps=20, steps_per_dispatch=10), tmp_path)
    assert shown == [
        (row["step"], row["train_loss"], row["train_error"])
        for row in rundir.read_metrics(tmp_path)
    ]


class TestFirstLayerCounts:
    def test_of_a_dense_layer_are_over_units_and_channels(self) -> None:
        kernel = np.random.default_rng(0).random((4 * 5 * 3, 7)) < 0.5
        mask = {"Dense_0": {"bias": jnp.array(True), "kernel": jnp.asarray(kernel)}}
        counts = experiment.first_layer_counts(mask, (4, 5, 3))
        for y, x in np.ndindex(4, 5):
            pixel = slice((y * 5 + x) * 3, (y * 5 + x + 1) * 3)
            assert counts[y, x] == kernel[pixel].sum()

    def test_of_a_convolution_are_over_channels(self) -> None:
        kernel = np.random.default_rng(0).random((3, 3, 2, 8)) < 0.5
        mask = {"Conv_0": {"kernel": jnp.asarray(kernel)}}
        counts = experiment.first_layer_counts(mask, (4, 4, 2))
        np.testing.assert_array_equal(counts, kernel.sum(axis=(2, 3)))

    def test_there_are_none_where_nothing_takes_the_image(self) -> None:
        mask = masks.ones({"Embed_0": {"kernel": jnp.ones((10, 8))}})
        assert experiment.first_layer_counts(mask, (4, 4, 2)) is None
