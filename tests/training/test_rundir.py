"""The files of a run, and whose directory it is."""

import functools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from snipjax import config as configs
from snipjax.training import rundir


@pytest.fixture
def config() -> ConfigDict:
    return configs.default()


def claim(workdir: Path, config: ConfigDict, **options: Any) -> Any:
    differences = functools.partial(configs.differences, config.to_dict())
    return rundir.claim(workdir, differences, **options)


def start_run(workdir: Path, config: ConfigDict) -> None:
    with claim(workdir, config):
        rundir.write_json(workdir / rundir.CONFIG, config.to_dict())


class TestClaim:
    def test_makes_a_directory_and_writes_nothing(
        self, tmp_path: Path, config: ConfigDict
    ) -> None:
        workdir = tmp_path / "deep" / "run"
        with claim(workdir, config):
            assert list(workdir.iterdir()) == []

    def test_takes_a_run_of_the_same_configuration(
        self, tmp_path: Path, config: ConfigDict
    ) -> None:
        start_run(tmp_path, config)
        with claim(tmp_path, config):
            pass

    def test_takes_a_run_killed_at_its_first_write(
        self, tmp_path: Path, config: ConfigDict
    ) -> None:
        (tmp_path / "config.json.partial").write_text('{"see')
        start_run(tmp_path, config)
        written = rundir.read_json(tmp_path / rundir.CONFIG)
        assert configs.differences(written, config.to_dict()) == []

    def test_refuses_another_configuration_with_the_difference(
        self, tmp_path: Path, config: ConfigDict
    ) -> None:
        start_run(tmp_path, config)
        config.prune.sparsity = 0.5
        config.seed = 3
        difference = r"\(prune\.sparsity: 0\.5 here, 0\.9 there; seed: 3 here, 0 there"
        with pytest.raises(ValueError, match=difference):
            start_run(tmp_path, config)

    def test_refuses_other_files(self, tmp_path: Path, config: ConfigDict) -> None:
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(ValueError, match=r"has files but no config\.json"):
            start_run(tmp_path, config)

    def test_refuses_a_file(self, tmp_path: Path, config: ConfigDict) -> None:
        workdir = tmp_path / "run"
        workdir.touch()
        for path in (workdir, workdir / "deeper"):
            with pytest.raises(ValueError, match=r"workdir '.*' cannot be used"):
                start_run(path, config)

    def test_refuses_what_cannot_be_written(
        self, tmp_path: Path, config: ConfigDict, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A test that runs as root can write everywhere.
        monkeypatch.setattr("os.access", lambda path, mode: False)
        with pytest.raises(ValueError, match="it cannot be written"):
            start_run(tmp_path, config)

    def test_a_finished_run_can_be_shown_without_writing(
        self, tmp_path: Path, config: ConfigDict, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start_run(tmp_path, config)
        (tmp_path / rundir.RESULT).write_text("{}")
        monkeypatch.setattr("os.access", lambda path, mode: False)
        with claim(tmp_path, config):
            pass

    @pytest.mark.parametrize("text", ["{", "[]"])
    def test_a_damaged_configuration_is_named(
        self, text: str, tmp_path: Path, config: ConfigDict
    ) -> None:
        (tmp_path / rundir.CONFIG).write_text(text)
        for options, remedy in (
            ({}, f"remove '{tmp_path}'"),
            ({"describes_itself": lambda workdir: True}, "remove this file"),
        ):
            with (
                pytest.raises(ValueError, match=rf"config\.json' is damaged.*{remedy}"),
                claim(tmp_path, config, **options),
            ):
                pass

    def test_takes_finished_parts_that_describe_themselves(
        self, tmp_path: Path, config: ConfigDict
    ) -> None:
        (tmp_path / "cell").mkdir()
        with claim(tmp_path, config, describes_itself=lambda workdir: True):
            pass


class TestARefusedRun:
    def test_leaves_no_new_directory_but_those_above_it(
        self, tmp_path: Path, config: ConfigDict
    ) -> None:
        workdir = tmp_path / "deep" / "run"
        with pytest.raises(ValueError, match="bad data"), claim(workdir, config):
            raise ValueError("bad data")
        assert not workdir.exists()
        assert workdir.parent.exists()

    def test_leaves_a_directory_that_was_there(
        self, tmp_path: Path, config: ConfigDict
    ) -> None:
        with pytest.raises(ValueError), claim(tmp_path, config):
            raise ValueError("bad data")
        assert tmp_path.exists()

    def test_leaves_what_was_written(self, tmp_path: Path, config: ConfigDict) -> None:
        workdir = tmp_path / "run"
        with pytest.raises(ValueError), claim(workdir, config):
            (workdir / "partly").touch()
            raise ValueError("later")
        assert (workdir / "partly").exists()

    def test_takes_no_directory_away_from_the_process_that_holds_it(
        self, tmp_path: Path, config: ConfigDict, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workdir = tmp_path / "run"
        with claim(workdir, config):
            # As if this process had made the directory, and been overtaken since.
            monkeypatch.setattr(rundir, "_make", lambda workdir: True)
            with pytest.raises(ValueError, match="another process is using it"):
                start_run(workdir, config)
            assert workdir.exists()

    def test_a_directory_removed_before_it_was_locked_is_not_used(
        self, tmp_path: Path, config: ConfigDict, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workdir = tmp_path / "run"
        monkeypatch.setattr("fcntl.flock", lambda *arguments: workdir.rmdir())
        with pytest.raises(ValueError, match="another process has just removed it"):
            start_run(workdir, config)


HOLD = """
import sys, time
from pathlib import Path
from snipjax.training import rundir
with rundir.claim(Path(sys.argv[1]), lambda written: []):
    print("claimed", flush=True)
    time.sleep(600)
"""


class TestClaimIsExclusive:
    def test_while_it_lasts(self, tmp_path: Path, config: ConfigDict) -> None:
        with (
            claim(tmp_path, config),
            pytest.raises(ValueError, match="another process is using it"),
        ):
            start_run(tmp_path, config)
        start_run(tmp_path, config)

    def test_and_ends_with_a_killed_process(
        self, tmp_path: Path, config: ConfigDict
    ) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            with pytest.raises(ValueError, match="another process is using it"):
                start_run(tmp_path, config)
            process.send_signal(signal.SIGKILL)
        start_run(tmp_path, config)


def row(step: int, seed: int = 0, loss: float | None = 0.5) -> dict[str, Any]:
    return {"seeds": [seed], "step": step, "train_loss": [loss]}


class TestMetrics:
    def test_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        rows = [row(10, loss=0.1), row(20, loss=None)]
        for one in rows:
            rundir.append_metrics(tmp_path, one)
        assert rundir.read_metrics(tmp_path) == rows

    def test_there_are_none_before_the_first(self, tmp_path: Path) -> None:
        assert rundir.read_metrics(tmp_path) == []

    def test_a_line_cut_off_is_no_line(self, tmp_path: Path) -> None:
        rundir.append_metrics(tmp_path, row(10))
        with (tmp_path / rundir.METRICS).open("a") as file:
            file.write('{"step": 2')
        rundir.truncate_metrics(tmp_path, [0], last_step=10)
        rundir.append_metrics(tmp_path, row(20))
        assert rundir.read_metrics(tmp_path) == [row(10), row(20)]
        assert (tmp_path / rundir.METRICS).read_text().count("\n") == 2

    def test_truncation_takes_later_steps_of_the_same_networks_away(
        self, tmp_path: Path
    ) -> None:
        for seed in (0, 1):
            for step in (10, 20, 30):
                rundir.append_metrics(tmp_path, row(step, seed))
        rundir.truncate_metrics(tmp_path, range(1, 2), last_step=20)
        rows = [(row["seeds"][0], row["step"]) for row in rundir.read_metrics(tmp_path)]
        assert rows == [(0, 10), (0, 20), (0, 30), (1, 10), (1, 20)]


FACTS = {"examples": {"train": 4, "test": 1}, "mean": [0.5], "digest": None}


def check_data(workdir: Path, facts: dict[str, Any]) -> None:
    rundir.check_data(workdir, functools.partial(configs.differences, facts))


class TestCheckData:
    def test_takes_those_that_were_written(self, tmp_path: Path) -> None:
        check_data(tmp_path, FACTS)  # of a run that has none
        rundir.write_json(tmp_path / rundir.DATA, FACTS)
        check_data(tmp_path, FACTS)

    def test_refuses_others_with_the_difference(self, tmp_path: Path) -> None:
        rundir.write_json(tmp_path / rundir.DATA, FACTS)
        others = {**FACTS, "examples": {"train": 5, "test": 1}}
        problem = r"\(examples\.train: 5 here, 4 there\); put them back"
        with pytest.raises(ValueError, match=problem):
            check_data(tmp_path, others)

    def test_says_some_of_many_differences(self, tmp_path: Path) -> None:
        rundir.write_json(tmp_path / rundir.DATA, {str(i): 0 for i in range(9)})
        with pytest.raises(ValueError, match=r"\(0: 1 here.*4: 1 here.*; and 4 more\)"):
            check_data(tmp_path, {str(i): 1 for i in range(9)})


class TestWriteJson:
    def test_replaces_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "value.json"
        rundir.write_json(path, {"a": 1})
        rundir.write_json(path, {"a": 2})
        assert json.loads(path.read_text()) == {"a": 2}
        assert list(tmp_path.iterdir()) == [path]

    def test_a_failure_leaves_the_file_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full_disk(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        path = tmp_path / "value.json"
        rundir.write_json(path, {"a": 1})
        monkeypatch.setattr("os.fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            rundir.write_json(path, {"a": 2})
        assert rundir.read_json(path) == {"a": 1}
