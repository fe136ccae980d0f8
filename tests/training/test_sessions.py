"""A run's use of its directory, and requests to stop it."""

import contextlib
import os
import re
import signal
import threading
from pathlib import Path

import pytest

import snipjax
from snipjax.training import distributed, sessions


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    signal.getsignal(signal.SIGINT)  # a moment for the handler


def opened(workdir: Path) -> contextlib.AbstractContextManager[sessions.Session]:
    return sessions.opened(workdir, {}, lambda written: [])


def test_values_are_read_as_written_in_one_session_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path) as session:
        assert session.read("signal.json") is None
        session.write("signal.json", {"error": None})
        assert session.read("signal.json") == {"error": None}
        with (
            pytest.raises(ValueError, match="another process is using it"),
            opened(tmp_path),
        ):
            pass


def test_an_interrupt_whose_exception_gets_lost_still_ends_the_session(
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as session:
        with contextlib.suppress(KeyboardInterrupt):  # as a callback of JAX does
            interrupt()
        session.write("result.json", "finished all the same")
    assert (tmp_path / "result.json").exists()


def test_processes_must_have_config_code_and_directory_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = [sessions.start_facts(tmp_path, {"seed": 0, "train.steps": 9})]
    monkeypatch.setattr(snipjax, "__version__", "0.0.0")
    facts.append(sessions.start_facts(tmp_path, {"seed": 0, "train.steps": 9}))
    (tmp_path / "saliency.py").write_text("snip = None\n")
    monkeypatch.setattr(snipjax, "__file__", str(tmp_path / "__init__.py"))
    fields = {"seed": 3, "train.steps": 9}
    facts.append(sessions.start_facts(tmp_path / "run", fields))
    seed, version, workdir = sorted(distributed.different(facts))
    assert seed == "config.seed is 0 in process 0, 3 in process 2"
    assert workdir == f"workdir is {tmp_path} in process 0, {tmp_path}/run in process 2"
    assert version.startswith("the version of snipjax is ")
    # In process 2 it is the same, of other code.
    assert re.search(r"0\.0\.0 .* in process 1, 0\.0\.0 .* in process 2$", version)


class TestStopRequests:
    def test_raise_at_once_or_wait_but_for_the_second(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with sessions.stop_requests() as stop:
            with pytest.raises(KeyboardInterrupt):
                interrupt()
            assert stop.is_made
        with sessions.stop_requests() as stop:
            stop.waits = True
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.is_made
            with pytest.raises(KeyboardInterrupt):
                interrupt()
        assert signal.getsignal(signal.SIGTERM) == before

    def test_are_not_looked_for_outside_of_the_main_thread(self) -> None:
        made: list[bool] = []

        def look() -> None:
            with sessions.stop_requests() as stop:
                made.append(stop.is_made)

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert made == [False]
