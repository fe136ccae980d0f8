"""Evaluates functions in floats that have a wide exponent of their own.

The sum over all paths through a network is a product over its layers, which leaves the
range of float32 after some tens of them. :func:`evaluate` goes through the operations
of a function one by one, with an array :math:`v 2^e` in place of every float array.
Products add the exponents, sums bring their terms to the largest, and `v` is rescaled
after both. All of it can be differentiated.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from snipjax._src import jaxprs

# Operations whose result has the exponent of their first operand.
_MOVE = {
    *("abs", "broadcast_in_dim", "convert_element_type", "copy", "copy_p"),
    *("cummax", "cummin", "device_put", "dynamic_slice", "expand_dims", "gather"),
    *("layout_constraint", "mesh_cast", "neg", "pvary", "reduce_max", "reduce_min"),
    *("reduce_precision", "reduce_window_max", "reduce_window_min", "reshape"),
    *("reshard", "rev", "sharding_constraint", "slice", "squeeze", "transpose"),
}
_SUM = {"cumsum", "reduce_sum", "reduce_window_sum"}
# Operations on numbers that have one exponent.
_JOIN = {
    *("clamp", "concatenate", "dynamic_update_slice", "max", "min", "pad"),
    *("scatter", "select_n"),
}
_ADD = {"add", "add_any", "scatter-add", "sub"}
_COMPARE = {"eq", "ge", "gt", "le", "lt", "ne"}
_MULTIPLY = {"conv_general_dilated", "div", "dot_general", "mul"}
_POWER = {"integer_pow", "rsqrt", "sqrt", "square"}
# Functions that are the same of any positive multiple.
_INVARIANT = {"argmax", "argmin", "is_finite", "sign"}
_RESCALED = _SUM | _ADD | _MULTIPLY | _POWER
# The exponent of zero, below all others.
_LEAST = -(2**30)


class Scaled(NamedTuple):
    r"""Holds an array :math:`v 2^e`, with one exponent for all entries.

    Attributes:
      value: the array :math:`v`.
      exponent: the int32 scalar :math:`e`. Within this module None is zero, of arrays
        that do not depend on the arguments and of arrays that are not floats.
    """

    value: Any
    exponent: Any


def evaluate(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function evaluated in floats, each a :class:`Scaled`.

    Calls within the function are followed, such as :func:`jax.jit`,
    :func:`jax.checkpoint` and functions with a derivative of their own, which is not
    used, and so is :func:`jax.lax.scan`. The default of
    :func:`jax.lax.platform_dependent` is taken. Operations that are not homogeneous,
    like ``tanh``, and loops of unknown length see plain floats.

    Example:
      >>> power = evaluate(lambda x: x**8 * x**8)(jnp.float32(1e-30))
      >>> round(float(jnp.log10(power.value) + power.exponent * jnp.log10(2.0)))
      -480
    """

    def evaluated(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        operands = [
            rescaled(Scaled(jnp.asarray(x), None)) if _is_float(x) else Scaled(x, None)
            for x in jax.tree.leaves(args)
        ]
        results = _run(closed, operands)
        return jax.tree.unflatten(
            jax.tree.structure(shape),
            [Scaled(x.value, _exponent(x)) for x in results],
        )

    return evaluated


@jax.jit
def rescaled(x: Scaled) -> Scaled:
    """Returns the array with a value divided by a power of two.

    The largest magnitude becomes at least one half, and less than one but at the end of
    the dtype's range. An array with infinite or undefined entries stays, and so does
    zero. The division is exact.

    Example:
      >>> x = rescaled(Scaled(jnp.array([3.0, -40.0]), jnp.int32(0)))
      >>> x.value.tolist(), int(x.exponent)
      ([0.046875, -0.625], 6)
    """
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x.value)), initial=0)
    wide = largest.astype(jnp.promote_types(x.value.dtype, jnp.float32))
    _, more = jnp.frexp(jnp.where(jnp.isfinite(wide), wide, 1.0))
    # The powers that the dtype has, and their inverses.
    least = int(jnp.finfo(x.value.dtype).minexp)
    more = jnp.clip(more.astype(jnp.int32), least + 1, -least)
    return Scaled(_shifted(x.value, -more), _exponent(x) + more)


def _run(jaxpr: Any, operands: Sequence[Scaled]) -> list[Scaled]:
    return jaxprs.outputs(jaxpr, operands, _step, lambda x: Scaled(x, None))


def _step(equation: Any, operands: list[Scaled]) -> list[Scaled]:
    name, params = equation.primitive.name, equation.params
    is_plain = all(x.exponent is None for x in operands)
    if not is_plain and name in jaxprs.CALLS:
        return _run(jaxprs.inner(equation), operands)
    if not is_plain and name == "cond":
        return _branch(equation, operands)
    if not is_plain and name == "scan":
        return _scan(equation, operands)
    if name == "optimization_barrier":
        results = jaxprs.bind(equation, [x.value for x in operands])
        return [Scaled(y, x.exponent) for x, y in zip(operands, results)]
    exponent = None
    if is_plain or name in _INVARIANT:
        values = [x.value for x in operands]
    elif _is_linear(name, operands) and _is_float(equation.outvars[0].aval):
        values, exponent = [x.value for x in operands], operands[0].exponent
    elif name in _JOIN | _ADD:
        values, exponent = _aligned(operands)
    elif name in _COMPARE:
        values, _ = _aligned(operands)
    elif name in _MULTIPLY:
        values = [x.value for x in operands]
        left, right = map(_exponent, operands)
        exponent = left - right if name == "div" else left + right
    elif name in _POWER:
        values, exponent = _power(name, params, operands[0])
    else:
        values = [_plain(x) for x in operands]
    results = [Scaled(y, exponent) for y in jaxprs.bind(equation, values)]
    is_rescaled = exponent is not None and name in _RESCALED
    return [*map(rescaled, results)] if is_rescaled else results


def _is_linear(name: str, operands: list[Scaled]) -> bool:
    is_linear_call = name == "linear_call" and len(operands) == 1
    return name in _MOVE | _SUM or is_linear_call


def _branch(equation: Any, operands: list[Scaled]) -> list[Scaled]:
    """Returns the results of one of several branches."""
    index, *rest = operands
    branches = jaxprs.branches(equation)
    if len(branches) == 1:
        return _run(branches[0], rest)

    def results(branch: Any) -> Callable[..., list[Scaled]]:
        return lambda rest: [*map(_explicit, _run(branch, rest))]

    return jax.lax.switch(index.value, [*map(results, branches)], rest)


def _scan(equation: Any, operands: list[Scaled]) -> list[Scaled]:
    """Returns the results of a loop, whose state has an exponent in every turn."""
    params = equation.params
    constants, state, stacks = jaxprs.loop_operands(equation, operands)
    exponents = [x.exponent for x in stacks]

    def turn(state: list[Scaled], rows: list[Any]) -> tuple[Any, Any]:
        scaled_rows = [*map(Scaled, rows, exponents)]
        results = _run(params["jaxpr"], [*constants, *state, *scaled_rows])
        results = [*map(_explicit, results)]
        return results[: len(state)], results[len(state) :]

    state, rows = jax.lax.scan(
        turn,
        [*map(_explicit, state)],
        [x.value for x in stacks],
        params["length"],
        params["reverse"],
    )
    return [*state, *map(_with_one_exponent, rows)]


def _with_one_exponent(rows: Scaled) -> Scaled:
    """Returns a stack of arrays with an exponent each by the largest of these."""
    if rows.exponent is None or not rows.exponent.size:
        return Scaled(rows.value, None)
    exponent = _largest(jax.vmap(_order)(rows))
    less = rows.exponent - exponent
    return Scaled(jax.vmap(_shifted)(rows.value, less), exponent)


def _is_float(x: Any) -> bool:
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.floating)


def _exponent(x: Scaled) -> chex.Array:
    return jnp.int32(0) if x.exponent is None else x.exponent


def _explicit(x: Scaled) -> Scaled:
    return Scaled(x.value, _exponent(x) if _is_float(x.value) else None)


def _aligned(operands: list[Scaled]) -> tuple[list[Any], chex.Array]:
    """Returns the values by the largest exponent of the floats, and that exponent."""
    floats = [x for x in operands if _is_float(x.value)]
    shifted, exponent = _align(floats)
    rest = iter(shifted)
    return [next(rest) if _is_float(x.value) else x.value for x in operands], exponent


@jax.jit
def _align(floats: list[Scaled]) -> tuple[list[chex.Array], chex.Array]:
    exponent = _largest(jnp.stack([_order(x) for x in floats]))
    return [_shifted(x.value, _exponent(x) - exponent) for x in floats], exponent


def _order(x: Scaled) -> chex.Array:
    """Returns the exponent of an array, or the least of all where it is zero."""
    value = jax.lax.stop_gradient(jnp.asarray(x.value))
    has_finite = jnp.any((value != 0) & jnp.isfinite(value))
    return jnp.where(has_finite, _exponent(x), _LEAST)


def _largest(orders: chex.Array) -> chex.Array:
    """Returns the largest exponent, or zero if all arrays are zero."""
    largest = jnp.max(orders)
    return jnp.where(largest == _LEAST, 0, largest)


def _power(name: str, params: Any, x: Scaled) -> tuple[list[Any], chex.Array]:
    if name in ("square", "integer_pow"):
        return [x.value], x.exponent * params.get("y", 2)
    half = jnp.right_shift(x.exponent, 1)
    return [_shifted(x.value, x.exponent - 2 * half)], half if name == "sqrt" else -half


def _plain(x: Scaled) -> Any:
    if x.exponent is None:
        return x.value
    # The exponent may be larger than a power of two of the dtype.
    half = jnp.right_shift(x.exponent, 1)
    return _shifted(_shifted(x.value, half), x.exponent - half)


def _shifted(x: Any, exponent: chex.Array) -> chex.Array:
    """Returns the array times a power of two, exactly, or zero where that is tiny."""
    x = jnp.asarray(x)
    bits = (jnp.clip(exponent, -126, 127) + 127) << 23
    power = jax.lax.bitcast_convert_type(bits.astype(jnp.int32), jnp.float32)
    power = jnp.where(exponent < -126, 0.0, power)
    return x * power.astype(x.dtype)
