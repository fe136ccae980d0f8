"""Scalars as TensorBoard reads them from the files of a run."""

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from snipjax.training import events
from snipjax.training.events import Events
from tests.runs import events_in, read_events


def test_scalars_are_in_the_file_at_once(tmp_path: Path) -> None:
    writer = Events(tmp_path, start=0)
    writer.add(10, {"train/loss": 0.5, "val/error": 12.5})
    (path,) = tmp_path.iterdir()
    assert "tfevents" in path.name
    assert events_in(path)[0].file_version == "brain.Event:2"
    assert read_events(tmp_path) == {10: {"train/loss": 0.5, "val/error": 12.5}}
    writer.close()


def test_a_resumed_run_disowns_later_steps(tmp_path: Path) -> None:
    for start, steps in ((0, (10, 20, 30)), (20, (40,))):
        writer = Events(tmp_path, start)
        for step in steps:
            writer.add(step, {"train/loss": 0.5})
        writer.close()
    # TensorBoard drops events of the step of a START and later ones.
    _, second = sorted(tmp_path.iterdir(), key=lambda path: path.suffix)
    (start,) = (e for e in events_in(second) if e.HasField("session_log"))
    assert (start.step, start.session_log.status) == (21, event_pb2.SessionLog.START)
    assert list(read_events(tmp_path)) == [10, 20, 40]


class TestWandb:
    def test_has_the_same_scalars_as_tensorboard(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Any] = []

        class Run:
            def log(self, scalars: Mapping[str, float], step: int) -> None:
                seen.append((step, scalars))

            def finish(self) -> None:
                seen.append("finished")

        def init(**options: Any) -> Run:
            seen.append((options["project"], options["name"], options["config"]))
            return Run()

        monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
        with (
            events.wandb_runs("sparse", tmp_path, {"seed": 3}) as runs,
            events.opened(tmp_path, 0, runs) as add,
        ):
            add(10, {"train/loss": 0.5})
        assert seen == [
            ("sparse", tmp_path.name, {"seed": 3}),
            (10, {"train/loss": 0.5}),
            "finished",
        ]
        assert read_events(tmp_path / "tensorboard") == {10: {"train/loss": 0.5}}

    def test_that_is_missing_is_said_at_the_start(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        events.check_wandb("")
        with pytest.raises(ValueError, match=r"config\.wandb is 'sparse'.*pip install"):
            events.check_wandb("sparse")
