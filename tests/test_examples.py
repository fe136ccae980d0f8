"""The examples run and print what they promise, each in at most eighty lines."""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SPARSE = r"loss 0\.\d\d with 740 of 7400 connections\n$"  # round(7400 * 0.1)
PRINTED = {
    "01_your_model": SPARSE,
    "02_linen": SPARSE,
    "03_nnx": SPARSE,
    "04_equinox": SPARSE,
    "05_haiku": SPARSE,
    "06_keras": SPARSE,
    "07_write_a_criterion": r"total +58 +576 +10\.07%",  # round(576 * 0.1)
    "08_write_a_selection": r"in: 0\.5\d\d .*\nout: 0\.5\d\d of the saliency\n$",
    "09_language_model": r"\d+ zeros in the written MLPs\n$",
    "10_several_devices": r"57[4-6] of 576 entries are as on one device\n$",
    "11_compare_criteria": r"snip +\d+ +\d+ +\d+\.\d\n(.*\n){3}$",
    "12_read_a_report": r"snip +1 +0\.98 +1012 (.*\n)*open .*report\.html\n$",
}
MOVING = {
    "13_moving_mask_agent": {"steps": 22},  # the first move is in step 20
    "14_moving_mask_rnn": {"steps": 22},
    "15_moving_mask_equinox": {"steps": 22, "stop": 20},
}


@pytest.mark.parametrize("name", PRINTED)
def test_an_example(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    script = find(name)
    if name == "10_several_devices":  # their number is settled when JAX starts
        subprocess.check_call([sys.executable, script], cwd=EXAMPLES.parent)
    else:
        runpy.run_path(str(script))
    assert re.search(PRINTED[name], capfd.readouterr().out)


@pytest.mark.parametrize("name", MOVING)
def test_a_moving_mask(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(find(name)))["main"](**MOVING[name])
    assert re.search(r": \S+, sparsity 90\.0%\n$", capsys.readouterr().out)


def find(name: str) -> Path:
    """Returns a script whose library is installed."""
    for library in ("equinox", "haiku", "keras"):
        if name.endswith(library) and importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) <= 80
    return script


def test_every_numbered_example_is_tested() -> None:
    scripts = {script.stem for script in EXAMPLES.glob("[0-9]*.py")}
    assert scripts == PRINTED.keys() | MOVING.keys()


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((EXAMPLES / "what_snip_keeps.ipynb").read_text())
    cells = [c["source"] for c in notebook["cells"] if c["cell_type"] == "code"]
    exec("\n".join("".join(lines) for lines in cells), {})
