"""Numbers, lists and names as a reader sees them."""

import math
from collections.abc import Iterable, Sequence, Sized
from typing import Any

from snipjax.results import published

DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "digits": "scikit-learn digits"}
_METHODS = {
    "none": "dense",
    "magnitude": "magnitude at initialization",
    "random": "random pruning",
    "rigl": "RigL",
    "set": "SET",
    "gradual_magnitude": "gradual magnitude",
    "straight_through": "straight-through estimation",
}


def plain(value: float, form: str = ".2f") -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def signed(value: float) -> str:
    return plain(value, "+.2f")


def share(value: float) -> str:
    """Returns a share in percent, with four digits or as many as keep it below 100.

    >>> share(0.98199), share(0.99999)
    ('98.2', '99.999')
    """
    text = f"{100 * value:.4g}"
    return f"{100 * value:.7g}" if text == "100" and value < 1 else text


def counted(items: Sized | int, noun: str) -> str:
    """Returns a count with its noun, e.g. ``2 rows``."""
    count = items if isinstance(items, int) else len(items)
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: Iterable[str]) -> str:
    """Returns items as an enumeration, each once."""
    *first, last = dict.fromkeys(items)
    return f"{', '.join(first)} and {last}" if first else last


def ranges(numbers: Sequence[int]) -> str:
    """Returns ascending whole numbers in short.

    >>> ranges([0, 1, 2, 3, 7])
    '0-3, 7'
    """
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(
        f"{group[0]}-{group[-1]}" if len(group) > 2 else ", ".join(map(str, group))
        for group in groups
    )


def between(values: Iterable[float]) -> str:
    """Returns the value that all have, or the range they span; a dash for none."""
    known = [value for value in values if not math.isnan(value)]
    bounds = dict.fromkeys((min(known), max(known))) if known else ()
    return " to ".join(f"{v:,.2f}".rstrip("0").rstrip(".") for v in bounds) or "-"


def flag_value(value: Any) -> str:
    """Returns a field's value as a flag of train.py takes it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def network_name(model: str) -> str:
    return published.NETWORKS.get(model, model)


def dataset_name(dataset: str) -> str:
    return DATASETS.get(dataset, dataset)


def method_name(method: str) -> str:
    return _METHODS.get(method) or published.NAMES.get(method, method)


def kind(row: Any) -> str:
    """Returns the method of a row with its settings, common to all its sparsities."""
    return method_name(row.method) + (f" ({row.settings})" if row.settings else "")


def label(row: Any) -> str:
    """Returns the words that tell a row from the others of its network."""
    sparsity = "" if row.method == "none" else f" at {share(row.sparsity)}%"
    settings = f" ({row.settings})" if row.settings else ""
    return method_name(row.method) + sparsity + settings


def on_data(row: Any) -> str:
    return f"{network_name(row.model)} on {dataset_name(row.dataset)}"


def title(row: Any) -> str:
    """Returns the name of a row, e.g. ``LeNet-300-100 on MNIST, SNIP at 98%``."""
    return f"{on_data(row)}, {label(row)}"
