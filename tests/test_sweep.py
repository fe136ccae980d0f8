"""A run for each combination of settings, compared in one table."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import config as configs
from snipjax import experiment, sweep
from snipjax.initializers import signals
from snipjax.training import rundir

pytestmark = pytest.mark.usefixtures("compile_once")


def quick(*vary: str, **fields: Any) -> ConfigDict:
    config = configs.default()
    config.vary = vary
    config.train.update(
        steps=20, steps_per_dispatch=10, eval_every=10, checkpoint_every=20
    )
    config.update(fields)
    return config


def write_groups(workdir: Path, errors: dict[tuple[int, int], list[float]]) -> None:
    """Writes what groups of seeds came to; the error is what a pixel keeps, too.

    Args:
      workdir: the directory of the run.
      errors: of each seed, by the first and the last of the group.
    """
    common = {"kept": 10, "seeds": 3}
    names = ("test_error", "test_error_std", "test_error_last")
    summary = common | dict.fromkeys(names, 3.0)
    result = {"prunable": 100, "members": [], "summary": [summary]}
    rundir.write_json(workdir / rundir.RESULT, result)
    for (first, last), of_seeds in errors.items():
        directory = workdir / f"seeds-{first}-{last}"
        directory.mkdir()
        for step in (10, 20):
            members = [
                {"step": step, "train_error": error, "test_error": error + step}
                for error in of_seeds
            ]
            rundir.append_metrics(directory, {"step": step, "members": members})
        counts = np.array(of_seeds)[:, None, None] * np.ones((2, 2))
        np.save(directory / "first_layer.npy", counts)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[sweep.Cell]]:
    workdir = tmp_path_factory.mktemp("grids") / "finished"
    config = quick("prune.sparsity=0.9,0.98", "prune.method=snip,random")
    return workdir, sweep.run(config, workdir)


class TestSweep:
    def test_has_a_row_for_each_combination(
        self, finished: tuple[Path, list[sweep.Cell]]
    ) -> None:
        _, table = finished
        assert [cell.settings for cell in table] == [
            {"prune.sparsity": "0.9", "prune.method": "snip"},
            {"prune.sparsity": "0.9", "prune.method": "random"},
            {"prune.sparsity": "0.98", "prune.method": "snip"},
            {"prune.sparsity": "0.98", "prune.method": "random"},
        ]
        assert [cell.kept for cell in table] == [5061, 5061, 1012, 1012]
        assert [cell.seeds for cell in table] == [1] * 4

    def test_rows_are_the_results_of_the_runs(
        self, finished: tuple[Path, list[sweep.Cell]]
    ) -> None:
        workdir, table = finished
        for cell in table:
            directory = workdir / cell.name.replace(" ", "_")
            result = json.loads((directory / "result.json").read_text())
            assert cell.test_error == result["test_error"]
            assert cell.density == result["kept"] / result["prunable"]
            last = json.loads((directory / "metrics.jsonl").read_text().split("\n")[-2])
            assert cell.train_error_last == last["train_error"]

    def test_table_and_pictures_are_written(
        self, finished: tuple[Path, list[sweep.Cell]]
    ) -> None:
        workdir, table = finished
        head, _, *rows = (workdir / "sweep.md").read_text().splitlines()
        assert head.startswith("| prune.sparsity | prune.method | density (%) |")
        assert [row.split(" | ")[3] for row in rows] == [
            f"{cell.kept:,}" for cell in table
        ]
        for name in ("errors.png", "curves.png", "first_layers.png"):
            assert (workdir / name).read_bytes()[:4] == b"\x89PNG"

    def test_what_is_finished_is_not_run_again(
        self,
        finished: tuple[Path, list[sweep.Cell]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        workdir, table = finished
        lost = workdir / "prune.sparsity=0.98_prune.method=snip" / "result.json"
        lost.unlink()
        loaded = []
        assemble = experiment.assemble

        def counted(*arguments: Any) -> Any:
            loaded.append(arguments)
            return assemble(*arguments)

        monkeypatch.setattr(experiment, "assemble", counted)
        config = quick("prune.sparsity=0.9,0.98", "prune.method=snip,random")
        assert sweep.run(config, workdir) == table
        assert len(loaded) == 1

    def test_another_grid_is_refused(
        self, finished: tuple[Path, list[sweep.Cell]]
    ) -> None:
        with pytest.raises(ValueError, match="another configuration"):
            sweep.run(quick("prune.sparsity=0.9"), finished[0])


class TestStudy:
    def test_of_initializations_with_their_signal(self, tmp_path: Path) -> None:
        config = quick(
            "init.scored&init.trained=he,heuristic_uniform", signal_seeds=2, seeds=2
        )
        table = sweep.run(config, tmp_path)
        assert [cell.seeds for cell in table] == [2, 2]
        assert (tmp_path / "signals.png").read_bytes()[:4] == b"\x89PNG"
        he, heuristic = (
            signals.read(tmp_path / sweep.directory_name(cell.name) / signals.FILE)
            for cell in table
        )
        assert he.layers == ("Dense_0", "Dense_1", "Dense_2")
        assert he.activation_variance.shape == (2, 3)
        # Weights of variance 2/n against 1/(3 n): a factor of 6 in the first layer.
        ratio = he.activation_variance[:, 0] / heuristic.activation_variance[:, 0]
        np.testing.assert_allclose(ratio, 6, rtol=0.25)
        # A damaged one costs itself.
        (tmp_path / "signals.png").unlink()
        damaged = tmp_path / sweep.directory_name(table[0].name) / signals.FILE
        damaged.write_text("[]")
        with pytest.warns(UserWarning, match=re.escape(f"left out: '{damaged}'")):
            sweep.write(tmp_path, table)
        assert (tmp_path / "signals.png").exists()

    def test_nothing_is_trained_and_what_is_kept_is_drawn(self, tmp_path: Path) -> None:
        config = quick("prune.batch_class=0,1")
        config.prune.batch_size = 50
        config.train.steps = 0
        table = sweep.run(config, tmp_path)
        assert [cell.test_error for cell in table] == [None, None]
        pictures = [
            sweep.first_layer(tmp_path / sweep.directory_name(cell.name))
            for cell in table
        ]
        for picture, cell in zip(pictures, table):
            assert picture.shape == (8, 8)
            assert 0 < picture.sum() < cell.kept
        assert (pictures[0] != pictures[1]).any()
        assert {path.name for path in tmp_path.glob("*.png")} == {"first_layers.png"}

    def test_without_a_point_there_is_no_picture(self, tmp_path: Path) -> None:
        config = quick("prune.sparsity=0.9,0.98")
        config.train.steps = 0
        sweep.run(config, tmp_path)
        assert {path.name for path in tmp_path.glob("*.png")} == {"first_layers.png"}
        of_one = {path.name for path in (tmp_path / "prune.sparsity=0.9").glob("*.png")}
        assert of_one == {"densities.png", "saliency.png", "first_layer.png"}

    def test_training_error_and_picture_are_means_over_all_seeds(
        self, tmp_path: Path
    ) -> None:
        config = quick("prune.sparsity=0.9,0.98", seeds=3, seeds_at_once=2)
        table = sweep.run(config, tmp_path)
        directory = tmp_path / "prune.sparsity=0.9"
        members = [
            member
            for group in ("seeds-0-1", "seeds-2-2")
            for member in rundir.read_metrics(directory / group)[-1]["members"]
        ]
        mean = np.mean([member["train_error"] for member in members])
        assert table[0].train_error_last == pytest.approx(mean)
        masks = [
            np.load(directory / group / "masks.npz")["Dense_0/kernel"]
            for group in ("seeds-0-1", "seeds-2-2")
        ]
        kept = np.concatenate(masks).sum(axis=2).mean(axis=0).reshape(8, 8)
        np.testing.assert_allclose(sweep.first_layer(directory), kept)

    def test_groups_that_another_machine_left_behind_do_not_count(
        self, tmp_path: Path
    ) -> None:
        write_groups(tmp_path, {(8, 9): [1.0, 2.0], (10, 10): [6.0], (8, 10): [90.0]})
        rundir.write_groups(tmp_path, [range(8, 10), range(10, 11)])
        cell = sweep.read_cell("", tmp_path)
        assert cell.train_error_last == (1 + 2 + 6) / 3
        np.testing.assert_allclose(sweep.first_layer(tmp_path), (1 + 2 + 6) / 3)

    def test_curves_are_means_over_the_seeds_of_all_groups(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = tmp_path / "prune.sparsity=0.9"
        directory.mkdir()
        write_groups(directory, {(8, 9): [1.0, 2.0], (10, 10): [6.0]})
        drawn = {}

        def draw(what: Callable[..., None], values: Any, path: Path) -> None:
            drawn[path.name] = values

        monkeypatch.setattr(experiment, "draw", draw)
        sweep.write(tmp_path, [sweep.read_cell("prune.sparsity=0.9", directory)])
        rows = drawn["curves.png"]["sparsity 0.9"]
        assert [
            (row["step"], row["train_error"], row["test_error"]) for row in rows
        ] == [
            (10, 3, 13),
            (20, 3, 23),
        ]

    @pytest.mark.parametrize(
        "entry", ["prune.batch_size=1,100000", "prune.batch_class=0,10"]
    )
    def test_what_a_later_run_cannot_do_is_said_before_anything_runs(
        self, entry: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=r"prune\.batch"):
            sweep.run(quick(entry), tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_a_value_that_is_off_is_said_before_anything_runs(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=r"sparsity is 1\.5"):
            sweep.run(quick("prune.sparsity=0.9,1.5"), tmp_path / "new")
        assert not (tmp_path / "new" / rundir.CONFIG).exists()
