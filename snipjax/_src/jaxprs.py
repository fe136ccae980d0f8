"""Jaxprs: run in values of any kind, and the jaxprs and results of equations."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

# Operations that run a jaxpr once, on all of their operands.
CALLS = {
    *("checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"),
    *("custom_vjp_call_jaxpr", "jit", "pjit", "remat", "remat2"),
}


def outputs(
    jaxpr: Any,
    operands: Sequence[Any],
    step: Callable[[Any, list[Any]], Sequence[Any]],
    constant: Callable[[Any], Any],
) -> list[Any]:
    """Returns the results of a jaxpr, in values of any kind.

    ``step`` is ``(equation, operands) -> results``, and ``constant`` makes the value of
    an array that the jaxpr holds. It may be open if it has no constants.
    """
    jaxpr, consts = opened(jaxpr)
    values = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
    values.update(zip(jaxpr.invars, operands, strict=True))

    def read(atom: Any) -> Any:
        return constant(atom.val) if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        results = step(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def inner(equation: Any) -> Any:
    """Returns the jaxpr that an equation runs on all of its operands, if it does.

    It may be open if it has no constants.
    """
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    found = (equation.params[name] for name in names if name in equation.params)
    return next(found, None)


def opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """Returns an open jaxpr and its constants, from an open or a closed one."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def branches(equation: Any) -> Sequence[Any]:
    """Returns the branches of a conditional, or the default one of all platforms."""
    found = equation.params["branches"]
    platforms = equation.params.get("branches_platforms")
    if platforms and None in platforms:
        return [found[platforms.index(None)]]
    return found


def loop_operands(equation: Any, operands: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Returns the constants, the state and the stacks of rows that a scan takes."""
    first = equation.params["num_consts"]
    last = first + equation.params["num_carry"]
    return operands[:first], operands[first:last], operands[last:]


def bind(equation: Any, values: Sequence[Any], **changes: Any) -> list[Any]:
    """Returns the results of an equation's primitive on some values.

    ``changes`` take the place of the parameters of that name.
    """
    primitive = equation.primitive
    params = primitive.get_bind_params({**equation.params, **changes})
    # Earlier versions of JAX give functions and parameters.
    functions, params = params if isinstance(params, tuple) else ((), params)
    with equation.ctx.manager:
        results = primitive.bind(*functions, *values, **params)
    return list(results) if primitive.multiple_results else [results]
