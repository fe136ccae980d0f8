"""Prints what the benchmarks measured as Markdown tables, as in docs/benchmarks.md."""

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


def accelerator(path: Path) -> Iterator[str]:
    """Yields a heading and a table for each kind of row that an accelerator gave.

    Rates of networks are also a share of the measured rate of matrix products.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    limits = {r["precision"]: r["TFLOP/s"] for r in rows if r["what"] == "product"}
    for row in rows:
        if row["what"] == "step" and "TFLOP/s" in row and row["precision"] in limits:
            row["share of products"] = row["TFLOP/s"] / limits[row["precision"]]
    for what in dict.fromkeys(row["what"] for row in rows):
        frame = pd.DataFrame([row for row in rows if row["what"] == what])
        shown = frame.drop(columns="what").dropna(axis="columns", how="all")
        lines = [list(shown), ["---"] * shown.shape[1]]
        lines += [[_text(value) for value in row] for row in shown.to_numpy().tolist()]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        yield f"## {what}\n\n{table}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def main() -> None:
    directory = Path("runs") / "benchmarks"
    print("\n".join(tables(directory)))
    if (path := directory / "accelerator.jsonl").exists():
        print("\n".join(accelerator(path)))


if __name__ == "__main__":
    main()
