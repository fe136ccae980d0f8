"""Networks trained side by side are the networks of single runs."""

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import assembly, experiment
from snipjax.training import TrainState, loop, rundir, side_by_side
from snipjax.training.side_by_side import groups
from tests.runs import Finished, finished_run, quick

pytestmark = pytest.mark.usefixtures("compile_once")


def three_seeds(**fields: Any) -> ConfigDict:
    """Twenty steps of three seeds."""
    return quick(
        **{"seeds": 3, "seed": 5, "steps": 20, "checkpoint_every": 10, **fields}
    )


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(three_seeds(), tmp_path_factory.mktemp("runs") / "three")


class TestRun:
    def test_each_is_the_network_of_a_single_run(
        self, three: Finished, tmp_path: Path
    ) -> None:
        assert [entry["seed"] for entry in three.result["networks"]] == [5, 6, 7]
        alone = finished_run(three_seeds(seeds=1, seed=6), tmp_path)
        for name in ("kept", "sparsity", "layers", "steps"):
            ours, theirs = three.result["networks"][1], alone.result["networks"][0]
            assert ours[name] == theirs[name]
        for name, mask in alone.mask(6).items():
            differing = (three.mask(6)[name] != mask).sum()
            assert differing <= 2, "but for rounding at the threshold"
        for row, of_one in zip(three.metrics, alone.metrics, strict=True):
            assert of_one["seeds"] == [6]
            # Rounding may differ between the programs: one of 359 digits is 0.28%.
            for name in ("val_error", "test_error"):
                assert row[name][1] == pytest.approx(of_one[name][0], abs=0.6)

    def test_each_has_its_own_rows_and_best(self, three: Finished) -> None:
        assert [row["step"] for row in three.metrics] == [10, 20]
        for row in three.metrics:
            assert (row["seeds"], row["phase"]) == ([5, 6, 7], "train")
            assert len(row["train_loss"]) == len(set(row["val_loss"])) == 3
        for index, entry in enumerate(three.result["networks"]):
            rows = [
                {k: v[index] if isinstance(v, list) else v for k, v in row.items()}
                for row in three.metrics
            ]
            best = min(reversed(rows), key=lambda row: row["val_error"])
            assert entry["best_step"] == best["step"]
            assert entry["test_error"] == best["test_error"]
            assert entry["test_error_last"] == rows[-1]["test_error"]
            assert entry["train_error"] == rows[-1]["train_error"]

    def test_summary_is_mean_and_sample_deviation(self, three: Finished) -> None:
        summary, networks = three.result["summary"], three.result["networks"]
        assert (summary["seeds"], summary["kept"]) == (3, 5061)
        for name in ("test_error", "test_error_last", "val_error"):
            values = [entry[name] for entry in networks]
            assert summary[name] == pytest.approx(statistics.mean(values))
            assert summary[f"{name}_std"] == pytest.approx(statistics.stdev(values))

    @pytest.mark.slow
    def test_spread_over_devices_they_are_the_same(self, three: Finished) -> None:
        program = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 2)
from snipjax import experiment
from snipjax.training.side_by_side import network_mesh
from tests.training.test_side_by_side import three_seeds
networks = experiment.run(three_seeds(seeds=2), sys.argv[1])["networks"]
print(*(network_mesh(networks).size for networks in (1, 2, 3, 4)))
print(*(entry["params_sha256"] for entry in networks))
"""
        workdir = three.workdir.parent / "spread"
        root, command = Path(__file__).parents[2], [sys.executable, "-c", program]
        finished = subprocess.run(
            [*command, workdir], capture_output=True, text=True, check=True, cwd=root
        )
        *_, devices, digests = map(str.split, finished.stdout.splitlines())
        assert digests == three.digests[:2]
        # Three seeds of a run that was started elsewhere cannot be halved.
        assert devices == ["1", "2", "1", "2"]

    @pytest.mark.slow
    def test_killed_it_goes_on_in_its_groups_to_the_same_parameters(
        self, three: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Killed(BaseException):
            """Nothing catches it, like a kill."""

        append = rundir.append_metrics

        def append_until_killed(workdir: Path, row: dict[str, Any]) -> None:
            append(workdir, row)
            if row["seeds"] == [6]:
                raise Killed

        monkeypatch.setattr(rundir, "append_metrics", append_until_killed)
        monkeypatch.setattr(experiment, "groups", lambda *_: [(5, 5), (6, 6), (7, 7)])
        with pytest.raises(Killed):
            experiment.run(three_seeds(), tmp_path)
        monkeypatch.undo()  # now all three fit
        run = finished_run(three_seeds(), tmp_path)
        assert run.digests == three.digests
        assert [(row["seeds"], row["step"]) for row in run.metrics] == [
            ([seed], step) for seed in (5, 6, 7) for step in (10, 20)
        ]
        for name in ("val_loss", "test_error"):
            values = [row[name][0] for row in run.metrics]
            pairs = [list(pair) for pair in zip(values[::2], values[1::2])]
            assert pairs == np.transpose([row[name] for row in three.metrics]).tolist()

    def test_time_is_shared(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now, ticks = [0.0], itertools.count(step=1e-6)
        clock = SimpleNamespace(monotonic=lambda: now[0] + next(ticks))
        monkeypatch.setattr(experiment, "time", clock)
        monkeypatch.setattr(loop, "time", clock)

        def take_a_minute(seed: int, batch: Any) -> Any:
            now[0] += 60.0
            return batch

        change_batches(monkeypatch, take_a_minute)
        result = experiment.run(three_seeds(steps=0), tmp_path)
        # Of three batches, one for each.
        assert [entry["seconds"] for entry in result["networks"]] == [60.0] * 3
        assert result["wall_seconds"] == 180.0

    def test_warnings_are_of_every_network_and_files_stay_json(
        self, tmp_path: Path
    ) -> None:
        config = three_seeds(method="magnitude", sparsity=0.98, learning_rate=1e6)
        with pytest.warns(UserWarning) as caught:
            experiment.run(config, tmp_path)
        for message in (
            "no connection of 'Dense_2/kernel' is kept",
            "the loss of seed [567] is not finite at step",
        ):
            said = [re.search(message, str(warning.message)) for warning in caught]
            assert sum(map(bool, said)) == 3  # and not once more at a later step

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        lines = (tmp_path / rundir.METRICS).read_text().splitlines()
        for text in ((tmp_path / rundir.RESULT).read_text(), *lines):
            json.loads(text, parse_constant=refuse)
        assert rundir.read_metrics(tmp_path)[-1]["train_loss"] == [None] * 3

    def test_a_saliency_that_is_not_finite_is_told_with_its_seed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def spoil(seed: Any, batch: Any) -> Any:
            return batch._replace(images=jnp.where(seed == 6, jnp.inf, batch.images))

        change_batches(monkeypatch, spoil)
        with pytest.raises(ValueError, match=r"saliency is not finite in .* \[6\]"):
            experiment.run(three_seeds(), tmp_path)


def change_batches(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Has experiments score connections on ``change(seed, batch)``."""
    algorithm = assembly.algorithm

    def changed(setup: assembly.Setup) -> Any:
        *functions, batch = algorithm(setup)
        return *functions, lambda seed: change(seed, batch(seed))

    monkeypatch.setattr(assembly, "algorithm", changed)


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the machine some devices with a memory, or some memory beside them."""

    def arrange(*, devices: int = 1, host: int = 1, device: int | None = None) -> None:
        stats = None if device is None else {"bytes_limit": device}
        fake = SimpleNamespace(memory_stats=lambda: stats)
        monkeypatch.setattr(jax, "local_device_count", lambda: devices)
        monkeypatch.setattr(jax, "local_devices", lambda: [fake])
        sysconf = {"SC_PHYS_PAGES": host, "SC_PAGE_SIZE": 1}
        monkeypatch.setattr(os, "sysconf", sysconf.__getitem__)

    return arrange


class TestGroups:
    STATE = jax.ShapeDtypeStruct((1000,), "float32")
    BATCH = jax.ShapeDtypeStruct((500,), "float32")

    def sizes(self, at_once: int = 0) -> list[int]:
        fit = side_by_side.number_that_fits(self.STATE, self.BATCH)
        spans = groups(range(5, 12), at_once or fit)
        seeds = [seed for first, last in spans for seed in range(first, last + 1)]
        assert seeds == [*range(5, 12)]
        return [last - first + 1 for first, last in spans]

    def test_are_of_as_many_as_asked_for_or_fill_the_devices(
        self, on_machine: Any
    ) -> None:
        on_machine()
        assert self.sizes(at_once=4) == [4, 3]
        on_machine(devices=2, host=10**9)
        assert self.sizes() == [6, 1]
        on_machine(devices=8, host=10 * 3 * 4000)
        assert self.sizes() == [3, 3, 1]

    @pytest.mark.parametrize("memory", ["host", "device"])
    def test_are_of_as_many_states_as_a_tenth_of_the_memory_holds(
        self, memory: str, on_machine: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for backend, state in (("cpu", 4000), ("gpu", 6000)):
            # Elsewhere than on a CPU, mini-batches lie side by side too.
            monkeypatch.setattr(jax, "default_backend", lambda: backend)  # noqa: B023
            for size, expected in (
                (10 * 3 * state, [3, 3, 1]),
                (10 * 3 * state - 1, [2, 2, 2, 1]),
                (state, [1] * 7),  # not even one
            ):
                on_machine(**{memory: size})
                assert self.sizes() == expected

    def test_of_an_experiment_are_by_the_state_of_a_network(
        self, on_machine: Any
    ) -> None:
        state = assembly.abstract_state(assembly.assemble(three_seeds()))
        size = sum(4 * leaf.size for leaf in jax.tree.leaves(state))
        # Parameters, momentum and mask, and a few numbers more.
        assert 3 * 4 * 50_610 <= size < 3 * 4 * 50_610 + 100


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
class TestOneAfterTheOtherOrUnderVmap:
    """On a CPU, and elsewhere."""

    @pytest.fixture(autouse=True)
    def on_backend(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jax, "default_backend", lambda: backend)

    @pytest.mark.parametrize("number", [1, 3])
    def test_functions_of_a_state(self, number: int) -> None:
        w = np.arange(2.0 * number).reshape(number, 2)
        state = TrainState(
            jnp.int32(3), {"w": jnp.array(w)}, {}, (), jnp.arange(number)
        )

        def total(state: TrainState, factor: chex.Array) -> chex.Array:
            return factor * (state.step + jnp.sum(state.params["w"]) + state.key)

        actual = side_by_side.over_networks(total, state, jnp.float32(2))
        expected = [2 * (3 + row.sum() + n) for n, row in enumerate(w)]
        np.testing.assert_allclose(actual, expected)

    @pytest.mark.parametrize("seeds", [range(5, 6), range(5, 8)])
    def test_functions_of_a_seed(self, seeds: range) -> None:
        actual = side_by_side.for_each_seed(
            seeds,
            lambda seed, batch: batch.sum() - seed,
            lambda seed: seed * jnp.ones(3),
        )
        np.testing.assert_array_equal(actual, [2 * seed for seed in seeds])

    @pytest.mark.slow
    def test_pruning(self, backend: str, three: Finished) -> None:
        setup = assembly.assemble(three_seeds())
        score, _, batch = assembly.algorithm(setup)
        _, mask = setup.placement(range(5, 8)).score(score, batch)
        for index, seed in enumerate((5, 6, 7)):
            for name, keep in three.mask(seed).items():
                layer, kind = name.split("/")
                differing = keep != mask[layer][kind][index]
                assert differing.sum() <= (2 if backend == "gpu" else 0)


def test_one_mini_batch_is_in_memory_at_a_time() -> None:
    made: list[Any] = []

    def batch(seed: chex.Array) -> chex.Array:
        assert [images for images in made if images() is not None] == []
        images = seed * jnp.ones(3)
        made.append(weakref.ref(images))
        return images

    side_by_side.for_each_seed(range(3), lambda seed, images: images.sum(), batch)
    assert len(made) == 3


def test_the_better_are_chosen_network_by_network() -> None:
    new = {"w": jnp.ones((3, 2)), "n": jnp.ones(3)}
    old = jax.tree.map(jnp.zeros_like, new)
    chosen = side_by_side.choose(np.array([True, False, True]), new, old)
    np.testing.assert_array_equal(chosen["n"], [1, 0, 1])
    np.testing.assert_array_equal(chosen["w"], [[1, 1], [0, 0], [1, 1]])
