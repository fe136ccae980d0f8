"""A walk through a jaxpr that follows which positions of axes go together."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from snipjax._src import jaxprs
from snipjax.shrink.positions import Axes, Labels, Site
from snipjax.shrink.rules import RULES


class Value(NamedTuple):
    """An array of the network, as the walk knows it."""

    axes: Axes
    is_parameter: bool = False  # made of parameters and constants alone
    is_constant: bool = False  # made of constants alone
    number: float | None = None  # of a scalar that is known


class Product(NamedTuple):
    """The multiplications of an operation: a factor times the sizes of some axes."""

    factor: int
    axes: Axes


@dataclasses.dataclass
class Walk:
    """A walk: the labels of positions, the products, and what it does not know.

    With ``over_means``, a position over which a mean is taken may go.
    """

    labels: Labels
    over_means: bool = False
    products: list[Product] = dataclasses.field(default_factory=list)
    averaged: list[np.ndarray] = dataclasses.field(default_factory=list)
    unknown: dict[str, None] = dataclasses.field(default_factory=dict)
    repeats: int = 1

    def outputs(self, jaxpr: Any, operands: Sequence[Value]) -> list[Value]:
        averages = means(jaxpr)

        def step(equation: Any, operands: list[Value]) -> list[Value]:
            if id(equation) in averages:
                return [self._mean(equation, operands[0])]
            return self._step(equation, operands)

        return jaxprs.outputs(jaxpr, operands, step, self.constant)

    def constant(self, x: Any) -> Value:
        """Returns an array that depends on nothing."""
        shape = np.shape(x)
        kinds = np.bool_, np.integer, np.floating
        dtype = jax.typeof(x).dtype
        is_number = not shape and any(jnp.issubdtype(dtype, kind) for kind in kinds)
        number = float(x) if is_number else None
        return Value(self._any(shape), True, True, number)

    def _step(self, equation: Any, operands: list[Value]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        if name in jaxprs.CALLS:
            return self.outputs(jaxprs.inner(equation), operands)
        if name == "cond":
            found = [self.outputs(b, operands[1:]) for b in jaxprs.branches(equation)]
            return [functools.reduce(self._either, values) for values in zip(*found)]
        if name == "scan":
            return self._scan(equation, operands)
        is_parameter = all(value.is_parameter for value in operands)
        is_constant = all(value.is_constant for value in operands)
        shapes = [variable.aval.shape for variable in equation.outvars]
        number: float | None = None
        results: list[Axes] = [(None,) * len(shape) for shape in shapes]
        if name in RULES:
            numbers = [value.number for value in operands]
            taken = [atom.aval.shape for atom in equation.invars]
            site = Site(name, params, taken, shapes, numbers)
            self.labels.is_parameter = [
                value.is_parameter and not value.is_constant for value in operands
            ]
            self.labels.is_of_parameters = is_parameter
            before = [value.axes for value in operands]
            axes, results = RULES[name](self.labels, site, before)
            self._count(site, axes)
            if not is_parameter:
                self._note_made(site, before)
            number = numbers[0] if name == "convert_element_type" else None
        elif is_constant:
            results = [self._any(shape) for shape in shapes]
        else:
            self.unknown[name] = None
            for axis in (axis for value in operands for axis in value.axes):
                self.labels.fix(axis)
        return [Value(axes, is_parameter, is_constant, number) for axes in results]

    def _any(self, shape: Sequence[int]) -> Axes:
        """Returns axes of which any position may go."""
        return tuple(self.labels.new(n, False) if n > 1 else None for n in shape)

    def _mean(self, equation: Any, value: Value) -> Value:
        over = equation.params["axes"]
        for axis in (value.axes[i] for i in over):
            if self.over_means and axis is not None:
                self.averaged.append(axis >> 1)
                self.labels.hidden.append(axis >> 1)
            else:
                self.labels.fix(axis)
        rest = tuple(axis for i, axis in enumerate(value.axes) if i not in over)
        return value._replace(axes=rest)

    def _note_made(self, site: Site, operands: list[Axes]) -> None:
        """Notes the positions that a parameter gives to what depends on inputs."""
        added: tuple[Sequence[int], ...] = ((),) * len(operands)
        if site.name == "dot_general":
            added = site.params["dimension_numbers"][0]
        elif site.name == "conv_general_dilated":
            added = (), site.params["dimension_numbers"].rhs_spec[1:2]
        for axes, over, is_known in zip(operands, added, self.labels.is_parameter):
            for i, axis in enumerate(axes):
                if is_known and axis is not None and i not in over:
                    self.labels.making.append(axis >> 1)

    def _count(self, site: Site, operands: list[Axes]) -> None:
        """Notes the operations of a product, two for each multiplication."""
        if site.name not in ("dot_general", "conv_general_dilated"):
            return
        (left, right), (left_axes, right_axes) = site.shapes[:2], operands[:2]
        if site.name == "dot_general":
            (_, over_right), (_, batch_right) = site.params["dimension_numbers"]
            used = (*over_right, *batch_right)
            rest = [i for i in range(len(right)) if i not in used]
            sizes = [*left, *(right[i] for i in rest)]
            axes = [*left_axes, *(right_axes[i] for i in rest)]
        else:
            numbers = site.params["dimension_numbers"]
            out, into, *window = numbers.rhs_spec
            # Each pixel of the result takes a kernel: into * window products.
            sizes = [site.results[0][i] for i in numbers.out_spec[2:]]
            sizes += [right[i] for i in (*window, into, out)]
            axes = [None] * (len(sizes) - 2)
            axes += [right_axes[into], right_axes[out]]
            sizes.append(left[numbers.lhs_spec[0]])
            axes.append(left_axes[numbers.lhs_spec[0]])
        fixed = math.prod(n for n, axis in zip(sizes, axes) if axis is None)
        free = tuple(axis >> 1 for axis in axes if axis is not None)
        self.products.append(Product(2 * self.repeats * fixed, free))

    def _either(self, a: Value, b: Value) -> Value:
        """Returns an array that is one of two."""
        is_parameter = a.is_parameter and b.is_parameter
        self.labels.is_of_parameters = is_parameter
        axes = tuple(self.labels.join(pair, "all") for pair in zip(a.axes, b.axes))
        if a.is_parameter != b.is_parameter:
            made = a.axes if a.is_parameter else b.axes
            self.labels.making += [axis >> 1 for axis in made if axis is not None]
        return Value(axes, is_parameter, a.is_constant and b.is_constant)

    def _scan(self, equation: Any, operands: list[Value]) -> list[Value]:
        params = equation.params
        consts, carry, stacks = jaxprs.loop_operands(equation, operands)
        # A number is one only until the second step.
        carry = [value._replace(number=None) for value in carry]
        for value in stacks:
            self.labels.fix(value.axes[0])
        rows = [value._replace(axes=value.axes[1:]) for value in stacks]
        self.repeats *= params["length"]
        labels = self.labels
        notes: list[list[Any]] = [self.products, labels.feeding, labels.alike]
        notes += [labels.hidden, labels.loud]
        numbers = list(map(len, notes))
        while True:  # until what is zero, and what depends on inputs, stays so
            for found, number in zip(notes, numbers):
                del found[number:]
            results = self.outputs(params["jaxpr"], [*consts, *carry, *rows])
            after = [self._either(a, b) for a, b in zip(carry, results)]
            is_done = all(_is_same(a, b) for a, b in zip(carry, after))
            carry = after
            if is_done:
                break
        self.repeats //= params["length"]
        outputs = results[params["num_carry"] :]
        return carry + [value._replace(axes=(None, *value.axes)) for value in outputs]


def _is_same(a: Value, b: Value) -> bool:
    """Returns whether two arrays of the same labels are zero at the same ones."""
    return a[1:3] == b[1:3] and all(
        (x is None and y is None)
        or (x is not None and y is not None and np.array_equal(x & 1, y & 1))
        for x, y in zip(a.axes, b.axes)
    )


def means(jaxpr: Any) -> set[int]:
    """Returns the ids of the sums in a jaxpr that are divided by their number of terms.

    The divisor is a number in the jaxpr, which says nothing of its axes.
    """
    jaxpr, _ = jaxprs.opened(jaxpr)
    makers = {v: equation for equation in jaxpr.eqns for v in equation.outvars}
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name != "div":
            continue
        dividend, divisor = equation.invars
        while not isinstance(dividend, core.Literal) and dividend in makers:
            maker = makers[dividend]
            dividend = maker.invars[0] if maker.invars else None
            if maker.primitive.name == "reduce_sum":
                axes = maker.params["axes"]
                size = math.prod(maker.invars[0].aval.shape[i] for i in axes)
                if _starts_from(divisor, size, makers):
                    found.add(id(maker))
            if maker.primitive.name not in _SAME_ENTRIES:
                break
    return found


def _starts_from(divisor: Any, size: int, makers: dict[Any, Any]) -> bool:
    """Returns whether a divisor is a size, or a size less some degrees of freedom."""
    if divisor.aval.shape:
        return False
    if isinstance(divisor, core.Literal):
        return float(divisor.val) == size
    maker = makers.get(divisor)
    if maker is None or maker.primitive.name != "sub":
        return False
    return _starts_from(maker.invars[0], size, {})


_SAME_ENTRIES = {"broadcast_in_dim", "convert_element_type", "reshape", "squeeze"}
