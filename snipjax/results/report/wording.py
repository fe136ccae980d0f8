"""Numbers and lists as text."""

from collections.abc import Iterable, Sequence
from typing import Any


def percent(value: float) -> str:
    """Returns a percentage with two digits."""
    return f"{value:.2f}%"


def in_points(value: float) -> str:
    """Returns a difference of percentages with two digits."""
    return f"{value:.2f} points"


def signed(value: float | None) -> str:
    """Returns a number with its sign and two digits, - for none."""
    return "-" if value is None else f"{value:+.2f}"


def plain(value: float | None) -> str:
    """Returns a number with two digits, - for none."""
    return "-" if value is None else f"{value:.2f}"


def counted(items: Sequence[Any], noun: str) -> str:
    """Returns how many there are of a noun, e.g. ``2 rows``."""
    return f"{len(items):,} {noun}{agree(items, '', 's')}"


def agree(items: Sequence[Any], one: str, many: str) -> str:
    """Returns the form of a word that agrees in number with items."""
    return one if len(items) == 1 else many


def listed(items: Iterable[str]) -> str:
    """Returns items as an enumeration, each once."""
    *first, last = dict.fromkeys(items)
    return f"{', '.join(first)} and {last}" if first else last


def ranges(numbers: Sequence[int]) -> str:
    """Returns ascending whole numbers in short, e.g. ``0-3, 7``."""
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


def between(values: Sequence[float]) -> str:
    """Returns the value that all have, or the range they are in."""
    bounds = dict.fromkeys((min(values), max(values)))
    return " to ".join(f"{v:,.2f}".rstrip("0").rstrip(".") for v in bounds)
