"""Rules of operations that move entries: reshapes, slices, concatenations and alike."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from snipjax.shrink.positions import Axes, Axis, Both, Site, Verbs


def broadcast_in_dim(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    shape, is_zero = site.params["shape"], site.numbers[0] == 0
    result: list[Axis] = [
        verbs.fresh(size, is_zero) if _is_long(size) else None for size in shape
    ]
    axes = list(operands[0])
    for i, j in enumerate(site.params["broadcast_dimensions"]):
        if site.shapes[0][i] == shape[j]:
            result[j] = axes[i]
        else:
            axes[i] = verbs.fix(axes[i])
    return [tuple(axes), *operands[1:]], [tuple(result)]


def _is_long(size: Any) -> bool:
    return not isinstance(size, int) or size > 1


def reshape(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    (axes,), (old,), (new,) = operands, site.shapes, site.results
    # A slice of one position, of no axis of the result.
    axes = tuple(a if _is_long(n) else verbs.fix(a) for a, n in zip(axes, old))
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
    return [axes], [tuple(result)]


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


def transpose(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    return operands, [tuple(operands[0][i] for i in site.params["permutation"])]


def squeeze(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    gone = {i % len(site.shapes[0]) for i in site.params["dimensions"]}
    pairs = enumerate(operands[0])
    axes = tuple(verbs.fix(a) if i in gone else a for i, a in pairs)
    return [axes], [tuple(a for i, a in enumerate(axes) if i not in gone)]


def reverse(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    turned = site.params["dimensions"]
    pairs = enumerate(operands[0])
    axes = [a[::-1] if i in turned and a is not None else a for i, a in pairs]
    return operands, [tuple(axes)]


def concatenate(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    place = site.params["dimension"]
    return joined(verbs, site, operands, lambda i: i == place)


def joined(
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


def stack(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    shape = site.shapes[0]
    flat = site._replace(results=[shape])
    new, (result,) = joined(verbs, flat, operands, lambda i: False)
    place = site.params["axis"]
    return new, [(*result[:place], None, *result[place:])]


def unstack(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    place, axes = site.params["axis"], list(operands[0])
    axes[place] = verbs.fix(axes[place])
    rest = (*axes[:place], *axes[place + 1 :])
    return [tuple(axes)], [rest] * len(site.results)


def tile(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    triples = zip(operands[0], site.shapes[0], site.params["reps"])
    axes = tuple(verbs.chain([a] * k, [n] * k) for a, n, k in triples)
    return operands, [axes]


def pad(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
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


def cut(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    steps = site.params["strides"] or (1,) * len(operands[0])
    bounds = zip(site.params["start_indices"], site.params["limit_indices"], steps)
    pairs = zip(operands[0], bounds)
    axes = [a if a is None else a[slice(*bound)] for a, bound in pairs]
    return operands, [tuple(axes)]


def split(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    place, first, results = site.params["axis"], 0, []
    for size in site.params["sizes"]:
        axes = list(operands[0])
        axis = axes[place]
        axes[place] = axis if axis is None else axis[first : first + size]
        first += size
        results.append(tuple(axes))
    return operands, results


def dynamic_slice(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    sizes = zip(site.params["slice_sizes"], site.shapes[0])
    pairs = zip(operands[0], sizes)
    axes = tuple(a if part == size else verbs.fix(a) for a, (part, size) in pairs)
    return [axes, *operands[1:]], [axes]


def dynamic_update_slice(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    whole, part = (list(axes) for axes in operands[:2])
    for i, (size, part_size) in enumerate(zip(*site.shapes[:2])):
        if size == part_size:
            whole[i] = part[i] = verbs.join([whole[i], part[i]], "all")
        else:
            whole[i], part[i] = verbs.fix(whole[i]), verbs.fix(part[i])
    return [tuple(whole), tuple(part), *operands[2:]], [tuple(whole)]


def gather(verbs: Verbs, site: Site, operands: list[Axes]) -> Both:
    numbers, sizes = site.params["dimension_numbers"], site.params["slice_sizes"]
    left_out = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    triples = enumerate(zip(operands[0], site.shapes[0], sizes))
    axes = [
        a if part == size and i not in left_out else verbs.fix(a)
        for i, (a, size, part) in triples
    ]
    whole = [a for i, a in enumerate(axes) if i not in left_out]
    result: list[Axis] = [None] * len(site.results[0])
    for i, axis in zip(numbers.offset_dims, whole):
        result[i] = axis
    indices = tuple(verbs.fix(axis) for axis in operands[1])
    return [tuple(axes), indices], [tuple(result)]
