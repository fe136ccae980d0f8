"""Counts of entries of many arrays, without memory to speak of.

On sharded arrays a count is an all-reduce of one number for each array. On one CPU,
where XLA writes out whatever it adds up, entries are counted a piece at a time.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax._src import trees

# From entries and their flat indices to whether each entry is counted.
IsCounted = Callable[[chex.Array, chex.Array], chex.Array]
# From entries and their flat indices to whether each is counted, by several tests.
Tests = Callable[[chex.Array, chex.Array], list[chex.Array]]
# From a module like NumPy and entries to whether each entry is counted.
Test = Callable[[Any, Any], Any]

_PIECE = 255 * 2**13  # entries counted at a time, few enough to stay in the cache
_SMALL = 2**15  # entries that are counted at once everywhere


def count(
    is_counted: IsCounted, leaves: list[chex.Array], *, in_pieces: bool
) -> chex.Array:
    """Returns how many entries of each array are counted, uint32 ``[leaves]``.

    Flat indices are counted on from one array to the next. ``in_pieces`` says that the
    arrays lie on one CPU.
    """
    if not in_pieces:
        # The barrier keeps XLA from hoisting all keys and indices out of the loop.
        leaves, one = jax.lax.optimization_barrier((leaves, jnp.uint32(1)))
        return jnp.stack(
            [
                jnp.sum(is_counted(leaf, index), dtype=jnp.uint32)
                for leaf, index in zip(leaves, flat_indices(leaves, one))
            ]
        )
    counts, offset = [], 0
    for leaf in leaves:
        counts.append(_count_in_pieces(is_counted, leaf.ravel(), offset))
        offset += leaf.size
    return jnp.stack(counts)


def count_each(tests: Tests, leaves: list[chex.Array]) -> list[chex.Array]:
    """Returns how many entries of each array pass each test, each uint32 ``[leaves]``.

    The arrays are read once.
    """
    leaves, one = jax.lax.optimization_barrier((leaves, jnp.uint32(1)))

    def sums(leaf: chex.Array, index: chex.Array) -> list[chex.Array]:
        passed = [x.astype(jnp.uint32) for x in tests(leaf, index)]
        return jax.lax.reduce(
            passed,
            [jnp.uint32(0)] * len(passed),
            lambda a, b: [x + y for x, y in zip(a, b)],
            tuple(range(leaf.ndim)),
        )

    counts = [sums(*pair) for pair in zip(leaves, flat_indices(leaves, one))]
    return [jnp.stack(each) for each in zip(*counts)]


def is_on_one_cpu(tree: chex.ArrayTree) -> bool:
    """Returns whether all arrays lie on one CPU and hence are counted in pieces."""
    return is_on_one_device(tree) and _devices(tree).pop().platform == "cpu"


def is_on_one_device(tree: chex.ArrayTree) -> bool:
    """Returns whether all arrays lie whole on one device.

    The place of a traced array is known if there is one device only.
    """
    return len(_devices(tree)) == 1


def _devices(tree: chex.ArrayTree) -> set[Any]:
    if trees.is_traced(tree):
        return set(jax.devices())
    return set().union(*(leaf.devices() for leaf in jax.tree.leaves(tree)))


def counts(test: Test, leaves: list[chex.Array]) -> list[int]:
    """Returns how many entries of each array pass a test.

    Arrays are concrete, and a traced function may close over them. ``test`` is a
    function of a module, which programs are kept for.
    """
    with jax.ensure_compile_time_eval():
        arrays = [jnp.asarray(leaf) for leaf in leaves]
        found = [
            _count_by_numpy(x, test) if is_on_one_cpu(x) else _count_passing(x, test)
            for x in arrays
        ]
    return [int(number) for number in jax.device_get(found)]


def is_true(xp: Any, x: Any) -> Any:
    del xp
    return x


def is_positive(xp: Any, x: Any) -> Any:
    del xp
    return x > 0


def is_not_finite(xp: Any, x: Any) -> Any:
    # Tests each entry, because XLA's maximum on a CPU can lose a NaN.
    return ~xp.isfinite(x)


def ordered_bits(x: chex.Array, dtype: jnp.dtype) -> chex.Array:
    """Returns unsigned integers in the order of the floats; -0.0 and 0.0 are equal.

    Floats are cast to ``dtype`` first. The integers are uint32 or wider.
    """
    pattern = bit_pattern(x, dtype)
    sign = jnp.asarray(2 ** (dtype.itemsize * 8 - 1), pattern.dtype)
    # A negative float's magnitude bits m become sign - m, a positive's sign + m.
    return jnp.where(pattern >= sign, sign + (sign - pattern), pattern | sign)


def bit_pattern(x: chex.Array, dtype: jnp.dtype) -> chex.Array:
    """Returns the bits of floats of the dtype as integers, uint32 or wider."""
    unsigned = jnp.dtype(f"uint{dtype.itemsize * 8}")
    pattern = jax.lax.bitcast_convert_type(x.astype(dtype), unsigned)
    return pattern.astype(jnp.promote_types(unsigned, jnp.uint32))


def pattern_interval(
    key: chex.Array, dtype: jnp.dtype
) -> tuple[chex.Array, chex.Array]:
    """Returns the interval of the patterns of all floats that are at or above a key.

    The key is at least 1. The results are the first pattern, and the last less it.
    """
    sign = jnp.asarray(2 ** (dtype.itemsize * 8 - 1), key.dtype)
    # Above zero, patterns grow with the float; those from the sign on shrink.
    first = jnp.where(key > sign, key - sign, jnp.zeros_like(key))
    last = jnp.where(key > sign, sign - 1, sign + (sign - key))
    return first, last - first


def flat_indices(leaves: list[chex.Array], one: chex.Numeric = 1) -> list[chex.Array]:
    """Returns the row-major index of every entry, counted on from leaf to leaf.

    Leaves have less than 2**32 entries together. ``one`` is the number one, not known
    to XLA where indices must not leave a loop.
    """
    offset, indices = 0, []
    for leaf in leaves:
        index = jnp.full(leaf.shape, offset, jnp.uint32)
        stride = leaf.size
        for axis, size in enumerate(leaf.shape):
            stride //= size
            iota = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            index += iota * (jnp.uint32(stride) * one)
        indices.append(index)
        offset += leaf.size
    return indices


@functools.partial(jax.jit, static_argnums=1)
def _count_passing(x: chex.Array, test: Test) -> chex.Array:
    return jnp.sum(test(jnp, x), dtype=jnp.uint32)


def _count_by_numpy(x: chex.Array, test: Test) -> int:
    # On one CPU NumPy looks at the same memory, and compiles nothing.
    flat = np.asarray(x).ravel()
    pieces = (flat[i : i + _PIECE] for i in range(0, flat.size, _PIECE))
    return sum(int(np.count_nonzero(test(np, piece))) for piece in pieces)


def _count_in_pieces(
    is_counted: IsCounted, flat: chex.Array, offset: int
) -> chex.Array:
    def count_piece(start: chex.Numeric, size: int) -> chex.Array:
        piece = jax.lax.dynamic_slice(flat, (start,), (size,))
        first = jnp.uint32(offset) + jnp.asarray(start, jnp.uint32)
        return is_counted(piece, first + jnp.arange(size, dtype=jnp.uint32))

    if flat.size <= _SMALL:
        return jnp.sum(count_piece(0, flat.size), dtype=jnp.uint32)
    # Two pieces at least: of a whole leaf, XLA would take the keys out of a loop.
    pieces = max(2, -(-flat.size // _PIECE))
    size = flat.size // pieces // 255 * 255

    def add(i: chex.Array, total: chex.Array) -> chex.Array:
        # Bytes, which XLA writes out in the least memory, add up as far as 255.
        table = count_piece(i * size, size).reshape(255, -1).astype(jnp.uint8)
        columns = jnp.sum(table, axis=0, dtype=jnp.uint8)
        return total + jnp.sum(columns, dtype=jnp.uint32)

    rest = count_piece(pieces * size, flat.size - pieces * size)
    return jax.lax.fori_loop(0, pieces, add, jnp.sum(rest, dtype=jnp.uint32))
