"""The documentation site has every page and every public module."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import snipjax

DOCS = Path(__file__).parents[1] / "docs"
MODULES = re.findall(r"^   (snipjax[\w.]+)$", (DOCS / "api.md").read_text(), re.M)


def test_every_public_module_has_a_page() -> None:
    parts = {".".join(module.split(".")[:2]) for module in MODULES}
    assert parts == {f"snipjax.{name}" for name in snipjax._MODULES}


def test_every_page_is_in_the_contents() -> None:
    settings = (DOCS / "conf.py").read_text()
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or f'"{page.stem}"' in settings


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__doc__, f"{name}.{public}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", DOCS]
    subprocess.check_call([*command, tmp_path])
