"""Checks of the methods' hyperparameters, which are fields of frozen dataclasses."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any


def check(
    settings: Any, names: str, is_right: Callable[[Any], bool], requirement: str
) -> None:
    """Raises a ``ValueError`` naming the first of some fields that is out of range.

    The default of the field is given as an example of a right value.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for name in names.split():
        value = getattr(settings, name)
        if not is_right(value):
            raise ValueError(
                f"{name} is {value}; it must be {requirement}, e.g. {defaults[name]}"
            )


def check_integers(settings: Any, names: str, least: int = 1) -> None:
    """Raises a ``ValueError`` for a field that is no integer, or too small."""
    check(
        settings,
        names,
        lambda value: isinstance(value, int) and value >= least,
        f"an integer of at least {least}",
    )


def check_positive(settings: Any, names: str) -> None:
    """Raises a ``ValueError`` for a field that is not positive and finite."""
    check(settings, names, lambda value: 0 < value < math.inf, "positive and finite")


def check_not_negative(settings: Any, names: str) -> None:
    """Raises a ``ValueError`` for a field that is negative or not finite."""
    check(settings, names, lambda value: 0 <= value < math.inf, "at least 0 and finite")
