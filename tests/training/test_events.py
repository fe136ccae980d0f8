"""Scalars as TensorBoard reads them from the files of a run."""

from pathlib import Path

from tensorboardX.proto import event_pb2

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
