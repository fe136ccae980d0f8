"""Runs whose networks have only the units of the largest scores."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from snipjax import assembly, experiment, smaller
from snipjax import config as configs
from tests.runs import Finished, finished_run, interrupted, quick

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    config = quick(select="units", keep_flops=0.4, steps=4, eval_every=2)
    return finished_run(config, tmp_path_factory.mktemp("runs") / "finished")


def test_the_network_is_smaller_within_the_budget(finished: Finished) -> None:
    params = finished.params()
    first, second = (params[f"Dense_{i}/kernel"].shape[1] for i in range(2))
    whole, share = 64 * 300 + 300 * 100 + 100 * 10, 0.4
    operations = 64 * first + first * second + second * 10
    assert share * whole - 64 - second < operations <= share * whole
    network = finished.network
    assert network["units"] == {
        "Dense_0/kernel": [first, 300],
        "Dense_1/kernel": [second, 100],
    }
    assert network["kept"] == sum(leaf.size for leaf in params.values())
    assert network["sparsity"] == pytest.approx(1 - network["kept"] / (whole + 410))
    assert {*network["step_seconds"]} == {"dense", "smaller"}


def test_the_mask_of_the_whole_network_is_written(finished: Finished) -> None:
    mask = finished.arrays(smaller.UNITS)
    kept = mask["params/Dense_0/kernel"].any(axis=0)
    assert kept.sum() == finished.params()["Dense_0/kernel"].shape[1]
    np.testing.assert_array_equal(kept, mask["params/Dense_1/kernel"].any(axis=1))


@pytest.mark.slow
def test_an_interrupted_run_ends_the_same(finished: Finished, tmp_path: Path) -> None:
    workdir = interrupted(finished.workdir, tmp_path / "copy", 20)
    result = experiment.run(finished.config, workdir)
    assert result["networks"][0]["params_sha256"] == finished.digests[0]


@pytest.mark.slow
def test_each_seed_has_units_of_its_own(tmp_path: Path) -> None:
    config = quick(select="units", seeds=2, steps=4, method="random")
    result = experiment.run(config, tmp_path)
    first, second = (network["units"] for network in result["networks"])
    assert first != second
    assert json.loads((tmp_path / "groups.json").read_text()) == [[0, 0], [1, 1]]


def test_layers_can_keep_the_same_share(tmp_path: Path) -> None:
    setup = assembly.assemble(quick(select="units_layerwise", keep_flops=0.25))
    session: Any = SimpleNamespace(output=tmp_path)
    part: Any = smaller.without_units(setup, range(1), session)
    first, second = part.task.model.units.values()
    assert (first[1], second[1]) == (300, 100)
    assert first[0] / 300 == pytest.approx(second[0] / 100, abs=0.01)


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "none"), ("rounds", 3), ("keep_flops", 0.0), ("shuffle", True)],
)
def test_what_units_do_not_have_is_an_error(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        configs.validate(quick(select="units", **{field: value}))
