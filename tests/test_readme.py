"""The README's commands and examples run; names on every page exist."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from snipjax import config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


def commands(text: str = README) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def run(command: str, cwd: Path, **environment: str) -> str:
    ran = subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_first_command_installs_prunes_and_trains(tmp_path: Path) -> None:
    clone = tmp_path / "snipjax"
    ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, clone, ignore=ignored)
    printed = run(commands()[0], clone, PYTHONPATH="")
    assert "5,061" in printed  # 10% of the 50,610 connections
    assert list(clone.glob("runs/*/result.json"))


def test_ci_runs_the_command_of_the_tests() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for part in commands()[1].split(" && "):
        assert part in ci


def test_the_examples_run(tmp_path: Path) -> None:
    own_model, five_lines, own_criterion = re.findall(
        r"```python\n(.*?)```", README, re.DOTALL
    )
    assert "snipjax" not in own_model
    assert len(five_lines.splitlines()) == 5
    summaries = "print(masks.summary(mask))\n"
    script = own_model + five_lines + summaries + own_criterion + summaries
    (tmp_path / "example.py").write_text(script)
    printed = run(f"{sys.executable} example.py", tmp_path, PYTHONPATH=str(ROOT))
    assert re.search(r"total +58 +576 +10\.07%", printed)  # round(576 * 0.1)
    assert re.search(r"total +29 +576 +5\.03%", printed)  # round(576 * 0.05)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_on_a_page_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"--config\.(vary|[a-z]+\.\w+|seeds?|mesh)=", text):
        if name.split(".")[0] not in ("lenet_300_100", "lenet_5_caffe"):  # Table 1's
            assert name in config.field_names(config.default())
    for name in re.findall(r"\bconfigs/\w+\.py|\btests/[\w/]+\.py", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert (page.parent / name).exists(), name
    for name in re.findall(r"-m (benchmarks\.\w+|snipjax[.\w]+)", text):
        assert importlib.util.find_spec(name), name
    for name in re.findall(r"\bsnipjax/[\w/.]+", text):
        assert (ROOT / name.rstrip(".")).exists(), name
    for name in re.findall(r"`snipjax\.([\w.]+)`", text):
        assert_importable(f"snipjax.{name}")
    for name in re.findall(r"`((?:masks|saliency|pruning|optim|data)\.\w+)", text):
        assert_importable(f"snipjax.{name}")


def assert_importable(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert importlib.util.find_spec(name) if module == "snipjax" else hasattr(
        importlib.import_module(module), attribute
    ), name
