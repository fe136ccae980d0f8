"""Rules: from the axes of an operation's operands to the axes of its results.

A rule ``(verbs, site, operands) -> (operands, results)`` returns axes of the operands
too, which may have lost positions that another operand does not have.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from snipjax.shrink.positions import Axes, Axis, Silence, Verbs


class Site(NamedTuple):
    """An operation: its name and parameters, and the shapes of operands and results.

    ``numbers`` are the values of the operands that are known scalars, None for others.
    """

    name: str
    params: Mapping[str, Any]
    shapes: Sequence[tuple[int, ...]]
    results: Sequence[tuple[int, ...]]
    numbers: Sequence[float | None]


Both = tuple[list[Axes], list[Axes]]
Rule = Callable[[Verbs, Site, list[Axes]], Both]

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
        left[i] = right[j] = verbs.contract(left[i], right[j], (0, 1))
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
        axis = verbs.contract(images[channels], kernels[into], (0, 1))
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


def _broadcast_in_dim(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    shape, is_zero = site.params["shape"], site.numbers[0] == 0
    result: list[Axis] = [
        verbs.fresh(size, is_zero) if _is_long(size) else None for size in shape
    ]
    for i, j in enumerate(site.params["broadcast_dimensions"]):
        if site.shapes[0][i] == shape[j]:
            result[j] = operands[0][i]
    return operands, [tuple(result)]


def _is_long(size: Any) -> bool:
    return not isinstance(size, int) or size > 1


def _reshape(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    (axes,), (old,), (new,) = operands, site.shapes, site.results
    result: list[Axis] = [None] * len(new)
    for olds, news in blocks(old, new):
        if len(olds) == len(news) == 1:
            result[news[0]] = axes[olds[0]]
            continue
        if all(axes[i] is None for i in olds):
            continue
        flat = verbs.merge([axes[i] for i in olds], [old[i] for i in olds])
        for i, axis in zip(news, verbs.split(flat, [new[i] for i in news])):
            result[i] = axis
    return operands, [tuple(result)]


def blocks(
    old: Sequence[int], new: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields axes of two shapes that have equally many entries, as few as can be.

    Axes of size one are in no block: they come and go in any place.

    >>> list(blocks((2, 1, 3, 4), (6, 2, 2)))
    [([0, 2], [0]), ([3], [1, 2])]
    """
    left = [i for i, size in enumerate(old) if _is_long(size)]
    right = [i for i, size in enumerate(new) if _is_long(size)]
    while left and right:
        olds, news = [left.pop(0)], [right.pop(0)]
        while True:
            have, need = (
                math.prod(shape[i] for i in block)
                for shape, block in ((old, olds), (new, news))
            )
            if have == need:
                break
            if left and (not right or _is_less(have, need)):
                olds.append(left.pop(0))
            elif right:
                news.append(right.pop(0))
            else:
                break
        yield olds, news


def _is_less(have: Any, need: Any) -> bool:
    try:
        return bool(have < need)
    except Exception:  # symbolic sizes that cannot be compared
        return True


def _transpose(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    return operands, [tuple(operands[0][i] for i in site.params["permutation"])]


def _squeeze(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    gone = {i % len(site.shapes[0]) for i in site.params["dimensions"]}
    return operands, [tuple(a for i, a in enumerate(operands[0]) if i not in gone)]


def _reverse(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    turned = site.params["dimensions"]
    pairs = enumerate(operands[0])
    axes = [a[::-1] if i in turned and a is not None else a for i, a in pairs]
    return operands, [tuple(axes)]


def _concatenate(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    place = site.params["dimension"]
    return _joined(verbs, site, operands, lambda i: i == place)


def _joined(
    verbs: Verbs, site: Site, operands: list[Axes], is_chained: Callable[[int], bool]
) -> Both:
    new, result = [list(axes) for axes in operands], []
    for i in range(len(site.results[0])):
        axes = [axes[i] for axes in new]
        if is_chained(i):
            result.append(verbs.chain(axes, [shape[i] for shape in site.shapes]))
            continue
        axis = verbs.join(axes, "all")
        for axes_of_operand in new:
            axes_of_operand[i] = axis
        result.append(axis)
    return [tuple(axes) for axes in new], [tuple(result)]


def _stack(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    shape = site.shapes[0]
    flat = site._replace(results=[shape])
    new, (result,) = _joined(verbs, flat, operands, lambda i: False)
    place = site.params["axis"]
    return new, [(*result[:place], None, *result[place:])]


def _unstack(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    place, axes = site.params["axis"], list(operands[0])
    axes[place] = verbs.fix(axes[place])
    rest = (*axes[:place], *axes[place + 1 :])
    return [tuple(axes)], [rest] * len(site.results)


def _tile(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    triples = zip(operands[0], site.shapes[0], site.params["reps"])
    axes = tuple(verbs.chain([a] * k, [n] * k) for a, n, k in triples)
    return operands, [axes]


def _pad(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    axes, (shape, _) = list(operands[0]), site.shapes
    config, is_zero = site.params["padding_config"], site.numbers[1] == 0
    result = []
    for i, (low, high, within) in enumerate(config):
        if within or low < 0 or high < 0:
            axes[i] = verbs.fix(axes[i])
        # Elsewhere along this axis are entries of the padding of the others.
        others = any(any(entry) for j, entry in enumerate(config) if j != i)
        axis = axes[i]
        if axis is not None:
            axis = verbs.join([axis], [is_zero or not others])
            ends = [verbs.fresh(n, is_zero) if n else None for n in (low, high)]
            axis = verbs.chain([ends[0], axis, ends[1]], [low, shape[i], high])
        result.append(axis)
    return [tuple(axes), operands[1]], [tuple(result)]


def _slice(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    steps = site.params["strides"] or (1,) * len(operands[0])
    bounds = zip(site.params["start_indices"], site.params["limit_indices"], steps)
    pairs = zip(operands[0], bounds)
    axes = [a if a is None else a[slice(*bound)] for a, bound in pairs]
    return operands, [tuple(axes)]


def _split(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    place, first, results = site.params["axis"], 0, []
    for size in site.params["sizes"]:
        axes = list(operands[0])
        axis = axes[place]
        axes[place] = axis if axis is None else axis[first : first + size]
        first += size
        results.append(tuple(axes))
    return operands, results


def _dynamic_slice(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    sizes = zip(site.params["slice_sizes"], site.shapes[0])
    pairs = zip(operands[0], sizes)
    axes = tuple(a if part == size else verbs.fix(a) for a, (part, size) in pairs)
    return [axes, *operands[1:]], [axes]


def _dynamic_update_slice(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    whole, part = (list(axes) for axes in operands[:2])
    for i, (size, part_size) in enumerate(zip(*site.shapes[:2])):
        if size == part_size:
            whole[i] = part[i] = verbs.join([whole[i], part[i]], "all")
        else:
            whole[i], part[i] = verbs.fix(whole[i]), verbs.fix(part[i])
    return [tuple(whole), tuple(part), *operands[2:]], [tuple(whole)]


def _gather(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    numbers, sizes = site.params["dimension_numbers"], site.params["slice_sizes"]
    pairs = zip(operands[0], site.shapes[0], sizes)
    axes = [a if part == size else verbs.fix(a) for a, size, part in pairs]
    left_out = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = [a for i, a in enumerate(axes) if i not in left_out]
    result: list[Axis] = [None] * len(site.results[0])
    for i, axis in zip(numbers.offset_dims, whole):
        result[i] = axis
    indices = tuple(verbs.fix(axis) for axis in operands[1])
    return [tuple(axes), indices], [tuple(result)]


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
    if axes[place] is not None:
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
    joined, result = _joined(verbs, site, new, lambda i: False)
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
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "optimization_barrier": _same,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
}
