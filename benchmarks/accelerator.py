"""Measures speed and memory on an accelerator, beside its limits and PyTorch.

    python -m benchmarks.accelerator --minutes 8

A row is printed, and appended to a file of JSON lines, as soon as it is known, so that
nothing is lost when the machine goes away. Each job, such as a network in a precision,
is a process of its own with a time limit: it has the memory to itself, and if it fails,
its row says so and the others go on. The same command later does the jobs that have no
"done" in the file. ``--small`` tries it on a CPU in miniature.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from benchmarks import tables
from benchmarks.cases import CASES, PRECISIONS
from benchmarks.jobs import jobs
from benchmarks.rows import Row, failure, last_line

PARTS = ("limits", "selection", "seeds", "stream", "networks")
MOST_SECONDS = 150  # of a job
LEAST_SECONDS = 20  # in which a job can give a row
# A job has the card to itself, and XLA's temporary arrays need large pieces.
_ENVIRONMENT = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}


def chosen(
    parts: Sequence[str],
    networks: Sequence[str],
    precisions: Sequence[str],
    small: bool,
) -> list[str]:
    """Returns the names of jobs in some parts; small ones are of all networks."""

    def is_chosen(job: str) -> bool:
        first, *rest = job.split()
        if first in PARTS:
            return first in parts
        is_named = small or (first in networks and rest[0] in precisions)
        return "networks" in parts and is_named

    return list(filter(is_chosen, jobs(small)))


def lines(command: Sequence[str], log: IO[str], limit: float) -> Iterator[str]:
    """Yields the lines that a command prints, and raises if it fails.

    Raises:
      TimeoutError: if it was killed because it took longer than the limit, in seconds.
      ChildProcessError: if it ended with another code than 0.
    """
    is_over = threading.Event()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        process_group=0,  # its workers end with it
        env={**_ENVIRONMENT, **os.environ},
    ) as process:

        def kill() -> None:
            is_over.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, kill)
        timer.start()
        try:
            yield from process.stdout or ()
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
    if is_over.is_set():
        raise TimeoutError(f"killed after {limit:.0f} s")
    if code:
        raise ChildProcessError(f"ended with {code}")


def rows(job: str, small: bool, log_path: Path, limit: float) -> Iterator[Row]:
    """Yields the rows of a job, the last of which says how it ended."""
    command = [sys.executable, "-m", "benchmarks.jobs", job, *["--small"] * small]
    start = time.monotonic()
    end: Row = {"what": "done"}
    with log_path.open("a+", errors="replace") as log:
        print(f"--- {job}", file=log, flush=True)
        begin = log.tell()
        try:
            for line in lines(command, log, limit):
                if line.startswith("{") and line.endswith("}\n"):  # whole
                    yield {**json.loads(line), "job": job}
                else:
                    print(line, end="", file=log)
        except (TimeoutError, ChildProcessError) as error:
            end = failure({"what": "job"}, f"{error}: {last_line(log, begin)}")
    yield {**end, "job": job, "seconds": round(time.monotonic() - start, 1)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the command line asks for; returns 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    networks, precisions = ([x.name for x in named] for named in (CASES, PRECISIONS))
    parser.add_argument("--minutes", type=float, default=8, help="stop after")
    parser.add_argument("--small", action="store_true", help="in miniature, on a CPU")
    for name, every in (
        ("parts", PARTS),
        ("networks", networks),
        ("precisions", precisions),
    ):
        parser.add_argument(f"--{name}", nargs="+", choices=every, default=every)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks/accelerator.jsonl")
    )
    asked = parser.parse_args(argv)
    end = time.monotonic() + 60 * asked.minutes
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    before = tables.read(asked.out) if asked.out.exists() else []
    done = {row["job"] for row in before if row["what"] == "done"}
    names = chosen(asked.parts, asked.networks, asked.precisions, asked.small)
    names = [name for name in names if name not in done]
    has_failed = False
    with asked.out.open("a") as out:

        def say(row: Row) -> None:
            line = json.dumps(row)
            print(line, file=out, flush=True)
            print(line, flush=True)

        for number, job in enumerate(names):
            left = end - time.monotonic()
            if left < LEAST_SECONDS:
                say({"what": "out of time", "left": names[number:]})
                break
            limit = min(left, MOST_SECONDS)
            for row in rows(job, asked.small, asked.out.with_suffix(".log"), limit):
                has_failed |= row["what"] == "failed"
                say(row)
    text = "\n".join(tables.accelerator(asked.out))
    asked.out.with_suffix(".md").write_text(text)
    print(text)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
