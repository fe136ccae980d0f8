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
from snipjax.training import contents

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
        raise ValueError(
            f"the run in '{workdir}' was started on other data ({_first(found)}); put "
            "them back as they were, or start anew with another --workdir"
        )


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, replacing the file at once."""
    with files.replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path, remedy: str | None = None) -> Any:
    """Returns the value of a JSON file of a run, whose name says what must be in it."""
    try:
        value = json.loads(path.read_text())
        contents.check(value, contents.KINDS.get(path.name, object))
        return value
    except (ValueError, RecursionError) as error:
        raise damaged(path, error, remedy) from None


def damaged(path: Path, reason: object, remedy: str | None = None) -> ValueError:
    """Returns the error of a file of a run that does not hold the right things."""
    remedy = remedy or f"remove '{path.parent}' to start again"
    return ValueError(f"'{path}' is damaged ({reason}); {remedy}")


def append_metrics(workdir: Path, row: Mapping[str, Any]) -> None:
    """Adds a row, with ``seeds`` and ``step`` among its values, to a run's metrics."""
    with (workdir / METRICS).open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics, without one that a crash cut off."""
    path = workdir / METRICS
    if not path.exists():
        return []
    *lines, _ = path.read_text(errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            contents.check(row, dict)
            contents.check(row, contents.metrics_row(row))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"line {number} of '{path}' is damaged ({error}); remove '{workdir}' "
                "to start again"
            ) from None
        rows.append(row)
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


def _first(differences: Sequence[str]) -> str:
    others = len(differences) - _SHOWN
    more = f"; and {others} more" if others > 0 else ""
    return "; ".join(differences[:_SHOWN]) + more


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
    names = {path.name for path in workdir.iterdir()}
    if RESULT not in names and not os.access(workdir, os.W_OK):
        raise _unusable(workdir, "it cannot be written")
    if CONFIG not in names:
        if any(not name.endswith(_PARTIAL) for name in names):
            raise ValueError(
                f"workdir '{workdir}' has files but no {CONFIG}, so it is not a run; "
                "choose an empty or new directory with --workdir"
            )
        return
    remedy = f"remove '{workdir}' to start again"
    found = differences(read_json(workdir / CONFIG, remedy))
    if found:
        raise ValueError(
            f"workdir '{workdir}' holds a run of another configuration "
            f"({_first(found)}); choose another with --workdir, or remove it"
        )
