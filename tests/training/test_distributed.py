"""Processes that train one network together, for real, over loopback."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from snipjax.training import distributed, rundir
from tests.training import eight_devices

TESTS = Path(__file__).parent
ROOT = TESTS.parents[1]
QUICK = (
    "--config.train.steps=6",
    "--config.train.eval_every=2",
    "--config.train.checkpoint_every=2",
    "--config.train.steps_per_dispatch=1",
)
# Runs a program whose files cannot grow.
LIMITED = """
import os, resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CHECKPOINTS = Path("checkpoints", "seeds-0-0")
MASK = Path("seed-0", rundir.MASK)
TIMINGS = {"phase", "seconds", "steps_per_second"}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def start(arguments: list[Any], devices: int = 1) -> subprocess.Popen[str]:
    flags = f"--xla_force_host_platform_device_count={devices} {eight_devices.QUICK}"
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(
    processes: int,
    workdir: Path,
    *arguments: str,
    devices: int = 1,
    limited: Sequence[int] = (),
    own: Sequence[str] = (),
) -> list[subprocess.Popen[str]]:
    """``train.py`` on the digits, by so many processes of so many devices.

    The disk of those that are limited is as if it were full; each may have an argument
    of its own.
    """
    command = [
        ROOT / "train.py",
        f"--config={ROOT / 'configs' / 'digits_mesh.py'}",
        f"--workdir={workdir}",
        *arguments,
    ]
    together = [
        f"--coordinator_address=localhost:{free_port()}",
        f"--num_processes={processes}",
    ]
    if processes == 1:
        return [start(command, devices)]
    return [
        start(
            [
                *(("-c", LIMITED) if number in limited else ()),
                *command,
                *together,
                f"--process_id={number}",
                *own[number : number + 1],
            ],
            devices,
        )
        for number in range(processes)
    ]


def outputs(started: list[subprocess.Popen[str]], code: int = 0) -> list[str]:
    """What each has printed, once all have ended."""
    printed = [process.communicate(timeout=500)[0] for process in started]
    assert [p.returncode for p in started] == [code] * len(started), printed
    return printed


def metrics(workdir: Path) -> list[dict[str, Any]]:
    rows = rundir.read_metrics(workdir)
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


def check_close(workdir: Path, other: Path) -> None:
    for row, expected in zip(metrics(workdir), metrics(other), strict=True):
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-4)


def interrupted(workdir: Path, copy: Path, step: int) -> Path:
    """A copy of a run as it was when it had written that checkpoint."""
    shutil.copytree(workdir, copy)
    for name in (rundir.RESULT, rundir.NETWORKS):
        (copy / name).unlink()
    for path in (copy / CHECKPOINTS).iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    return copy


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def printed(directory: Path) -> list[str]:
    port, worker = free_port(), TESTS / "distributed_worker.py"
    return outputs([start([worker, port, 2, number, directory]) for number in range(2)])


@pytest.fixture(scope="module")
def ended(printed: list[str]) -> list[dict[str, Any]]:
    # What the runtime says when it ends may come later.
    lines = [[x for x in text.splitlines() if x.startswith("{")] for text in printed]
    assert all(lines), printed
    return [json.loads(of_one[-1]) for of_one in lines]


class TestTwoProcesses:
    """What both have come to in ``distributed_worker.py``, and have printed."""

    def test_train_and_go_on(
        self, directory: Path, printed: list[str], ended: list[dict[str, Any]]
    ) -> None:
        # Whole, and resumed; of the first process, and of the second.
        results = [of_one["trained"] for of_one in ended]
        digests = [
            one["networks"][0]["params_sha256"] for pair in results for one in pair
        ]
        assert len(set(digests)) == 1
        assert {one["processes"] for pair in results for one in pair} == {2}
        assert results[0][0]["steps"] == 4
        assert "step 4: loss" in printed[0]
        assert "step 4: loss" not in printed[1]
        assert [row["step"] for row in metrics(directory / "resumed")] == [2, 4]

    def test_with_other_configs_are_refused(
        self, directory: Path, ended: list[dict[str, Any]]
    ) -> None:
        for of_one in ended:
            assert of_one["other_configs"] == (
                "ValueError: the processes of a run were given different things "
                "(config.optimizer.learning_rate is 0.1 in process 0, 0.2 in process 1)"
                "; start all of them with the same command, code and data"
            )
        assert not (directory / "other_configs").exists()

    def test_with_other_data_are_refused(
        self, directory: Path, ended: list[dict[str, Any]]
    ) -> None:
        for of_one in ended:
            for part in ("train", "validation", "test"):
                number = f"data.examples.{part} is 2 in process 0, 3 in process 1"
                assert number in of_one["other_data"]
            assert "data.digest.train" in of_one["other_data"]
            assert "data.channels" not in of_one["other_data"]
        assert not (directory / "other_data").exists()

    def test_of_which_one_has_no_data_end(self, ended: list[dict[str, Any]]) -> None:
        said = [of_one["missing_data"] for of_one in ended]
        assert said[0] == "ValueError: process 1 has failed, and says why"
        assert said[1].startswith("DatasetError: There is no folder")

    def test_wait_for_one_that_is_slow_and_not_for_one_that_failed(
        self, ended: list[dict[str, Any]]
    ) -> None:
        assert [of_one["slow"] for of_one in ended] == ["returned None"] * 2
        for of_one in ended:
            assert of_one["failed"].startswith("OSError: another process could not")

    def test_end_soon_when_the_disk_of_one_is_full(
        self, ended: list[dict[str, Any]]
    ) -> None:
        for limited in range(2):
            ends = [of_one["full_disks"][limited] for of_one in ended]
            for number, end in enumerate(ends):
                assert end["said"].startswith("OSError: a checkpoint cannot be written")
                is_own = "another process" not in end["said"]
                assert is_own == (number == limited)
                assert end["is_intact"]
                assert end["seconds"] < 60  # Orbax itself would wait ten minutes


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    workdir = tmp_path_factory.mktemp("runs") / "one"
    outputs(train(1, workdir, "--config.mesh=data=1", *QUICK))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [(2, 1, "model=2"), (4, 1, "data=2,model=2"), (2, 2, "data=2,model=2")],
)
def test_processes_do_what_one_does(
    processes: int, devices: int, mesh: str, by_one: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    outputs(train(processes, workdir, f"--config.mesh={mesh}", *QUICK, devices=devices))
    ours, theirs = np.load(workdir / MASK), np.load(by_one / MASK)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    check_close(workdir, by_one)
    result = rundir.read_json(workdir / rundir.RESULT)
    assert result["processes"] == processes


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(
    by_one: Path, tmp_path: Path
) -> None:
    workdir = interrupted(by_one, tmp_path / "run", step=4)
    printed = outputs(train(2, workdir, "--config.mesh=data=2", *QUICK))
    assert "resuming from step 4" in printed[0]
    workdir = interrupted(workdir, tmp_path / "again", step=4)
    printed = outputs(train(4, workdir, "--config.mesh=data=2,model=2", *QUICK))
    assert "resuming from step 4" in printed[0]
    check_close(workdir, by_one)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_dies_the_other_ends_and_the_command_goes_on(
    killed: int, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    long = [*QUICK[1:], "--config.mesh=data=2", "--config.train.steps=100000"]
    started = train(2, workdir, *long)
    deadline = time.monotonic() + 300
    while not list((workdir / CHECKPOINTS).glob("[1-9]*")):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started)
        time.sleep(0.2)
    started[killed].kill()
    died = time.monotonic()
    printed, _ = started[1 - killed].communicate(timeout=120)
    assert time.monotonic() - died < 60
    assert started[1 - killed].returncode != 0
    said = r"has lost another|another task died|another process .* has died"
    assert re.search(said, printed), printed
    started[killed].communicate()
    again = train(2, workdir, *long)
    lines = iter(again[0].stdout.readline, "")
    assert any("resuming from step" in line for line in lines)
    assert any(re.match(r"step \d+: loss", line) for line in lines)
    again[1].send_signal(signal.SIGTERM)  # one of them is enough
    assert all("interrupted" in text for text in outputs(again, code=130))


@pytest.mark.slow
@pytest.mark.parametrize("limited", [(0, 1), (0,), (1,)])
def test_a_full_disk_ends_all_and_the_command_goes_on(
    limited: tuple[int, ...], by_one: Path, tmp_path: Path
) -> None:
    workdir = interrupted(by_one, tmp_path / "run", step=4)
    command = [workdir, "--config.mesh=model=2", *QUICK]
    started = train(2, *command, limited=limited)
    lines = iter(started[0].stdout.readline, "")
    assert any(line.startswith("step 6: loss") for line in lines)
    full = time.monotonic()
    printed = outputs(started, code=2)
    assert time.monotonic() - full < 60
    for text in printed:
        (line,) = (x for x in text.splitlines() if x.startswith("train.py: "))
        assert "a checkpoint cannot be written" in line
    printed = outputs(train(2, *command))
    assert "resuming from step 4" in printed[0]
    check_close(workdir, by_one)


@pytest.mark.slow
def test_processes_with_other_configs_end_with_a_line(tmp_path: Path) -> None:
    seeds = [f"--config.seed={seed}" for seed in (5, 6)]
    command = [tmp_path / "run", "--config.mesh=data=2", *QUICK]
    for text in outputs(train(2, *command, own=seeds), code=2):
        (line,) = (x for x in text.splitlines() if x.startswith("train.py: "))
        assert "(config.seed is 5 in process 0, 6 in process 1)" in line
    assert not (tmp_path / "run").exists()


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            ((None, 2, 0), "--coordinator_address must be given"),
            (("localhost:1", None, None), "--num_processes and --process_id must"),
            (("localhost", 2, 0), "<host>:<port>"),
            (("localhost:1", 2, 2), "--process_id is 2; .* from 0 to 1"),
            (("localhost:1", 2, -1), "--process_id is -1"),
            (("localhost:1", 0, 0), "--num_processes is 0"),
        ],
    )
    def test_are_errors(self, arguments: tuple[Any, ...], problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            distributed.initialize(*arguments)

    def test_are_said_by_the_program(self, tmp_path: Path) -> None:
        for arguments, problem in (
            (["--process_id=3", "--num_processes=2"], "--coordinator_address must"),
            (["--config.mesh=data=2;model=1"], "config.mesh is 'data=2;model=1'"),
        ):
            process = train(1, tmp_path / "run", *arguments)
            (printed,) = outputs(process, code=2)
            assert printed.startswith("train.py: ")
            assert problem in printed
            assert len(printed.splitlines()) == 1

    def test_alone_there_is_nothing_to_join(self) -> None:
        distributed.initialize()

    @pytest.mark.parametrize(
        "variables",
        [
            {"SLURM_STEP_NUM_TASKS": "4"},
            {"OMPI_COMM_WORLD_SIZE": "2"},
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
        ],
    )
    def test_processes_of_a_launcher_are_joined(
        self, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Joined(Exception):  # noqa: N818
            pass

        def join(*told: Any, **settings: Any) -> None:
            assert told == (None, None, None)  # which JAX takes from the launcher
            assert settings["heartbeat_timeout_seconds"] < 60
            raise Joined

        monkeypatch.setattr("jax.distributed.initialize", join)
        monkeypatch.setattr("jax.config.update", lambda name, value: None)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(Joined):
            distributed.initialize()

    @pytest.mark.parametrize("size", ["1", ""])
    def test_a_launcher_of_one_process_has_none_to_join(
        self, size: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", size)
        distributed.initialize()


class TestAlone:
    """What many do together is nothing special for one."""

    def test_values_are_its_own(self) -> None:
        assert distributed.is_first()
        assert distributed.any_of(True)
        assert not distributed.any_of(False)
        np.testing.assert_array_equal(distributed.on_host(jnp.arange(3)), [0, 1, 2])

    def test_errors_are_its_own(self) -> None:
        with pytest.raises(KeyError):
            distributed.by_first(lambda: {}["missing"])
        with pytest.raises(RuntimeError, match="Gloo"), distributed.lost_peers():
            raise RuntimeError("Gloo all-reduce failed")

    def test_it_writes_where_it_is_told(self, tmp_path: Path) -> None:
        with distributed.one_voice(tmp_path) as workdir:
            assert workdir == tmp_path
