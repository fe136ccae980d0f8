"""Hyperparameters of the methods: the fields of frozen dataclasses, with bounds."""

import dataclasses
import math
import numbers
import operator
from typing import Any

_COMPARISONS = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def bounded(default: float, **bounds: float) -> Any:
    """Returns a field with the bounds ``least``, ``above``, ``most`` and ``below``."""
    return dataclasses.field(default=default, metadata={"bounds": bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Checks that the fields of a subclass are finite numbers within their bounds.

    By default an integer is at least 1, and another number above 0.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, words, bounds = getattr(self, field.name), "finite", {"above": 0.0}
            kind: type = numbers.Real
            if isinstance(field.default, int):
                words, bounds, kind = "an integer", {"least": 1}, numbers.Integral
            is_number = isinstance(value, kind) and not isinstance(value, bool)
            is_right = is_number and math.isfinite(value)
            for name, bound in field.metadata.get("bounds", bounds).items():
                text, compare = _COMPARISONS[name]
                words += f" and {text} {bound}"
                is_right = is_right and compare(value, bound)
            if not is_right:
                raise ValueError(
                    f"{field.name} is {value!r}; it must be {words}, "
                    f"e.g. {field.default}"
                )
