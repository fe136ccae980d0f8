"""Runs checks in a process that has eight devices, which JAX must be told at once."""

import os
import subprocess
import sys
from pathlib import Path

# What is computed here is little, and compiling it takes less time without care.
QUICK = (
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
FLAGS = f"--xla_force_host_platform_device_count=8 {QUICK}"


def check(name: str, marked: str = "not slow") -> None:
    """Runs the tests of a file beside this one, and shows what fails of them."""
    tests = Path(__file__).parent
    root = tests.parents[1]
    options = ["-q", "-x", "--no-header", "-m", marked]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tests / name],
        env={**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "skipped" not in finished.stdout
