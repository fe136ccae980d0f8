"""The contents of a run's files, checked when a file is read again.

A kind is a type, a range of integers, or a dict of the kinds of an object's fields, a
list of the kind of all items, of which there is at least one, or a tuple of a kind for
each item. A field whose name ends with ``?`` may be missing or null, and its
list may be empty.
"""

from collections.abc import Mapping
from typing import Any

_NUMBER = int | float
_SEED, _COUNT, _SIZE = range(2**32), range(2**53), range(1, 2**53)
_LAYER = {"path": str, "shape": list, "kept": _COUNT, "total": _SIZE}
_ERRORS = ("test_error", "test_error_last", "val_error", "train_error")
_NETWORK = {
    "seed": _SEED,
    **dict.fromkeys(("kept", "steps", "prunes"), _COUNT),
    **{"sparsity": _NUMBER, "seconds": _NUMBER, "layers": [_LAYER]},
    "effective_sparsity": _NUMBER | None,
    **dict.fromkeys(_ERRORS, _NUMBER | None),  # None without an evaluation
}
_COLUMNS = [f"{s}_{q}" for s in ("train", "val", "test") for q in ("loss", "error")]
IMAGE = {"image_shape": (_SIZE, _SIZE, _SIZE)}
# The fields that are read, by the name of the file.
KINDS: dict[str, Any] = {
    "config.json": {},
    "data.json": IMAGE,
    "groups.json": [(_SEED, _SEED)],
    "networks.json": [_NETWORK],
    "result.json": {
        **dict.fromkeys(("dataset", "model", "method", "device?", "command?"), str),
        **dict.fromkeys(("parameters", "prunable"), _COUNT),
        **{"epochs": _NUMBER, "networks": [_NETWORK]},
    },
    "failure.json": {"message": str},
}
_SHARED = {
    "seeds": [_SEED],
    "step": _COUNT,
    **{"phase?": str, "seconds?": _NUMBER, "steps_per_second?": _NUMBER},
}


def metrics_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the kind of a row of metrics: a column has a number for each seed."""
    seeds, shared = row.get("seeds"), {name.rstrip("?") for name in _SHARED}
    column = (_NUMBER | None,) * (len(seeds) if isinstance(seeds, list) else 0)
    return {**_SHARED, **{name: column for name in row if name not in shared}}


def progress(networks: int) -> dict[str, Any]:
    """Returns the kind of the progress of a number of networks in a checkpoint."""
    column, values = (_NUMBER | None,) * networks, (_NUMBER,) * networks
    row = {"step": (_COUNT,) * networks, **dict.fromkeys(_COLUMNS, column)}
    recent = [(_SIZE, values, values)]
    return {
        **{"step": _COUNT, "seconds": _NUMBER},
        **{"best?": row, "last?": row, "recent?": recent},
    }


def check(value: Any, kind: Any, where: str = "") -> None:
    """Raises a ``ValueError`` that names the first field which is not of its kind.

    >>> check({"networks": [{"seed": "0"}]}, {"networks": [{"seed": range(9)}]})
    Traceback (most recent call last):
    ValueError: field 'networks.seed' is 0
    """
    if not _is_of(value, kind):
        name = f"field '{where}'" if where else "the value"
        raise ValueError(f"{name} is {str(value)[:50]}")
    if isinstance(kind, dict):
        for name, inner in kind.items():
            field = name.rstrip("?")
            path = f"{where}.{field}" if where else field
            given = value.get(field)
            if field == name and name not in value:
                raise ValueError(f"field '{path}' is missing")
            is_free = given is None or (given == [] and isinstance(inner, list))
            if field == name or not is_free:
                check(given, inner, path)
    elif isinstance(kind, list | tuple):
        kinds = kind if isinstance(kind, tuple) else kind * len(value)
        for item, inner in zip(value, kinds):
            check(item, inner, where)


def _is_of(value: Any, kind: Any) -> bool:
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if isinstance(kind, tuple):
        return isinstance(value, list) and len(value) == len(kind)
    if isinstance(kind, list):
        return isinstance(value, list) and bool(value)
    # Larger integers have no float.
    is_huge = isinstance(value, int) and abs(value) >= 2**63
    return isinstance(value, dict if isinstance(kind, dict) else kind) and not is_huge
