"""Selecting the global top 5% of 15 and 100 million scores, traced or not."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import timing
from snipjax import masks

LEAVES, SPARSITY = 20, 0.95
MILLIONS = (15, 100)


def scores(millions: int) -> dict[str, jax.Array]:
    """Returns products of normals, as saliencies are, in leaves of three scales."""
    size = (millions * 10**6 // LEAVES // 500, 500)

    def leaf(index: int) -> jax.Array:
        keys = jax.random.split(jax.random.key(index))
        weight, gradient = (jax.random.normal(key, size) for key in keys)
        return jnp.abs(weight * gradient) * 2.0 ** (-index % 3)

    return {f"{index:02}": jax.jit(leaf)(index) for index in range(LEAVES)}


def select(leaves: dict[str, jax.Array]) -> Callable[[], Any]:
    """Returns a function that selects."""
    return lambda: masks.global_topk(leaves, SPARSITY)


def select_traced(leaves: dict[str, jax.Array]) -> Callable[[], Any]:
    """Returns a function that selects inside one compiled program."""
    compiled = jax.jit(lambda leaves: masks.global_topk(leaves, SPARSITY))
    return lambda: compiled(leaves)


def sort(leaves: dict[str, jax.Array]) -> Callable[[], Any]:
    """Returns a function that sorts the scores' concatenation."""
    compiled = jax.jit(
        lambda leaves: jnp.sort(jnp.concatenate([x.ravel() for x in leaves.values()]))
    )
    return lambda: compiled(leaves)


def top(leaves: dict[str, jax.Array]) -> Callable[[], Any]:
    """Returns a function that takes the largest of the scores' concatenation."""
    kept = masks.kept_count(sum(leaf.size for leaf in leaves.values()), SPARSITY)
    compiled = jax.jit(
        lambda leaves: jax.lax.top_k(
            jnp.concatenate([x.ravel() for x in leaves.values()]), kept
        )[0][-1]
    )
    return lambda: compiled(leaves)


def is_exact(leaves: dict[str, jax.Array], mask: dict[str, jax.Array]) -> bool:
    """Returns whether a mask keeps the right number, and no pruned score is larger."""
    wanted = masks.kept_count(sum(leaf.size for leaf in leaves.values()), SPARSITY)
    least, most, kept = _margins(leaves, mask)
    return bool(kept == wanted and least >= most)


@jax.jit
def _margins(leaves: dict[str, jax.Array], mask: dict[str, jax.Array]) -> Any:
    pairs = [(leaf, mask[name]) for name, leaf in leaves.items()]
    least = [jnp.min(jnp.where(kept, leaf, jnp.inf)) for leaf, kept in pairs]
    most = [jnp.max(jnp.where(kept, -jnp.inf, leaf)) for leaf, kept in pairs]
    number = sum(jnp.sum(kept, dtype=jnp.uint32) for _, kept in pairs)
    return jnp.min(jnp.stack(least)), jnp.max(jnp.stack(most)), number


def extra_memory(millions: int) -> float:
    """Returns the peak memory of a selection beyond scores and mask, in scores' sizes.

    Measured as the growth of the resident set's peak, in a process of its own.
    """
    code = f"from benchmarks import selection; selection.print_extra({millions})"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def print_extra(millions: int) -> None:
    """Prints what :func:`extra_memory` returns."""
    small = scores(1)  # compiles what does not depend on the size
    jax.block_until_ready(select(small)())
    leaves = jax.block_until_ready(scores(millions))
    size = 4 * sum(leaf.size for leaf in leaves.values())
    before = status("VmRSS")
    jax.block_until_ready(select(leaves)())
    print((status("VmHWM") - before - size / 4) / size)


def status(field: str) -> int:
    """Bytes, as Linux counts them for this program (not for those that started it)."""
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{field}:")
    ]
    return 1024 * int(line.split()[1])


def main() -> None:
    rows, seconds = [], {}
    for millions in MILLIONS:
        leaves = scores(millions)
        name = f"masks.global_topk, {millions} M"
        repeats = 5 if millions < 100 else 3
        against_sort = timing.compare(
            (name, select(leaves)),
            ("jnp.sort", sort(leaves)),
            repeats=repeats,
            target=0.06,
        )
        under_jit = timing.compare(
            (f"{name}, under jit", select_traced(leaves)),
            ("outside", select(leaves)),
            repeats=repeats,
            target=1.3,
        )
        seconds[millions] = under_jit.seconds
        rows += [against_sort, under_jit]
        del leaves
    small, large = MILLIONS
    linear = seconds[small] * large / small
    growth = seconds[large] / linear
    rows.append(
        timing.Row(
            f"growth under jit, {small} M to {large} M",
            "linear",
            seconds[large],
            linear,
            growth,
            (growth, growth),
            1.3,
        )
    )
    extra = extra_memory(large)
    gigabytes = large * 4e-3
    rows.append(
        timing.Row(
            f"peak memory beyond scores and mask, {large} M (GB)",
            "the scores (GB)",
            extra * gigabytes,
            gigabytes,
            extra,
            (extra, extra),
            0.5,
        )
    )
    timing.report("selection", rows)


if __name__ == "__main__":
    main()
