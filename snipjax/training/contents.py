"""The contents of a run's files, checked when a file is read again.

A kind is a type, or a dict of the kinds of an object's fields, a list of the kind of
all items, of which there is at least one, or a tuple of a kind for each item.
"""

from typing import Any

_NUMBER = int | float
_LAYER = {"path": str, "shape": list, "kept": int, "total": int}
_ERRORS = ("test_error", "test_error_last", "val_error", "train_error")
_NETWORK = {
    **dict.fromkeys(("seed", "kept", "steps"), int),
    **{"sparsity": _NUMBER, "layers": [_LAYER]},
    "effective_sparsity": _NUMBER | None,
    **dict.fromkeys(_ERRORS, _NUMBER | None),  # None without an evaluation
}
# The fields that are read, by the name of the file.
KINDS: dict[str, Any] = {
    "config.json": {},
    "data.json": {},
    "groups.json": [(int, int)],
    "networks.json": [_NETWORK],
    "result.json": {
        **dict.fromkeys(("dataset", "model", "method"), str),
        **{"parameters": int, "epochs": _NUMBER, "networks": [_NETWORK]},
    },
}
METRICS_ROW = {"seeds": [int], "step": int}
IMAGE = {"image_shape": (int, int, int)}


def check(value: Any, kind: Any, where: str = "") -> None:
    """Raises a ``ValueError`` that names the first field which is not of its kind.

    >>> check({"networks": [{"seed": "0"}]}, {"networks": [{"seed": int}]})
    Traceback (most recent call last):
    ValueError: field 'networks.seed' is 0
    """
    container: Any = type(kind) if isinstance(kind, dict | list) else kind
    if isinstance(kind, tuple):
        container = list
    is_other = not isinstance(value, container)
    if is_other or (isinstance(kind, list | tuple) and not _has_length(value, kind)):
        name = f"field '{where}'" if where else "the value"
        raise ValueError(f"{name} is {str(value)[:50]}")
    if isinstance(kind, dict):
        for name, inner in kind.items():
            path = f"{where}.{name}" if where else name
            if name not in value:
                raise ValueError(f"field '{path}' is missing")
            check(value[name], inner, path)
    elif isinstance(kind, list | tuple):
        kinds = kind if isinstance(kind, tuple) else kind * len(value)
        for item, inner in zip(value, kinds):
            check(item, inner, where)


def _has_length(value: list[Any], kind: list[Any] | tuple[Any, ...]) -> bool:
    return len(value) == len(kind) if isinstance(kind, tuple) else bool(value)
