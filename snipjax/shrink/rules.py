"""Rules: from the axes of an operation's operands to the axes of its results.

A rule ``(verbs, site, operands) -> (operands, results)`` returns axes of the operands
too, which may have lost positions that another operand does not have.
"""

from typing import Any

from snipjax.shrink import moves
from snipjax.shrink.positions import Axes, Axis, Both, Rule, Silence, Site, Verbs

# Functions by entries that are zero at zero, whatever the other operands.
_ZERO_AT_ZERO = {
    *(
        "abs",
        "asin",
        "asinh",
        "atan",
        "atanh",
        "cbrt",
        "ceil",
        "conj",
        "copy",
        "copy_p",
    ),
    *("convert_element_type", "div", "erf", "erf_inv", "expm1", "floor", "imag"),
    *("log1p", "name", "neg", "pvary", "real", "reduce_precision", "rem", "round"),
    *("sharding_constraint", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient"),
    *("tan", "tanh", "shift_left", "shift_right_arithmetic", "shift_right_logical"),
}
_SUMS = {"add", "add_any", "clamp", "max", "min", "or", "sub", "xor"}
_PRODUCTS = {"and", "mul"}
_OTHERS = {
    *("acos", "acosh", "atan2", "cos", "cosh", "digamma", "eq", "erfc", "exp", "exp2"),
    *("ge", "gt", "is_finite", "le", "lgamma", "log", "logistic", "lt", "ne", "not"),
    *("integer_pow", "nextafter", "pow", "rsqrt", "select_n"),
}
BY_ENTRIES = _ZERO_AT_ZERO | _SUMS | _PRODUCTS | _OTHERS


def by_entries(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    """Follows a function applied entry by entry; scalars and sizes of one spread."""
    shape, silence = site.results[0], _silence(site)
    new = [list(axes) for axes in operands]
    result: list[Axis] = []
    for i, size in enumerate(shape):
        at = [k for k, s in enumerate(site.shapes) if len(s) > i and s[i] == size]
        if silence is None or (silence[0] == "all" and not set(silence[1]) <= set(at)):
            silent: Any = [False] * len(at)
        elif silence[0] == "any":
            silent = "any"
        else:
            silent = [k in silence[1] for k in at]
        axis = verbs.join([new[k][i] for k in at], silent)
        for k in at:
            new[k][i] = axis
        for k, axes in enumerate(new):
            if len(axes) > i and k not in at:  # a slice of one position that spreads
                axes[i] = verbs.fix(axes[i])
        result.append(axis)
    return [tuple(axes) for axes in new], [tuple(result)]


def _silence(site: Site) -> Silence:
    """Returns the operands that make a result zero where all, or any, of them are."""
    name, numbers = site.name, site.numbers
    everything = range(len(site.shapes))
    if name in _PRODUCTS:
        return "any", everything
    if name in _ZERO_AT_ZERO:
        return "all", [0]
    if name == "integer_pow":
        return ("all", [0]) if site.params["y"] > 0 else None
    if name == "pow":
        return ("all", [0]) if (numbers[1] or 0) > 0 else None
    if name == "select_n":
        return "all", everything[1:]
    if name not in _SUMS:
        return None
    unknown = [k for k in everything if numbers[k] is None]
    known = [(k, x) for k, x in enumerate(numbers) if x is not None]
    return ("all", unknown) if all(_keeps_zero(name, k, x) for k, x in known) else None


def _keeps_zero(name: str, place: int, number: float) -> bool:
    """Returns whether a function is zero at zero with a number as another operand."""
    if name == "max" or (name == "clamp" and place == 0):
        return number <= 0
    if name == "min" or (name == "clamp" and place == 2):
        return number >= 0
    return number == 0


def _dot_general(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    (over_left, over_right), (batch_left, batch_right) = site.params[
        "dimension_numbers"
    ]
    left, right = (list(axes) for axes in operands)
    for i, j in zip(over_left, over_right):
        left[i] = right[j] = verbs.contract(left[i], right[j])
    for i, j in zip(batch_left, batch_right):
        left[i] = right[j] = verbs.join([left[i], right[j]], "any")
    result = [left[i] for i in batch_left]
    result += [a for i, a in enumerate(left) if i not in (*over_left, *batch_left)]
    result += [a for i, a in enumerate(right) if i not in (*over_right, *batch_right)]
    return [tuple(left), tuple(right)], [tuple(result)]


def _convolution(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    numbers, groups = (
        site.params["dimension_numbers"],
        site.params["feature_group_count"],
    )
    images, kernels = (list(axes) for axes in operands)
    batch, channels, *spatial = numbers.lhs_spec
    out, into, *window = numbers.rhs_spec
    for i in spatial:
        images[i] = verbs.fix(images[i])
    for i in window:
        kernels[i] = verbs.fix(kernels[i])
    if site.params["batch_group_count"] > 1:
        for axes, i in ((images, batch), (images, channels), (kernels, out)):
            axes[i] = verbs.fix(axes[i])
    if groups == 1:
        axis = verbs.contract(images[channels], kernels[into])
        images[channels] = kernels[into] = axis
    else:  # a group goes as a whole
        kernels[into] = verbs.fix(kernels[into])
        group = verbs.join(
            [
                verbs.bundle(images[channels], groups),
                verbs.bundle(kernels[out], groups),
            ],
            "any",
        )
        for axes, i, shape in (
            (images, channels, site.shapes[0]),
            (kernels, out, site.shapes[1]),
        ):
            axes[i] = verbs.merge([group, None], [groups, shape[i] // groups])
    result: list[Axis] = [None] * len(site.results[0])
    result[numbers.out_spec[0]] = images[batch]
    result[numbers.out_spec[1]] = kernels[out]
    return [tuple(images), tuple(kernels)], [tuple(result)]


def _reduction(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    adds = verbs.total if site.name == "reduce_sum" else verbs.fix
    over, axes = site.params["axes"], list(operands[0])
    for i in over:
        axes[i] = adds(axes[i])
    rest = tuple(axis for i, axis in enumerate(axes) if i not in over)
    return [tuple(axes)], [rest]


def _cumulative(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    place, axes = site.params["axis"], list(operands[0])
    adds = verbs.total if site.name == "cumsum" else verbs.fix
    axes[place] = adds(axes[place])
    result = list(axes)
    if site.name == "cumlogsumexp":  # log(t) of t zeros
        result = [a if a is None else verbs.join([a], [False]) for a in axes]
    elif axes[place] is not None:
        result[place] = verbs.join([axes[place]], [False])
    return [tuple(axes)], [tuple(result)]


def _window(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    params, (axes, *rest) = site.params, operands
    settings = zip(
        axes,
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params["base_dilation"],
        params["window_dilation"],
    )
    new = tuple(
        axis if s[:2] == [1, 1] and tuple(s[2]) == (0, 0) else verbs.fix(axis)
        for axis, *s in settings
    )
    return [new, *rest], [new]


def _sort(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    place = site.params["dimension"]
    new = [
        tuple(verbs.fix(a) if i == place else a for i, a in enumerate(axes))
        for axes in operands
    ]
    joined, result = moves.joined(verbs, site, new, lambda i: False)
    return joined, result * len(operands)


def _same(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    return operands, operands


RULES: dict[str, Rule] = {
    **dict.fromkeys(BY_ENTRIES, by_entries),
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and"),
        _reduction,
    ),
    **dict.fromkeys(("reduce_or", "reduce_xor", "argmax", "argmin"), _reduction),
    **dict.fromkeys(
        ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative
    ),
    **dict.fromkeys(
        ("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _window
    ),
    "broadcast_in_dim": moves.broadcast_in_dim,
    "concatenate": moves.concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "dynamic_slice": moves.dynamic_slice,
    "dynamic_update_slice": moves.dynamic_update_slice,
    "gather": moves.gather,
    "optimization_barrier": _same,
    "pad": moves.pad,
    "reshape": moves.reshape,
    "rev": moves.reverse,
    "slice": moves.cut,
    "sort": _sort,
    "split": moves.split,
    "squeeze": moves.squeeze,
    "stack": moves.stack,
    "tile": moves.tile,
    "transpose": moves.transpose,
    "unstack": moves.unstack,
}
