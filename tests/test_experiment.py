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

from snipjax import assembly, build, experiment, io, pruning, training
from snipjax import config as configs
from snipjax.training import TrainState, console, loop, rundir

TIMINGS = ("seconds", "steps_per_second")
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
        sections = (config.train, config.prune, config.optimizer, config.model, config)
        next(s for s in sections if name in s)[name] = value
    return config


class Finished(NamedTuple):
    """A run of one network that nothing interrupted."""

    config: ConfigDict
    workdir: Path
    result: dict[str, Any]

    @property
    def network(self) -> dict[str, Any]:
        return self.result["networks"][0]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        rows = rundir.read_metrics(self.workdir)
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        return dict(np.load(self.workdir / "seed-0" / name))

    def last_state(self) -> TrainState:
        setup = assembly.assemble(self.config)
        with (
            experiment.opened(self.config, self.workdir) as session,
            experiment.saved_work(setup.placement(range(1)), session) as saved,
        ):
            assert saved.state is not None
            return next(setup.placement(range(1)).networks(saved.state))


def finished_run(config: ConfigDict, workdir: Path) -> Finished:
    return Finished(config, workdir, experiment.run(config, workdir))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(quick(), tmp_path_factory.mktemp("runs") / "finished")


def named(tree: chex.ArrayTree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def nested(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, leaf in arrays.items():
        layer, kind = name.split("/")
        tree.setdefault(layer, {})[kind] = leaf
    return tree


def check_best(run: Finished, batch_stats: chex.ArrayTree) -> None:
    """The saved parameters have the errors that the result reports."""
    setup = assembly.assemble(run.config)
    assert setup.arrays is not None
    for split, name in (("validation", "val_error"), ("test", "test_error")):
        metrics = training.evaluate(
            nested(run.arrays(rundir.PARAMS)),
            batch_stats,
            getattr(setup.arrays, split),
            model=setup.task.model,
            preprocess=setup.task.preprocess,
        )
        assert run.network[name] == pytest.approx(100 * float(metrics.error), abs=1e-3)


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
        checkpoints = finished.workdir / "checkpoints" / "seeds-0-0"
        assert {path.name for path in checkpoints.iterdir()} == {"20", "40"}

    def test_config_is_that_of_the_run(self, finished: Finished) -> None:
        config = json.loads((finished.workdir / "config.json").read_text())
        assert configs.differences(config, finished.config.to_dict()) == []

    def test_metrics_have_a_line_per_evaluation(self, finished: Finished) -> None:
        assert [row["step"] for row in finished.metrics] == [10, 20, 30, 40]
        for row in finished.metrics:
            assert (row["seeds"], row["phase"]) == ([0], "train")
            for split in ("train", "val", "test"):
                assert row[f"{split}_loss"][0] > 0.0
                assert 0.0 <= row[f"{split}_error"][0] <= 100.0

    def test_events_have_the_same_scalars(self, finished: Finished) -> None:
        events = read_events(finished.workdir)
        assert list(events) == [10, 20, 30, 40]
        for row in finished.metrics:
            for name in ("train_loss", "val_error", "test_error"):
                value = events[row["step"]][name.replace("_", "/")]
                assert value == pytest.approx(row[name][0], rel=1e-5)

    def test_result_is_returned_and_written(self, finished: Finished) -> None:
        result, network = finished.result, finished.network
        assert rundir.read_json(finished.workdir / rundir.RESULT) == result
        expected = {
            **{"dataset": "digits", "model": "lenet_300_100", "method": "snip"},
            **{"prunable": WEIGHTS + BIASES, "parameters": WEIGHTS + BIASES},
            **{"steps": 40, "epochs": round(40 / 12, 2)},
        }
        assert {name: result[name] for name in expected} == expected
        assert result["versions"]["jax"] == jax.__version__
        assert result["wall_seconds"] > 0
        assert (network["seed"], network["steps"], network["prunes"]) == (0, 40, 1)
        assert network["kept"] == round(0.1 * (WEIGHTS + BIASES))
        assert network["sparsity"] == pytest.approx(0.9, abs=1e-5)
        kept = {layer["path"]: layer["kept"] for layer in network["layers"]}
        mask = finished.arrays(rundir.MASK)
        assert kept == {name: keep.sum() for name, keep in mask.items()}
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

    def test_the_best_parameters_are_saved(self, finished: Finished) -> None:
        check_best(finished, {})

    def test_digest_is_of_the_last_parameters_in_tree_order(
        self, finished: Finished
    ) -> None:
        params = finished.last_state().params
        sha = hashlib.sha256()
        for layer in ("Dense_0", "Dense_1", "Dense_2"):
            for name in ("bias", "kernel"):
                sha.update(np.asarray(params[layer][name], np.float32).tobytes())
        assert finished.network["params_sha256"] == sha.hexdigest()

    def test_pruned_entries_are_zero_after_training(self, finished: Finished) -> None:
        state, mask = finished.last_state(), finished.arrays(rundir.MASK)
        assert sum(int(keep.sum()) for keep in mask.values()) == 5061
        for params in (named(state.params), finished.arrays(rundir.PARAMS)):
            for name, param in params.items():
                np.testing.assert_array_equal(param != 0.0, mask[name])
        for name, keep in named(state.opt_state.mask).items():
            np.testing.assert_array_equal(mask[name], keep)

    def test_scores_are_kept_with_their_threshold(self, finished: Finished) -> None:
        drawn = io.load_arrays(
            finished.workdir / rundir.SCORES,
            {"scores": np.zeros(50_610, np.float32), "threshold": np.float32(0)},
        )
        assert np.sum(drawn["scores"] >= drawn["threshold"]) == 5061
        assert np.sum(drawn["scores"]) == pytest.approx(1.0, rel=1e-4)

    def test_the_command_is_kept(self, tmp_path: Path) -> None:
        result = experiment.run(quick(steps=0), tmp_path, command="python train.py")
        assert result["command"] == "python train.py"

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
        assert "5,061" in output
        assert f"{finished.network['test_error']:.2f}" in output

    def test_settings_that_vary_are_for_another_function(self, tmp_path: Path) -> None:
        config = quick(vary=("prune.sparsity=0.9,0.8",))
        with pytest.raises(ValueError, match=r"snipjax\.sweep\.run"):
            experiment.run(config, tmp_path)


def top(scores: dict[str, np.ndarray], kept: int) -> dict[str, np.ndarray]:
    """The mask of the largest scores by a stable sort, ties to the lower index."""
    flat = np.concatenate([leaf.ravel() for leaf in scores.values()])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:kept]] = True
    ends = np.cumsum([leaf.size for leaf in scores.values()])[:-1]
    parts = zip(scores.items(), np.split(mask, ends))
    return {name: part.reshape(leaf.shape) for (name, leaf), part in parts}


def sampled(run: Finished, part: str) -> dict[str, np.ndarray]:
    """The sample that is scored, or the fresh one that is trained."""
    setup = assembly.assemble(run.config)
    key = getattr(assembly.make_keys(0), f"{part}_init")
    names = {"scored": run.config.init.scored, "fresh": run.config.init.trained}
    return named(setup.init(key, names[part])["params"])


class TestPruning:
    """The mask against NumPy; zero steps, so that it is all there is."""

    def run(self, workdir: Path, **fields: Any) -> Finished:
        run = finished_run(quick(steps=0, **fields), workdir)
        assert run.result["steps"] == run.network["best_step"] == 0
        assert 50 < run.network["test_error"] <= 100  # evaluated all the same
        return run

    def test_snip_is_the_gradient_times_the_weight(self, tmp_path: Path) -> None:
        run = self.run(tmp_path)
        setup, mask = assembly.assemble(run.config), run.arrays(rundir.MASK)
        scored = nested(sampled(run, "scored"))
        batch = assembly.saliency_batch(setup, 0)

        def loss_fn(params: chex.ArrayTree) -> chex.Array:
            logits = setup.task.model.apply({"params": params}, batch.images)
            correct = jax.nn.log_softmax(logits)[jnp.arange(100), batch.labels]
            return -jnp.mean(correct)

        gradient = jax.grad(loss_fn)(scored)
        scores = named(jax.tree.map(lambda g, w: jnp.abs(g * w), gradient, scored))
        expected = top(scores, kept=5061)
        differing = sum(int((expected[name] != mask[name]).sum()) for name in mask)
        assert differing <= 4, "but for rounding at the threshold"
        assert not any(mask[f"Dense_{i}/bias"].any() for i in range(3))
        fresh = sampled(run, "fresh")
        for name, param in run.arrays(rundir.PARAMS).items():
            np.testing.assert_array_equal(param, np.where(mask[name], fresh[name], 0))

    def test_magnitude_without_a_fresh_sample(self, tmp_path: Path) -> None:
        run = self.run(
            tmp_path, method="magnitude", fresh_init=False, prunable="kernels"
        )
        mask, params = run.arrays(rundir.MASK), run.arrays(rundir.PARAMS)
        weights = {k: v for k, v in sampled(run, "scored").items() if "kernel" in k}
        magnitudes = {name: np.abs(value) for name, value in weights.items()}
        expected = top(magnitudes, kept=round(0.1 * WEIGHTS))
        for name, keep in expected.items():
            np.testing.assert_array_equal(mask[name], keep)
            np.testing.assert_array_equal(
                params[name], np.where(keep, weights[name], 0)
            )
        assert all(mask[f"Dense_{i}/bias"].shape == () for i in range(3))

    def test_random_layerwise(self, tmp_path: Path) -> None:
        run = self.run(tmp_path, method="random", select="layerwise")
        mask = run.arrays(rundir.MASK)
        for keep in mask.values():
            assert keep.sum() == round(keep.size * (1 - 0.9))
        # Of 64 binomial counts with mean 30 and deviation 5.2, none is 5 of those off.
        counts = mask["Dense_0/kernel"].sum(axis=1)
        assert np.all(np.abs(counts - 30) < 26)
        assert len(set(counts)) > 5

    def test_what_is_excluded_stays_dense_and_no_layer_falls_below_a_minimum(
        self, tmp_path: Path
    ) -> None:
        run = self.run(
            tmp_path,
            sparsity=0.995,
            prunable="kernels",
            exclude=("Dense_2/*",),
            min_density=0.0049,
        )
        mask = run.arrays(rundir.MASK)
        assert mask["Dense_2/kernel"].shape == ()
        first, second = (mask[f"Dense_{i}/kernel"].sum() for i in range(2))
        assert first >= 0.0049 * 64 * 300
        assert second >= 0.0049 * 300 * 100
        assert first + second == round(0.005 * (64 * 300 + 300 * 100))

    def test_none_keeps_everything(self, tmp_path: Path) -> None:
        run = self.run(tmp_path, method="none")
        assert all(keep.all() for keep in run.arrays(rundir.MASK).values())
        assert (run.network["sparsity"], run.network["prunes"]) == (0.0, 0)

    def test_the_scored_and_the_trained_sample_have_initializers_of_their_own(
        self, tmp_path: Path
    ) -> None:
        config = quick(steps=0)
        config.init.scored, config.init.trained = "he", "heuristic_uniform"
        run = finished_run(config, tmp_path / "he")
        # U[-1/8, 1/8] for 64 inputs; He's normal has 3 of 1000 beyond 0.53.
        kernel = run.arrays(rundir.PARAMS)["Dense_0/kernel"]
        assert 0.12 < np.abs(kernel).max() <= 0.125
        he = sampled(run, "scored")["Dense_0/kernel"]
        assert np.std(he) == pytest.approx(np.sqrt(2 / 64), rel=0.02)
        mask = run.arrays(rundir.MASK)
        other = self.run(tmp_path / "fan_in").arrays(rundir.MASK)
        assert any((mask[name] != other[name]).any() for name in mask)

    def test_rounds_over_several_batches(self, tmp_path: Path) -> None:
        run = self.run(tmp_path, rounds=2, num_batches=3, sparsity=0.97)
        assert run.network["kept"] == round(0.03 * (WEIGHTS + BIASES))
        assert run.network["prunes"] == 2

    def test_saliency_of_one_class(self) -> None:
        config = quick(batch_class=7)
        config.prune.batch_size = 50
        batch = assembly.saliency_batch(assembly.assemble(config), 0)
        assert batch.images.shape == (50, 8, 8, 1)
        assert np.all(np.asarray(batch.labels) == 7)

    def test_a_class_without_examples_is_refused(self) -> None:
        with pytest.raises(ValueError, match="classes of digits are 0 to 9"):
            assembly.assemble(quick(batch_class=10))

    def test_random_labels_have_nothing_to_do_with_the_images(self) -> None:
        config = quick()
        true = assembly.assemble(config).arrays
        config.dataset.random_labels = True
        random = assembly.assemble(config).arrays
        assert true is not None and random is not None
        labels, others = np.asarray(random.train.labels), np.asarray(true.train.labels)
        # 1,294 draws with probability 1/10 agree 129 times, with a deviation of 11.
        assert 80 < (labels == others).sum() < 180
        np.testing.assert_array_equal(random.train.images, true.train.images)
        np.testing.assert_array_equal(random.test.labels, true.test.labels)


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
    assert read_events(run.workdir).keys() == read_events(expected.workdir).keys()
    for name in (rundir.MASK, rundir.PARAMS):
        arrays = run.arrays(name)
        for path, leaf in expected.arrays(name).items():
            np.testing.assert_array_equal(arrays[path], leaf)


class TestResuming:
    @pytest.mark.parametrize(
        ("at", "number", "stopped"),
        [(20, signal.SIGINT, 20), (22, signal.SIGTERM, 24), (40, signal.SIGINT, 40)],
        ids=["at a checkpoint", "between evaluations", "at the end"],
    )
    def test_after_a_signal_leaves_no_trace(
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
        run = finished_run(finished.config, tmp_path)
        assert f"resuming from step {stopped}" in capsys.readouterr().out
        check_same(run, finished)

    def test_a_second_signal_stops_at_once(
        self, finished: Finished, signal_at: Callable[..., None], tmp_path: Path
    ) -> None:
        signal_at(30, signal.SIGINT, signal.SIGINT)
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(finished.config, tmp_path)
        assert signal.getsignal(signal.SIGINT) == handler
        signal_at(-1)
        check_same(finished_run(finished.config, tmp_path), finished)

    def test_a_signal_before_training_stops_though_its_exception_gets_lost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def report(*arguments: Any) -> None:
            with contextlib.suppress(KeyboardInterrupt):  # as a callback of JAX does
                os.kill(os.getpid(), signal.SIGTERM)
                signal.getsignal(signal.SIGTERM)

        monkeypatch.setattr(experiment, "report_pruning", report)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(quick(), tmp_path)
        assert rundir.read_metrics(tmp_path) == []

    @pytest.mark.parametrize("step", [10, 30])
    def test_after_a_power_failure_leaves_no_trace_and_prunes_nothing_again(
        self,
        step: int,
        finished: Finished,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        append = rundir.append_metrics

        def append_until_power_fails(workdir: Path, row: dict[str, Any]) -> None:
            append(workdir, row)
            if row["step"] == step:
                with (workdir / rundir.METRICS).open("a") as file:
                    file.write('{"step": 4')
                raise RuntimeError("power failure")

        monkeypatch.setattr(rundir, "append_metrics", append_until_power_fails)
        with pytest.raises(RuntimeError, match="power failure"):
            experiment.run(finished.config, tmp_path)
        monkeypatch.undo()
        monkeypatch.setattr(pruning, "score_and_mask", None)
        (tmp_path / "seed-0" / rundir.MASK).unlink()  # it is in the checkpoint too
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


def test_batch_norm_and_augmentation_leave_no_trace_of_an_interrupt(
    signal_at: Callable[..., None], tmp_path: Path
) -> None:
    config = quick(batch_norm="batch", flip=True, translate=1)
    config.model.name = f"{__name__}:Normalized"
    expected = finished_run(config, tmp_path / "uninterrupted")
    signal_at(22, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path / "interrupted")
    signal_at(-1)
    run = finished_run(config, tmp_path / "interrupted")
    check_same(run, expected)
    assert run.network["kept"] == round(0.1 * run.result["prunable"])
    # And a scale and a shift of each unit.
    assert run.result["parameters"] == run.result["prunable"] + 2 * 8
    first, second = (one.last_state().batch_stats for one in (run, expected))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    check_best(run, nested(run.arrays("batch_stats.npz")))


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
        assert rundir.read_metrics(tmp_path)[-1]["train_loss"] == [None]

    @pytest.mark.parametrize(
        ("section", "name", "value", "message"),
        [
            ("model", "name", "lenet", "unknown model 'lenet'"),
            ("model", "name", "vgg_d", "images are too small for this network"),
            ("dataset", "name", "dgits", "There is no dataset 'dgits'"),
            ("train", "batch_size", 2000, "only 1294 training examples"),
            ("prune", "batch_size", 2000, "only 1294 training examples"),
            ("prune", "sparsity", 1.0, "sparsity is 1.0"),
        ],
    )
    def test_a_mistake_does_not_take_the_directory(
        self, section: str, name: str, value: Any, message: str, tmp_path: Path
    ) -> None:
        config = quick(steps=0)
        config[section][name] = value
        with pytest.raises(ValueError, match=message):
            experiment.run(config, tmp_path, data_dir=str(tmp_path / "none"))
        with experiment.opened(quick(steps=0), tmp_path):
            pass

    def test_a_layer_without_connections_is_named(self, tmp_path: Path) -> None:
        with pytest.warns(UserWarning, match="no connection of 'Dense_0/kernel'"):
            result = experiment.run(quick(steps=2, sparsity=0.99999), tmp_path)
        assert result["summary"]["kept"] == 1


def test_runs_outside_of_the_main_thread(tmp_path: Path) -> None:
    results = []
    run = functools.partial(experiment.run, quick(steps=2), tmp_path)
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    thread.join()
    assert results[0]["steps"] == 2
