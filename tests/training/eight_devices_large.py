"""Experiments of :mod:`snipjax.training.large` on eight devices (test_large.py)."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import config as configs
from snipjax.training import checkpoints, large, rundir, sharding

TIMINGS = {"seconds", "steps_per_second"}

pytestmark = pytest.mark.usefixtures("compile_once")


def quick(mesh: str, **fields: Any) -> ConfigDict:
    """Six steps on the digits, in three checkpoints; fields by their last name."""
    config = configs.default()
    config.mesh = mesh
    config.prune.batch_size = 104
    config.train.update(
        steps=6, batch_size=104, eval_every=2, checkpoint_every=2, steps_per_dispatch=1
    )
    for name, value in fields.items():
        section = next(s for s in (config.train, config.prune) if name in s)
        section[name] = value
    return config


class Finished(NamedTuple):
    config: ConfigDict
    workdir: Path
    result: dict[str, Any]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        rows = rundir.read_metrics(self.workdir)
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]

    @property
    def mask(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.workdir / "mask.npz"))


def finished(config: ConfigDict, workdir: Path) -> Finished:
    return Finished(config, workdir, large.run(config, workdir))


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(quick("data=4,model=2"), tmp_path_factory.mktemp("runs") / "eight")


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(quick("data=1"), tmp_path_factory.mktemp("runs") / "one")


def interrupted(run: Finished, workdir: Path, step: int) -> Path:
    """A copy of the run as it was when it had written that checkpoint."""
    shutil.copytree(run.workdir, workdir)
    (workdir / rundir.RESULT).unlink()
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    return workdir


def test_is_the_experiment_of_one_device(on_eight: Finished, on_one: Finished) -> None:
    assert on_eight.result["mesh"] == {"data": 4, "model": 2}
    assert on_one.result["mesh"] == {"data": 1, "model": 1}
    assert on_eight.result["processes"] == 1
    assert on_eight.result.keys() == on_one.result.keys()
    kept = {name: int(mask.sum()) for name, mask in on_one.mask.items()}
    assert sum(kept.values()) == on_one.result["kept"] == 5061  # a tenth of 50,610
    for name, mask in on_eight.mask.items():
        np.testing.assert_array_equal(mask, on_one.mask[name])
    for ours, theirs in zip(on_eight.metrics, on_one.metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_goes_on_bit_for_bit_on_the_same_mesh(
    on_eight: Finished, tmp_path: Path
) -> None:
    again = large.run(on_eight.config, interrupted(on_eight, tmp_path / "run", step=4))
    assert again["params_sha256"] == on_eight.result["params_sha256"]


def test_goes_on_on_another_mesh(on_eight: Finished, tmp_path: Path) -> None:
    workdir = interrupted(on_eight, tmp_path / "run", step=4)
    other = finished(quick("data=2,model=4"), workdir)
    assert rundir.read_json(workdir / rundir.CONFIG)["mesh"] == "data=2,model=4"
    for ours, theirs in zip(other.metrics, on_eight.metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_streams_may_have_workers_and_views(tmp_path: Path) -> None:
    runs = []
    for mesh, workers in (("data=8", 0), ("model=2", 1)):
        config = quick(mesh, steps=2)
        config.dataset.name = "synthetic:256x8x8x1/4"
        config.dataset.update(
            stream=True, view="translate_flip", image_size=12, workers=workers
        )
        runs.append(finished(config, tmp_path / mesh))
    # Gradients differ by rounding, and so may the order of the two at the threshold.
    differences = [
        int((mask != runs[1].mask[name]).sum()) for name, mask in runs[0].mask.items()
    ]
    assert sum(differences) <= 4
    assert runs[0].result["kept"] == runs[1].result["kept"] == 7400
    assert runs[0].mask["Dense_0/kernel"].shape == (12 * 12, 300)
    assert runs[0].metrics[0] == pytest.approx(runs[1].metrics[0], rel=1e-3)


def test_checkpoint_is_restored_split(on_eight: Finished) -> None:
    plan = large.assemble(on_eight.config)
    with checkpoints.open_directory(on_eight.workdir / "checkpoints") as manager:
        state, _ = checkpoints.restore_latest(manager, large.abstract_state(plan))
    kernel = state.params["Dense_1"]["kernel"]  # 300 x 100
    mask = state.opt_state.mask["Dense_1"]["kernel"]
    for leaf in (kernel, mask):
        assert {x.data.shape for x in leaf.addressable_shards} == {(150, 100)}
    assert float(jax.numpy.abs(jax.numpy.where(mask, 0, kernel)).max()) == 0.0


def test_no_program_gathers_more_than_a_leaf(on_eight: Finished) -> None:
    plan = large.assemble(on_eight.config)
    parameters = on_eight.result["parameters"]
    largest = max(layer["total"] for layer in on_eight.result["layers"])
    programs = (
        large.compiled_addition(plan),
        large.compiled_selection(plan),
        large.compiled_initial_state(plan),
        large.compiled_train_step(plan),
        large.compiled_evaluate(plan),
    )
    for program in programs:
        gathered = [
            int(np.prod(one.shape))
            for one in sharding.collectives(program)
            if one.kind == "all-gather"
        ]
        assert max(gathered, default=0) <= largest < parameters


def vit(mesh: str, depth: int) -> large.Plan:
    """A ViT-Ti of so many blocks on 8 images of 32x32: few activations."""
    config = configs.default()
    config.mesh = mesh
    config.dataset.update(name="synthetic:64x32x32x3/10", stream=True)
    config.model.name = "vit_ti_16"
    config.train.batch_size = config.prune.batch_size = 8
    plan = large.assemble(config)
    model = plan.parts.model.clone(depth=depth)
    return plan._replace(parts=plan.parts._replace(model=model))


def check_temporaries(plan: large.Plan, most: float, *programs: Any) -> None:
    """Of the bytes of all parameters, each program has at most so many beside them."""
    leaves = jax.tree.leaves(large.abstract_state(plan).params)
    whole = 4 * sum(leaf.size for leaf in leaves)
    for program in programs:
        assert program.memory_analysis().temp_size_in_bytes < most * whole


def test_no_step_has_all_parameters_on_one_device() -> None:
    plan = vit("model=8", depth=2)
    # Two of the largest leaf, a seventh of all, and an eighth of the gradients.
    programs = large.compiled_train_step(plan), large.compiled_evaluate(plan)
    check_temporaries(plan, 2 / 7 + 1 / 8 + 0.05, *programs)


@pytest.mark.slow
def test_pruning_does_not_have_all_parameters_on_one_device() -> None:
    plan = vit("model=8", depth=4)
    # Of any number of batches and rounds: these are its programs.
    plan.config.prune.update(num_batches=2, rounds=2)
    # Two of the largest leaf, a thirteenth of all, and an eighth of the gradients.
    programs = large.compiled_addition(plan), large.compiled_selection(plan, done=2)
    check_temporaries(plan, 2 / 13 + 1 / 8 + 0.05, *programs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{"num_batches": 2}, {"rounds": 2}, {"method": "random"}, {"remat": True}]
)
def test_choices_of_a_configuration(fields: dict[str, Any], tmp_path: Path) -> None:
    runs = [
        finished(quick(mesh, steps=2, **fields), tmp_path / mesh)
        for mesh in ("data=2,model=4", "data=1")
    ]
    for name, mask in runs[0].mask.items():
        np.testing.assert_array_equal(mask, runs[1].mask[name])
    assert runs[0].metrics[0] == pytest.approx(runs[1].metrics[0], rel=1e-4)
