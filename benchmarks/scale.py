"""Pruning at scale: a selection of a billion scores, SNIP of networks up to a billion.

    python -m benchmarks.scale                        # every case
    python -m benchmarks.scale transformer_1b vit_b_16
    python -m benchmarks.scale --tiny                 # all of them, of a toy's size

Each case is measured in a process of its own, so that its peak memory, the largest
resident set there was, is its own. One line of JSON for each goes to
``runs/benchmarks/scale.jsonl``; at the end there is a table. The largest needs some
12 GiB.
"""

import argparse
import functools
import json
import math
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp

from benchmarks import timing
from benchmarks.selection import status
from snipjax import masks, models, pruning, training
from snipjax._src import trees, types
from snipjax.models import transformer
from snipjax.training import console

SPARSITY = 0.9
PATH = Path("runs") / "benchmarks" / "scale.jsonl"
TOKENS, IMAGES, REPEATS = 64, 2, 3
_GIGABYTE = 1e9

CONFIGS = {
    "transformer_350m": transformer.GPT2_MEDIUM,
    "transformer_1b": transformer.Config(
        vocab_size=50257, length=1024, width=2048, depth=18, heads=16
    ),
}
_TINY_CONFIG = transformer.Config(vocab_size=500, length=64, width=64, depth=2, heads=2)
_TYPES = {
    "embedding": ("tokens", "positions", "patches", "class"),
    "attention": ("query", "key", "value", "attention_out"),
    "mlp": ("mlp_in", "mlp_out"),
    "head": ("classifier", "Dense_0"),
    "shortcut": ("shortcut",),
}


def selection(millions: int, leaf_millions: int) -> dict[str, Any]:
    """Measures ``masks.global_topk`` of normals' products, drawn leaf by leaf."""
    rows = leaf_millions * 1000

    @jax.jit
    def leaf(index: chex.Array) -> chex.Array:
        # A row at a time, or the draw would need several times the leaf.
        def row(key: chex.PRNGKey) -> chex.Array:
            weight, gradient = jax.random.normal(key, (2, 1000))
            return jnp.abs(weight * gradient) * 2.0 ** -(index % 3)

        return jax.lax.map(row, jax.random.split(jax.random.key(index), rows))

    scores = {
        f"{i:02}": jax.block_until_ready(leaf(i))
        for i in range(millions // leaf_millions)
    }
    size = sum(score.nbytes for score in scores.values())
    before = status("VmHWM") / _GIGABYTE
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        mask = jax.block_until_ready(masks.global_topk(scores, SPARSITY))
        seconds.append(time.perf_counter() - start)
        peak = status("VmHWM") / _GIGABYTE
        kept = sum(row.kept for row in masks.summary(mask))
        del mask
    wanted = round(millions * 10**6 * (1 - SPARSITY))
    if kept != wanted:
        raise SystemExit(f"{kept:,} connections are kept, not {wanted:,}")
    return {
        "parameters": millions * 10**6,
        "seconds_first": seconds[0],
        "seconds": statistics.median(seconds[1:]),
        "kept": kept,
        "scores_gigabytes": size / _GIGABYTE,
        "peak_gigabytes_before": before,
        "peak_gigabytes": peak,
        "peak_over_scores": peak * _GIGABYTE / size,
    }


def network(
    loss_fn: types.LossFn, params: chex.ArrayTree, batch: Any
) -> dict[str, Any]:
    """Measures ``pruning.prune``, then one gradient of the same loss and batch."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    before = status("VmHWM") / _GIGABYTE
    seconds, densities = [], {}
    for _ in range(REPEATS):
        start = time.perf_counter()
        pruned, mask = jax.block_until_ready(
            pruning.prune(loss_fn, params, batch, SPARSITY)
        )
        seconds.append(time.perf_counter() - start)
        densities = densities or density_by_type(masks.summary(mask))
        del pruned, mask
    peak = status("VmHWM") / _GIGABYTE
    gradient = jax.jit(jax.value_and_grad(loss_fn))
    gradient_seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(gradient(params, batch))
        gradient_seconds.append(time.perf_counter() - start)
    # The first of each compiles.
    median, against = (
        statistics.median(times[1:]) for times in (seconds, gradient_seconds)
    )
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "seconds_first": seconds[0],
        "seconds": median,
        "gradient_seconds": against,
        "over_gradient": median / against,
        "params_gigabytes": size / _GIGABYTE,
        "peak_gigabytes_before": before,
        "peak_gigabytes": peak,
        "peak_over_params": peak * _GIGABYTE / size,
        "density": densities,
    }


def density_by_type(rows: masks.Summary) -> dict[str, float]:
    """Returns the share of connections kept in each type of layer."""
    kept, total = Counter(), Counter()
    for row in rows:
        kept[layer_type(row)] += row.kept
        total[layer_type(row)] += row.total
    return {name: kept[name] / total[name] for name in sorted(total)}


def layer_type(row: masks.Row) -> str:
    """Returns attention, mlp, embedding and the like, or the size of a kernel."""
    for name, parts in _TYPES.items():
        if any(part in row.path.split("/") for part in parts):
            return name
    return f"convolution {row.shape[0]}x{row.shape[1]}"


def transformer_case(config: transformer.Config) -> dict[str, Any]:
    """Measures SNIP of a decoder in bfloat16 on one sequence."""
    dtypes = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    model = transformer.Transformer(config, **dtypes)
    length = min(TOKENS, config.length)
    tokens = jax.random.randint(
        jax.random.key(1), (1, length + 1), 0, config.vocab_size
    )
    params = sample(model, tokens[:, :-1], config.depth)
    return network(transformer.next_token_loss(model), params, tokens)


def sample(
    model: transformer.Transformer, tokens: chex.Array, depth: int
) -> chex.ArrayTree:
    """Returns what the model's ``init`` draws from, leaf by leaf.

    In a program of all leaves XLA would hold several of each in float32.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    draw = jax.jit(jax.random.normal, static_argnums=(1, 2))

    def leaf(number: int, name: str, like: jax.ShapeDtypeStruct) -> chex.Array:
        if name.endswith("bias"):
            return jnp.zeros(like.shape, like.dtype)
        if name.endswith("scale"):
            return jnp.ones(like.shape, like.dtype)
        scale = 0.01 if name == "positions" else 0.02
        if name.split("/")[-2:-1] in (["attention_out"], ["mlp_out"]):
            scale /= math.sqrt(2 * depth)
        values = draw(jax.random.key(number), like.shape, like.dtype)
        return jax.block_until_ready(values * jnp.asarray(scale, like.dtype))

    leaves = [
        leaf(number, name, like)
        for number, (name, like) in enumerate(trees.named_leaves(shapes))
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def image_case(name: str, pixels: int) -> dict[str, Any]:
    """Measures SNIP of a classifier of a thousand classes, in float32."""
    model = models.create(name, 1000)
    images = jax.random.normal(jax.random.key(1), (IMAGES, pixels, pixels, 3))
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), images[:1])
    loss_fn = training.inference_loss(model, variables.get("batch_stats", {}))
    batch = training.Batch(images, jnp.arange(IMAGES))
    return network(loss_fn, variables["params"], batch)


def cases(is_tiny: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns the cases by name, of full size or of a toy's."""
    if is_tiny:
        transformers = dict.fromkeys(CONFIGS, _TINY_CONFIG)
        images = {"resnet_50": ("resnet_18", 32), "vit_b_16": ("vit_ti_16", 32)}
        billion = functools.partial(selection, 2, 1)
    else:
        transformers = CONFIGS
        images = {name: (name, 224) for name in ("resnet_50", "vit_b_16")}
        billion = functools.partial(selection, 1000, 100)
    return {
        "selection_1b": billion,
        **{n: functools.partial(transformer_case, c) for n, c in transformers.items()},
        **{n: functools.partial(image_case, *case) for n, case in images.items()},
    }


def in_own_process(name: str, is_tiny: bool) -> dict[str, Any]:
    """Returns what a case came to in a new process, or why it did not."""
    command = [sys.executable, "-m", "benchmarks.scale", "--measure", name]
    done = subprocess.run(
        command + ["--tiny"] * is_tiny, capture_output=True, text=True
    )
    if done.returncode:
        error = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        return {"case": name, "tiny": is_tiny, "error": f"{done.returncode}: {error}"}
    return json.loads(done.stdout.splitlines()[-1])


def show(results: list[dict[str, Any]]) -> None:
    """Prints the results as a table, and the densities by type of layer as another."""
    measured = [result for result in results if "error" not in result]
    console.show_table(
        f"pruning at scale, {SPARSITY:.0%} sparsity",
        ("case", "parameters", "s", "one gradient, s", "ratio", "peak GB", "over"),
        [
            (
                result["case"],
                f"{result['parameters']:,}",
                f"{result['seconds']:.4g}",
                f"{result['gradient_seconds']:.4g}"
                if "gradient_seconds" in result
                else "-",
                f"{result['over_gradient']:.2f}" if "over_gradient" in result else "-",
                f"{result['peak_gigabytes']:.2f}",
                f"{result['peak_over_scores']:.2f} x the scores"
                if "peak_over_scores" in result
                else f"{result['peak_over_params']:.2f} x the params",
            )
            for result in measured
        ],
    )
    console.show_table(
        "density by type of layer",
        ("case", "type", "density"),
        [
            (result["case"], name, f"{100 * density:.2f}%")
            for result in measured
            for name, density in result.get("density", {}).items()
        ],
    )
    for result in results:
        if "error" in result:
            console.say(f"{result['case']} failed, {result['error']}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="case", help=", ".join(cases(True)))
    parser.add_argument("--tiny", action="store_true", help="toys, to see it work")
    parser.add_argument("--measure", metavar="case", help="in this process")
    given = parser.parse_args(arguments)
    known = cases(given.tiny)
    for name in given.names or [given.measure]:
        if name is not None and name not in known:
            parser.error(f"there is no case '{name}'; there are {', '.join(known)}")
    if given.measure:
        result = {"case": given.measure, "tiny": given.tiny, **known[given.measure]()}
        print(json.dumps({**result, "machine": timing.machine()}))
        return
    PATH.parent.mkdir(parents=True, exist_ok=True)
    results = []
    for name in given.names or known:
        results.append(in_own_process(name, given.tiny))
        with PATH.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        console.say(
            json.dumps({k: v for k, v in results[-1].items() if k != "machine"})
        )
    show(results)


if __name__ == "__main__":
    main()
