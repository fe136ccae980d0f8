"""Every command and example of the README runs.

The command that runs the tests is the one that `.ci/run` runs.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets_builders as builders
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# Enough to see a command work.
BRIEFLY = (
    "--config.train.steps=2 --config.train.eval_every=1 --config.train.batch_size=8 "
    "--config.prune.batch_size=8"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


PYTHON = ".venv/bin/python"


def training_commands() -> list[str]:
    return [line for line in commands() if line.startswith(f"{PYTHON} train.py")]


def run(command: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def data_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data sets with images of the shapes of MNIST and CIFAR-10."""
    directories = {}
    for name, shape in (("mnist", (28, 28, 1)), ("cifar", (32, 32, 3))):
        directories[name] = tmp_path_factory.mktemp(name)
        splits = {
            split: builders.records(builders.examples(total, shape=shape))
            for split, total in (("train", 40), ("test", 10))
        }
        features = builders.image_and_label(shape)
        builders.prepare(directories[name], splits, features=features)
    return directories


def test_the_command_that_prunes_digits(tmp_path: Path) -> None:
    (command,) = [line for line in commands() if "install" in line and "train" in line]
    clone = tmp_path / "snipjax"
    left_out = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, clone, ignore=left_out)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, shell=True, cwd=clone, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "5,061" in done.stdout  # 10% of the 50,610 connections
    assert list(clone.glob("runs/*/result.json"))


def test_the_command_that_runs_the_tests_is_that_of_ci() -> None:
    (command,) = [line for line in commands() if "pytest" in line]
    ci = (ROOT / ".ci" / "run").read_text()
    for part in command.split(" && "):
        assert part in ci


def test_the_library_example_is_five_lines_and_runs(tmp_path: Path) -> None:
    scaffolding, five_lines, rest = blocks("python")
    assert "snipjax" not in scaffolding
    assert len(five_lines.splitlines()) == 5
    script = tmp_path / "example.py"
    script.write_text(scaffolding + five_lines + rest)
    printed = run(f"{sys.executable} {script}", tmp_path)
    assert re.search(r"total +58 +576 +10\.07%", printed)  # round(576 * 0.1) are kept


def test_the_command_that_reports_runs(tmp_path: Path) -> None:
    (command,) = [line for line in commands() if "snipjax.results.report" in line]
    digits = (
        f"{sys.executable} {ROOT}/train.py --config {ROOT}/configs/digits_lenet300.py"
    )
    run(f"{digits} {BRIEFLY}", tmp_path)
    run(command.replace(PYTHON, sys.executable), tmp_path)
    for suffix in ("html", "md"):
        assert "LeNet-300-100" in (tmp_path / f"report.{suffix}").read_text()


@pytest.mark.parametrize("command", training_commands())
def test_a_training_command(
    command: str, tmp_path: Path, data_dirs: dict[str, Path]
) -> None:
    data_dir = data_dirs["cifar" if "cifar" in command else "mnist"]
    command = command.replace(f"{PYTHON} train.py", f"{sys.executable} {ROOT}/train.py")
    command = re.sub(r"--workdir \S+", "", command)
    command = command.replace("configs/", f"{ROOT}/configs/")
    data = f"--config.dataset.name=tiny --data_dir {data_dir}"
    run(f"{command} {BRIEFLY} {data} --workdir run", tmp_path)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files & {"result.json", "sweep.json"}
