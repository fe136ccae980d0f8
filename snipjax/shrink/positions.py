"""Positions along the axes of arrays: which of them can only be removed together.

An axis is an array with a code for each position, or None where all positions stay.
Rules, of :mod:`snipjax.shrink.rules`, say how the axes of an operation's results follow
from the axes of its operands, in terms of a few verbs. They are asked twice: here codes
are labels, which verbs unite; in :mod:`snipjax.shrink.gone` codes are bools, which
tell the positions that are gone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Axis = np.ndarray | None
Axes = tuple[Axis, ...]
# The operands, by index, all or any of which make a result zero where they are; None
# if none does.
Silence = tuple[str, Sequence[int]] | None


class Site(NamedTuple):
    """An operation: its name and parameters, and the shapes of operands and results.

    ``numbers`` are the values of the operands that are known scalars, None for others.
    """

    name: str
    params: Mapping[str, Any]
    shapes: Sequence[tuple[int, ...]]
    results: Sequence[tuple[int, ...]]
    numbers: Sequence[float | None]


class Verbs(Protocol):
    def fix(self, axis: Axis) -> Axis:
        """Says that no position of an axis may go."""

    def fresh(self, size: int, is_zero: bool) -> Axis:
        """Returns an axis of entries that are alike, of which any may go."""

    def join(self, axes: Sequence[Axis], silent: Sequence[bool] | str) -> Axis:
        """Returns the axis of entries made from one of each axis."""

    def contract(self, left: Axis, right: Axis) -> Axis:
        """Returns the axis over which products of two operands are added up."""

    def total(self, axis: Axis) -> Axis:
        """Returns the axis that entries are added up over."""

    def chain(self, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
        """Returns the axis of several axes one after the other."""

    def merge(self, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
        """Returns the axis that several axes become in a reshape."""

    def split(self, axis: Axis, sizes: Sequence[int]) -> Axes:
        """Returns the axes that one becomes in a reshape."""

    def bundle(self, axis: Axis, groups: int) -> Axis:
        """Returns one code for each of several groups of neighbors."""


# The axes of the operands, and of the results.
Both = tuple[list[Axes], list[Axes]]
Rule = Callable[[Verbs, Site, list[Axes]], Both]


class Labels:
    """Labels of positions, of which some are united: a union-find on arrays.

    A code is twice a label, plus one if the entries at that position are zero whenever
    the parameters at all positions of that label are. The label 0 is fixed.
    """

    def __init__(self, choices: dict[int, int]) -> None:
        self._parents = np.arange(1 << 16)
        self.number = 1
        self._choices = choices
        self._splits: list[tuple[Axis, int]] = []
        # The labels over which entries of no parameter are added up, and the labels of
        # entries that are not zero where a product with a parameter adds them up.
        self.hidden: list[np.ndarray] = []
        self.leaves = 0  # labels below it are positions of parameters
        self.loud: list[np.ndarray] = []
        # The labels of the parameters' positions over which products add up, and of
        # those that values take on from a parameter.
        self.feeding: list[np.ndarray] = []
        self.making: list[np.ndarray] = []
        # Pairs of labels: entries of parameters at the second are part of values that
        # are known by the first.
        self.alike: list[tuple[np.ndarray, np.ndarray]] = []
        self.is_parameter: Sequence[bool] = ()
        self.is_of_parameters = False  # whether an operation has no others

    def new(self, size: int, is_zero: bool = True) -> np.ndarray:
        first, self.number = self.number, self.number + size
        if self.number > len(self._parents):
            more = np.arange(len(self._parents), 2 * self.number)
            self._parents = np.concatenate([self._parents, more])
        return 2 * np.arange(first, self.number) + is_zero

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """Returns the least of the labels that each one is united with."""
        while True:
            above = self._parents[labels]
            if np.array_equal(above, labels):
                return labels
            self._parents[labels] = self._parents[above]
            labels = above

    def free(self, axis: Axis) -> np.ndarray | None:
        """Returns which positions are not fixed; None if all are."""
        if axis is None:
            return None
        found = self.roots(axis >> 1) != 0
        return found if found.any() else None

    def unite(self, left: np.ndarray, right: np.ndarray) -> None:
        left, right = np.broadcast_arrays(left >> 1, right >> 1)
        while True:
            left, right = self.roots(left), self.roots(right)
            differ = left != right
            if not differ.any():
                return
            pair = left[differ], right[differ]
            np.minimum.at(self._parents, np.maximum(*pair), np.minimum(*pair))

    def fix(self, axis: Axis) -> Axis:
        if axis is not None:
            self.unite(axis, np.zeros_like(axis))
        return None

    def fresh(self, size: int, is_zero: bool) -> Axis:
        return self.new(size, is_zero)

    def join(self, axes: Sequence[Axis], silent: Sequence[bool] | str) -> Axis:
        found = [axis for axis in axes if axis is not None]
        if len(found) < len(axes):
            for axis in found:
                self.fix(axis)
            return None
        first, *others = found
        for other in others:
            if other is not first:
                self.unite(first, other)
                if self.is_of_parameters:
                    self.alike.append((first >> 1, other >> 1))
        bits = [axis & 1 for axis in found]
        if isinstance(silent, str):
            bit = {"all": np.bitwise_and, "any": np.bitwise_or}[silent].reduce(bits)
        else:
            chosen = [b for b, is_needed in zip(bits, silent) if is_needed]
            bit = np.bitwise_and.reduce(chosen) if chosen else 0
        return (first & ~1) | bit

    def contract(self, left: Axis, right: Axis) -> Axis:
        joined = self.join([left, right], "any")
        if joined is None or left is None or right is None:
            return None
        # A zero unit must add nothing.
        self.fix(joined[joined & 1 == 0])
        by_left, by_right = self.is_parameter
        if not (by_left or by_right):
            self.hidden.append(joined >> 1)
        else:
            kernel, values = (left, right) if by_left else (right, left)
            is_known = (kernel >> 1 < self.leaves) & (kernel & 1 == 1)
            self.feeding.append(kernel[is_known] >> 1)
            self.hidden.append(kernel[~is_known] >> 1)
            self.loud.append(values[values & 1 == 0] >> 1)
        if by_left and by_right:
            self._must_be_zero(joined)
        return joined

    def total(self, axis: Axis) -> Axis:
        if axis is None:
            return None
        self.fix(axis[axis & 1 == 0])
        self.hidden.append(axis >> 1)
        if self.is_parameter[0]:
            self._must_be_zero(axis)
        return axis

    def _must_be_zero(self, axis: np.ndarray) -> None:
        """Says that units may go only if all of their parameters are pruned.

        Parameters alone are added up over them, as in a norm of a kernel, which has
        rows of units that are zero themselves.
        """
        self.hidden.append(axis >> 1)
        self.loud.append(axis >> 1)

    def chain(self, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
        if all(axis is None for axis in axes):
            return None
        parts = zip(axes, sizes)
        return np.concatenate(
            [np.zeros(n, np.int64) if a is None else a for a, n in parts]
        )

    def merge(self, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
        free = [i for i, axis in enumerate(axes) if self.free(axis) is not None]
        for i in free[1:]:  # a position of the result has one label
            self.fix(axes[i])
        if not free:
            return None
        shape = [1] * len(sizes)
        shape[free[0]] = sizes[free[0]]
        codes = np.asarray(axes[free[0]]).reshape(shape)
        return np.broadcast_to(codes, sizes).reshape(-1)

    def split(self, axis: Axis, sizes: Sequence[int]) -> Axes:
        if self.free(axis) is None or axis is None:
            return (None,) * len(sizes)
        roots = self.roots(axis >> 1)
        rows = [rows_along(roots, sizes, i) for i in range(len(sizes))]
        same = [i for i, row in enumerate(rows) if (row == row[:, :1]).all()]
        if same:
            place = same[0]
        else:  # by the first axis unless, in an earlier analysis, it had to stay
            number = len(self._splits)
            place = self._choices.get(number, 0)
        codes = rows_along(axis, sizes, place)
        self.unite(codes[:, :1], codes)
        codes = (codes[:, 0] & ~1) | np.bitwise_and.reduce(codes & 1, axis=1)
        if not same:
            self._splits.append((codes, len(sizes)))
        return tuple(codes if i == place else None for i in range(len(sizes)))

    def bundle(self, axis: Axis, groups: int) -> Axis:
        if axis is None:
            return None
        codes = axis.reshape(groups, -1)
        self.unite(codes[:, :1], codes)
        return (codes[:, 0] & ~1) | np.bitwise_and.reduce(codes & 1, axis=1)

    def other_choices(self) -> dict[int, int]:
        """Returns other axes for the splits whose first one turned out to be fixed."""
        choices = dict(self._choices)
        for number, (axis, count) in enumerate(self._splits):
            place = choices.get(number, 0)
            if self.free(axis) is None and place + 1 < count:
                choices[number] = place + 1
        return choices


def rows_along(codes: np.ndarray, sizes: Sequence[int], place: int) -> np.ndarray:
    """Returns codes of a flat axis, a row for each index of one axis of a shape."""
    return np.moveaxis(codes.reshape(sizes), place, 0).reshape(sizes[place], -1)
