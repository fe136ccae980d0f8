"""Networks trained side by side are those that single runs train."""

import os
import signal
import statistics
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import config as configs
from snipjax import experiment, training
from snipjax.training import checkpoints, console, rundir, seeds

pytestmark = pytest.mark.usefixtures("compile_once")


def quick(**fields: Any) -> ConfigDict:
    """Three seeds, forty steps on the digits."""
    config = configs.default()
    config.seeds, config.seed = 3, 5
    config.train.update(
        steps=40, steps_per_dispatch=5, eval_every=10, checkpoint_every=10
    )
    config.update(fields)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    workdir = tmp_path_factory.mktemp("seeds") / "finished"
    return workdir, seeds.run(quick(), workdir, command="python train.py")


def test_each_is_the_network_of_a_single_run(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    workdir, result = finished
    assert [member["seed"] for member in result["members"]] == [5, 6, 7]
    config = quick(seeds=1, seed=6)
    alone = experiment.run(config, tmp_path)
    member = result["members"][1]
    for name in ("kept", "prunable", "sparsity", "layers", "steps", "method"):
        assert member[name] == alone[name]
    # Rounding may differ between the two programs: one of 359 digits is 0.28%.
    for name in ("test_error", "test_error_last"):
        assert member[name] == pytest.approx(alone[name], abs=0.6)
    masks = np.load(workdir / "seeds-5-7" / "masks.npz")
    mask = np.load(tmp_path / "mask.npz")
    for name in mask:
        differing = (masks[name][1] != mask[name]).sum()
        assert differing <= 2, "but for rounding at the threshold"


def test_summary_is_mean_and_sample_deviation(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    _, result = finished
    (summary,) = result["summary"]
    assert (summary["seeds"], summary["kept"]) == (3, 5061)
    for name in ("test_error", "test_error_last", "val_error"):
        values = [member[name] for member in result["members"]]
        assert summary[name] == pytest.approx(statistics.mean(values))
        assert summary[f"{name}_std"] == pytest.approx(statistics.stdev(values))


def test_result_is_written_and_only_shown_the_next_time(
    finished: tuple[Path, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workdir, result = finished
    assert rundir.read_json(workdir / "result.json") == result
    assert result["command"] == "python train.py"
    monkeypatch.setattr(experiment, "assemble", None)
    assert seeds.run(quick(), workdir) == result
    output = capsys.readouterr().out
    assert "finished before" in output
    assert f"{result['summary'][0]['test_error']:.2f}" in output


def test_metrics_are_means_with_every_member(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    rows = rundir.read_metrics(finished[0] / "seeds-5-7")
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    for row in rows:
        for name in ("train_loss", "val_error", "test_error"):
            values = [member[name] for member in row["members"]]
            assert row[name] == pytest.approx(statistics.mean(values), rel=1e-5)


def write_metrics(
    workdir: Path, groups: dict[str, list[tuple[int, list[float | None]]]]
) -> None:
    """Writes the losses that seeds had at steps, by the names of groups."""
    for name, lines in groups.items():
        (workdir / name).mkdir()
        for step, losses in lines:
            members = [{"step": step, "train_loss": loss} for loss in losses]
            line = {"step": step, "train_loss": None, "members": members}
            rundir.append_metrics(workdir / name, line)


def test_curves_are_means_over_the_seeds_of_all_groups(tmp_path: Path) -> None:
    write_metrics(
        tmp_path,
        {
            "seeds-8-9": [(7, [1.0, 2.0]), (14, [1.0, 1.5]), (20, [1.0, None])],
            "seeds-10-10": [(7, [6.0]), (20, [4.0])],
        },
    )
    assert seeds.mean_metrics(tmp_path) == [
        {"step": 7, "train_loss": 3.0},  # (1 + 2 + 6) / 3, not (1.5 + 6) / 2
        {"step": 20, "train_loss": None},
    ]


def test_picture_of_the_first_layer_is_the_mean_over_the_seeds_of_all_groups(
    tmp_path: Path,
) -> None:
    for name, counts in (("seeds-8-9", [1, 2]), ("seeds-10-10", [6])):
        (tmp_path / name).mkdir()
        stacked = np.reshape(counts, (-1, 1, 1)) * np.array([[1, 0], [0, 2]])
        np.save(tmp_path / name / "first_layer.npy", stacked)
    np.testing.assert_allclose(seeds.first_layer(tmp_path), [[3, 0], [0, 6]])


def test_in_groups_they_are_the_same_and_pictures_are_of_all(
    finished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = {}

    def draw(what: Callable[..., None], values: Any, path: Path) -> None:
        drawn[path.name] = values

    monkeypatch.setattr(experiment, "draw", draw)
    result = seeds.run(quick(seeds_at_once=2), tmp_path)
    assert {path.name for path in tmp_path.glob("seeds-*")} == {
        "seeds-5-6",
        "seeds-7-7",
    }
    assert rundir.groups(tmp_path) == [range(5, 7), range(7, 8)]
    digests = [member["params_sha256"] for member in result["members"]]
    assert digests == [member["params_sha256"] for member in finished[1]["members"]]
    at_the_end = [member["test_error_last"] for member in result["members"]]
    last = drawn["curves.png"][-1]["test_error"]
    assert last == pytest.approx(statistics.mean(at_the_end), rel=1e-5)
    mask = np.load(finished[0] / "seeds-5-7" / "masks.npz")["Dense_0/kernel"]
    kept = mask.sum(axis=2).mean(axis=0).reshape(8, 8)
    np.testing.assert_allclose(drawn["first_layer.png"], kept)


def test_spread_over_devices_they_are_the_same(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    program = """
import sys
sys.path.insert(0, "tests")
import jax
jax.config.update("jax_num_cpu_devices", 2)
from test_seeds import quick
from snipjax.training import seeds
result = seeds.run(quick(), sys.argv[1])
print(*(seeds.make_mesh(members).size for members in (1, 2, 3, 4)))
print(*(member["params_sha256"] for member in result["members"]))
"""
    workdir = finished[0].parent / "spread"
    command = [sys.executable, "-c", program, str(workdir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Two on two devices, then the one that is left over.
    assert {path.name for path in workdir.glob("seeds-*")} == {"seeds-5-6", "seeds-7-7"}
    digests = [member["params_sha256"] for member in finished[1]["members"]]
    *_, devices, spread = map(str.split, done.stdout.splitlines())
    assert spread == digests
    # Three seeds of a run that was started elsewhere cannot be halved.
    assert devices == ["1", "2", "1", "2"]


class Killed(BaseException):
    """Nothing catches it, like a kill."""


@pytest.mark.parametrize("lines", [1, 3, 5])
def test_killed_it_goes_on_to_the_same_parameters_where_more_fit(
    lines: int,
    finished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written, append = [], rundir.append_metrics

    def append_until_killed(workdir: Path, row: dict[str, Any]) -> None:
        append(workdir, row)
        written.append(row)
        if len(written) == lines:
            raise Killed

    monkeypatch.setattr(rundir, "append_metrics", append_until_killed)
    monkeypatch.setattr(seeds, "_that_fit", lambda parts: 2)
    with pytest.raises(Killed):
        seeds.run(quick(), tmp_path)
    monkeypatch.undo()  # which lets all three fit
    capsys.readouterr()
    result = seeds.run(quick(), tmp_path)
    is_trained_on = "seeds 5 to 6, at once" in capsys.readouterr().out
    assert is_trained_on == (lines <= 4), "unless all its lines had been written"
    directories = {path.name for path in tmp_path.glob("seeds-*")}
    assert directories == {"seeds-5-6", "seeds-7-7"}
    for name in directories:
        rows = rundir.read_metrics(tmp_path / name)
        assert [row["step"] for row in rows] == [10, 20, 30, 40]
    digests = [member["params_sha256"] for member in result["members"]]
    assert digests == [member["params_sha256"] for member in finished[1]["members"]]


class TestGroups:
    def groups(
        self, workdir: Path, monkeypatch: pytest.MonkeyPatch, fit: int, devices: int = 1
    ) -> list[list[int]]:
        """Of seeds 5 to 11, on a machine where so many fit."""
        monkeypatch.setattr(seeds, "_that_fit", lambda parts: fit)
        monkeypatch.setattr(jax, "local_device_count", lambda: devices)
        others = (None,) * (len(experiment.Parts._fields) - 3)
        parts = experiment.Parts(quick(seeds=7), *others)
        return [list(group) for group in seeds.groups(parts, workdir)]

    def test_are_of_as_many_as_fit_the_devices(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
        assert self.groups(tmp_path / "a", monkeypatch, fit=100, devices=2) == [
            [5, 6, 7, 8, 9, 10],
            [11],
        ]
        assert self.groups(tmp_path / "b", monkeypatch, fit=3, devices=8) == [
            [5, 6, 7],
            [8, 9, 10],
            [11],
        ]

    @pytest.mark.parametrize("of_device", [False, True])
    def test_are_of_as_many_states_as_a_tenth_of_the_memory_holds(
        self, of_device: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parts = experiment.assemble(quick(seeds=7))
        parameters = 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
        # With momentum and mask, four bytes each, and a few numbers more.
        state = 3 * 4 * parameters
        monkeypatch.setattr(jax, "local_device_count", lambda: 1)

        def sizes(name: str, memory: int) -> list[int]:
            (tmp_path / name).mkdir()
            host = memory if not of_device else 1
            stats = {"bytes_limit": memory} if of_device else None
            device = SimpleNamespace(memory_stats=lambda: stats)
            with monkeypatch.context() as machine:
                machine.setattr(jax, "devices", lambda: [device])
                sysconf = {"SC_PHYS_PAGES": host, "SC_PAGE_SIZE": 1}
                machine.setattr(os, "sysconf", sysconf.__getitem__)
                return [len(group) for group in seeds.groups(parts, tmp_path / name)]

        assert sizes("enough for three", 10 * 3 * (state + 100)) == [3, 3, 1]
        assert sizes("not quite", 10 * 3 * state) == [2, 2, 2, 1]
        assert sizes("not for one", state) == [1] * 7
        # Elsewhere than on a CPU, the mini-batches of 100 digits lie side by side too.
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        member = state + 100 * 64 * 4
        assert sizes("enough with batches", 10 * 3 * (member + 100)) == [3, 3, 1]
        assert sizes("not quite with them", 10 * 3 * member) == [2, 2, 2, 1]

    def test_stay_on_another_machine(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = self.groups(tmp_path, monkeypatch, fit=3)
        assert self.groups(tmp_path, monkeypatch, fit=100, devices=2) == before
        assert rundir.read_json(tmp_path / "groups.json") == [[5, 7], [8, 10], [11, 11]]

    def test_of_before_they_were_written_down_are_those_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "seeds-7-9").mkdir()
        assert self.groups(tmp_path, monkeypatch, fit=100) == [
            [5, 6],
            [7, 8, 9],
            [10, 11],
        ]

    def test_of_before_that_have_seeds_in_common_are_read_once(
        self, tmp_path: Path
    ) -> None:
        finished = ("seeds-8-9", "seeds-10-11")
        for name in (*finished, "seeds-8-11", "seeds-12-12", "seeds-of-mine"):
            (tmp_path / name).mkdir()
        for name in finished:
            rundir.write_json(tmp_path / name / "result.json", [])
        names = [path.name for path in rundir.group_directories(tmp_path)]
        assert names == [*finished, "seeds-12-12"]


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Interrupts this process when the progress bar comes to a step."""
    update = console.TrainingProgress.update

    def arrange(step: int) -> None:
        def update_and_signal(
            bar: console.TrainingProgress, at: int, *values: float
        ) -> None:
            update(bar, at, *values)
            if at == step:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(console.TrainingProgress, "update", update_and_signal)
        # Or the bar would come to a step only if the device was fast enough.
        monkeypatch.setattr(experiment, "is_ready", lambda metrics: True)

    return arrange


def coprime() -> ConfigDict:
    """Dispatches end at steps 2, 4, 5, 6, 7, 8, 10, 12."""
    config = quick(seeds=2)
    config.train.update(
        steps=12, steps_per_dispatch=2, eval_every=7, checkpoint_every=5
    )
    return config


class Uninterrupted(NamedTuple):
    """A run with evaluations and checkpoints of coprime periods."""

    workdir: Path
    result: dict[str, Any]
    saved: list[int]  # steps


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    workdir, saved, save = tmp_path_factory.mktemp("coprime"), [], checkpoints.save

    def noted(manager: Any, step: int, *rest: Any) -> None:
        saved.append(step)
        save(manager, step, *rest)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(checkpoints, "save", noted)
        return Uninterrupted(workdir, seeds.run(coprime(), workdir), saved)


class TestCheckpoints:
    def test_are_written_every_so_many_steps_wherever_evaluations_are(
        self, uninterrupted: Uninterrupted
    ) -> None:
        assert uninterrupted.saved == [0, 5, 10, 12]
        rows = rundir.read_metrics(uninterrupted.workdir / "seeds-5-6")
        assert [row["step"] for row in rows] == [7, 12]

    @pytest.mark.parametrize(("at", "stopped"), [(5, 6), (8, 10)])
    def test_an_interrupt_stops_at_the_next_dispatch_and_leaves_no_trace(
        self,
        at: int,
        stopped: int,
        uninterrupted: Uninterrupted,
        signal_at: Callable[[int], None],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        signal_at(at)
        with pytest.raises(KeyboardInterrupt):
            seeds.run(coprime(), tmp_path)
        assert f"stopped at step {stopped};" in capsys.readouterr().out
        assert (tmp_path / "seeds-5-6" / "checkpoints" / str(stopped)).is_dir()

        signal_at(-1)
        result = seeds.run(coprime(), tmp_path)
        assert f"resuming from step {stopped} " in capsys.readouterr().out
        workdir, expected, _ = uninterrupted
        for member, other in zip(result["members"], expected["members"], strict=True):
            assert {**member, "wall_seconds": 0} == {**other, "wall_seconds": 0}
        rows, expected_rows = (
            [{**row, "seconds": 0} for row in rundir.read_metrics(path / "seeds-5-6")]
            for path in (tmp_path, workdir)
        )
        assert rows == expected_rows

    def test_of_before_they_had_what_is_averaged_go_on(
        self,
        uninterrupted: Uninterrupted,
        signal_at: Callable[[int], None],
        tmp_path: Path,
    ) -> None:
        signal_at(6)  # it stops at step 7, where it evaluates
        with pytest.raises(KeyboardInterrupt):
            seeds.run(coprime(), tmp_path)
        signal_at(-1)
        checkpoint = tmp_path / "seeds-5-6" / "checkpoints" / "7"
        progress = rundir.read_json(checkpoint / "progress" / "metadata")
        assert progress.pop("recent") == []
        rundir.write_json(checkpoint / "progress" / "metadata", progress)
        result = seeds.run(coprime(), tmp_path)
        assert [member["params_sha256"] for member in result["members"]] == [
            member["params_sha256"] for member in uninterrupted.result["members"]
        ]

    def test_an_interrupt_too_late_for_the_run_stops_what_comes_after_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config, save = coprime(), checkpoints.save
        config.train.update(steps=2, eval_every=2)

        def save_and_interrupt(manager: Any, step: int, *rest: Any) -> None:
            save(manager, step, *rest)
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(checkpoints, "save", save_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            seeds.run(config, tmp_path)
        assert rundir.read_json(tmp_path / "result.json")["steps"] == 2


def test_loss_of_training_is_the_mean_over_steps_however_many_a_dispatch_has(
    uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    config = coprime()
    config.train.update(steps=7, eval_every=1)
    seeds.run(config, tmp_path)
    first, _ = rundir.read_metrics(uninterrupted.workdir / "seeds-5-6")
    steps = rundir.read_metrics(tmp_path / "seeds-5-6")
    assert [row["step"] for row in steps] == [*range(1, 8)]
    for member in range(2):
        losses = [row["members"][member]["train_loss"] for row in steps]
        actual = first["members"][member]["train_loss"]
        assert actual == pytest.approx(statistics.mean(losses), rel=1e-5)


def test_of_checkpoints_with_equal_errors_the_last_is_the_best(tmp_path: Path) -> None:
    config = coprime()
    config.train.update(steps=3, eval_every=1, learning_rate=1e-30)
    result = seeds.run(config, tmp_path)
    rows = rundir.read_metrics(tmp_path / "seeds-5-6")
    for index, member in enumerate(result["members"]):
        assert len({row["members"][index]["val_error"] for row in rows}) == 1
        assert member["best_step"] == 3


def test_time_is_shared_among_the_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, prune = 0.0, seeds.prune

    def prune_for_a_minute(*args: Any) -> experiment.Pruned:
        nonlocal now
        now += 60.0
        return prune(*args)

    monkeypatch.setattr(seeds, "prune", prune_for_a_minute)
    monkeypatch.setattr(seeds, "time", SimpleNamespace(monotonic=lambda: now))
    config = coprime()
    config.train.steps = 0
    result = seeds.run(config, tmp_path)
    assert [member["wall_seconds"] for member in result["members"]] == [30.0, 30.0]
    assert result["wall_seconds"] == 60.0


def test_one_mini_batch_for_saliency_is_in_memory_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saliency_batch, images = experiment.saliency_batch, []

    def noted(parts: experiment.Parts) -> training.Batch:
        assert [made for made in images if made() is not None] == []
        batch = saliency_batch(parts)
        images.append(weakref.ref(batch.images))
        return batch

    monkeypatch.setattr(experiment, "saliency_batch", noted)
    pruned = seeds.prune(experiment.assemble(quick()), np.array([5, 6, 7]))
    assert len(images) == len(pruned.mask["Dense_0"]["kernel"]) == 3


def test_pruned_under_vmap_as_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts, of_two = experiment.assemble(quick()), np.array([5, 6])
    expected = seeds.prune(parts, of_two)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    actual = seeds.prune(parts, of_two)
    chex.assert_trees_all_equal(actual.mask, expected.mask)
    chex.assert_trees_all_close(actual.scores, expected.scores, rtol=1e-4, atol=1e-9)


def test_under_vmap_as_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = training.TrainState(
        jnp.int32(3), {"w": jnp.arange(6.0).reshape(3, 2)}, {}, (), jnp.arange(3)
    )

    def total(state: training.TrainState, factor: chex.Array) -> chex.Array:
        return factor * (state.step + jnp.sum(state.params["w"]) + state.key)

    expected = [
        2 * (3 + row.sum() + n) for n, row in enumerate(np.arange(6).reshape(3, 2))
    ]
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        actual = seeds.over_members(total, stacked, jnp.float32(2))
        np.testing.assert_allclose(actual, expected)


def test_a_saliency_that_is_not_finite_is_said(tmp_path: Path) -> None:
    config = quick()
    parts = experiment.assemble(config)
    parts = parts._replace(preprocess=lambda images: images * jnp.inf)
    with pytest.raises(ValueError, match=r"saliency is not finite in .* of seed"):
        seeds.prune(parts, np.array([5, 6]))


def count(caught: pytest.WarningsRecorder, message: str) -> int:
    return sum(message in str(warning.message) for warning in caught)


def test_a_layer_without_connections_is_named_for_every_seed(tmp_path: Path) -> None:
    config = quick(seeds=2)
    config.train.steps = 0
    config.prune.update(method="magnitude", sparsity=0.98)
    message = "no connection of 'Dense_2/kernel' is kept"
    with pytest.warns(UserWarning, match=message) as caught:
        seeds.run(config, tmp_path)
    assert count(caught, message) == 2
    # And nothing was trained that had a curve.
    assert {path.name for path in tmp_path.glob("*.png")} == {"first_layer.png"}


def test_a_loss_that_is_not_finite_is_said_for_every_seed(tmp_path: Path) -> None:
    config = quick(seeds=2)
    config.train.learning_rate = 1e6
    message = "the loss is not finite at step"
    with pytest.warns(UserWarning, match=message) as caught:
        seeds.run(config, tmp_path)
    assert count(caught, message) == 2


def test_settings_that_vary_are_for_another_function(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"snipjax\.sweep\.run"):
        seeds.run(quick(vary=("prune.sparsity=0.9,0.8",)), tmp_path)
