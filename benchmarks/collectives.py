"""Arrays that the devices of a compiled program exchange."""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

_KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_INSTRUCTION = re.compile(rf" = (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """An instruction of a compiled program by which devices exchange an array."""

    kind: str  # e.g. all-reduce
    dtype: str  # as XLA writes it, e.g. f32
    shape: tuple[int, ...]  # of the result, on one device
    bytes: int  # of the whole array, before a reduce-scatter and after the others
    group_size: int  # devices that exchange it among themselves


def collectives(program: Any) -> list[Collective]:
    """Returns the collectives of a compiled program, one for each array.

    An instruction in a loop is there once, however often the loop runs it.

    Example:
      >>> text = "%r = f32[4,8]{1,0} all-reduce(%x), replica_groups=[1,2]<=[2]"
      >>> collectives(text)[0]
      Collective(kind='all-reduce', dtype='f32', shape=(4, 8), bytes=128, group_size=2)
    """
    text = program if isinstance(program, str) else program.as_text()
    header = text.partition("\n")[0]
    counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)
    found = []
    for line in text.splitlines():
        match = _INSTRUCTION.search(line)
        if not match:
            continue
        result, kind, is_start = match.groups()
        arrays = _ARRAY.findall(result)
        if is_start and kind == "all-gather":  # of operands, then results
            arrays = arrays[len(arrays) // 2 :]
        elif is_start and kind == "collective-permute":
            arrays = arrays[1:2]
        group_size = _group_size(kind, line, math.prod(map(int, counts)))
        for dtype, dimensions in arrays:
            shape = tuple(int(size) for size in dimensions.split(",") if size)
            whole = math.prod(shape) * (group_size if kind == "reduce-scatter" else 1)
            size = -(-whole * _bits(dtype) // 8)
            found.append(Collective(kind, dtype, shape, size, group_size))
    return found


def bytes_per_device(exchanged: Iterable[Collective]) -> float:
    r"""Returns the bytes that each device sends, by the algorithms on a ring.

    For an array of :math:`S` bytes and a group of :math:`n` devices, an all-reduce
    sends :math:`2 \frac{n-1}{n} S`; an all-gather, a reduce-scatter and an all-to-all
    send :math:`\frac{n-1}{n} S`; a permutation or a broadcast sends :math:`S`.

    Patarasuk, Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations", JPDC 2009.
    """
    return float(sum(_sent(one) for one in exchanged))


def _sent(one: Collective) -> float:
    share = (one.group_size - 1) / one.group_size
    if one.kind == "all-reduce":
        return 2 * share * one.bytes
    if one.kind in ("all-gather", "reduce-scatter", "all-to-all"):
        return share * one.bytes
    return one.bytes


def _bits(dtype: str) -> int:
    return 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])


def _group_size(kind: str, line: str, all_devices: int) -> int:
    """Counts the devices in a group, in any of the forms that XLA writes groups in."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
        return len(set(re.findall(r"\d+", pairs[1]))) if pairs else all_devices
    groups = line.partition("replica_groups=")[2]
    # {{0,1},{2,3}}
    if match := re.match(r"\{\{([\d,]*)\}", groups):
        return len(match[1].split(","))
    # [2,4]<=[8], two groups of four
    if match := re.match(r"\[\d+,(\d+)\]<=", groups):
        return int(match[1])
    # mesh['a'=2,'b'=4] {'b'}, or a part of an axis, {'b':(1)2}
    if match := re.match(r"mesh\[(.*?)\].*?\{('.*?)\}", groups):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if groups.startswith("{}") and all_devices:
        return all_devices
    raise ValueError(
        f"the group of devices of this {kind} cannot be read: {line.strip()}"
    )
