"""The documentation site: ``python -m sphinx -W --keep-going docs site``."""

import ast
import base64
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.autosummary import Autosummary

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
import public  # noqa: E402

from snipjax import __version__  # noqa: E402

project, author, release = "snipjax", "the authors of snipjax", __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
]
default_role = "code"
html_theme = "furo"
html_title = "snipjax"
html_show_copyright = False
templates_path = ["_templates"]
exclude_patterns = ["_templates"]
copybutton_prompt_text = ">>> |\\.\\.\\. |\\$ "
copybutton_prompt_is_regexp = True

# Pages are written for a reader of the repository too: headings are targets there.
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
NAMES = {module: public.names(module) for module in public.MODULES}
CONSTANTS = {
    f"{module}.{name}": text
    for module in NAMES
    for name in NAMES[module]
    if (text := public.constant_docstring(module, name))
}
autosummary_context = {"names": NAMES, "constants": list(CONSTANTS)}
autodoc_typehints = "none"  # the signatures of docstrings have shapes
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
nitpicky = True
nitpick_ignore_regex = [  # names of other packages, whose pages may be far away
    ("py:.*", r"(collections|flax|fnmatch|functools|jax|numpy|optax|warnings)\b.*"),
    ("py:class", "ArrayTree"),  # chex's, in signatures
]

GENERATED = ROOT / "docs" / "_generated"
TOCTREE = """
```{toctree}
:hidden:
:caption: CAPTION

PAGES
```
"""
CONTENTS = {
    "Start": ["frameworks", "_generated/examples", "how-to-choose"],
    "Guides": [
        "writing-a-criterion",
        "moving-masks",
        "smaller-networks",
        "from-jaxpruner",
        "runs",
        "scale",
    ],
    "Results": [
        "experiments",
        "criteria",
        "table1",
        "initialization",
        "benchmarks",
        "results",
    ],
    "Reference": ["api", "_generated/contributing", "_generated/changelog"],
}


def write_pages() -> None:
    """Writes a page for each example, and the pages outside of ``docs/``."""
    for folder in (GENERATED, ROOT / "docs" / "api"):  # also pages of old names
        shutil.rmtree(folder, ignore_errors=True)
    (GENERATED / "examples").mkdir(parents=True)
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (ROOT / f"{name}.md").read_text().replace("](docs/", "](../")
        (GENERATED / f"{name.lower()}.md").write_text(text)
    names = []
    for script in sorted((ROOT / "examples").glob("*.py")):
        docstring = ast.get_docstring(ast.parse(script.read_text())) or ""
        purpose = docstring.split("\n")[0]
        names.append(f"examples/{script.stem}")
        (GENERATED / f"{names[-1]}.md").write_text(
            f"# {script.stem.replace('_', ' ')}\n\n{purpose}\n\n"
            f"```{{literalinclude}} ../../../examples/{script.name}\n"
            ":language: python\n```\n"
        )
    for notebook in (ROOT / "examples").glob("*.ipynb"):
        names.append(f"examples/{notebook.stem}")
        (GENERATED / f"{names[-1]}.md").write_text(notebook_page(notebook))
    toctree = "```{toctree}\n" + "\n".join(names) + "\n```\n"
    (GENERATED / "examples.md").write_text(f"# Examples\n\n{toctree}")


def notebook_page(notebook: Path) -> str:
    """Returns a notebook's text, code and pictures, which are written as files."""
    parts = []
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"]):
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"```python\n{source}\n```" if is_code else source)
        for output in cell.get("outputs", ()):
            if picture := output.get("data", {}).get("image/png"):
                file = GENERATED / "examples" / f"{notebook.stem}_{number}.png"
                file.write_bytes(base64.b64decode(picture))
                parts.append(f"![Output]({file.name})")
    return "\n\n".join(parts)


def adapt(app: Sphinx, page: str, source: list[str]) -> None:
    """Turns links of the repository into links of the site; makes the first page."""
    text = source[0]
    if page == "index":
        readme = (ROOT / "README.md").read_text().replace("](docs/", "](")
        readme = readme.replace("](CITATION.cff", "](../CITATION.cff")
        text = readme + text.replace("# Pages", "## Pages")
        for caption, pages in CONTENTS.items():
            text += TOCTREE.replace("CAPTION", caption).replace(
                "PAGES", "\n".join(pages)
            )
    for name in ("CONTRIBUTING", "CHANGELOG"):
        link = f"](/_generated/{name.lower()}.md"
        text = re.sub(rf"\]\((\.\./)*{name}\.md", link, text)
    script = r"\]\(\.\./examples/(\w+)\.(py|ipynb)"
    text = re.sub(script, r"](/_generated/examples/\1.md", text)
    text = text.replace("](../examples)", "](/_generated/examples.md)")
    source[0] = text


def document_constant(app: Sphinx, what: str, name: str, *rest: Any) -> None:
    """Documents a constant by the string below its assignment."""
    if name in CONSTANTS:
        rest[-1][:] = CONSTANTS[name].splitlines()


class Summaries(Autosummary):
    """Tables of names, which know the docstrings of constants too."""

    def get_items(self, names: list[str]) -> list[tuple[str, str | None, str, str]]:
        return [
            (name, signature, CONSTANTS.get(path, summary).split("\n")[0], path)
            for name, signature, summary, path in super().get_items(names)
        ]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    write_pages()
    app.add_directive("autosummary", Summaries, override=True)
    app.connect("source-read", adapt)
    # Before napoleon, which reads the sections of docstrings.
    app.connect("autodoc-process-docstring", document_constant, priority=1)
