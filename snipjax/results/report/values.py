"""What is read from files, made safe to count and to show."""

import math
from typing import Any


def printable(text: str) -> str:
    """Returns text with what cannot be printed replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def finite(value: Any) -> float | None:
    """Returns a finite number as a float, None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if is_number and math.isfinite(value) else None
    except OverflowError:  # an integer beyond floats
        return None


def flag_value(value: Any) -> str:
    """Returns a field's value as a flag of train.py takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(flag_value, value))
    return str(value)
