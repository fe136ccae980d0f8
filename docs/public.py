"""The public names of modules, and the docstrings of constants and types.

A constant or type alias is documented by the string below its assignment.
"""

import ast
import importlib
import inspect
import itertools
import re
from pathlib import Path

MODULES: list[str] = re.findall(
    r"^   (snipjax[\w.]+)$", (Path(__file__).parent / "api.md").read_text(), re.M
)


def names(module: str) -> list[str]:
    """Returns a module's ``__all__``, or without one all that it documents."""
    members = vars(importlib.import_module(module))
    if "__all__" in members:
        return list(members["__all__"])
    own = [
        name
        for name, value in members.items()
        if getattr(value, "__module__", None) == module and callable(value)
    ]
    return [name for name in [*own, *constants(module)] if not name.startswith("_")]


def docstring(module: str, name: str) -> str:
    """Returns the docstring of a module's name, empty without one."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isfunction(value) or (inspect.isclass(value) and _is_own(value, name)):
        return inspect.getdoc(value) or ""
    return constant_docstring(module, name)


def constant_docstring(module: str, name: str) -> str:
    """Returns the docstring of a constant, imported or not, empty without one."""
    for node in _body(module):
        if isinstance(node, ast.ImportFrom) and name in [x.name for x in node.names]:
            return constant_docstring(node.module or "", name)
    return constants(module).get(name, "")


def constants(module: str) -> dict[str, str]:
    """Returns the strings below a module's own assignments, by name."""
    found = {}
    for node, below in itertools.pairwise(_body(module)):
        match node, below:
            case (
                (
                    ast.Assign(targets=[ast.Name(name)])
                    | ast.AnnAssign(target=ast.Name(name))
                ),
                ast.Expr(ast.Constant(str(text))),
            ):
                found[name] = inspect.cleandoc(text)
    return found


def _is_own(value: type, name: str) -> bool:
    """Returns whether a class is known by its own name, unlike ``Mask = Any``."""
    return value.__name__ == name


def _body(module: str) -> list[ast.stmt]:
    source = importlib.import_module(module).__file__
    return ast.parse(Path(source or "").read_text()).body
