"""The rooms of the package import downwards only, and in no circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import snipjax

PACKAGE = Path(snipjax.__file__).parent
# A file may import from its own row and from the rows above it.
ROWS = (
    ("_src",),
    ("saliency",),
    ("masks",),
    ("pruning",),
    ("optim",),
    ("adapters",),
    ("shrink",),
    ("ops",),
    ("initializers",),
    ("models",),
    ("io",),
    ("data",),
    ("training",),
    ("methods",),
    ("schema", "build", "combinations", "config", "config_files", "arguments", "extra"),
    ("scored_examples",),
    ("assembly", "records", "reporting", "rivals", "smaller", "experiment", "sweep"),
    ("results", "studies"),
    ("cli", "report"),
    ("train",),
)
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in PACKAGE.rglob("*.py")}


def imported(nodes: list[ast.AST]) -> Iterator[str]:
    """Names of the package's modules that statements import."""
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name not in MODULES and "." in name:
                name = name.rpartition(".")[0]
            if name in MODULES and name != "snipjax":
                yield name


def room(module: str) -> str:
    return module.split(".")[1]


def test_imports_go_downwards() -> None:
    for module, file in MODULES.items():
        for name in imported(list(ast.walk(ast.parse(file.read_text())))):
            is_above = module == "snipjax" or RANK[room(name)] <= RANK[room(module)]
            assert is_above, f"{module} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module: {
            name
            for name in imported(ast.parse(file.read_text()).body)
            if not module.startswith(f"{name}.")  # a package's own front door
        }
        for module, file in MODULES.items()
    }
    while graph:
        free = [module for module, names in graph.items() if not names & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for module in free:
            del graph[module]
