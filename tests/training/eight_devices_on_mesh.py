"""Experiments on a mesh of eight devices (test_on_mesh.py)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks.collectives import collectives
from snipjax import assembly
from tests import runs, test_own_criterion
from tests.runs import Finished, finished_run, interrupted
from tests.training import mesh_programs

pytestmark = pytest.mark.usefixtures("compile_once")


def on_mesh(mesh: str, **fields: Any) -> ConfigDict:
    """Six steps, in three checkpoints."""
    steps = {"steps": 6, "eval_every": 2, "checkpoint_every": 2}
    config = runs.quick(**{"mesh": mesh, "steps_per_dispatch": 1, **steps, **fields})
    config.prune.batch_size = config.train.batch_size = 104
    return config


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(
        on_mesh("data=4,model=2"), tmp_path_factory.mktemp("runs") / "eight"
    )


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(on_mesh("data=1"), tmp_path_factory.mktemp("runs") / "one")


def check_close(ours: Finished, theirs: Finished) -> None:
    for row, expected in zip(ours.metrics, theirs.metrics, strict=True):
        for name, value in expected.items():
            close = value if name == "phase" else pytest.approx(value, rel=1e-4)
            assert row[name] == close


def test_is_the_experiment_of_one_device(on_eight: Finished, on_one: Finished) -> None:
    assert on_eight.result["mesh"] == {"data": 4, "model": 2}
    assert on_one.result["mesh"] == {"data": 1, "model": 1}
    assert on_eight.result["processes"] == 1
    assert on_eight.result.keys() == on_one.result.keys()
    assert on_one.network["kept"] == 5061  # a tenth of 50,610
    for name, mask in on_eight.mask().items():
        np.testing.assert_array_equal(mask, on_one.mask()[name])
    check_close(on_eight, on_one)
    for name, param in on_eight.params().items():
        best = on_one.params()[name]
        np.testing.assert_allclose(param, best, rtol=1e-2, atol=1e-4)


def test_goes_on_bit_for_bit(on_eight: Finished, tmp_path: Path) -> None:
    workdir = interrupted(on_eight.workdir, tmp_path / "run", step=4)
    again = finished_run(on_eight.config, workdir)
    check_close(again, on_eight)
    assert again.digests == on_eight.digests
    for name, param in again.params().items():
        np.testing.assert_array_equal(param, on_eight.params()[name])


def test_a_criterion_of_ones_own_runs_by_name(tmp_path: Path) -> None:
    config = test_own_criterion.own(mesh="data=4,model=2")
    test_own_criterion.check(config, tmp_path)


@pytest.mark.slow
def test_streams_may_have_workers_and_views(tmp_path: Path) -> None:
    both = []
    for mesh, workers in (("data=8", 0), ("model=2", 1)):
        config = on_mesh(mesh, steps=2)
        config.dataset.name = "synthetic:256x8x8x1/4"
        config.dataset.update(
            stream=True, view="translate_flip", image_size=12, workers=workers
        )
        both.append(finished_run(config, tmp_path / mesh))
    first, second = (run.mask() for run in both)
    # Gradients differ by rounding, and so may the order of the two at the threshold.
    assert sum(int((mask != second[name]).sum()) for name, mask in first.items()) <= 4
    assert both[0].network["kept"] == both[1].network["kept"] == 7400
    assert first["Dense_0/kernel"].shape == (12 * 12, 300)
    assert both[0].metrics[0]["train_loss"] == pytest.approx(
        both[1].metrics[0]["train_loss"], rel=1e-3
    )


def test_checkpoint_is_restored_split_over_any_mesh(on_eight: Finished) -> None:
    for model in (2, 4):
        mesh = f"data={8 // model},model={model}"
        state = on_eight._replace(config=on_mesh(mesh)).last_state()
        kernel = state.params["Dense_1"]["kernel"]  # 300 x 100
        mask = state.opt_state.mask["Dense_1"]["kernel"]
        for leaf in (kernel, mask):
            parts = {x.data.shape for x in leaf.addressable_shards}
            assert parts == {(300 // model, 100)}
        np.testing.assert_array_equal(mask, on_eight.mask()["Dense_1/kernel"])
        assert float(jnp.abs(jnp.where(mask, 0, kernel)).max()) == 0.0


def test_no_program_gathers_more_than_a_leaf(
    on_eight: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = assembly.assemble(on_eight.config)
    recorder = mesh_programs.Recorder(monkeypatch)
    recorder.prune(setup)
    assert len(recorder.programs) == 2  # scores, and the state before the first step
    monkeypatch.undo()
    programs = [
        *recorder.programs,
        mesh_programs.train_step(setup),
        mesh_programs.evaluation(setup),
    ]
    largest = max(layer["total"] for layer in on_eight.network["layers"])
    for program in programs:
        gathered = [
            int(np.prod(one.shape))
            for one in collectives(program)
            if one.kind == "all-gather"
        ]
        assert max(gathered, default=0) <= largest < on_eight.result["parameters"]


def check_temporaries(setup: assembly.Setup, *programs: Any) -> None:
    """Beside what it is given, a program holds few of the parameters at a time."""
    leaves = jax.tree.leaves(assembly.abstract_state(setup).params)
    whole = 4 * sum(leaf.size for leaf in leaves)
    for program in programs:
        # Two of the largest leaf, a seventh of all, and an eighth of the gradients.
        most = 2 / 7 + 1 / 8 + 0.05
        assert program.memory_analysis().temp_size_in_bytes < most * whole


@pytest.mark.slow
def test_no_step_has_all_parameters_on_one_device() -> None:
    setup = mesh_programs.of_two_blocks("model=8")
    programs = mesh_programs.train_step(setup), mesh_programs.evaluation(setup)
    check_temporaries(setup, *programs)


@pytest.mark.slow
@pytest.mark.parametrize("num_batches", [1, 2])
def test_pruning_does_not_have_all_parameters_on_one_device(
    num_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of any number of batches and rounds: these are its programs.
    setup = mesh_programs.of_two_blocks("model=8", num_batches=num_batches, rounds=2)
    recorder = mesh_programs.Recorder(monkeypatch)
    recorder.prune(setup)
    check_temporaries(setup, *recorder.programs)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"method": "random"}, {"remat": True}])
def test_choices_of_a_configuration(fields: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = (
        finished_run(on_mesh(mesh, steps=2, **fields), tmp_path / mesh)
        for mesh in ("data=2,model=4", "data=1")
    )
    for name, mask in ours.mask().items():
        np.testing.assert_array_equal(mask, theirs.mask()[name])
    check_close(ours, theirs)
