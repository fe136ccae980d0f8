"""The files of a run, and whose directory it is."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snipjax import config as configs
from snipjax.training import rundir

CONFIG = {"seed": 0, "prune": {"sparsity": 0.9}}


def claim(workdir: Path, config: Any = CONFIG, **options: Any) -> Any:
    differences = functools.partial(configs.differences, config)
    return rundir.claim(workdir, differences, **options)


def start_run(workdir: Path, config: Any = CONFIG) -> None:
    with claim(workdir, config):
        rundir.write_json(workdir / rundir.CONFIG, config)


class TestClaim:
    def test_takes_a_run_of_the_same_configuration_killed_at_any_write(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "config.json.partial").write_text('{"see')
        start_run(tmp_path)
        start_run(tmp_path)
        assert rundir.read_json(tmp_path / rundir.CONFIG) == CONFIG

    @pytest.mark.parametrize(
        ("prepare", "problem"),
        [
            (
                lambda path: start_run(path, {"seed": 3, "prune": {"sparsity": 0.5}}),
                r"prune\.sparsity: 0\.9 here, 0\.5 there; seed: 0 here, 3 there",
            ),
            (lambda path: (path / "a.tex").touch(), r"has files but no config\.json"),
            (lambda path: (path.rmdir(), path.touch()), "run' cannot be used"),
        ],
    )
    def test_refuses_another_run_other_files_and_a_file(
        self, prepare: Callable[[Path], Any], problem: str, tmp_path: Path
    ) -> None:
        (tmp_path / "run").mkdir()
        prepare(tmp_path / "run")
        with pytest.raises(ValueError, match=problem):
            start_run(tmp_path / "run")

    def test_a_directory_that_cannot_be_written_is_good_for_a_finished_run_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start_run(tmp_path)
        # A test that runs as root can write everywhere.
        monkeypatch.setattr("os.access", lambda path, mode: False)
        with pytest.raises(ValueError, match="it cannot be written"):
            start_run(tmp_path)
        (tmp_path / rundir.RESULT).write_text("{}")
        with claim(tmp_path):
            pass

    def test_a_damaged_configuration_is_named(self, tmp_path: Path) -> None:
        (tmp_path / rundir.CONFIG).write_text("[]")
        with (
            pytest.raises(ValueError, match=r"config\.json' is damaged.*remove"),
            claim(tmp_path),
        ):
            pass

    def test_refused_leaves_what_was_there_or_written(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for name, is_written in (("empty", 0), ("deep/new", 0), ("written", 1)):
            with pytest.raises(ValueError, match="bad"), claim(tmp_path / name):
                if is_written:
                    (tmp_path / name / "partly").touch()
                raise ValueError("bad data")
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
        assert left == {"empty", "deep", "written", "written/partly"}

    def test_a_directory_removed_before_it_was_locked_is_not_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workdir = tmp_path / "run"
        monkeypatch.setattr("fcntl.flock", lambda *arguments: workdir.rmdir())
        with pytest.raises(ValueError, match="another process has just removed it"):
            start_run(workdir)


def test_a_claim_is_exclusive_and_the_directory_is_not_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claim(tmp_path / "run"):
        # As if this process had made the directory, and been overtaken since.
        monkeypatch.setattr(rundir, "_make", lambda workdir: True)
        with pytest.raises(ValueError, match="another process is using it"):
            start_run(tmp_path / "run")
        assert (tmp_path / "run").exists()
        monkeypatch.undo()
    start_run(tmp_path / "run")


def row(step: int, seed: int = 0, loss: float | None = 0.5) -> dict[str, Any]:
    return {"seeds": [seed], "step": step, "train_loss": [loss]}


class TestMetrics:
    def test_are_read_as_written_without_a_line_cut_off(self, tmp_path: Path) -> None:
        assert rundir.read_metrics(tmp_path) == []
        rundir.append_metrics(tmp_path, row(10))
        with (tmp_path / rundir.METRICS).open("a") as file:
            file.write('{"step": 2')
        rundir.truncate_metrics(tmp_path, [0], last_step=10)
        rundir.append_metrics(tmp_path, row(20, loss=None))
        assert rundir.read_metrics(tmp_path) == [row(10), row(20, loss=None)]
        assert (tmp_path / rundir.METRICS).read_text().count("\n") == 2

    def test_truncation_takes_later_steps_of_the_same_networks_away(
        self, tmp_path: Path
    ) -> None:
        rows = [row(step, seed) for seed in (0, 1) for step in (10, 20, 30)]
        for one in rows:
            rundir.append_metrics(tmp_path, one)
        rundir.truncate_metrics(tmp_path, range(1, 2), last_step=20)
        assert rundir.read_metrics(tmp_path) == rows[:-1]


def test_other_data_are_refused_with_some_of_the_differences(tmp_path: Path) -> None:
    def check(facts: dict[str, Any]) -> None:
        rundir.check_data(tmp_path, functools.partial(configs.differences, facts))

    facts = {"image_shape": [8, 8, 1], "digest": None, **{str(i): 0 for i in range(9)}}
    check(facts)  # in a directory without any
    rundir.write_json(tmp_path / rundir.DATA, facts)
    check(facts)
    with pytest.raises(ValueError, match=r"\(3: 1 here, 0 there\); put them back"):
        check({**facts, "3": 1})
    with pytest.raises(ValueError, match=r"\(0: 1 here.*4: 1 here.*; and 4 more\)"):
        check({**facts, **{str(i): 1 for i in range(9)}})


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "value.json"
    for value in ({"a": 1}, {"a": 2}):
        rundir.write_json(path, value)
        assert rundir.read_json(path) == value
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        rundir.write_json(path, {"a": 3})
    assert rundir.read_json(path) == {"a": 2}


EMPTY = {"path": "w", "shape": [2, 0], "kept": 0, "total": 0}
NETWORK = {
    **{"seed": 0, "sparsity": 0.5, "effective_sparsity": None, "kept": 1},
    **{"layers": [{"path": "w", "shape": [2, 1], "kept": 1, "total": 2}]},
    **dict.fromkeys(("test_error", "test_error_last", "val_error", "train_error"), 9.5),
    **{"steps": 10, "prunes": 1, "seconds": 0.5},
}
RESULT = {
    **{"dataset": "digits", "model": "net", "method": "snip", "device": "cpu"},
    **{"parameters": 2, "prunable": 2, "epochs": 0.5, "networks": [NETWORK]},
}


class TestDamage:
    @pytest.mark.parametrize(
        ("name", "value", "problem"),
        [
            ("groups.json", [[0]], r"the value is \[0\]"),
            ("groups.json", [], "the value is"),
            ("groups.json", [[0, -5]], "the value is -5"),
            ("data.json", {}, "field 'image_shape' is missing"),
            ("networks.json", [{**NETWORK, "seconds": 10**400}], "seconds' is 1000"),
            ("networks.json", [{**NETWORK, "seconds": None}], "seconds' is None"),
            ("networks.json", [{**NETWORK, "layers": [EMPTY]}], "layers.total' is 0"),
            ("result.json", {**RESULT, "command": {"a": 1}}, "field 'command' is"),
            ("result.json", None, "the value is None"),
        ],
    )
    def test_other_json_is_named(
        self, name: str, value: Any, problem: str, tmp_path: Path
    ) -> None:
        rundir.write_json(tmp_path / name, value)
        with pytest.raises(ValueError, match=f"{name}' is damaged .*{problem}.*remove"):
            rundir.read_json(tmp_path / name)

    @pytest.mark.parametrize("text", ["[" * 100_000, "\xff", "9" * 5000])
    def test_other_text_is_named(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "data.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"data\.json' is damaged"):
            rundir.read_json(tmp_path / "data.json")

    @pytest.mark.parametrize(
        "line",
        [
            *(b"[1]", b"{", b"\xff"),
            b'{"seeds": [0, 1], "step": 10, "test_error": [9.5]}',
            b'{"seeds": [0], "step": 10, "test_error": ["9.5"]}',
        ],
    )
    def test_a_whole_line_of_metrics_is_named(
        self, line: bytes, tmp_path: Path
    ) -> None:
        rundir.append_metrics(tmp_path, row(10))
        with (tmp_path / rundir.METRICS).open("ab") as file:
            file.write(line + b"\n")
        with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl' is damaged"):
            rundir.read_metrics(tmp_path)
