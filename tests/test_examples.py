"""The examples with moving masks run, and end at their sparsity."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("moving_mask_agent", {"steps": 22}),  # the first move is in step 20
        ("moving_mask_rnn", {"steps": 22}),
        ("moving_mask_equinox", {"steps": 22, "stop": 20}),
    ],
)
def test_a_moving_mask(
    name: str, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    if name.endswith("equinox"):
        pytest.importorskip("equinox")
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) <= 60
    runpy.run_path(str(script))["main"](**settings)
    assert re.search(r": \S+, sparsity 90\.0%\n$", capsys.readouterr().out)
