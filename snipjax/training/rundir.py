"""The directory of a run: its configuration, metrics and results as files.

Every file is written whole or not at all, so that a run killed at any moment leaves
a directory that the same command resumes.
"""

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from snipjax import config as configs

CONFIG, DATA = "config.json", "data.json"
METRICS, RESULT = "metrics.jsonl", "result.json"
GROUPS = "groups.json"


Differences = Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]


def of_experiments(config: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """Returns a line per field in which two experiments differ, as plain dicts.

    A run of before a field was there is one with its default.
    """
    flat = dict(configs.fields(configs.default())) | dict(configs.fields(written))
    return configs.differences(config, flat)


def of_large(config: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """The same for runs of :mod:`snipjax.training.large`, which may go on on other devices."""
    found = of_experiments(config, written)
    elsewhere = ["dataset.workers"]
    if written.get("mesh") or written["dataset"].get("stream"):  # not one in memory
        elsewhere.append("mesh")
    return [line for line in found if line.split(":")[0] not in elsewhere]


@contextlib.contextmanager
def claim(
    workdir: Path,
    config: ConfigDict,
    *,
    differences: Differences = of_experiments,
    describes_itself: Callable[[Path], bool] = lambda workdir: False,
) -> Iterator[None]:
    """Makes a directory for a run of this configuration, or checks that it is one.

    Nothing is written to it. While the block runs, it is refused to other processes.
    If it is new, and still empty when the block ends, it is removed again, so that a
    refused run leaves none behind; directories above it that were made for it stay.

    Args:
      workdir: the directory.
      config: the configuration of the run.
      differences: what of it must be as in the directory, a line for each that is not,
        of this configuration and of the directory's as plain dicts.
      describes_itself: whether what is finished in the directory says what it was made
        with, so that it is a run also where its configuration is lost.

    Yields:
      Nothing.

    Raises:
      ValueError: if the directory holds a run of another configuration (the message
        shows the difference) or other files, cannot be written, or is in use.

    Example:
      >>> with claim(Path("runs/mine"), config):  # doctest: +SKIP
      ...     write_json(Path("runs/mine") / CONFIG, config.to_dict())
    """
    try:
        is_new = _make(workdir)
        descriptor = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unusable(workdir, error.strerror) from None
    try:
        _lock(descriptor, workdir)
        try:
            _check_contents(workdir, config, differences, describes_itself(workdir))
            yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):  # it has files by now
                    workdir.rmdir()
    finally:
        os.close(descriptor)


def check_data(workdir: Path, facts: Mapping[str, Any]) -> None:
    """Raises an error if a run was started on other data.

    Args:
      workdir: the directory of the run; without a file ``DATA`` all is well.
      facts: of the data, plain values, nested, as the file holds them.

    Raises:
      ValueError: showing what is different.

    Example:
      >>> check_data(Path("runs/new"), {"examples": {"train": 1294}})
    """
    path = workdir / DATA
    found = configs.differences(facts, read_json(path)) if path.exists() else []
    if found:
        others = len(found) - _SHOWN
        more = f"; and {others} more" if others > 0 else ""
        raise ValueError(
            f"the run in '{workdir}' was started on other data "
            f"({'; '.join(found[:_SHOWN])}{more}); put them back as they were, or "
            "start anew with another --workdir"
        )


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, replacing the file at once.

    Args:
      path: the file, in a directory that exists.
      value: what :func:`json.dumps` takes.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, remedy: str | None = None) -> Any:
    """Returns the value of a JSON file.

    Args:
      path: the file, of a run.
      remedy: what to do if it is damaged; by default, to remove its directory.

    Raises:
      ValueError: if the file is not JSON, with the remedy.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        remedy = remedy or f"remove '{path.parent}' to start again"
        raise ValueError(f"'{path}' is damaged ({error}); {remedy}") from None


def write_text(path: Path, text: str) -> None:
    """Writes a text file, replacing it at once.

    Args:
      path: the file, in a directory that exists.
      text: all that it holds afterwards.
    """
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def append_metrics(workdir: Path, row: dict[str, Any]) -> None:
    """Adds a line to the metrics.

    Args:
      workdir: the directory of the run.
      row: the line's values, with ``step`` among them.
    """
    with (workdir / METRICS).open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(workdir: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """Returns the metrics up to a step; a line cut off by a crash is left out.

    Args:
      workdir: the directory of the run.
      last_step: the last step to return, by default that of the last line.

    Returns:
      A dict per line, in the order written; none if there is no such file.
    """
    path = workdir / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if last_step is None or row["step"] <= last_step:
            rows.append(row)
    return rows


def truncate_metrics(workdir: Path, last_step: int) -> None:
    """Takes lines after a step away: those of work that is about to be done again.

    Args:
      workdir: the directory of the run.
      last_step: the last step whose line stays.
    """
    rows = read_metrics(workdir, last_step)
    write_text(workdir / METRICS, "".join(json.dumps(row) + "\n" for row in rows))


def groups(workdir: Path) -> list[range]:
    """Returns the groups in which a run of many seeds trains them side by side.

    Of a run of before they were written down it is those that have a directory; of
    groups that have a seed in common one, which is finished if one of them is.

    Args:
      workdir: the directory of the run.

    Returns:
      The seeds of each group, in their order; none of a run of one seed.

    Raises:
      ValueError: if the file of the groups is damaged.

    Example:
      >>> groups(Path("runs/new"))
      []
    """
    path = workdir / GROUPS
    if path.exists():
        spans = read_json(path)
        try:
            return [range(first, last + 1) for first, last in spans]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"'{path}' is damaged ({error}); remove it, and the groups are those "
                "that have a directory"
            ) from error
    kept: list[range] = []
    for seeds in sorted(_groups_there(workdir), key=_finished_first(workdir)):
        if not any(set(seeds) & set(others) for others in kept):
            kept.append(seeds)
    return sorted(kept, key=min)


def write_groups(workdir: Path, groups: Iterable[Sequence[int]]) -> None:
    """Writes the groups down, for the run to go on with the same.

    Args:
      workdir: the directory of the run.
      groups: consecutive seeds each.
    """
    spans = [(int(seeds[0]), int(seeds[-1])) for seeds in groups]
    write_json(workdir / GROUPS, spans)


def group_directory(workdir: Path, seeds: Sequence[int]) -> Path:
    """Returns the directory of a group of seeds.

    Args:
      workdir: the directory of the run.
      seeds: of the group, consecutive.

    Example:
      >>> group_directory(Path("runs/mine"), range(8, 12)).name
      'seeds-8-11'
    """
    return workdir / f"seeds-{seeds[0]}-{seeds[-1]}"


def group_directories(workdir: Path) -> list[Path]:
    """Returns the directories of a run's groups of seeds, in the order of these.

    Args:
      workdir: the directory of the run.

    Raises:
      ValueError: if the file of the groups is damaged.

    Example:
      >>> group_directories(Path("runs/new"))
      []
    """
    return [group_directory(workdir, seeds) for seeds in groups(workdir)]


class Events:
    """Scalars for TensorBoard, each in its file as soon as it is added."""

    def __init__(self, directory: Path, start: int) -> None:
        """Steps after the start that are in other files do not count any more.

        Args:
          directory: where the files are; made if it is not there.
          start: the step that the run starts or goes on from.
        """
        directory.mkdir(exist_ok=True)
        self._directory, self._start, self._writer = directory, start, None

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of a step.

        Args:
          step: their horizontal coordinate.
          scalars: by the name that TensorBoard shows, e.g. ``train/loss``.
        """
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


_PARTIAL = ".partial"
_SHOWN = 5  # differences


def _groups_there(workdir: Path) -> list[range]:
    names = (path.name for path in workdir.glob("seeds-*"))
    matches = (re.fullmatch(r"seeds-(\d+)-(\d+)", name) for name in names)
    return [range(int(match[1]), int(match[2]) + 1) for match in matches if match]


def _finished_first(workdir: Path) -> Callable[[range], tuple[bool, int, int]]:
    """A key to sort groups by."""

    def key(seeds: range) -> tuple[bool, int, int]:
        result = group_directory(workdir, seeds) / RESULT
        return not result.exists(), seeds.start, seeds.stop

    return key


def _unusable(workdir: Path, reason: str) -> ValueError:
    return ValueError(
        f"workdir '{workdir}' cannot be used ({reason}); choose another with --workdir"
    )


def _make(workdir: Path) -> bool:
    """Makes a directory and those above it; False if it was there before."""
    try:
        workdir.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _lock(descriptor: int, workdir: Path) -> None:
    # Held by the open directory, so that it ends with this process, however it ends.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _unusable(workdir, "another process is using it") from None
    except OSError:
        return  # a file system without locks
    if os.fstat(descriptor).st_nlink == 0:
        raise _unusable(workdir, "another process has just removed it")


def _check_contents(
    workdir: Path, config: ConfigDict, differences: Differences, describes_itself: bool
) -> None:
    contents = {path.name for path in workdir.iterdir()}
    if RESULT not in contents and not os.access(workdir, os.W_OK):
        raise _unusable(workdir, "it cannot be written")
    if CONFIG not in contents:
        is_other = any(not name.endswith(_PARTIAL) for name in contents)
        if is_other and not describes_itself:
            raise ValueError(
                f"workdir '{workdir}' has files but no {CONFIG}, so it is not a run; "
                "choose an empty or new directory with --workdir"
            )
        return
    found = differences(config.to_dict(), _written_config(workdir, describes_itself))
    if found:
        raise ValueError(
            f"workdir '{workdir}' holds a run of another configuration "
            f"({'; '.join(found)}); choose another with --workdir, or remove it"
        )


def _written_config(workdir: Path, describes_itself: bool) -> dict[str, Any]:
    path, remedy = workdir / CONFIG, f"remove '{workdir}' to start again"
    if describes_itself:
        remedy = "remove this file, and the same command goes on with what is finished"
    written = read_json(path, remedy)
    if not isinstance(written, dict):
        raise ValueError(f"'{path}' is damaged (it has no fields); {remedy}")
    return written
