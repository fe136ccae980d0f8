"""A run for each combination of settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import assembly, experiment, initializers, sweep
from snipjax import config as configs
from snipjax.training import rundir

pytestmark = pytest.mark.usefixtures("compile_once")

GRID = ("prune.sparsity=0.9,0.98",)
NAMES = ["prune.sparsity=0.9", "prune.sparsity=0.98"]
Results = dict[str, dict[str, Any]]


def quick(*vary: str, **fields: Any) -> ConfigDict:
    """No step on the digits."""
    config = configs.default()
    config.vary = vary
    config.train.steps = 0
    config.update(fields)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    workdir = tmp_path_factory.mktemp("sweeps") / "finished"
    return workdir, sweep.run_all(quick(*GRID), workdir, command="python train.py")


def test_there_is_a_run_for_each_combination(finished: tuple[Path, Results]) -> None:
    workdir, results = finished
    assert list(results) == NAMES
    kept = [result["summary"]["kept"] for result in results.values()]
    assert kept == [5061, 1012]
    for name, result in results.items():
        assert rundir.read_json(workdir / name / rundir.RESULT) == result
        assert result["command"] == "python train.py"
        written = rundir.read_json(workdir / name / rundir.CONFIG)
        assert name == f"prune.sparsity={written['prune']['sparsity']}"
        assert written["vary"] == []
    written = rundir.read_json(workdir / rundir.CONFIG)
    assert written["vary"] == list(GRID)


def test_the_same_call_runs_only_what_is_missing(
    finished: tuple[Path, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, results = finished
    begun, begin = [], experiment.begin

    def noted(config: ConfigDict, data_dir: Any, session: Any) -> Any:
        begun.append(session.directory.name)
        return begin(config, data_dir, session)

    monkeypatch.setattr(experiment, "begin", noted)
    lost = workdir / NAMES[1]
    (lost / rundir.RESULT).unlink()
    assert sweep.run_all(quick(*GRID), workdir)[NAMES[0]] == results[NAMES[0]]
    assert begun == [lost.name]


def test_another_grid_is_refused(finished: tuple[Path, Results]) -> None:
    with pytest.raises(ValueError, match="another configuration"):
        sweep.run_all(quick("prune.sparsity=0.9,0.95"), finished[0])


def test_a_sweep_is_used_by_one_process(finished: tuple[Path, Results]) -> None:
    with (
        rundir.claim(finished[0], lambda written: []),
        pytest.raises(ValueError, match="another process is using it"),
    ):
        sweep.run_all(quick(*GRID), finished[0])


def test_a_signal_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick("init.scored&init.trained=he,fan_in", signal_seeds=2)
    measured: list[str] = []

    def measure(setup: assembly.Setup) -> initializers.Signal:
        measured.append(setup.config.init.scored)
        one = np.ones((2, 1))
        return initializers.Signal(("Dense_0",), one, one, one, np.ones(1))

    def run(cell: ConfigDict, workdir: Path, **options: Any) -> None:
        workdir.mkdir(exist_ok=True)

    monkeypatch.setattr(sweep, "measured_signal", measure)
    monkeypatch.setattr(experiment, "run", run)
    for _ in range(2):
        for name in sweep.run_all(config, tmp_path):
            path = tmp_path / sweep.directory_name(name) / rundir.SIGNAL
            assert rundir.read_json(path)["activation_variance"] == [[1.0], [1.0]]
        assert measured == ["he", "fan_in"]


@pytest.mark.slow
def test_a_signal_is_that_of_the_initialization() -> None:
    variances = []
    for name in ("he", "heuristic_uniform"):
        config = quick(signal_seeds=2)
        config.init.scored = config.init.trained = name
        signal = sweep.measured_signal(assembly.assemble(config))
        assert signal.layers == ("Dense_0", "Dense_1", "Dense_2")
        assert signal.activation_variance.shape == (2, 3)
        variances.append(signal.activation_variance[:, 0])
    # Weights of variance 2/n against 1/(3 n): a factor of 6 in the first layer.
    np.testing.assert_allclose(variances[0] / variances[1], 6, rtol=0.25)


@pytest.mark.parametrize(
    ("vary", "problem"),
    [
        ((), r"vary is empty; use snipjax\.experiment\.run"),
        (("prune.batch_size=1,100000",), r"prune\.batch_size"),
        (("prune.sparsity=0.9,1.5",), r"sparsity is 1\.5"),
        (("model.name=lenet_300_100,lenet",), "did you mean"),
    ],
)
def test_a_mistake_is_said_before_anything_runs(
    vary: tuple[str, ...], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=problem):
        sweep.run_all(quick(*vary), tmp_path / "new")
    assert not (tmp_path / "new").exists()
