"""Table 1 on directories that were damaged, copied, or written with other settings."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_table1 import Stubs, small, write_cell

from snipjax import masks, methods
from snipjax.studies import table1
from snipjax.studies.table1 import aggregation, config, files, running
from snipjax.training import rundir

NETWORK = "lenet_300_100"
DENSE = f"{NETWORK}-dense-seed0"


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A directory of a whole table, as if it had been run."""
    settings = small()
    for cell in config.cells(settings):
        write_cell(tmp_path, settings, cell, test_error=2.0)
    rundir.write_json(tmp_path / rundir.CONFIG, settings.to_dict())
    return tmp_path


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Stubs:
    return Stubs(monkeypatch)


@pytest.fixture(scope="module")
def dense_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that has a dense network, of ones."""
    workdir = tmp_path_factory.mktemp("dense")
    with pytest.MonkeyPatch.context() as patch:
        Stubs(patch)
        table1.run(small(methods="dense"), workdir)
    return workdir


@pytest.fixture
def dense(dense_table: Path, tmp_path: Path) -> Path:
    """The directory of that network in a copy of the other."""
    shutil.copytree(dense_table, tmp_path, dirs_exist_ok=True)
    return tmp_path / DENSE


def change(path: Path, **fields: Any) -> None:
    """Changes fields of a JSON file; None takes one away."""
    values = json.loads(path.read_text()) | fields
    kept = {name: value for name, value in values.items() if value is not None}
    rundir.write_json(path, kept)


class TestADamagedCell:
    def test_none_is_run_again_without_damage(self, finished: Path) -> None:
        rows = table1.run(small(), finished).rows
        assert [(row.method, row.error) for row in rows] == [
            *(("dense", 2.0), ("snip", 2.0), ("snip", 2.0))
        ]

    @pytest.mark.parametrize(
        ("fields", "fault"),
        [
            *(
                ({name: None}, f"it has no {name}")
                for name in (
                    *("network", "method", "sparsity", "seed", "kept", "device"),
                    *("measured_sparsity", "test_error", "prunes", "steps"),
                    *("seconds", "wall_seconds", "history", "settings"),
                )
            ),
            ({"settings": 5}, "settings is 5"),
            ({"test_error": "2.0"}, "test_error is '2.0'"),
            ({"history": [{"phase": "dense"}]}, "history has {'phase': 'dense'}"),
            ({"seed": 7}, "it is that of Cell(network='lenet_300_100', method='dense'"),
            ({"sparsity": 0.5}, "it is that of Cell("),
        ],
    )
    def test_is_one_error_with_the_remedy(
        self, finished: Path, fields: dict[str, Any], fault: str
    ) -> None:
        change(finished / DENSE / files.CELL, **fields)
        with pytest.raises(ValueError) as error:
            table1.run(small(), finished)
        message = str(error.value)
        assert message.startswith(f"'{finished / DENSE}/cell.json' is damaged ({fault}")
        assert message.endswith(
            f"; remove '{finished / DENSE}', and this one cell is run again"
        )

    @pytest.mark.parametrize("text", ["null", "[]", "{}", "", "{"])
    def test_so_is_one_that_is_no_object(self, finished: Path, text: str) -> None:
        (finished / DENSE / files.CELL).write_text(text)
        with pytest.raises(
            ValueError, match=r"is damaged .*, and this one cell is run"
        ):
            table1.run(small(), finished)

    @pytest.mark.parametrize("text", ["5", "{}", "{"])
    def test_so_is_a_damaged_note_of_a_failure(self, tmp_path: Path, text: str) -> None:
        (tmp_path / files.FAILURE).write_text(text)
        with pytest.raises(
            ValueError, match=r"is damaged .*, and this one cell is run"
        ):
            files.read_failure(tmp_path)


class TestADamagedStart:
    @pytest.mark.parametrize(
        ("name", "shape", "fault"),
        [
            (files.PARAMS, (64, 300), "params_sha256"),
            (files.PARAMS, (784, 300), r"kernel is \(784, 300\), not \(64, 300\)"),
            (files.PARAMS, (300, 64), r"kernel is \(300, 64\), not \(64, 300\)"),
            (files.PARAMS, (), r"kernel is \(\), not \(64, 300\)"),
            (files.MASK, (64, 300), "params_sha256"),
        ],
    )
    def test_is_not_started_from(
        self, dense: Path, name: str, shape: tuple[int, ...], fault: str
    ) -> None:
        like = methods.abstract_params(running.parts_of(small(), None, NETWORK))
        assert masks.sparsity(files.read_outcome(dense, like).mask) == 0.0
        arrays = dict(np.load(dense / name))
        first = "Dense_0/kernel"
        arrays[first] = np.zeros(shape, arrays[first].dtype)
        np.savez(dense / name, **arrays)
        with pytest.raises(ValueError, match=rf"npz' is damaged \(.*{fault}.*; remove"):
            files.read_outcome(dense, like)

    def test_costs_what_starts_from_it_until_it_is_removed(
        self, dense: Path, stubs: Stubs
    ) -> None:
        result = dense / files.CELL
        change(result, params_sha256=64 * "0")
        settings = small(methods="lwc")
        (message,) = table1.run(settings, dense.parent).failures.values()
        assert message.endswith(f"remove '{dense}', and this one cell is run again")
        shutil.rmtree(dense)
        assert table1.run(settings, dense.parent).failures == {}
        assert stubs.calls == ["dense 0 0", "lwc 0.917 0"]


class TestADamagedConfiguration:
    @pytest.mark.parametrize("text", ["{", "[]", ""])
    def test_costs_no_finished_cell(self, finished: Path, text: str) -> None:
        path = finished / rundir.CONFIG
        written = path.read_text()
        path.write_text(text)
        message = r"config\.json' is damaged .*; remove this file, and the same command"
        with pytest.raises(ValueError, match=message):
            table1.run(small(), finished)
        path.unlink()
        assert len(table1.run(small(), finished).rows) == 3
        assert path.read_text() == written

    def test_leaves_the_cells_to_say_what_they_were_made_with(
        self, finished: Path
    ) -> None:
        (finished / rundir.CONFIG).unlink()
        other = small()
        other.dataset.name = "mnist"
        message = r"made with config\.dataset\.name=digits, not mnist"
        with pytest.raises(ValueError, match=message):
            table1.run(other, finished)

    @pytest.mark.parametrize("text", ["{", "[]"])
    def test_of_a_directory_without_cells_is_that_of_any_run(
        self, tmp_path: Path, text: str
    ) -> None:
        (tmp_path / rundir.CONFIG).write_text(text)
        message = f"is damaged .*; remove '{tmp_path}' to start again"
        with pytest.raises(ValueError, match=message):
            table1.run(small(), tmp_path)
        (tmp_path / rundir.CONFIG).rename(tmp_path / "thesis.tex")
        with pytest.raises(ValueError, match=r"has files but no config\.json"):
            table1.run(small(), tmp_path)


class TestADirectoryThatIsNoCells:
    @pytest.mark.parametrize(
        "name",
        [
            "notes",
            f"{DENSE} (copy)",
            "lenet_300_100-snip-0.950-seed0",
            "x-snip-0-seed0",
        ],
    )
    def test_is_left_alone(self, finished: Path, name: str) -> None:
        rows = aggregation.rows(small(), finished)
        shutil.copytree(finished / DENSE, finished / name)
        assert aggregation.rows(small(), finished) == rows
        (finished / name / files.CELL).write_text("{")
        assert aggregation.rows(small(), finished) == rows


class TestCellsOfOtherSettings:
    def test_are_left_out_saying_why(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        both = small(methods="snip,lwc", seeds=7)
        for cell in config.cells(both):
            write_cell(tmp_path, both, cell, test_error=2.0)
        rundir.write_json(tmp_path / rundir.CONFIG, both.to_dict())
        assert len(table1.run(both, tmp_path).rows) == 4
        assert "left out" not in capsys.readouterr().out
        other = small()
        other.lwc.rounds = 2
        assert len(table1.run(other, tmp_path).rows) == 3
        (line,) = [
            line
            for line in capsys.readouterr().out.splitlines()
            if line.startswith("left out of the table")
        ]
        cells = ", ".join(f"{NETWORK}-lwc-0.917-seed{seed}" for seed in range(5))
        assert line == (
            f"left out of the table: {cells} and 2 more, made with "
            "config.lwc.rounds=4, not 2"
        )
