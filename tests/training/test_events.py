"""Scalars as TensorBoard reads them from the files of a run."""

import struct
from pathlib import Path

from tensorboardX.proto import event_pb2

from snipjax.training.events import Events


def events_of(path: Path) -> list[event_pb2.Event]:
    """Reads TFRecords: length, its checksum, the bytes, their checksum."""
    data, events, position = path.read_bytes(), [], 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        start = position + 12
        events.append(event_pb2.Event.FromString(data[start : start + length]))
        position = start + length + 4
    return events


class TestEvents:
    def test_are_in_the_file_at_once(self, tmp_path: Path) -> None:
        writer = Events(tmp_path, start=0)
        writer.add(10, {"train/loss": 0.5, "val/error": 12.5})
        (path,) = tmp_path.iterdir()
        assert "tfevents" in path.name
        event = events_of(path)[-1]
        assert event.step == 10
        assert {value.tag: value.simple_value for value in event.summary.value} == {
            "train/loss": 0.5,
            "val/error": 12.5,
        }
        writer.close()

    def test_a_resumed_run_disowns_later_steps_and_keeps_earlier_files(
        self, tmp_path: Path
    ) -> None:
        for start in (0, 20):
            writer = Events(tmp_path, start)
            writer.add(start + 10, {"train/loss": 0.5})
            writer.close()
        first, second = sorted(tmp_path.iterdir(), key=lambda path: path.suffix)
        # TensorBoard drops events of the step of a START and later ones.
        starts = [event for event in events_of(second) if event.HasField("session_log")]
        assert [(e.step, e.session_log.status) for e in starts] == [
            (21, event_pb2.SessionLog.START)
        ]
        assert events_of(first)[0].file_version == "brain.Event:2"
