"""The result of a run as its file holds it: always a list of networks."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import numpy as np

import snipjax
from snipjax import masks, training
from snipjax._src.text import natural_order
from snipjax.assembly import Setup
from snipjax.training import console, distributed, loop

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_ERRORS = ("test_error", "test_error_last", "val_error")


def network(
    seed: int,
    params: chex.ArrayTree,
    mask: chex.ArrayTree,
    *,
    best: Mapping[str, Any],
    last: Mapping[str, Any],
    steps: int,
    prunes: int,
    seconds: float,
    effective_sparsity: float | None = None,
) -> dict[str, Any]:
    """Returns the entry of one network in a result. Errors are in percent.

    ``best`` is the row of metrics with the least validation error, and ``last`` the one
    after the last step. ``seconds`` is the network's share of the wall-clock time.
    """
    rows = masks.summary(mask)
    return {
        "seed": seed,
        "sparsity": masks.sparsity(mask),
        "effective_sparsity": effective_sparsity,
        "kept": sum(row.kept for row in rows),
        "layers": [row._asdict() | {"shape": list(row.shape)} for row in rows],
        "test_error": best["test_error"],
        "test_error_last": last["test_error"],
        "val_error": best["val_error"],
        "train_error": last["train_error"],
        "best_step": best["step"],
        "steps": steps,
        "prunes": prunes,
        "seconds": round(seconds, 2),
        "params_sha256": digest(params),
    }


def rows_by_network(row: loop.Row) -> list[dict[str, Any]]:
    """Returns a row of metrics for each network of a row with lists of values."""
    return [dict(zip(row, values)) for values in zip(*row.values())]


def summarize(
    setup: Setup, networks: Sequence[Mapping[str, Any]], command: str | None = None
) -> dict[str, Any]:
    config, first = setup.config, networks[0]
    params = jax.eval_shape(setup.init, jax.random.key(0), config.init.trained)[
        "params"
    ]
    steps_per_epoch = training.epoch_length(
        len(setup.dataset.train), config.train.batch_size
    )
    result = {
        "dataset": config.dataset.name,
        "model": config.model.name,
        "method": config.prune.method,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "prunable": prunable(first),
        "steps": first["steps"],
        "epochs": round(first["steps"] / steps_per_epoch, 2),
        "networks": list(networks),
        "summary": summary(networks),
        "wall_seconds": round(sum(entry["seconds"] for entry in networks), 1),
        "versions": {
            "snipjax": snipjax.__version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "python": platform.python_version(),
        },
        "device": jax.devices()[0].device_kind,
    }
    if setup.mesh is not None:
        result |= {"mesh": dict(setup.mesh.shape), "processes": jax.process_count()}
    if command is not None:
        result["command"] = command
    return result


def prunable(network: Mapping[str, Any]) -> int:
    """Returns the number of prunable connections of a network's entry."""
    return sum(layer["total"] for layer in network["layers"])


def summary(networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns means over networks, and standard deviations (of a sample) of errors."""
    result = {
        "seeds": len(networks),
        "sparsity": networks[0]["sparsity"],
        "kept": networks[0]["kept"],
    }
    for name in _ERRORS:
        values = [entry[name] for entry in networks]
        known = None not in values
        result[name] = float(np.mean(values)) if known else None
        spread = known and len(values) > 1
        result[f"{name}_std"] = float(np.std(values, ddof=1)) if spread else None
    return result


def digest(params: chex.ArrayTree) -> str:
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        sha.update(distributed.on_host(leaf).tobytes())
    return sha.hexdigest()


def show(result: Mapping[str, Any]) -> None:
    networks = result["networks"]
    if len(networks) == 1:
        layers = sorted(
            networks[0]["layers"],
            key=lambda layer: natural_order(layer["path"]),
        )
        console.show_table(
            "Layer densities",
            ("layer", "shape", "kept", "connections", "density (%)"),
            [
                (
                    layer["path"],
                    "x".join(map(str, layer["shape"])),
                    f"{layer['kept']:,}",
                    f"{layer['total']:,}",
                    f"{100 * layer['kept'] / layer['total']:.2f}",
                )
                for layer in layers
            ],
        )
    figures, percent = summary(networks), console.percent
    rows = [
        (str(entry["seed"]), *(percent(entry[name]) for name in _ERRORS))
        for entry in networks
    ]
    if len(networks) > 1:
        for label, end in (("mean", ""), ("standard deviation", "_std")):
            shown = (percent(figures[f"{name}{end}"]) for name in _ERRORS)
            rows.append((label, *shown))
    console.show_table(
        f"{result['dataset']} {result['model']} {result['method']}: "
        f"{figures['kept']:,} of {prunable(networks[0]):,} connections kept "
        f"({100 * figures['sparsity']:.2f}% sparsity)",
        (
            "seed",
            "test error (%)",
            "at the last step (%)",
            "validation error (%)",
        ),
        rows,
    )
