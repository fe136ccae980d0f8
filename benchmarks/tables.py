"""Prints what the benchmarks measured as Markdown tables, as in docs/benchmarks.md."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

NAMES = ("training", "pruning", "selection", "loop", "startup", "seeds", "convolution")
HEAD = ("measured", "against", "s", "against, s", "ratio", "spread", "at most")


def table(result: Mapping[str, Any]) -> str:
    """Returns the rows of a benchmark's JSON file as a Markdown table."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for row in result["rows"]:
        target = row["target"]
        lines.append(
            (
                row["measured"],
                row["against"],
                f"{row['seconds']:.4g}",
                f"{row['against_seconds']:.4g}",
                f"{row['ratio']:.3f}",
                "-".join(f"{value:.3f}" for value in row["spread"]),
                "" if target is None else f"{target:.3g}",
            )
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(directory: Path) -> Iterator[str]:
    """Yields a heading and a table for each benchmark that has been run."""
    for name in NAMES:
        path = directory / f"{name}.json"
        if path.exists():
            yield f"## {name}\n\n{table(json.loads(path.read_text()))}"


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file of JSON lines, less one that a kill cut off."""
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def accelerator(path: Path) -> Iterator[str]:
    """Yields a heading and a table for each kind of row that an accelerator gave.

    Seconds become shares of the limits measured in the same file, and of rivals.
    """
    rows = read(path)
    for row in rows:
        row |= _shares(row, rows)
    for what in dict.fromkeys(row["what"] for row in rows):
        frame = pd.DataFrame([row for row in rows if row["what"] == what])
        # A network, or what a row measures, already says which job it is of.
        unseen = ["what"] if what in ("failed", "done") else ["what", "job"]
        shown = frame.drop(columns=unseen, errors="ignore")
        shown = shown.dropna(axis="columns", how="all")
        lines = [list(shown), ["---"] * shown.shape[1]]
        lines += [[_text(value) for value in row] for row in shown.to_numpy().tolist()]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        yield f"## {what}\n\n{table}"


def _shares(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the ratios of a row to others of the same network and precision."""
    what, seconds = row["what"], row.get("seconds")

    def found(kind: str, field: str = "seconds", case: str = "") -> float:
        """Returns the least value in rows like this one, NaN if there are none."""
        same = ("network", "precision") if kind != "product" else ("precision",)
        like = [
            other[field]
            for other in rows
            if other["what"] == kind
            and other.get("case", "").startswith(case)
            and all(other.get(name) == row.get(name) for name in same)
        ]
        return min(like, default=math.nan)

    if what == "selection":
        copies = [other["GB/s"] for other in rows if other["what"] == "copy"]
        read_once = 4e-9 * row["scores"] / max(copies, default=math.nan)
        return {"times read once": seconds / read_once}
    if what == "prune":
        return {"to a gradient": seconds / found("gradient")}
    if what == "stream":
        return {"to memory": seconds / row["from memory"]}
    if what == "seeds":
        alone = row["networks"] * found("seeds", case="one alone")
        whole = seconds * 135_000 / row["steps"] / 60
        return {"to as many alone": seconds / alone, "minutes of 250 epochs": whole}
    if what != "step":
        return {}
    shares = (
        {}
        if "PyTorch" in row["case"]
        else {"to PyTorch": seconds / found("step", case="PyTorch")}
    )
    if row["case"] == "masked":
        shares["to dense"] = seconds / found("step", case="dense")
    if "TFLOP/s" in row:
        shares["of products"] = row["TFLOP/s"] / found("product", "TFLOP/s")
    return shares


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    # A cell is one line, without the bars that divide cells.
    return "" if value is None else " ".join(str(value).replace("|", "/").split())


def main() -> None:
    directory = Path("runs") / "benchmarks"
    print("\n".join(tables(directory)))
    if (path := directory / "accelerator.jsonl").exists():
        print("\n".join(accelerator(path)))


if __name__ == "__main__":
    main()
