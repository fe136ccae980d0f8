"""Runs checks in a process that has eight devices, which JAX must be told at once."""

import subprocess
import sys
from pathlib import Path

from tests import devices


def check(*names: str, marked: str = "not slow") -> None:
    """Runs the tests of files beside this one, and shows what fails of them."""
    tests = Path(__file__).parent
    root = tests.parents[1]
    options = ["-q", "-x", "--no-header", "-m", marked]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(tests / name for name in names)],
        env=devices(8),
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "skipped" not in finished.stdout
