"""Counts the floating-point operations of a function's matrix products."""

import math
from collections.abc import Callable
from typing import Any

import jax

from snipjax._src import jaxprs


def operations(function: Callable[..., Any], *args: Any) -> int:
    """Returns the operations of matrix products and convolutions, from shapes alone.

    A multiplication and its addition are two. Products with padding count, products
    with the zeros of a dilation do not. A function for several platforms is counted in
    its default form. Loops have as many rounds as their length.

    Example:
      >>> operations(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))
      60
    """
    return _in_jaxpr(jax.make_jaxpr(function)(*args))


def _in_jaxpr(jaxpr: Any) -> int:
    return sum(map(_in_equation, jaxprs.opened(jaxpr)[0].eqns))


def _in_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        lhs = equation.invars[0].aval
        (contracted, _), _ = params["dimension_numbers"]
        summed = math.prod(lhs.shape[axis] for axis in contracted)
        return 2 * equation.outvars[0].aval.size * summed
    if name == "conv_general_dilated":
        kernel, dimensions = equation.invars[1].aval, params["dimension_numbers"]
        _, channels, *window = (kernel.shape[axis] for axis in dimensions.rhs_spec)
        summed = channels * math.prod(window)
        sparse = math.prod(params["lhs_dilation"])
        return 2 * equation.outvars[0].aval.size * summed // sparse
    if name == "scan":
        return params["length"] * _in_jaxpr(params["jaxpr"])
    if name == "cond":
        return max(map(_in_jaxpr, jaxprs.branches(equation)))
    called = jaxprs.inner(equation)
    return 0 if called is None else _in_jaxpr(called)
