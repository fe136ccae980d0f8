"""Effective connections: the kept ones that lie on a path from input to output.

A connection that is kept changes nothing if no input reaches its unit, or its unit
reaches no output. The paths are followed through any network by the operations of its
function: in place of an array there are two of the numbers 1 and 0, for entries that
are present, not zero whatever the weights, and for entries that an input reaches.
Reverse mode goes the same way back.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from snipjax._src import jaxprs
from snipjax._src.types import Mask
from snipjax.masks.mask import check_mask, sparsity

_PRODUCTS = {"and", "conv_general_dilated", "dot_general", "mul"}
# Each entry of the result comes from one entry of the first operand.
_MOVES = {
    *("broadcast_in_dim", "dynamic_slice", "expand_dims", "gather", "pvary", "reshape"),
    *("rev", "slice", "squeeze", "transpose"),
}
# Entries of several operands lie side by side.
_JOINS = {"concatenate", "dynamic_update_slice", "pad", "scatter", "scatter-add"}
_CUMULATIVE = {"cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"}
_WINDOWS = {"reduce_window_max", "reduce_window_min", "reduce_window_sum"}
# Functions by entries that are not zero at zero.
_NEVER_ZERO = {
    *("acos", "cos", "cosh", "eq", "erfc", "exp", "exp2", "ge", "is_finite", "le"),
    *("logistic", "not", "rsqrt"),
}


class _Value(NamedTuple):
    """An array of the network, or the knowledge of it."""

    array: Any  # the array itself if it is exact, else 1.0 where something is present
    is_exact: bool
    is_reached: bool  # whether it depends on the inputs
    reached: Any = None  # 1.0 where an input reaches an array that is not exact


def effective(
    mask: Mask,
    apply_fn: Callable[[chex.ArrayTree, Any], Any],
    params: chex.ArrayTree,
    inputs: Any,
) -> Mask:
    r"""Returns the mask of the connections on some path from an input to an output.

    A kept connection stays if an input reaches it through kept connections and it
    reaches an output. A kept bias stays if its unit lies on such a path. Values do not
    matter: no weight, statistic or activation is taken for zero, and a maximum depends
    on all of its arguments. All paths are followed in the time of one gradient.

    .. math:: c'_j = c_j \, \mathbb{1}[j \text{ is on a path of kept connections}]

    Args:
      mask: pytree of bools like ``params``; scalar leaves are not prunable.
      apply_fn: ``(params, inputs) -> outputs``, a traceable function. Loops other than
        ``jax.lax.scan`` cannot be followed.
      params: pytree of arrays, of which shapes and dtypes matter.
      inputs: pytree of arrays, e.g. a batch of one example. All entries of
        floating-point arrays count as inputs, whatever their values. Integers, such as
        tokens, are taken as they are.

    Returns:
      A pytree like ``mask``, of connections that it keeps.

    Raises:
      ValueError: if ``mask`` does not fit ``params``, or ``apply_fn`` has an operation
        that cannot be followed.

    Example:
      >>> params = {"v": jnp.ones((2, 2)), "w": jnp.ones((2, 1))}
      >>> mask = {"v": jnp.array([[True, True], [False, True]]),
      ...         "w": jnp.array([[True], [False]])}
      >>> apply_fn = lambda params, x: jnp.tanh(x @ params["v"]) @ params["w"]
      >>> effective(mask, apply_fn, params, jnp.ones((1, 2)))["v"]
      Array([[ True, False],
             [False, False]], dtype=bool)

    Vysogorets and Kempe, "Connectivity Matters: Neural Network Pruning Through the Lens
    of Effective Sparsity", JMLR 2023.
    """
    check_mask(mask, params)
    closed = jax.make_jaxpr(apply_fn)(params, inputs)
    present = jax.tree.map(
        lambda keep, w: jnp.broadcast_to(keep, jnp.shape(w)).astype(jnp.float32),
        mask,
        params,
    )

    @jax.jit
    def gradient(present: chex.ArrayTree, inputs: Any) -> chex.ArrayTree:
        def reached_outputs(present: chex.ArrayTree) -> chex.Array:
            operands = [_Value(x, False, False) for x in jax.tree.leaves(present)]
            operands += [_input(x) for x in jax.tree.leaves(inputs)]
            outputs = [x.reached for x in _run(closed, operands)]
            return sum(
                (jnp.sum(x) for x in outputs if x is not None), start=jnp.float32(0.0)
            )

        return jax.grad(reached_outputs)(present)

    return jax.tree.map(
        lambda keep, g: keep & (g > 0.5) if jnp.ndim(keep) else keep,
        mask,
        gradient(present, inputs),
    )


def effective_sparsity(
    mask: Mask,
    apply_fn: Callable[[chex.ArrayTree, Any], Any],
    params: chex.ArrayTree,
    inputs: Any,
) -> float:
    r"""Returns the share of prunable connections that lie on no kept path.

    .. math:: 1 - \frac{\text{connections on a path from input to output}}
                       {\text{prunable connections}}

    Args:
      mask: pytree of bools like ``params``; scalar leaves are not prunable.
      apply_fn: ``(params, inputs) -> outputs``, a traceable function.
      params: pytree of arrays, of which shapes and dtypes matter.
      inputs: pytree of arrays, e.g. a batch of one example.

    Returns:
      A float, at least the sparsity of the mask.

    Raises:
      ValueError: if no leaf is prunable, ``mask`` does not fit ``params``, or
        ``apply_fn`` has an operation that cannot be followed.

    Example:
      >>> params = {"v": jnp.ones((2, 2)), "w": jnp.ones((2, 1))}
      >>> mask = {"v": jnp.ones((2, 2), bool), "w": jnp.array([[True], [False]])}
      >>> apply_fn = lambda params, x: x @ params["v"] @ params["w"]
      >>> effective_sparsity(mask, apply_fn, params, jnp.ones((1, 2)))
      0.5

    Vysogorets and Kempe, JMLR 2023, section 2.
    """
    return sparsity(effective(mask, apply_fn, params, inputs))


def _input(x: chex.Array) -> _Value:
    if jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        ones = jnp.ones(jnp.shape(x), jnp.float32)
        return _Value(ones, False, True, ones)
    return _Value(x, True, True)


@jax.custom_vjp
def _is_there(x: chex.Array) -> chex.Array:
    """Returns 1.0 where a count is at least one; its derivative is of the same kind."""
    # Convolutions by fast transforms round, but not by a half.
    return (x > 0.5).astype(jnp.float32)


def _is_there_forward(x: chex.Array) -> tuple[chex.Array, chex.Array]:
    there = _is_there(x)
    return there, there


def _is_there_backward(there: chex.Array, g: chex.Array) -> tuple[chex.Array]:
    # Nothing goes back from entries that nothing reached.
    return (there * (g > 0.5),)


_is_there.defvjp(_is_there_forward, _is_there_backward)


def _run(jaxpr: Any, operands: Sequence[_Value]) -> list[_Value]:
    return jaxprs.outputs(jaxpr, operands, _step, lambda x: _Value(x, True, False))


def _step(equation: Any, operands: list[_Value]) -> list[_Value]:
    name = equation.primitive.name
    if all(x.is_exact for x in operands):
        is_reached = any(x.is_reached for x in operands)
        results = jaxprs.bind(equation, [x.array for x in operands])
        return [_Value(x, True, is_reached) for x in results]
    if name in jaxprs.CALLS:
        return _run(jaxprs.inner(equation), operands)
    if name == "cond":
        return _cond(equation, operands)
    if name == "scan":
        return _scan(equation, operands)
    if name == "optimization_barrier":
        return operands
    if name == "split":
        (whole,) = operands
        pieces = [jaxprs.bind(equation, [_present(whole)])]
        pieces += [jaxprs.bind(equation, [_reached(whole)])] if whole.is_reached else []
        return [_Value(p, False, whole.is_reached, *r) for p, *r in zip(*pieces)]
    return [_result(equation, operands)]


def _result(equation: Any, operands: list[_Value]) -> _Value:
    """Returns the result of an operation on arrays of which some are not exact."""
    name, params = equation.primitive.name, equation.params
    shape = equation.outvars[0].aval.shape
    first, *others = operands
    if name in _PRODUCTS:
        return _product(functools.partial(_multiplied, equation), *operands)
    if name == "div":
        # Nothing is divided by zero.
        return _product(jnp.multiply, first, _ones_like(others[0]))
    if name in _MOVES and all(x.is_exact for x in others):
        places = [x.array for x in others]
        result = _sum(
            lambda terms: jaxprs.bind(equation, [*terms, *places])[0], [first]
        )
        if any(x.is_reached for x in others) and not first.is_reached:
            # Inputs, such as tokens, choose the entries.
            return _Value(result.array, False, True, result.array)
        return result
    if name in _JOINS:
        are_terms = [
            jnp.issubdtype(variable.aval.dtype, jnp.inexact)
            for variable in equation.invars
        ]

        def join(terms: list[chex.Array]) -> chex.Array:
            rest = iter(terms)
            values = [next(rest) if t else x.array for t, x in zip(are_terms, operands)]
            return jaxprs.bind(equation, values)[0]

        return _sum(join, [x for t, x in zip(are_terms, operands) if t])
    if name == "select_n":
        return _selection(equation, first, others)
    if name in _CUMULATIVE:
        axis, reverse = params["axis"], params["reverse"]
        return _sum(lambda terms: jax.lax.cumsum(terms[0], axis, reverse), [first])
    if name in _WINDOWS:
        return _sum(lambda terms: _window_sum(terms[0], params), [first])
    if name != "sort" and len(equation.outvars) == 1:
        if name.startswith(("arg", "reduce_")) and "axes" in params:
            return _sum(lambda terms: jnp.sum(terms[0], params["axes"]), [first])
        if all(_is_spread(jnp.shape(x.array), shape) for x in operands):
            # Entry by entry: the result depends on every operand.
            result = _sum(lambda terms: jnp.broadcast_to(sum(terms), shape), operands)
            return _ones_like(result) if name in _NEVER_ZERO else result
    raise ValueError(
        f"apply_fn has an operation '{name}', through which paths cannot be followed; "
        "write that part otherwise, e.g. with jax.lax.scan, or pass a function without"
    )


def _product(multiply: Callable[..., chex.Array], a: _Value, b: _Value) -> _Value:
    """Returns a product: reached where one factor is, and the other is present."""
    present = _is_there(multiply(_present(a), _present(b)))
    terms = []
    if a.is_reached:
        terms.append(multiply(_reached(a), _present(b)))
    if b.is_reached:
        terms.append(multiply(_present(a), _reached(b)))
    if not terms:
        return _Value(present, False, False)
    return _Value(present, False, True, _is_there(sum(terms)))


def _sum(add: Callable[[list[Any]], chex.Array], terms: Sequence[_Value]) -> _Value:
    """Returns a sum, linear in its terms: there where one of them is."""
    present = _is_there(add([_present(x) for x in terms]))
    if not any(x.is_reached for x in terms):
        return _Value(present, False, False)
    return _Value(present, False, True, _is_there(add([_reached(x) for x in terms])))


def _selection(equation: Any, which: _Value, cases: list[_Value]) -> _Value:
    if which.is_exact:
        return _sum(
            lambda terms: jaxprs.bind(equation, [which.array, *terms])[0], cases
        )
    shape = equation.outvars[0].aval.shape
    result = _sum(lambda terms: jnp.broadcast_to(sum(terms), shape), cases)
    # The selected value depends on the condition too.
    by_condition = _product(jnp.multiply, _ones_like(which), result)
    return _sum(sum, [result, by_condition])


def _present(x: _Value) -> chex.Array:
    """Returns 1.0 where something is present.

    Derivatives go back from a product to weights; to what inputs reach, by that alone.
    """
    if x.is_exact:
        return (jnp.asarray(x.array) != 0).astype(jnp.float32)
    return jax.lax.stop_gradient(x.array) if x.is_reached else x.array


def _reached(x: _Value) -> chex.Array:
    """Returns 1.0 where an input reaches.

    It reaches no bias, but the derivative tells a bias whether its sum is on a path.
    """
    if x.is_exact:
        reached = _present(x)
        return reached if x.is_reached else jnp.zeros_like(reached)
    return x.reached if x.is_reached else x.array - jax.lax.stop_gradient(x.array)


def _ones_like(x: _Value) -> _Value:
    """Returns a value that is present everywhere, and reached by the same inputs."""
    present = _present(x)
    # One, with the derivative that weights take.
    array = 1.0 + present - jax.lax.stop_gradient(present)
    return _Value(array, False, x.is_reached, _reached(x) if x.is_reached else None)


def _multiplied(equation: Any, a: chex.Array, b: chex.Array) -> chex.Array:
    if equation.primitive.name in ("and", "mul"):
        return a * b
    # Counts of 1.0, which are exact in float32 alone.
    name = "preferred_element_type"
    changes = {name: jnp.dtype(jnp.float32)} if name in equation.params else {}
    return jaxprs.bind(equation, [a, b], **changes)[0]


def _is_spread(shape: tuple[int, ...], over: tuple[int, ...]) -> bool:
    """Returns whether an operation by entries may spread one shape over another."""
    pairs = zip(shape, over)
    return shape == () or (
        len(shape) == len(over) and all(size in (1, other) for size, other in pairs)
    )


def _cond(equation: Any, operands: list[_Value]) -> list[_Value]:
    """Returns the results of any branch, or of the default for all platforms."""
    branches = jaxprs.branches(equation)
    results = [_run(branch, operands[1:]) for branch in branches]
    either = lambda a, b: _sum(sum, [a, b])  # noqa: E731
    return [functools.reduce(either, values) for values in zip(*results)]


def _scan(equation: Any, operands: list[_Value]) -> list[_Value]:
    """Returns the results of a loop, one step after the other."""
    params = equation.params
    consts, carry, stacks = jaxprs.loop_operands(equation, operands)
    steps = range(params["length"])
    rows = []
    for i in reversed(steps) if params["reverse"] else steps:
        at = [_entry(x, i) for x in stacks]
        results = _run(params["jaxpr"], [*consts, *carry, *at])
        carry = results[: params["num_carry"]]
        rows.append(results[params["num_carry"] :])
    if params["reverse"]:
        rows.reverse()
    return [*carry, *map(_stacked, zip(*rows))]


def _entry(x: _Value, i: int) -> _Value:
    reached = None if x.reached is None else x.reached[i]
    return x._replace(array=x.array[i], reached=reached)


def _stacked(rows: tuple[_Value, ...]) -> _Value:
    if all(x.is_exact for x in rows):
        is_reached = any(x.is_reached for x in rows)
        return _Value(jnp.stack([x.array for x in rows]), True, is_reached)
    return _sum(jnp.stack, rows)


def _window_sum(x: chex.Array, params: Any) -> chex.Array:
    names = (
        *("window_dimensions", "window_strides", "padding"),
        *("base_dilation", "window_dilation"),
    )
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, *(params[n] for n in names))
