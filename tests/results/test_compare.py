"""The pictures of a run, and the tables and the pictures of a sweep."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from snipjax.results import compare
from tests.results.runs import make_run, make_unfinished, write_config, write_json

PNG = b"\x89PNG"


def add_mask(run: Path, seed: int, kept: int) -> None:
    """A mask of a first layer that keeps as many connections of the first pixel."""
    (run / f"seed-{seed}").mkdir()
    kernel = np.zeros((4, 3), bool)
    kernel[0, :kept] = True
    leaves = {"Dense_0/bias": np.array(True), "Dense_0/kernel": kernel}
    np.savez(run / f"seed-{seed}" / "mask.npz", **leaves)
    write_json(run / "data.json", {"image_shape": [2, 2, 1]})


def make_sweep(path: Path, *entries: str) -> Path:
    for sparsity, errors in ((0.98, (3.0, 4.0)), (0.9, (2.0, None))):
        for method in ("snip", "random"):
            rows = [{"seeds": [0, 1], "step": 10, "test_error": list(errors)}]
            run = make_run(
                path / f"{sparsity}-{method}",
                *errors,
                sparsity=sparsity,
                method=method,
                metrics=rows,
                network={"train_error": 1.5},
            )
            for seed in (0, 1):
                add_mask(run, seed, kept=1 + seed)
    make_unfinished(path / "half")
    write_config(path, {"vary": entries})
    return path


def test_a_sweep_has_a_row_for_each_combination_in_the_order_of_the_values(
    tmp_path: Path,
) -> None:
    sweep = make_sweep(
        tmp_path / "s", "prune.method=snip,random", "prune.sparsity=0.98,0.9,0.5"
    )
    table = compare.write(sweep)
    assert table[["prune.method", "prune.sparsity"]].to_numpy().tolist() == [
        ["snip", "0.98"],
        ["snip", "0.9"],
        ["random", "0.98"],
        ["random", "0.9"],
    ]
    first, second = table.to_dict("records")[:2]
    assert first["test_error"] == 3.5
    assert first["test_error_std"] == pytest.approx(0.5**0.5)
    assert (first["kept"], first["seeds"]) == (5332, 2)
    assert first["density"] == pytest.approx(2, abs=1e-3)
    assert first["train_error"] == 1.5
    assert second["test_error"] == 2.0
    written = pd.read_csv(sweep / "table.csv", dtype={"prune.sparsity": str})
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    head, _, line, *_ = (sweep / "table.md").read_text().splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | ")))
    assert cells["test error (%)"] == "3.50"
    assert cells["kept"] == "5,332"
    for name in ("errors.png", "curves.png", "first_layers.png"):
        assert (sweep / name).read_bytes().startswith(PNG)
    assert not (sweep / "signals.png").exists()


def test_fields_that_vary_together_are_one_column(tmp_path: Path) -> None:
    for name in ("he", "xavier"):
        fields = {"init.scored": name, "init.trained": name}
        make_run(tmp_path / name, fields=fields)
    field = "init.scored&init.trained"
    write_config(tmp_path, {"vary": (f"{field}=xavier,he",)})
    assert list(compare.write(tmp_path)[field]) == ["xavier", "he"]


def test_a_sweep_has_the_mean_density_of_each_layer_over_the_seeds(
    tmp_path: Path,
) -> None:
    for sparsity, counts in ((0.98, (10, 30)), (0.9, (60, 80))):
        run = make_run(tmp_path / f"{sparsity}", 2.0, 3.0, sparsity=sparsity)
        result = json.loads((run / "result.json").read_text())
        for network, kept in zip(result["networks"], counts):
            layer = {"path": "Dense_0/kernel", "kept": kept, "total": 400}
            network["layers"][0].update(layer)
        write_json(run / "result.json", result)
    write_config(tmp_path, {"vary": ("prune.sparsity=0.98,0.9",)})
    compare.write(tmp_path)
    table = pd.read_csv(tmp_path / "layers.csv", dtype={"prune.sparsity": str})
    first = table[table["layer"] == "Dense_0/kernel"]
    assert first.drop(columns="layer").to_dict("records") == [
        {"prune.sparsity": "0.98", "kept": 20, "total": 400, "density": 5},
        {"prune.sparsity": "0.9", "kept": 70, "total": 400, "density": 17.5},
    ]


def test_untrained_networks_have_no_curves_and_no_errors(tmp_path: Path) -> None:
    for sparsity in (0.9, 0.98):
        make_run(tmp_path / f"{sparsity}", None, sparsity=sparsity)
    write_config(tmp_path, {"vary": ("prune.sparsity=0.9,0.98",)})
    table = compare.write(tmp_path)
    assert list(compare.shown_table(table)["test error (%)"]) == ["-", "-"]
    assert not list(tmp_path.glob("*.png"))  # no curves, no errors


def test_an_effective_density_that_only_some_runs_have_is_a_dash_elsewhere(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "a", sparsity=0.9, network={"effective_sparsity": 0.925})
    make_run(tmp_path / "b")
    write_config(tmp_path, {"vary": ("prune.sparsity=0.9,0.98",)})
    shown = compare.shown_table(compare.write(tmp_path))
    assert list(shown["effective density (%)"]) == ["7.50", "-"]


def test_a_run_gets_the_pictures_of_its_files(tmp_path: Path) -> None:
    rows = [{"step": step, "train_loss": [1 / step]} for step in (1, 2)]
    run = make_run(tmp_path / "run", metrics=rows)
    scores = {"scores": np.array([0.0, 0.5, 1.0]), "threshold": np.float32(0.5)}
    np.savez(run / "scores.npz", **scores)
    add_mask(run, seed=0, kept=2)
    assert compare.write(run) is None
    for name in ("densities", "curves", "saliency", "first_layer"):
        assert (run / f"{name}.png").read_bytes().startswith(PNG)


def test_a_damaged_file_costs_its_picture(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "scores.npz").write_text("hello")
    with pytest.warns(UserWarning, match="was not drawn"):
        compare.write(run)
    assert [path.name for path in run.glob("*.png")] == ["densities.png"]


def test_the_first_layer_is_the_mean_over_the_seeds_of_connections_at_each_pixel(
    tmp_path: Path,
) -> None:
    assert compare.first_layer(tmp_path) is None
    for seed, kept in enumerate((1, 3)):
        add_mask(tmp_path, seed, kept)
    counts = compare.first_layer(tmp_path)
    np.testing.assert_array_equal(counts, [[2, 0], [0, 0]])
    write_json(tmp_path / "data.json", {"image_shape": [9, 9, 1]})
    assert compare.first_layer(tmp_path) is None  # no layer takes such an image


def test_the_first_convolution_is_counted_at_each_position_of_its_kernel(
    tmp_path: Path,
) -> None:
    (tmp_path / "seed-0").mkdir()
    kernel = np.zeros((3, 3, 1, 8), bool)
    kernel[1, 2, 0, :5] = True
    np.savez(tmp_path / "seed-0" / "mask.npz", **{"Conv_0/kernel": kernel})
    write_json(tmp_path / "data.json", {"image_shape": [28, 28, 1]})
    counts = compare.first_layer(tmp_path)
    assert (counts[1, 2], counts.sum()) == (5, 5)
