"""Rows of measurements that each may fail, with seconds as medians of blocks."""

import statistics
import time
import traceback
from collections.abc import Callable
from typing import IO, Any

Row = dict[str, Any]
_MOST_CHARACTERS = 300  # of an error; a list of buffers, out of memory, has pages


def attempt(about: Row, measure: Callable[[], Row]) -> Row:
    """Returns ``about`` with what is measured, or with the error of measuring it."""
    try:
        return about | measure()
    # A row may run out of memory, or fail to compile; the others go on.
    except Exception as error:
        traceback.print_exc()
        return failure(about, f"{type(error).__name__}: {error}")


def failure(about: Row, error: str) -> Row:
    """Returns the row of a measurement that failed, with one line of its error."""
    text = " ".join(error.split())[:_MOST_CHARACTERS]
    return {**about, "what": "failed", "measured": about.get("what"), "error": text}


def last_line(log: IO[str], begin: int) -> str:
    """Returns the last line that a process wrote after a position, cut short."""
    log.seek(begin)
    lines = [line for line in log.read().splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:_MOST_CHARACTERS] if lines else ""


def seconds(
    function: Callable[[], Any],
    wait: Callable[[Any], Any],
    *,
    least: float = 0.1,
    repeats: int = 5,
) -> float:
    """Returns the median seconds of a call, timed in blocks of ``least`` seconds."""
    wait(function())
    start = time.perf_counter()
    wait(function())
    calls = max(1, round(least / (time.perf_counter() - start)))

    def block() -> float:
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = function()
        wait(result)
        return (time.perf_counter() - start) / calls

    return statistics.median(block() for _ in range(repeats))
