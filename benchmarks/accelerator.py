"""Speed and memory on an accelerator, beside its limits and PyTorch.

    python -m benchmarks.accelerator --minutes 8

A row is printed, and appended to a file of JSON lines, as soon as it is known, so that
nothing is lost when the machine goes away. Copies and matrix products measured in the
same run are the limits. ``--small`` tries it on a CPU in miniature.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# JAX and PyTorch share the memory of the card.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import selection, timing
from snipjax import masks, models, optim, pruning, training
from snipjax.models import transformer

Row = dict[str, Any]


class Case(NamedTuple):
    """A network with the shape of an example and the size of its mini-batches."""

    name: str
    shape: tuple[int, ...]
    num_classes: int
    batch_size: int


CASES = (
    Case("vgg_d", (32, 32, 3), 10, 128),
    Case("wrn_16_8", (32, 32, 3), 10, 128),
    Case("resnet_50", (224, 224, 3), 1000, 128),
    Case("vit_b_16", (224, 224, 3), 1000, 128),
    Case("gpt2_medium", (1024,), 50257, 8),
)
SMALL = (Case("lenet_300_100", (28, 28, 1), 10, 4),)


class Precision(NamedTuple):
    """The dtype of a computation and the precision of its products, by both names."""

    name: str
    dtype: str
    products: str
    torch_products: str


PRECISIONS = (
    Precision("bfloat16", "bfloat16", "default", "high"),
    Precision("tf32", "float32", "tensorfloat32", "high"),
    Precision("float32", "float32", "highest", "highest"),
)


def seconds(
    function: Callable[[], Any],
    wait: Callable[[Any], Any] = jax.block_until_ready,
    *,
    least: float = 0.1,
    repeats: int = 5,
) -> float:
    """Returns the median seconds of a call, timed in blocks of ``least`` seconds."""
    wait(function())
    start = time.perf_counter()
    wait(function())
    calls = max(1, round(least / (time.perf_counter() - start)))

    def block() -> float:
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = function()
        wait(result)
        return (time.perf_counter() - start) / calls

    return statistics.median(block() for _ in range(repeats))


def limits(small: bool) -> Iterator[Row]:
    """Yields the rates of copies, in bytes, and of matrix products, in operations."""
    n = 2**20 if small else 2**28
    x = jnp.ones(n, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    taken = seconds(lambda: copy(x))
    yield {"what": "copy", "seconds": taken, "GB/s": 8e-9 * n / taken}
    k = 256 if small else 8192
    for precision in PRECISIONS:
        a = jax.random.normal(jax.random.key(0), (k, k), precision.dtype)
        product = jax.jit(functools.partial(jnp.dot, precision=precision.products))
        taken = seconds(functools.partial(product, a, a))
        rate = 2e-12 * k**3 / taken
        yield {
            "what": "product",
            "precision": precision.name,
            "seconds": taken,
            "TFLOP/s": rate,
        }


def selections(small: bool) -> Iterator[Row]:
    """Yields the time of exact selection beside a sort, and its share of bandwidth."""
    copy = next(limits(small))
    for millions in (1,) if small else (15, 150, 1000):
        leaves = selection.scores(millions)
        count = sum(leaf.size for leaf in leaves.values())
        # A copy reads each byte and writes it.
        read_once = 4e-9 * count / (copy["GB/s"] / 2)
        mask = masks.global_topk(leaves, selection.SPARSITY)
        kept = sum(int(leaf.sum()) for leaf in mask.values())
        del mask
        exact = kept == masks.kept_count(count, selection.SPARSITY)
        rivals = {
            "masks.global_topk": selection.select(leaves),
            "masks.global_topk, jit": selection.select_traced(leaves),
        }
        if millions <= 150:
            rivals["jnp.sort"] = selection.sort(leaves)
            flat = jnp.concatenate([leaf.ravel() for leaf in leaves.values()])
            top = jax.jit(jax.lax.top_k, static_argnums=1)
            rivals["lax.top_k"] = functools.partial(top, flat, kept)
        for name, function in rivals.items():
            taken = seconds(function, repeats=3)
            yield {
                "what": "selection",
                "case": name,
                "scores": count,
                "seconds": taken,
                "times read once": taken / read_once,
            } | ({"exact": exact} if "masks" in name else {})
        with contextlib.suppress(ModuleNotFoundError):
            yield from torch_selections(leaves, kept, read_once)


def torch_selections(
    leaves: dict[str, jax.Array], kept: int, read_once: float
) -> Iterator[Row]:
    import torch

    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in leaves.values()])
    scores = torch.tensor(flat, device=torch_device())
    functions = {
        "torch.topk": lambda: torch.topk(scores, kept)[0][-1],
        "torch.kthvalue": lambda: torch.kthvalue(scores, len(flat) - kept)[0],
    }
    for name, function in functions.items():
        taken = seconds(function, torch_wait, repeats=3)
        yield {
            "what": "selection",
            "case": name,
            "scores": len(flat),
            "seconds": taken,
            "times read once": taken / read_once,
        }


def problem(case: Case, dtype: str) -> tuple[Callable[..., jax.Array], Any, Any]:
    """Returns the loss in training mode, a sample of the params, and a batch."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    if case.name == "gpt2_medium":
        network = transformer.Transformer(transformer.GPT2_MEDIUM, jnp.dtype(dtype))
        shape = case.batch_size, case.shape[0] + 1
        tokens = jnp.asarray(rng.integers(0, case.num_classes, shape), jnp.int32)
        params = jax.jit(network.init)(key, tokens[:1, :8])["params"]
        return transformer.next_token_loss(network), params, tokens
    model = models.create(case.name, case.num_classes, dtype=jnp.dtype(dtype))
    batch = training.Batch(
        jnp.asarray(rng.standard_normal((case.batch_size, *case.shape)), jnp.float32),
        jnp.asarray(rng.integers(0, case.num_classes, case.batch_size), jnp.int32),
    )
    variables = jax.jit(functools.partial(model.init, train=False))(
        key, batch.images[:1]
    )
    stats = variables.get("batch_stats", {})
    return training.batch_loss(model, stats), variables["params"], batch


class Compiled(NamedTuple):
    """A compiled training step, its cost, and a function that takes one more."""

    step: Callable[[], Any]
    compile_seconds: float
    tera_operations: float  # of one step
    gigabytes: float  # of arguments, results and temporaries


def training_step(
    loss_fn: Callable[..., Any], params: Any, mask: Any, batch: Any
) -> Compiled:
    """Compiles a step of SGD with momentum; it is dense if the mask is None."""
    optimizer: Any = optax.sgd(0.01, momentum=0.9)
    if mask is not None:
        optimizer = optim.sparse(optimizer, mask)
    state = jax.tree.map(jnp.copy, params), optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=0)
    def take_step(state: Any, batch: Any) -> Any:
        params, opt_state = state
        gradient = jax.grad(loss_fn)(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    start = time.perf_counter()
    lowered = take_step.lower(state, batch)
    compiled = lowered.compile()
    taken = time.perf_counter() - start
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    operations = (lowered.cost_analysis() or {}).get("flops", float("nan"))

    def step() -> Any:
        nonlocal state
        state = compiled(state, batch)
        return state

    return Compiled(step, taken, 1e-12 * operations, 1e-9 * peak)


def network(case: Case, precision: Precision) -> Iterator[Row]:
    """Yields steps of a network, dense and masked, and pruning beside a gradient."""
    about = {"network": case.name, "precision": precision.name}
    with jax.default_matmul_precision(precision.products):
        loss_fn, params, batch = problem(case, precision.dtype)
        dense = training_step(loss_fn, params, None, batch)
        taken = seconds(dense.step)
        yield {
            "what": "step",
            "case": "dense",
            **about,
            "seconds": taken,
            "TFLOP/s": dense.tera_operations / taken,
            "compile seconds": dense.compile_seconds,
            "GB": dense.gigabytes,
        }
        del dense
        gradient = jax.jit(jax.grad(loss_fn))
        gradient_seconds = seconds(functools.partial(gradient, params, batch))
        compiled = jax.jit(lambda p, b: pruning.prune(loss_fn, p, b, 0.95))
        prune = functools.partial(compiled, params, batch)
        pruned = seconds(prune, repeats=3)
        yield {
            "what": "prune",
            **about,
            "seconds": pruned,
            "gradient seconds": gradient_seconds,
            "ratio": pruned / gradient_seconds,
        }
        masked_seconds = seconds(training_step(loss_fn, *prune(), batch).step)
        yield {
            "what": "step",
            "case": "masked",
            **about,
            "seconds": masked_seconds,
            "ratio to dense": masked_seconds / taken,
        }
    with contextlib.suppress(ModuleNotFoundError):
        torch_seconds = seconds(torch_step(case, precision), torch_wait)
        yield {
            "what": "step",
            "case": "PyTorch, compiled",
            **about,
            "seconds": torch_seconds,
            "ours against it": taken / torch_seconds,
        }


def torch_step(case: Case, precision: Precision) -> Callable[[], Any]:
    """Returns a function that takes one more step of the same network in PyTorch."""
    import torch

    from benchmarks import torch_networks

    device = torch_device()
    torch.set_float32_matmul_precision(precision.torch_products)
    torch.backends.cudnn.allow_tf32 = precision.torch_products == "high"
    model = torch_networks.create(case.name).to(device)
    if case.name == "gpt2_medium":
        shape = case.batch_size, case.shape[0]
        inputs = targets = torch.randint(case.num_classes, shape, device=device)
    else:
        model = model.to(memory_format=torch.channels_last)
        *size, channels = case.shape
        inputs = torch.randn(case.batch_size, channels, *size, device=device)
        inputs = inputs.to(memory_format=torch.channels_last)
        targets = torch.randint(case.num_classes, (case.batch_size,), device=device)
    is_fast = device == "cuda"
    called = torch.compile(model) if is_fast else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> Any:
        is_half = precision.dtype == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=is_half):
            logits = called(inputs)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2).float(), targets.flatten()
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def torch_device() -> str:
    """Returns the name of the device that PyTorch computes on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_wait(result: Any) -> None:
    """Waits until PyTorch has computed everything."""
    import torch

    del result
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def many_seeds(small: bool) -> Iterator[Row]:
    """Yields dispatches of twenty networks at once beside one alone."""
    from benchmarks import seeds

    one, as_run, vmapped = seeds.dispatches()
    alone = seconds(one)
    for name, function in (("as a run", as_run), ("jax.vmap", vmapped)):
        taken = seconds(function)
        yield {
            "what": f"{seeds.STEPS} steps of {seeds.SEEDS} {seeds.NAME}",
            "case": name,
            "seconds": taken,
            "one alone": alone,
            "ratio to as many alone": taken / (seeds.SEEDS * alone),
        }


def stream(small: bool) -> Iterator[Row]:
    """Yields the time of a step fed from a stream beside one fed from memory."""
    from benchmarks import streaming
    from snipjax import data

    dataset = data.load("digits" if small else "cifar10", stream=True)
    model, size = ("lenet_300_100", 8) if small else ("alexnet_s", 64)
    settings = {"steps": 2, "repeats": 1, "batch_size": 16} if small else {"workers": 8}
    series = streaming.pairs(dataset, model, image_size=size, **settings)
    row = timing.row("stream", "memory", *zip(*series))
    yield {
        "what": "step from a stream",
        "case": f"{model} at {size} pixels",
        "seconds": row.seconds,
        "from memory": row.against_seconds,
        "ratio": row.ratio,
    }


def parts(small: bool) -> dict[str, list[Callable[[], Iterator[Row]]]]:
    """Returns the parts of the benchmark, the most important first."""
    pairs = (
        [(case, PRECISIONS[0]) for case in SMALL]
        if small
        else [(case, precision) for precision in PRECISIONS for case in CASES]
    )
    return {
        "limits": [lambda: limits(small)],
        "selection": [lambda: selections(small)],
        "seeds": [lambda: many_seeds(small)],
        "networks": [functools.partial(network, *pair) for pair in pairs],
        "stream": [lambda: stream(small)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = list(parts(False))
    parser.add_argument("--minutes", type=float, default=8, help="begin nothing after")
    parser.add_argument("--small", action="store_true", help="in miniature, on a CPU")
    parser.add_argument("--parts", nargs="+", choices=every, default=every)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks/accelerator.jsonl")
    )
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("a") as out:

        def say(row: Row) -> None:
            line = json.dumps({key: _rounded(value) for key, value in row.items()})
            print(line, file=out, flush=True)
            print(line, flush=True)

        say({"what": "machine", **timing.machine()})
        chosen = parts(arguments.small)
        for function in (f for name in arguments.parts for f in chosen[name]):
            if time.monotonic() > end:
                say({"what": "out of time", "minutes": arguments.minutes})
                return
            try:
                for row in function():
                    say(row)
            # One part may run out of memory, or fail to compile; the others go on.
            except Exception as error:
                say({"what": "failed", "error": f"{type(error).__name__}: {error}"})
                print(f"{error!r}", file=sys.stderr)


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
