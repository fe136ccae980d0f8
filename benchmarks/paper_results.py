"""Gathers the paper's rows into files that travel: lines, a table, and an archive.

    tar -xzf runs.tar.gz -C runs/paper && python -m snipjax.report runs/paper

makes the report of an archive elsewhere, and `benchmarks.paper` does not train what is
in it again.
"""

import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snipjax.results import published
from snipjax.training import rundir

ROWS, TABLE, ARCHIVE = "paper.jsonl", "paper.md", "runs.tar.gz"
# A report reads these; parameters and checkpoints would be too large to travel.
_FILES = (rundir.CONFIG, rundir.RESULT, rundir.METRICS)
_COPIED = ("dataset", "model", "method", "steps", "epochs", "device", "versions")
_ERRORS = ("test_error", "test_error_last", "val_error")
_HEAD = (
    *("row", "state", "networks", "test error, %", "after the last step, %"),
    *("published, %", "epochs", "minutes"),
)


def is_finished(directory: Path) -> bool:
    """Returns whether a row has its result."""
    return (directory / rundir.RESULT).exists()


def write(
    out: Path, results: Path, rows: Sequence[str], states: Mapping[str, str]
) -> None:
    """Writes what is known of the rows in ``out`` into the directory ``results``."""
    found = [known(row, out / row, states.get(row)) for row in rows]
    known_rows = [entry for entry in found if entry is not None]
    _replace(results / ROWS, "".join(f"{json.dumps(row)}\n" for row in known_rows))
    _replace(results / TABLE, table(results / ROWS))
    partial = results / f"partial.{ARCHIVE}"
    with tarfile.open(partial, "w:gz") as archive:
        for row in filter(lambda row: is_finished(out / row), rows):
            for path in (out / row / name for name in _FILES):
                if path.exists():
                    archive.add(path, f"{row}/{path.name}")
    partial.replace(results / ARCHIVE)


def known(row: str, directory: Path, state: str | None) -> dict[str, Any] | None:
    """Returns what a row's directory says, or None if nothing is known."""
    entry: dict[str, Any] = {"row": row, "state": state or "not asked for"}
    if is_finished(directory):
        result = json.loads((directory / rundir.RESULT).read_text())
        networks, summary = result["networks"], result["summary"]
        figure = published.find(
            *(result[name] for name in ("dataset", "model", "method")),
            summary["sparsity"],
        )
        errors = {name: [network[name] for network in networks] for name in _ERRORS}
        return {
            **entry,
            **{name: result[name] for name in _COPIED if name in result},
            **summary,
            "published": figure.error if figure else None,
            "seconds": result["wall_seconds"],
            "of each network": errors,
        }
    rows = rundir.read_metrics(directory) if directory.exists() else []
    if rows:
        last = {name: rows[-1].get(name) for name in ("step", "val_error", "seconds")}
        return {**entry, "last": last}
    return entry if state else None


def table(path: Path) -> str:
    """Returns a file of rows as a Markdown table, means with standard deviations."""
    lines = [_HEAD, ("---",) * len(_HEAD)]
    for line in path.read_text().splitlines():
        row = json.loads(line)
        errors = (_error(row, name) for name in ("test_error", "test_error_last"))
        minutes = f"{row['seconds'] / 60:.1f}" if "seconds" in row else ""
        state = row["state"].replace("|", "/")
        if "last" in row:
            state += f", step {row['last']['step']:,}"
        rest = (row.get("published"), row.get("epochs"), minutes)
        cells = row["row"], state, row.get("seeds"), *errors, *rest
        lines.append(tuple("" if cell is None else str(cell) for cell in cells))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _error(row: Mapping[str, Any], name: str) -> str:
    if row.get(name) is None:
        return ""
    spread = row.get(f"{name}_std")
    return f"{row[name]:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"partial.{path.name}")
    partial.write_text(text)
    partial.replace(path)
