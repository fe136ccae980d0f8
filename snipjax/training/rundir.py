"""The directory of a run: its claim, and its files of text.

Every file is written whole or not at all, so that a run killed at any moment leaves
a directory that the same command resumes.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from snipjax.io import files

CONFIG, DATA, GROUPS = "config.json", "data.json", "groups.json"
NETWORKS, RESULT = "networks.json", "result.json"
METRICS, SCORES, SIGNAL = "metrics.jsonl", "scores.npz", "signal.json"
# In the directory of each network; the first mask where it moves while training.
MASK, FIRST_MASK, PARAMS = "mask.npz", "first_mask.npz", "params.npz"

# From a written configuration to a line for each field in which it differs.
Differences = Callable[[Mapping[str, Any]], list[str]]

_PARTIAL = ".partial"  # the end of the name of a file that is being written
_SHOWN = 5  # differences in a message


@contextlib.contextmanager
def claim(workdir: Path, differences: Differences) -> Iterator[None]:
    """Makes a directory for a run, or checks that it holds the same run.

    Nothing is written to it. While the block runs, other processes are refused. A new
    directory that is still empty when the block ends is removed again, so that a
    refused run leaves none behind.

    ``differences`` compares the configuration in the directory with this run's.
    """
    try:
        is_new = _make(workdir)
        descriptor = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unusable(workdir, str(error.strerror)) from None
    try:
        _lock(descriptor, workdir)
        try:
            _check_contents(workdir, differences)
            yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):  # it has files by now
                    workdir.rmdir()
    finally:
        os.close(descriptor)


def check_data(workdir: Path, differences: Differences) -> None:
    """Raises a ``ValueError`` if a run was started on other data."""
    path = workdir / DATA
    found = differences(read_json(path)) if path.exists() else []
    if found:
        others = len(found) - _SHOWN
        more = f"; and {others} more" if others > 0 else ""
        raise ValueError(
            f"the run in '{workdir}' was started on other data "
            f"({'; '.join(found[:_SHOWN])}{more}); put them back as they were, or "
            "start anew with another --workdir"
        )


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, replacing the file at once."""
    with files.replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path, remedy: str | None = None) -> Any:
    """Returns the value of a JSON file of a run."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        remedy = remedy or f"remove '{path.parent}' to start again"
        raise ValueError(f"'{path}' is damaged ({error}); {remedy}") from None


def append_metrics(workdir: Path, row: Mapping[str, Any]) -> None:
    """Adds a row, with ``seeds`` and ``step`` among its values, to a run's metrics."""
    with (workdir / METRICS).open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics, without one that a crash cut off."""
    path = workdir / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def truncate_metrics(workdir: Path, seeds: Sequence[int], last_step: int) -> None:
    """Removes rows after ``last_step``, whose work is about to be done again."""
    rows = [
        row
        for row in read_metrics(workdir)
        if row["seeds"] != list(seeds) or row["step"] <= last_step
    ]
    with files.replacing(workdir / METRICS) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))


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


def _check_contents(workdir: Path, differences: Differences) -> None:
    contents = {path.name for path in workdir.iterdir()}
    if RESULT not in contents and not os.access(workdir, os.W_OK):
        raise _unusable(workdir, "it cannot be written")
    if CONFIG not in contents:
        if any(not name.endswith(_PARTIAL) for name in contents):
            raise ValueError(
                f"workdir '{workdir}' has files but no {CONFIG}, so it is not a run; "
                "choose an empty or new directory with --workdir"
            )
        return
    found = differences(_written_config(workdir))
    if found:
        raise ValueError(
            f"workdir '{workdir}' holds a run of another configuration "
            f"({'; '.join(found)}); choose another with --workdir, or remove it"
        )


def _written_config(workdir: Path) -> dict[str, Any]:
    path, remedy = workdir / CONFIG, f"remove '{workdir}' to start again"
    written = read_json(path, remedy)
    if not isinstance(written, dict):
        raise ValueError(f"'{path}' is damaged (it has no fields); {remedy}")
    return written
