"""Scalars of a run for TensorBoard, and for Weights & Biases."""

import contextlib
import importlib
import importlib.util
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


class Events:
    """Writes scalars for TensorBoard, each to its file as soon as it is added."""

    def __init__(self, directory: Path, start: int) -> None:
        """Opens a directory of events; later steps in its files no longer count."""
        directory.mkdir(exist_ok=True)
        self._directory, self._start = directory, start
        self._writer: Any = None

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of a step, by names such as ``train/loss``."""
        # Imports PyTorch where that is installed, which takes longer than all else
        # that is done before the first step.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        if self._writer is None:
            file = str(self._directory / "events")
            self._writer = EventsWriter(file, f".{self._start}")
            started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(step=self._start + 1, session_log=started))
        values = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in scalars.items()
        ]
        summary = summary_pb2.Summary(value=values)
        self._write(event_pb2.Event(step=step, summary=summary))

    def close(self) -> None:
        """Closes the file, if anything was written."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()


class WandbRun:
    """Sends scalars to a project of Weights & Biases, on from an interrupted run."""

    def __init__(
        self, project: str, directory: Path, config: Mapping[str, Any]
    ) -> None:
        """Starts a run called as the directory, or goes on with the one there."""
        self._project = project
        with self._errors():
            self._run: Any = importlib.import_module("wandb").init(
                project=project,
                name=directory.name,
                dir=directory,
                config=dict(config),
                resume="auto",
            )

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        with self._errors():
            self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Waits until everything is sent."""
        with self._errors():
            self._run.finish()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of wandb's many classes
            reason = textwrap.shorten(str(error), 200, placeholder="...")
            raise ValueError(
                f"config.wandb is '{self._project}', which Weights & Biases does not "
                f"take ({reason}); log in with 'wandb login', set WANDB_MODE=offline, "
                "or leave config.wandb empty"
            ) from error


def check_wandb(project: str) -> None:
    """Raises a ``ValueError`` if a project is named and wandb is not installed."""
    if project and not importlib.util.find_spec("wandb"):
        raise ValueError(
            f"config.wandb is '{project}', but wandb cannot be imported; pip install "
            "wandb, or leave config.wandb empty"
        )


@contextlib.contextmanager
def wandb_runs(
    project: str, directory: Path, config: Mapping[str, Any]
) -> Iterator[Sequence[WandbRun]]:
    """Yields the run of a project of Weights & Biases, or none without a project."""
    runs = [WandbRun(project, directory, config)] if project else []
    try:
        yield runs
    finally:
        for run in runs:
            run.close()


@contextlib.contextmanager
def opened(
    directory: Path, start: int, others: Sequence[WandbRun] = ()
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Yields the function that writes the scalars of a step to all that want them."""
    tensorboard = Events(directory / "tensorboard", start)
    sinks: Sequence[Events | WandbRun] = (tensorboard, *others)

    def add(step: int, scalars: Mapping[str, float]) -> None:
        for sink in sinks:
            sink.add(step, scalars)

    try:
        yield add
    finally:
        tensorboard.close()
