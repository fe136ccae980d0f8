"""Jobs that measure an accelerator, each in a process of its own.

    python -m benchmarks.jobs "vgg_d bfloat16"

prints the rows of one job as lines of JSON. `benchmarks.accelerator` runs all.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks.cases import CASES, PRECISIONS, SMALL, Case, Precision
from benchmarks.rows import Row, attempt, seconds

Rows = Callable[[], Iterable[Row]]
MILLIONS = (1000, 15, 150)
SPARSITY = 0.95


def jobs(small: bool) -> dict[str, Rows]:
    """Returns what yields the rows of each job, the most important first."""
    precisions, cases = (PRECISIONS[:1], SMALL) if small else (PRECISIONS, CASES)
    found: dict[str, Rows] = {
        "limits": lambda: limits(small),
        "selection": lambda: selections(small),
        "selection torch": lambda: torch_selections(small),
        "seeds": lambda: many_seeds(small),
        "stream": lambda: stream(small),
    }
    for precision in precisions:
        for case in cases:
            pair = f"{case.name} {precision.name}"
            found[pair] = functools.partial(ours, case, precision)
            found[f"{pair} torch"] = functools.partial(theirs, case, precision)
    return found


def ours(case: Case, precision: Precision) -> Iterable[Row]:
    """Returns the rows of a network."""
    from benchmarks import steps

    return steps.rows(case, precision)


def theirs(case: Case, precision: Precision) -> Iterable[Row]:
    """Returns the rows of a network in PyTorch."""
    from benchmarks import torch_rows

    return torch_rows.rows(case, precision)


def limits(small: bool) -> Iterator[Row]:
    """Yields the machine, and the rates of copies and of matrix products."""
    import jax
    import jax.numpy as jnp

    from benchmarks import timing

    yield {"what": "machine", **timing.machine()}
    wait = jax.block_until_ready
    x = jnp.ones(2**20 if small else 2**28, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    taken = seconds(lambda: copy(x), wait)
    # Each byte is read, and written.
    yield {"what": "copy", "seconds": taken, "GB/s": 2e-9 * x.nbytes / taken}
    k = 256 if small else 8192

    def product(precision: Precision) -> Row:
        a = jax.random.normal(jax.random.key(0), (k, k), precision.dtype)
        dot = jax.jit(functools.partial(jnp.dot, precision=precision.products))
        taken = seconds(lambda: dot(a, a), wait)
        return {"seconds": taken, "TFLOP/s": 2e-12 * k**3 / taken}

    for precision in PRECISIONS:
        about = {"what": "product", "precision": precision.name}
        yield attempt(about, functools.partial(product, precision))


def selections(small: bool) -> Iterator[Row]:
    """Yields the time of exact selection, and of sorting, the largest first."""
    import jax

    from benchmarks import selection

    def rows(millions: int, functions: dict[str, Any], repeats: int) -> Iterator[Row]:
        scores = selection.scores(millions)
        about: Row = {"what": "selection"}
        about["scores"] = sum(leaf.size for leaf in scores.values())
        for name, function in functions.items():

            def row(function: Any = function) -> Row:
                select = function(scores)
                wait = jax.block_until_ready
                taken = {"seconds": seconds(select, wait, repeats=repeats)}
                if function in (selection.sort, selection.top):
                    return taken
                return taken | {"exact": selection.is_exact(scores, select())}

            yield attempt({**about, "case": name}, row)

    sizes = (1,) if small else MILLIONS
    exact = {
        "masks.global_topk": selection.select,
        "masks.global_topk, jit": selection.select_traced,
    }
    sorting = {"jnp.sort": selection.sort, "lax.top_k": selection.top}
    for millions in sizes:
        yield from rows(millions, exact, 5)
    for millions in sorted(sizes):
        yield from rows(millions, sorting, 1)


def torch_selections(small: bool) -> Iterable[Row]:
    """Returns the rows of PyTorch's selections."""
    from benchmarks import torch_rows

    return torch_rows.selections((1,) if small else MILLIONS, SPARSITY)


def many_seeds(small: bool) -> Iterator[Row]:
    """Yields dispatches of many networks at once, in each form, and of one alone."""
    import jax

    from benchmarks import seeds

    number, steps = (3, 2) if small else (seeds.SEEDS, seeds.STEPS)
    # On a CPU, convolutions inside of a scan under vmap take minutes.
    for network in ("lenet_300_100", "lenet_5_caffe")[: 1 if small else 2]:
        forms = seeds.dispatches(network, seeds=number, num_steps=steps)
        for name, make in forms.items():
            about = {
                "what": "seeds",
                "network": network,
                "case": name,
                "networks": 1 if name == "one alone" else number,
                "steps": steps,
            }
            yield attempt(
                about,
                lambda make=make: {"seconds": seconds(make(), jax.block_until_ready)},
            )


def stream(small: bool) -> Iterator[Row]:
    """Yields the time of a step fed from a stream beside one fed from memory."""
    from benchmarks import streaming, timing
    from snipjax import data

    model, size = ("lenet_300_100", 8) if small else ("alexnet_s", 64)
    settings = {"steps": 2, "repeats": 1, "batch_size": 16} if small else {"workers": 8}

    def row() -> Row:
        dataset = data.load("digits" if small else "cifar10", stream=True)
        series = streaming.pairs(dataset, model, image_size=size, **settings)
        taken = timing.row("stream", "memory", *zip(*series))
        return {"seconds": taken.seconds, "from memory": taken.against_seconds}

    yield attempt({"what": "stream", "case": f"{model} at {size} pixels"}, row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=jobs(True) | jobs(False), metavar="job")
    parser.add_argument("--small", action="store_true", help="in miniature, on a CPU")
    arguments = parser.parse_args()
    for row in jobs(arguments.small)[arguments.job]():
        print(json.dumps({name: _rounded(x) for name, x in row.items()}), flush=True)


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
