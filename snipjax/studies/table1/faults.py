"""What is wrong with the ``cell.json`` of a directory, if anything is."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from snipjax.studies.table1.cell import Cell, named

_NUMBER = (int, float)
# What the tables are made of; the file holds more.
_FIELDS: Mapping[str, type | tuple[type, ...]] = MappingProxyType(
    {
        "network": str,
        "method": str,
        "sparsity": _NUMBER,
        "seed": int,
        "kept": int,
        "measured_sparsity": _NUMBER,
        "test_error": _NUMBER,
        "prunes": int,
        "steps": int,
        "seconds": _NUMBER,
        "wall_seconds": _NUMBER,
        "history": list,
        "device": str,
        "settings": dict,
    }
)
_SHOWN = 40  # characters of a value


def of_result(result: Any, directory: str) -> str | None:
    """Returns what is wrong with a cell's results; None if nothing is.

    Args:
      result: the value that the file holds.
      directory: the name of the directory that the file is in.

    Example:
      >>> of_result({"network": 5}, "lenet_300_100-dense-seed0")
      'network is 5'
    """
    if not isinstance(result, dict):
        return f"it is {_shown(result)}"
    for name, kind in _FIELDS.items():
        if name not in result:
            return f"it has no {name}"
        if not isinstance(result[name], kind):
            return f"{name} is {_shown(result[name])}"
    for row in result["history"]:
        if not _is_evaluation(row):
            return f"history has {_shown(row)}"
    cell = Cell(*(result[name] for name in Cell._fields))
    return None if cell == named(directory) else f"it is that of {cell}"


def _is_evaluation(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("step"), int)
        and {"phase", "test_error"} <= row.keys()
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
