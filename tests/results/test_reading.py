"""Run directories made by hand are read as tables; damaged ones are named."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snipjax import results
from snipjax.results import reading
from snipjax.results.__main__ import main
from tests.results.runs import (
    layers,
    make_run,
    make_unfinished,
    write_config,
    write_json,
    write_metrics,
)


def test_a_network_is_a_row_with_its_run_its_fields_and_the_published_error(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "run", 2.0, 2.5, seed=3, device="TPU v5e")
    table = results.read(tmp_path)
    assert list(table["seed"]) == [3, 4]
    assert list(table["test_error"]) == [2.0, 2.5]
    first = table.iloc[0]
    assert (first["dataset"], first["model"], first["method"]) == (
        *("mnist", "lenet_300_100", "snip"),
    )
    assert (first["prune.sparsity"], first["train.steps"]) == (0.98, 1000)
    assert (first["parameters"], first["device"]) == (266_610, "TPU v5e")
    assert first["published"] == 2.4
    assert first["directory"] == str(tmp_path / "run")


def test_a_field_that_a_run_lacks_has_its_default(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run") / "config.json"
    config = json.loads(path.read_text())
    del config["prune"]["rounds"]
    write_json(path, config)
    assert results.read(tmp_path)["prune.rounds"].tolist() == [1]


def test_each_run_is_read_once_in_the_order_of_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        """Like os.walk, on a file system that lists the last name first."""
        entries = sorted(Path(top).iterdir(), reverse=True)
        names = [entry.name for entry in entries if entry.is_dir()]
        yield str(top), names, [e.name for e in entries if not e.is_dir()]
        for name in names:
            yield from walk(Path(top, name))

    for name in ("b/2", "a", "c", "b/1"):
        make_run(tmp_path / name)
    monkeypatch.setattr("os.walk", walk)
    runs = reading.find(tmp_path, tmp_path / "a")
    names = [run.name.partition("/")[2] for run in runs]
    assert names == ["a", "b/1", "b/2", "c"]


def test_runs_of_sweeps_and_studies_are_found_within_them(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep" / "run")
    write_config(tmp_path / "sweep", {"vary": ["prune.sparsity=0.98"]})
    make_run(tmp_path / "table" / "cell", seed=1)
    write_json(tmp_path / "table" / "config.json", {"study": "table1"})
    assert sorted(results.read(tmp_path)["seed"]) == [0, 1]
    (sweep,) = reading.find_sweeps(tmp_path)
    assert sweep.path == tmp_path / "sweep"
    assert sweep.varied == ("prune.sparsity=0.98",)


def test_the_runs_of_a_sweep_with_a_damaged_file_are_found(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep" / "run")
    (tmp_path / "sweep" / "config.json").write_text('{"cut')
    with pytest.warns(UserWarning, match=r"left out: .*sweep/config.json"):
        assert len(results.read(tmp_path)) == 1


# Metrics.


def test_an_evaluation_is_a_row_for_each_seed(tmp_path: Path) -> None:
    rows = [
        {"seeds": [9, 10], "step": 10, "test_error": [9.0, 8.0]},
        {"seeds": [9, 10], "step": 20, "test_error": [5.0, None]},
        {"seeds": [11], "step": 10, "test_error": [7.0]},
    ]
    make_run(tmp_path / "run", metrics=rows)
    metrics = results.read_metrics(tmp_path)
    curves = {
        seed: [*zip(own["total_step"], own["test_error"])]
        for seed, own in metrics.groupby("seed")
    }
    assert curves[9] == [(10, 9.0), (20, 5.0)]
    assert curves[11] == [(10, 7.0)]
    assert np.isnan(curves[10][1][1])
    assert set(metrics["phase"]) == {"train"}


def test_steps_of_several_phases_add_up(tmp_path: Path) -> None:
    phases = [("dense", 10), ("dense", 20), ("prune 1", 0), ("retrain 1", 5)]
    rows = [{"phase": [phase], "step": [step]} for phase, step in phases]
    make_run(tmp_path / "run", metrics=rows)
    metrics = results.read_metrics(tmp_path)
    assert list(metrics["total_step"]) == [10, 20, 20, 25]
    assert list(metrics["step"]) == [10, 20, 0, 5]


def test_a_damaged_line_costs_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_bytes(
        b'{"step": 1, "seeds": [0], "test_error": [9]}\nnot JSON\n[1]\n{"step": "x"}\n'
        + b'\xff\xfe\n{"step": 1}\n{"step": 2, "seeds": [0, 1], "test_error": [4]}\n'
        + b"[" * 100_000
        + b'\n{"step": 3, "seeds": [0], "test_error": [null]}\n{"st'
    )
    metrics = results.read_metrics(run)
    assert list(metrics["step"]) == [1, 2, 3]
    assert list(metrics["test_error"].fillna(-1)) == [9, 4, -1]


# Damage.


def damage(name: str, text: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        (make_run(path / "run") / name).write_text(text)
        return path / "run"

    return make


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path / "nowhere", "nowhere' is not a directory; give run"),
        (lambda path: path, "there is no run in"),
        (damage("result.json", '{"cut'), "result.json' is damaged"),
        (damage("config.json", '{"cut'), "config.json' is damaged"),
        (damage("result.json", "[]"), "not a JSON object"),
        (damage("result.json", "{}"), "field 'dataset' is missing"),
        (damage("config.json", '{"hidden_size": 3}'), "not a configuration of snipjax"),
        (damage("config.json", "[" * 100_000), "nested too deeply"),
        (damage("result.json", "[" * 100_000), "nested too deeply"),
        (damage("config.json", '{"dataset": {"name": []}}'), "not a configuration"),
        (damage("config.json", '{"dataset":' * 800 + "1" + "}" * 800), "too deeply"),
    ],
)
def test_a_path_without_a_run_is_said_in_a_line(
    make: Callable[[Path], Path],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make(tmp_path)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert str(path) in line
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"networks": []}, "'networks' is not a list of networks"),
        ({"networks": [3]}, "'networks' is not a list of networks"),
        ({"parameters": "many"}, "'parameters' is many"),
        *(
            ({"network": {field: value}}, f"'{field}' is {value}")
            for field, value in [
                *[("sparsity", value) for value in (1.0, 7, -0.1)],
                *[("test_error", value) for value in (-5, 100.1, "2")],
                *(("test_error_last", 101), ("seed", None), ("kept", True)),
            ]
        ),
        ({"network": {"layers": [{"path": "x"}]}}, "'layers' is not a list of layers"),
        *(
            (
                {"network": {"layers": [{**layers()[0], "kept": kept, "total": n}]}},
                "'layers' has 'Dense_0/kernel' with",
            )
            for kept, n in [(9, 4), (0, -1), (-1, 4), (float("inf"), 4), ("9", 4)]
        ),
    ],
)
def test_a_wrong_field_is_named(
    values: dict[str, Any], says: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", **values)
    with pytest.raises(ValueError, match=rf"result\.json.*{says}"):
        results.read(run)


def test_the_least_and_the_largest_error_are_within_bounds(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 0, network={"test_error_last": 100.0})
    table = results.read(tmp_path)
    assert (table["test_error"][0], table["test_error_last"][0]) == (0.0, 100.0)


def test_a_nested_field_is_of_another_program(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", fields={"train.steps": [[1]]})
    with pytest.raises(ValueError, match="not a configuration of snipjax"):
        results.read(run)


@pytest.mark.parametrize("name", ["config.json", "result.json"])
@pytest.mark.parametrize("text", ['{"hidden": 1}', '{"cut', "[" * 100_000, "\0", ""])
def test_damage_beside_good_runs_is_left_out_with_a_warning(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs" / "good")
    other = damage(name, text)(tmp_path / "runs" / "other")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "left out: " in line
    assert str(other) in line
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "report.md").exists()


def test_where_all_is_left_out_the_reasons_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [damage("result.json", '{"cut')(tmp_path / "runs" / name) for name in "ab"]
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 2
    *warnings, error = capsys.readouterr().err.splitlines()
    for run, warning in zip(runs, warnings, strict=True):
        assert f"left out: '{run}" in warning
    assert "that can be shown" in error
    assert not (tmp_path / "report.html").exists()


def test_a_file_that_cannot_be_read_costs_its_run(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    (make_run(tmp_path / "other") / "result.json").unlink()
    (tmp_path / "other" / "result.json").mkdir()
    with pytest.warns(UserWarning, match=r"left out: .*other"):
        assert list(results.read(tmp_path)["run"]) == [f"{tmp_path.name}/good"]


def test_unfinished_runs_have_no_row(tmp_path: Path) -> None:
    make_unfinished(tmp_path / "half")
    assert results.read(tmp_path).empty
    assert reading.find(tmp_path)[0].result is None


# Signals.

OF_SEEDS = ("activation_variance", "gradient_variance", "density")


def signal(**values: Any) -> dict[str, Any]:
    """As ``signal.json`` has it: of two seeds and two layers."""
    fields = {"layers": ["Dense_0", "Dense_1"], "rank_correlation": [0.1, None]}
    return fields | {name: [[0.5, 0.25], [0.4, None]] for name in OF_SEEDS} | values


def test_a_signal_is_of_layers_and_as_many_seeds(tmp_path: Path) -> None:
    write_json(tmp_path / "signal.json", signal())
    found = reading.read_signal(tmp_path)
    assert found is not None
    assert found.layers == ("Dense_0", "Dense_1")
    np.testing.assert_array_equal(found.density, [[0.5, 0.25], [0.4, np.nan]])
    np.testing.assert_array_equal(found.rank_correlation, [0.1, np.nan])


@pytest.mark.parametrize(
    "values",
    [
        {"activation_variance": [[[0.5, 0.25]]]},
        {"gradient_variance": [0.5, 0.25]},
        {"rank_correlation": [[0.1, 0.2], [0.1, 0.2]]},
        {"gradient_variance": [[0.5, 0.25]]},
        {"activation_variance": [[], []]},
        {"density": 0.5},
        {"layers": ["Dense_0"]},
        {"layers": [], "rank_correlation": [], **{name: [[]] for name in OF_SEEDS}},
        {"layers": 3},
        {"density": "x"},
    ],
    ids=str,
)
def test_a_damaged_signal_costs_itself(values: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "signal.json", signal(**values))
    with pytest.warns(UserWarning, match=r"left out: .*signal.json"):
        assert reading.read_signal(tmp_path) is None


def test_metrics_of_no_run_are_an_empty_table(tmp_path: Path) -> None:
    run = make_unfinished(tmp_path / "run")
    write_metrics(run, [])
    assert results.read_metrics(run).empty
