"""The README's commands and examples run; names on every page exist."""

import functools
import os
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import optax
import pytest

from snipjax import config
from snipjax.studies.table1 import default as table1

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


def commands(text: str = README) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_first_command_installs_prunes_and_trains(tmp_path: Path) -> None:
    clone = tmp_path / "snipjax"
    ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, clone, ignore=ignored)
    environment = {name: os.environ[name] for name in ("HOME", "PATH")}
    printed = subprocess.check_output(
        commands()[0], shell=True, cwd=clone, env=environment, text=True
    )
    assert "5,061" in printed  # 10% of the 50,610 connections
    assert list(clone.glob("runs/*/result.json"))


def test_ci_runs_the_command_of_the_tests() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for part in commands()[1].split(" && "):
        assert part in ci


def test_the_examples_of_the_readme_run(capsys: pytest.CaptureFixture[str]) -> None:
    own_model, five_lines, own_criterion = examples(ROOT / "README.md")
    assert "snipjax" not in own_model
    assert len(five_lines.splitlines()) == 5
    summary = "print(masks.summary(mask))\n"
    exec(own_model + five_lines + summary + own_criterion + summary, {})
    printed = capsys.readouterr().out
    assert re.search(r"total +58 +576 +10\.07%", printed)  # round(576 * 0.1)
    assert re.search(r"total +29 +576 +5\.03%", printed)  # round(576 * 0.05)


def test_the_examples_of_the_pages_run() -> None:
    for page in ROOT.glob("docs/*.md"):
        if page.stem != "from-jaxpruner":  # which runs below, with its rows
            exec("".join(examples(page)), {})


def test_each_row_beside_jaxpruner_runs() -> None:
    page = ROOT / "docs" / "from-jaxpruner.md"
    names: dict[str, Any] = {}
    exec("".join(examples(page)), names)
    extra_args = {name: names[name] for name in ("loss_fn", "batch")}
    rows = re.findall(r"^\| .+? \| `(.+?)` \| .*\|$", page.read_text(), re.MULTILINE)
    assert len(rows) > 50
    for code in sorted({*rows}):
        value = eval(code, dict(names))
        if isinstance(value, optax.GradientTransformation):
            optimizer = optax.with_extra_args_support(value)
            state = jax.eval_shape(optimizer.init, names["params"])
            update = functools.partial(optimizer.update, **extra_args)
            jax.eval_shape(update, names["gradient"], state, names["params"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_on_a_page_exist(page: Path) -> None:
    text = page.read_text()
    fields = [*config.field_names(config.default()), *config.field_names(table1())]
    for name in re.findall(r"--config\.([a-z0-9_.]+)=", text):
        assert name in fields
    for name in re.findall(
        r"(?<![./\w])(?:configs|tests|snipjax)/[\w/]+(?:\.py)?", text
    ):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert (page.parent / name).exists(), name
    for name in re.findall(r"-m ((?:benchmarks|snipjax)[.\w]*)", text):
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").exists() or (
            ROOT / name.replace(".", "/") / "__main__.py"
        ).exists(), name
    names = re.findall(r"`snipjax\.([\w.]+)`", text)
    rooms = "adapters|data|io|masks|methods|optim|pruning|results|saliency|training"
    names += re.findall(rf"`((?:{rooms})\.(?!json|png)\w+(?:\.\w+)?)", text)
    for name in names:
        pkgutil.resolve_name(f"snipjax.{name}")
