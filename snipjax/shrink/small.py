"""A function at smaller sizes: its jaxpr on arrays that lack some positions.

Each array comes with bools of the positions that are gone. The rules tell what the
operands of an operation have to lose, and what its result lacks. Derivatives of their
own, loops and branches stay what they are.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend import core

from snipjax._src import jaxprs
from snipjax.shrink import gone as lacks
from snipjax.shrink.positions import Axes
from snipjax.shrink.walk import means


class Value(NamedTuple):
    """An array, and which positions of its axes are gone; None for an axis of all.

    ``remake`` makes the array anew from the axes it has to have, if it can.
    """

    array: Any
    gone: Axes
    remake: Callable[[Axes], chex.Array] | None = None

    def without(self, gone: Axes) -> chex.Array:
        """Returns the array without positions, of which it may lack some already."""
        if lacks.is_same(gone, self.gone):
            return self.array
        if self.remake is not None:
            return self.remake(gone)
        array = self.array
        for i, (before, after) in enumerate(zip(self.gone, gone)):
            if after is not None and not lacks.is_same((before,), (after,)):
                stays = ~after if before is None else ~after[~before]
                array = take(array, np.flatnonzero(stays), i)
        return array


def whole(array: Any) -> Value:
    """Returns an array that lacks nothing."""
    return Value(array, (None,) * jnp.ndim(array))


def take(array: chex.Array, positions: np.ndarray, axis: int) -> chex.Array:
    """Returns the entries at some positions, in rising order, of an axis."""
    first, number = (int(positions[0]) if len(positions) else 0), len(positions)
    if np.array_equal(positions, np.arange(first, first + number)):
        return jax.lax.slice_in_dim(array, first, first + number, axis=axis)
    return jnp.take(array, positions, axis, unique_indices=True, mode="clip")


def sizes(shape: Sequence[int], gone: Axes) -> tuple[int, ...]:
    """Returns a shape without the positions that are gone."""
    pairs = zip(shape, gone)
    return tuple(n if axis is None else n - int(axis.sum()) for n, axis in pairs)


def small_outputs(jaxpr: Any, operands: Sequence[Value]) -> list[Value]:
    """Returns the results of a jaxpr on arrays that lack some positions."""
    averages = means(jaxpr)

    def step(equation: Any, operands: list[Value]) -> list[Value]:
        results = _step(equation, operands)
        if id(equation) in averages:
            return [_rescaled(equation, operands[0], results[0])]
        return results

    return jaxprs.outputs(jaxpr, operands, step, whole)


def _step(equation: Any, operands: list[Value]) -> list[Value]:
    name = equation.primitive.name
    if all(lacks.is_whole(value.gone) for value in operands):
        found = jaxprs.bind(equation, [x.array for x in operands])
        if name == "broadcast_in_dim":
            return [whole(found[0])._replace(remake=_broadcast(equation, operands[0]))]
        return list(map(whole, found))
    if name in _WITH_JAXPRS:
        with equation.ctx.manager:
            return _WITH_JAXPRS[name](equation, operands)
    if name in jaxprs.CALLS:
        return small_outputs(jaxprs.inner(equation), operands)
    new, results = lacks.apply_rule(equation, [value.gone for value in operands])
    arrays = [value.without(gone) for value, gone in zip(operands, new)]
    if name == "slice":
        return [Value(_sliced(equation, arrays[0], new[0]), results[0])]
    pairs = zip(equation.outvars, results)
    shapes = [sizes(variable.aval.shape, gone) for variable, gone in pairs]
    changes = _CHANGES[name](equation, new, shapes) if name in _CHANGES else {}
    found = jaxprs.bind(equation, arrays, **changes)
    values = [Value(array, gone) for array, gone in zip(found, results)]
    if name == "broadcast_in_dim":
        return [values[0]._replace(remake=_broadcast(equation, operands[0]))]
    return values


def _broadcast(equation: Any, operand: Value) -> Callable[[Axes], chex.Array]:
    """Returns a function that broadcasts an operand at once to the size it takes."""
    shape, places = (equation.params[n] for n in ("shape", "broadcast_dimensions"))

    def remake(gone: Axes) -> chex.Array:
        pairs = zip(places, equation.invars[0].aval.shape)
        axes = tuple(gone[i] if n == shape[i] else None for i, n in pairs)
        array = operand.without(axes)
        return jaxprs.bind(equation, [array], shape=sizes(shape, gone))[0]

    return remake


def _sliced(equation: Any, array: chex.Array, gone: Axes) -> chex.Array:
    params = equation.params
    steps = params["strides"] or (1,) * len(gone)
    bounds = zip(params["start_indices"], params["limit_indices"], steps)
    for i, (axis, bound) in enumerate(zip(gone, bounds)):
        if axis is None:
            array = jax.lax.slice_in_dim(array, *bound, axis=i)
        else:
            chosen = np.zeros(len(axis), bool)
            chosen[slice(*bound)] = True
            array = take(array, np.flatnonzero(chosen[~axis]), i)
    return array


def _rescaled(equation: Any, operand: Value, result: Value) -> Value:
    """Returns a sum that, divided by the whole size, is the mean of smaller arrays."""
    axes = equation.params["axes"]
    shape = [equation.invars[0].aval.shape[i] for i in axes]
    rest = sizes(shape, tuple(operand.gone[i] for i in axes))
    if math.prod(rest) == math.prod(shape):
        return result
    scale = math.prod(shape) / math.prod(rest)
    return result._replace(array=result.array * jnp.asarray(scale, result.array.dtype))


def _gather_sizes(
    equation: Any, operands: list[Axes], shapes: list[tuple[int, ...]]
) -> dict[str, Any]:
    whole_shape = equation.invars[0].aval.shape
    rest = sizes(whole_shape, operands[0])
    old = equation.params["slice_sizes"]
    triples = zip(old, whole_shape, rest)
    new = tuple(m if part == n else part for part, n, m in triples)
    return {"slice_sizes": new}


def _groups(
    equation: Any, operands: list[Axes], shapes: list[tuple[int, ...]]
) -> dict[str, Any]:
    count = equation.params["feature_group_count"]
    channels = operands[0][equation.params["dimension_numbers"].lhs_spec[1]]
    if count == 1 or channels is None:
        return {}
    groups = (~channels).reshape(count, -1).any(axis=1)
    return {"feature_group_count": int(groups.sum())}


# Parameters that are sizes.
_CHANGES: dict[str, Callable[..., dict[str, Any]]] = {
    "broadcast_in_dim": lambda equation, operands, shapes: {"shape": shapes[0]},
    "conv_general_dilated": _groups,
    "dynamic_slice": _gather_sizes,
    "gather": _gather_sizes,
    "reshape": lambda equation, operands, shapes: {"new_sizes": shapes[0]},
    "split": lambda equation, operands, shapes: {
        "sizes": tuple(shape[equation.params["axis"]] for shape in shapes)
    },
}


def _function(jaxpr: Any, axes: Sequence[Axes]) -> Callable[..., list[Any]]:
    """Returns a function of arrays that lack some positions, from a jaxpr."""

    def function(*arrays: Any) -> list[Any]:
        results = small_outputs(
            jaxpr, [Value(*pair) for pair in zip(arrays, axes, strict=True)]
        )
        return [value.array for value in results]

    return function


def _values(arrays: Sequence[Any], axes: Sequence[Axes]) -> list[Value]:
    return [Value(*pair) for pair in zip(arrays, axes, strict=True)]


def _checkpoint(equation: Any, operands: list[Value]) -> list[Value]:
    params, axes = equation.params, [value.gone for value in operands]
    function = jax.checkpoint(
        _function(params["jaxpr"], axes),
        policy=params["policy"],
        prevent_cse=params["prevent_cse"],
    )
    results = function(*(value.array for value in operands))
    return _values(results, lacks.follow(params["jaxpr"], axes))


def _custom_jvp(equation: Any, operands: list[Value]) -> list[Value]:
    """Returns the results of a function whose derivative is its own."""
    params, axes = equation.params, [value.gone for value in operands]
    rule, first = params["jvp_jaxpr_fun"], params["num_consts"]
    if any(not jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in equation.invars):
        # Tangents of integers are no arrays.
        return small_outputs(params["call_jaxpr"], operands)
    function = jax.custom_jvp(_function(params["call_jaxpr"], axes))

    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
        primals, tangents = primals[first:], tangents[first:]
        if not params["symbolic_zeros"]:
            tangents = [
                jnp.zeros(t.shape, t.dtype) if isinstance(t, SymbolicZero) else t
                for t in tangents
            ]
        zeros = [isinstance(t, SymbolicZero) for t in tangents]
        jaxpr, consts, out_zeros = rule.call_wrapped(*zeros)
        triples = zip(tangents, axes[first:], zeros)
        results = small_outputs(
            core.ClosedJaxpr(jaxpr, consts),
            _values(primals, axes[first:])
            + [Value(t, gone) for t, gone, is_zero in triples if not is_zero],
        )
        outs, rest = results[: len(out_zeros)], iter(results[len(out_zeros) :])
        out_tangents = [
            jnp.zeros_like(out.array) if is_zero else next(rest).without(out.gone)
            for out, is_zero in zip(outs, out_zeros)
        ]
        return [out.array for out in outs], out_tangents

    function.defjvp(jvp, symbolic_zeros=True)
    results = function(*(value.array for value in operands))
    return _values(results, lacks.follow(params["call_jaxpr"], axes))


def _custom_vjp(equation: Any, operands: list[Value]) -> list[Value]:
    """Returns the results of a function whose gradient is its own.

    The whole function's gradient is taken at smaller sizes. It begins with the
    function's own forward pass again.
    """
    jaxpr, axes = equation.params["call_jaxpr"], [value.gone for value in operands]
    inputs, outputs = (
        [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in variables]
        for variables in (equation.invars, equation.outvars)
    )
    is_real = [jnp.issubdtype(x.dtype, jnp.inexact) for x in inputs]
    if not all(jnp.issubdtype(x.dtype, jnp.inexact) for x in outputs):
        # Cotangents of integers are no arrays.
        return small_outputs(jaxpr, operands)
    function, after = _function(jaxpr, axes), lacks.follow(jaxpr, axes)

    def gradient(arrays: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        def of_real(*real: Any) -> list[Any]:
            rest = iter(real)
            pairs = zip(arrays, is_real)
            return jaxprs.bind(equation, [next(rest) if r else x for x, r in pairs])

        real = [x for x, r in zip(arrays, is_real) if r]
        return jax.vjp(of_real, *real)[1](list(cotangents))

    def backward(arrays: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Any, ...]:
        closed = jax.make_jaxpr(gradient)(inputs, outputs)
        found = iter(
            small_outputs(closed, _values(arrays, axes) + _values(cotangents, after))
        )
        return tuple(
            next(found).without(gone) if r else None for gone, r in zip(axes, is_real)
        )

    with_gradient = jax.custom_vjp(function)
    with_gradient.defvjp(lambda *arrays: (function(*arrays), arrays), backward)
    return _values(with_gradient(*(value.array for value in operands)), after)


def _scan(equation: Any, operands: list[Value]) -> list[Value]:
    params = equation.params
    consts, carry, stacks = jaxprs.loop_operands(equation, operands)
    gone, gone_rows = lacks.steps(equation, [value.gone for value in operands])

    def body(carry: Sequence[Any], row: Sequence[Any]) -> tuple[Any, Any]:
        rows = [Value(x, value.gone[1:]) for x, value in zip(row, stacks)]
        results = small_outputs(
            params["jaxpr"], [*consts, *_values(carry, gone), *rows]
        )
        new = [value.without(axes) for value, axes in zip(results, gone)]
        return new, [value.array for value in results[len(new) :]]

    last, outputs = jax.lax.scan(
        body,
        [value.without(axes) for value, axes in zip(carry, gone)],
        [value.array for value in stacks],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return _values(last, gone) + _values(outputs, [(None, *a) for a in gone_rows])


def _cond(equation: Any, operands: list[Value]) -> list[Value]:
    index, *rest = operands
    axes, arrays = [value.gone for value in rest], [value.array for value in rest]
    joined = lacks.branches(equation, axes)

    def branch(jaxpr: Any) -> Callable[..., list[Any]]:
        def call(*arrays: Any) -> list[Any]:
            results = small_outputs(jaxpr, _values(arrays, axes))
            return [value.without(gone) for value, gone in zip(results, joined)]

        return call

    calls = [branch(jaxpr) for jaxpr in equation.params["branches"]]
    if platforms := equation.params.get("branches_platforms"):
        named = {
            name: call
            for call, names in zip(calls, platforms)
            for name in names or ("default",)
        }
        results = jax.lax.platform_dependent(*arrays, **named)
    else:
        results = jax.lax.switch(index.array, calls, *arrays)
    return _values(results, joined)


_WITH_JAXPRS: dict[str, Callable[[Any, list[Value]], list[Value]]] = {
    "checkpoint": _checkpoint,
    "cond": _cond,
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
    "remat2": _checkpoint,
    "scan": _scan,
}
