"""Pairs timed alternately in one process, and tables of their ratios."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from snipjax.shrink.cost import times_in_turns
from snipjax.training import console

_PACKAGES = ("snipjax", "jax", "jaxlib", "flax", "optax", "numpy", "torch")


class Row(NamedTuple):
    """A ratio: what was measured, what against, and how it came out."""

    measured: str
    against: str
    seconds: float  # median
    against_seconds: float  # median
    ratio: float  # of the medians
    spread: tuple[float, float]  # least and largest ratio of neighbors in time
    target: float | None  # at most; None where the row is for information


def compare(
    measured: tuple[str, Callable[[], Any]],
    against: tuple[str, Callable[[], Any]],
    *,
    repeats: int,
    calls: int = 1,
    target: float | None = None,
) -> Row:
    """Times two named functions alternately and returns their ratio.

    Args:
      measured: name and function.
      against: the same.
      repeats: how often each is timed.
      calls: how many calls are timed together, for functions of milliseconds: one
        call alone would run while the other's threads are still waiting for work.
      target: the ratio should be at most this.
    """
    functions = [repeated(function, calls) for _, function in (measured, against)]
    times, against_times = (
        [seconds / calls for seconds in series]
        for series in times_in_turns(functions, repeats)
    )
    return row(measured[0], against[0], times, against_times, target)


def repeated(function: Callable[[], Any], calls: int) -> Callable[[], Any]:
    """Returns a function that calls another so often and returns the last result."""

    def all_calls() -> Any:
        for _ in range(calls - 1):
            function()
        return function()

    return all_calls


def row(
    measured: str,
    against: str,
    times: Sequence[float],
    against_times: Sequence[float],
    target: float | None = None,
) -> Row:
    """Returns the ratio of two series of times."""
    ratios = [a / b for a, b in zip(times, against_times)]
    median, against_median = map(statistics.median, (times, against_times))
    return Row(
        measured,
        against,
        median,
        against_median,
        median / against_median,
        (min(ratios), max(ratios)),
        target,
    )


def report(name: str, rows: Sequence[Row], path: Path | None = None) -> None:
    """Prints a table of ratios, and writes it as JSON with machine and versions.

    Args:
      name: of the benchmark.
      rows: the ratios.
      path: the file to write; by default ``runs/benchmarks/<name>.json``.
    """
    console.show_table(
        name,
        ("measured", "against", "s", "against s", "ratio", "spread", "at most"),
        [
            (
                row.measured,
                row.against,
                f"{row.seconds:.4g}",
                f"{row.against_seconds:.4g}",
                f"{row.ratio:.3f}",
                f"{row.spread[0]:.3f}-{row.spread[1]:.3f}",
                "-" if row.target is None else f"{row.target:g}",
            )
            for row in rows
        ],
    )
    path = path or Path("runs") / "benchmarks" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "rows": [row._asdict() for row in rows]}
    path.write_text(json.dumps(result, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """Returns what a measurement depends on: processor, devices, versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "versions": versions,
    }
