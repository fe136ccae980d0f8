"""What the benchmarks' figures are: alternate timings, and ratios of medians."""

import importlib
import json
from pathlib import Path

import pytest

from benchmarks import scale, tables, timing
from snipjax import masks
from snipjax.shrink.cost import times_in_turns


def test_functions_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    series = times_in_turns(
        (lambda: calls.append("a"), lambda: calls.append("b")), repeats=3
    )
    assert calls == ["a", "b"] * 4
    assert [len(times) for times in series] == [3, 3]


def test_a_row_is_the_ratio_of_medians_with_the_spread_of_neighbors() -> None:
    row = timing.row("ours", "theirs", [1.0, 2.0, 9.0], [4.0, 4.0, 6.0], target=0.6)
    assert (row.seconds, row.against_seconds, row.ratio) == (2.0, 4.0, 0.5)
    assert row.spread == (0.25, 1.5)


def test_a_report_is_a_file_from_which_a_table_of_markdown_is_made(
    tmp_path: Path,
) -> None:
    row = timing.row("ours", "theirs", [1.0], [2.0], target=1.0)
    timing.report("loop", [row], tmp_path / "new" / "loop.json")
    written = json.loads((tmp_path / "new" / "loop.json").read_text())
    assert written["rows"][0]["ratio"] == 0.5
    assert written["machine"]["versions"]["jax"]
    (text,) = tables.tables(tmp_path / "new")
    assert text.startswith("## loop\n")
    assert "| ours | theirs | 1 | 2 | 0.500 | 0.500-0.500 | 1 |\n" in text


@pytest.mark.parametrize(
    "name",
    [
        *(
            "criteria",
            "convolution",
            "loop",
            "pruning",
            "seeds",
            "selection",
            "startup",
        ),
        *("streaming", "training", "communication"),
    ],
)
def test_every_benchmark_can_be_started(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def test_densities_are_of_types_of_layers() -> None:
    rows = [
        masks.Row("block_0/query/kernel", (2, 2), 1, 4, 0.25),
        masks.Row("block_1/attention_out/kernel", (2, 2), 2, 4, 0.5),
        masks.Row("block_1/mlp_in/kernel", (2, 4), 2, 8, 0.25),
        masks.Row("tokens/embedding", (5, 2), 5, 10, 0.5),
        masks.Row("Conv_0/kernel", (3, 3, 1, 2), 9, 18, 0.5),
    ]
    assert scale.density_by_type(masks.Summary(rows)) == {
        "attention": 3 / 8,
        "convolution 3x3": 0.5,
        "embedding": 0.5,
        "mlp": 0.25,
    }
