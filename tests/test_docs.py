"""The documentation site has every page, and every public name its docstring."""

import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import snipjax

DOCS = Path(__file__).parents[1] / "docs"
sys.path.append(str(DOCS))
import public  # noqa: E402

NAMES = [(module, name) for module in public.MODULES for name in public.names(module)]


def test_every_public_module_has_a_page() -> None:
    parts = {module.split(".")[1] for module in public.MODULES}
    assert parts == {*snipjax._MODULES, "studies"}


def test_every_page_is_in_the_contents() -> None:
    settings = (DOCS / "conf.py").read_text()
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or f'"{page.stem}"' in settings


def test_every_public_name_has_a_docstring() -> None:
    # Below a constant or type it is a string.
    assert [names for names in NAMES if not public.docstring(*names)] == []


def test_every_public_function_and_class_has_an_example() -> None:
    for module, name in NAMES:
        if callable(getattr(importlib.import_module(module), name)):
            text = public.docstring(module, name)
            blocks = re.findall(r" *\.\. code-block:: python\n((?:\n| .*\n?)+)", text)
            assert ">>> " in text or blocks, name
            for block in blocks:  # of runs that take seconds, or need files
                compile(textwrap.dedent(block), name, "exec")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", DOCS]
    subprocess.check_call([*command, tmp_path])
