"""Positions that are gone: what results lack, and what operands have to lose."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from snipjax._src import jaxprs
from snipjax.shrink.positions import Axes, Axis, Site, rows_along
from snipjax.shrink.rules import RULES


class Gone:
    """Bools of positions that are gone: results, and what operands have to lose.

    An axis of no such position is None, which says nothing of what may go.
    """

    def fix(self, axis: Axis) -> Axis:
        if axis is not None:
            raise ValueError("a position is removed that an operation needs")
        return None

    def fresh(self, size: int, is_zero: bool) -> Axis:
        del size, is_zero
        return None

    def join(self, axes: Sequence[Axis], silent: Sequence[bool] | str) -> Axis:
        del silent
        found = [axis for axis in axes if axis is not None]
        return np.logical_or.reduce(found) if found else None

    def contract(self, left: Axis, right: Axis) -> Axis:
        return self.join([left, right], "any")

    def total(self, axis: Axis) -> Axis:
        return axis

    def chain(self, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
        if all(axis is None for axis in axes):
            return None
        parts = zip(axes, sizes)
        return np.concatenate([np.zeros(n, bool) if a is None else a for a, n in parts])

    def merge(self, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
        if all(axis is None for axis in axes):
            return None
        gone = np.zeros(tuple(sizes), bool)
        for place, axis in enumerate(axes):
            if axis is not None:
                shape = [1] * len(sizes)
                shape[place] = sizes[place]
                gone |= axis.reshape(shape)
        return gone.reshape(-1)

    def split(self, axis: Axis, sizes: Sequence[int]) -> Axes:
        if axis is None:
            return (None,) * len(sizes)
        # A row that is gone whole; where all are, no unit is left.
        rows = [rows_along(axis, sizes, i) for i in range(len(sizes))]
        axes = [np.asarray(row.all(axis=1)) for row in rows]
        found: Axes = tuple(a if a.any() else None for a in axes)
        merged = self.merge(found, sizes)
        if merged is None or not np.array_equal(merged, axis):
            raise ValueError(
                f"the positions removed of an axis of {math.prod(sizes)} are not whole "
                f"rows of an array of shape {tuple(sizes)}"
            )
        return found

    def bundle(self, axis: Axis, groups: int) -> Axis:
        if axis is None:
            return None
        codes = axis.reshape(groups, -1)
        if not np.array_equal(codes.any(axis=1), codes.all(axis=1)):
            raise ValueError("some channels of a group are removed, and others stay")
        return np.asarray(codes.all(axis=1))


GONE = Gone()


def follow(jaxpr: Any, operands: Sequence[Axes]) -> list[Axes]:
    """Returns the axes of a jaxpr's results, from the axes of what it takes."""
    return jaxprs.outputs(jaxpr, operands, _results, lambda x: (None,) * np.ndim(x))


def _results(equation: Any, operands: list[Axes]) -> list[Axes]:
    name = equation.primitive.name
    if all(map(is_whole, operands)):
        return [(None,) * len(v.aval.shape) for v in equation.outvars]
    if name in jaxprs.CALLS:
        return follow(jaxprs.inner(equation), operands)
    if name == "cond":
        return branches(equation, operands[1:])
    if name == "scan":
        carry, rows = steps(equation, operands)
        return [*carry, *((None, *axes) for axes in rows)]
    return apply_rule(equation, operands)[1]


def branches(equation: Any, operands: Sequence[Axes]) -> list[Axes]:
    """Returns what the results of a conditional lack, whatever the branch."""
    found = [follow(branch, operands) for branch in equation.params["branches"]]
    return [functools.reduce(_joined, axes) for axes in zip(*found)]


def steps(equation: Any, operands: Sequence[Axes]) -> tuple[list[Axes], list[Axes]]:
    """Returns what the state of a loop, and the rows that it makes, lack."""
    consts, carry, stacks = jaxprs.loop_operands(equation, operands)
    rows = [axes[1:] for axes in stacks]
    while True:
        results = follow(equation.params["jaxpr"], [*consts, *carry, *rows])
        after = list(map(_joined, carry, results))
        if all(map(is_same, carry, after)):
            return carry, results[len(carry) :]
        carry = after


def apply_rule(equation: Any, operands: list[Axes]) -> tuple[list[Axes], list[Axes]]:
    """Returns the axes of operands and results by the rule of an operation."""
    name = equation.primitive.name
    if name not in RULES:
        raise ValueError(
            f"an operation '{name}' meets an axis from which positions are removed, "
            "and nothing is known of it; take the mask from the units of this function"
        )
    before, after = (
        [atom.aval.shape for atom in atoms]
        for atoms in (equation.invars, equation.outvars)
    )
    site = Site(name, equation.params, before, after, [None] * len(operands))
    both = RULES[name](GONE, site, operands)
    operands, results = (list(map(_normal, found)) for found in both)
    return operands, results


def is_whole(axes: Axes) -> bool:
    return all(axis is None for axis in axes)


def is_same(a: Axes, b: Axes) -> bool:
    return all(
        x is y or (x is not None and y is not None and np.array_equal(x, y))
        for x, y in zip(a, b)
    )


def _normal(axes: Axes) -> Axes:
    return tuple(a if a is not None and a.any() else None for a in axes)


def _joined(a: Axes, b: Axes) -> Axes:
    return tuple(GONE.join(pair, "all") for pair in zip(a, b))
