"""Processes that train one network together, for real, over loopback."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from snipjax.training import distributed, rundir
from tests import devices
from tests.runs import CHECKPOINTS, TIMINGS, interrupted

TESTS = Path(__file__).parent
ROOT = TESTS.parents[1]
QUICK = (
    "--config.train.steps=6",
    "--config.train.eval_every=2",
    "--config.train.checkpoint_every=2",
    "--config.train.steps_per_dispatch=1",
)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def start(arguments: list[Any], number: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**devices(number), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(
    processes: int, workdir: Path, *arguments: str, devices: int = 1
) -> list[subprocess.Popen[str]]:
    """``train.py`` on the digits, by so many processes of so many devices."""
    command = [
        ROOT / "train.py",
        f"--config={ROOT / 'configs' / 'digits_mesh.py'}",
        f"--workdir={workdir}",
        *arguments,
    ]
    if processes == 1:
        return [start(command, devices)]
    command.append(f"--coordinator_address=localhost:{free_port()}")
    command.append(f"--num_processes={processes}")
    return [start([*command, f"--process_id={i}"], devices) for i in range(processes)]


def outputs(started: list[subprocess.Popen[str]], code: int = 0) -> list[str]:
    """The output of each, once all have ended."""
    printed = [process.communicate(timeout=500)[0] for process in started]
    assert [p.returncode for p in started] == [code] * len(started), printed
    return printed


def check_close(workdir: Path, other: Path) -> None:
    rows = zip(rundir.read_metrics(workdir), rundir.read_metrics(other), strict=True)
    for row, expected in rows:
        for name in expected.keys() - {"phase", *TIMINGS}:
            assert row[name] == pytest.approx(expected[name], rel=1e-4)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def printed(directory: Path) -> list[str]:
    port, worker = free_port(), TESTS / "distributed_worker.py"
    return outputs([start([worker, port, 2, number, directory]) for number in range(2)])


@pytest.fixture(scope="module")
def ended(printed: list[str]) -> list[dict[str, Any]]:
    # The runtime may print more when it ends.
    lines = [[x for x in text.splitlines() if x.startswith("{")] for text in printed]
    assert all(lines), printed
    return [json.loads(texts[-1]) for texts in lines]


class TestTwoProcesses:
    """The results of ``distributed_worker.py``, printed by both."""

    def test_train_one_network(
        self, printed: list[str], ended: list[dict[str, Any]]
    ) -> None:
        results = [process["trained"] for process in ended]
        assert len({one["networks"][0]["params_sha256"] for one in results}) == 1
        assert {(one["processes"], one["steps"]) for one in results} == {(2, 2)}
        assert "step 2: loss" in printed[0]
        assert "step 2: loss" not in printed[1]

    def test_with_other_configs_or_data_are_refused(
        self, directory: Path, ended: list[dict[str, Any]]
    ) -> None:
        parts = ("train", "validation", "test")
        numbers = [f"data.examples.{part} is 2 in process 0, 3 in" for part in parts]
        for process in ended:
            assert process["other_configs"] == (
                "ValueError: the processes of a run were given different things "
                "(config.optimizer.learning_rate is 0.1 in process 0, 0.2 in process 1)"
                "; start all of them with the same command, code and data"
            )
            said = process["other_data"]
            assert all(x in said for x in (*numbers, "data.digest.train"))
            assert "data.channels" not in said
        said = [process["missing_data"] for process in ended]
        assert said[0].startswith("ValueError: process 1 failed")
        assert said[1].startswith("DatasetError: There is no folder")
        assert not (directory / "other_configs").exists()
        assert not (directory / "other_data").exists()

    def test_wait_for_one_that_is_slow_and_not_for_one_that_failed(
        self, ended: list[dict[str, Any]]
    ) -> None:
        for process in ended:
            assert process["slow"] == "returned None"
            assert process["failed"].startswith("OSError: another process could not")

    @pytest.mark.parametrize("limited", [0, 1])
    def test_end_soon_when_the_disk_of_one_is_full(
        self, limited: int, ended: list[dict[str, Any]]
    ) -> None:
        for number, process in enumerate(ended):
            end = process["full_disks"][limited]
            assert end["said"].startswith("OSError: a checkpoint cannot be written")
            assert ("another process" in end["said"]) == (number != limited)
            assert end["is_intact"]


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "one"
    outputs(train(1, workdir, "--config.mesh=data=1", *QUICK))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [(2, 1, "model=2"), (4, 1, "data=2,model=2"), (2, 2, "data=2,model=2")],
)
def test_processes_do_as_one_does(
    processes: int, devices: int, mesh: str, by_one: Path, tmp_path: Path
) -> None:
    workdir, mask = tmp_path / "run", Path("seed-0", rundir.MASK)
    outputs(train(processes, workdir, f"--config.mesh={mesh}", *QUICK, devices=devices))
    ours, theirs = np.load(workdir / mask), np.load(by_one / mask)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    check_close(workdir, by_one)
    assert rundir.read_json(workdir / rundir.RESULT)["processes"] == processes


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(
    by_one: Path, tmp_path: Path
) -> None:
    workdir = by_one
    for processes, mesh in ((2, "data=2"), (4, "data=2,model=2")):
        workdir = interrupted(workdir, tmp_path / str(processes), step=4)
        printed = outputs(train(processes, workdir, f"--config.mesh={mesh}", *QUICK))
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

    def test_are_told_in_a_line(self, tmp_path: Path) -> None:
        arguments = "--process_id=3", "--num_processes=2"
        (printed,) = outputs(train(1, tmp_path / "run", *arguments), code=2)
        assert printed.startswith("train.py: --coordinator_address must")
        assert len(printed.splitlines()) == 1


class TestLaunchers:
    @pytest.mark.parametrize(
        "variables",
        [
            {"SLURM_STEP_NUM_TASKS": "4"},
            {"OMPI_COMM_WORLD_SIZE": "2"},
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
        ],
    )
    def test_their_processes_are_joined(
        self, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        joined = []

        def join(*told: Any, **settings: Any) -> None:
            joined.append((told, settings["heartbeat_timeout_seconds"] < 60))

        monkeypatch.setattr("jax.distributed.initialize", join)
        monkeypatch.setattr("jax.config.update", lambda name, value: None)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        distributed.initialize()
        assert joined == [((None, None, None), True)]  # JAX takes them from variables

    @pytest.mark.parametrize("variables", [{}, {"SLURM_STEP_NUM_TASKS": "1"}])
    def test_a_process_alone_has_none_to_join(
        self, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        distributed.initialize()


def test_a_process_alone_has_its_own_values_errors_and_directory(
    tmp_path: Path,
) -> None:
    assert distributed.is_first()
    assert distributed.any_of(True)
    assert not distributed.any_of(False)
    np.testing.assert_array_equal(distributed.on_host(jnp.arange(3)), [0, 1, 2])
    with pytest.raises(KeyError):
        distributed.by_first(lambda: {}["missing"])
    with pytest.raises(RuntimeError, match="Gloo"), distributed.lost_peers():
        raise RuntimeError("Gloo all-reduce failed")
    with distributed.one_voice(tmp_path) as workdir:
        assert workdir == tmp_path
