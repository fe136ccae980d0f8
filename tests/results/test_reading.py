"""Run directories made by hand are read as tables; damaged ones are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snipjax import results
from snipjax.results import reading
from tests.results.runs import (
    layers,
    make_run,
    make_unfinished,
    write_config,
    write_json,
)


def test_a_network_is_a_row_with_its_run_its_fields_and_the_published_error(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "run", 2.0, None, seed=3, device="TPU v5e")
    table = results.read(tmp_path)
    assert list(table["seed"]) == [3, 4]
    first = table.iloc[0].to_dict()
    expected = {"dataset": "mnist", "method": "snip", "test_error": 2.0}
    expected |= {"prune.sparsity": 0.98, "train.steps": 1000, "parameters": 266_610}
    expected |= {"device": "TPU v5e", "published": 2.4}
    expected |= {"directory": str(tmp_path / "run")}
    assert {name: first[name] for name in expected} == expected
    assert np.isnan(table["test_error"][1])


def test_runs_of_sweeps_and_studies_are_found_once_in_the_order_of_their_names(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "sweep" / "b")
    make_run(tmp_path / "sweep" / "a")
    write_config(tmp_path / "sweep", {"vary": ("prune.sparsity=0.98",)})
    make_unfinished(tmp_path / "table" / "cell")
    write_json(tmp_path / "table" / "config.json", {"study": "table1"})
    runs, (sweep,) = reading.find(tmp_path, tmp_path / "sweep")
    names = [run.name.partition("/")[2] for run in runs]
    assert names == ["sweep/a", "sweep/b", "table/cell"]
    assert len(results.read(tmp_path)) == 2  # finished
    assert (sweep.path, sweep.varied) == (tmp_path / "sweep", ("prune.sparsity=0.98",))


def test_an_evaluation_is_a_row_for_each_seed(tmp_path: Path) -> None:
    rows = [
        {"seeds": [9, 10], "step": 10, "test_error": [9.0, 8.0]},
        {"seeds": [9, 10], "step": 20, "test_error": [5.0, None]},
        {"seeds": [11], "step": 10, "test_error": [7.0]},
    ]
    run = make_run(tmp_path / "run", metrics=rows)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"cut off')
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
    rows = [{"phase": phase, "step": step} for phase, step in phases]
    make_run(tmp_path / "run", metrics=rows)
    metrics = results.read_metrics(tmp_path)
    assert list(metrics["total_step"]) == [10, 20, 20, 25]
    assert list(metrics["step"]) == [10, 20, 0, 5]


def test_runs_without_evaluations_give_an_empty_table(tmp_path: Path) -> None:
    make_unfinished(tmp_path / "half")
    assert results.read(tmp_path).empty
    assert results.read_metrics(tmp_path).empty


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("result.json", '{"cut', "result.json' is damaged"),
        ("config.json", '{"cut', "config.json' is damaged"),
        ("config.json", '{"hidden_size": 3}', "no field 'hidden_size'"),
        ("result.json", "{}", "field 'dataset' is missing"),
    ],
)
def test_a_damaged_run_is_named_and_left_out_beside_good_ones(
    name: str, text: str, says: str, tmp_path: Path
) -> None:
    (make_run(tmp_path / "damaged") / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        results.read(tmp_path / "damaged")
    make_run(tmp_path / "good")
    with pytest.warns(UserWarning, match=f"left out: .*{says}"):
        assert list(results.read(tmp_path)["run"]) == [f"{tmp_path.name}/good"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"networks": [3]}, "'networks' is 3"),
        ({"parameters": "many"}, "'parameters' is many"),
        ({"network": {"test_error": "2"}}, "'networks.test_error' is 2"),
        ({"network": {"layers": [{"path": "x"}]}}, "layers.shape' is missing"),
        (
            {"network": {"layers": [{**layers()[0], "kept": None}]}},
            "layers.kept' is None",
        ),
    ],
)
def test_a_wrong_field_is_named(
    values: dict[str, Any], says: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", **values)
    with pytest.raises(ValueError, match=rf"result\.json.*{says}"):
        results.read(run)
