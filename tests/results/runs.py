"""Run directories made by hand, whose figures are known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snipjax import config as configs

LAYERS = (("Dense_0", (784, 300)), ("Dense_1", (300, 100)), ("Dense_2", (100, 10)))
SHARES = (0.02, 0.01, 0.5)  # kept of each layer's weights
PARAMETERS = 266_610


def layers(shares: Sequence[float] = SHARES) -> list[dict[str, Any]]:
    """Returns layers as ``result.json`` has them; no bias is kept."""
    rows = []
    for (name, shape), share in zip(LAYERS, shares):
        total = shape[0] * shape[1]
        kernel = {"path": f"{name}/kernel", "shape": list(shape)}
        rows.append({**kernel, "kept": round(total * share), "total": total})
        bias = {"path": f"{name}/bias", "shape": [shape[1]]}
        rows.append({**bias, "kept": 0, "total": shape[1]})
    return rows


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def write_config(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes the default configuration with some fields changed."""
    config = configs.default().to_dict()
    for name, value in fields.items():
        section, _, field = name.rpartition(".")
        (config[section] if section else config)[field] = value
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", config)


def make_run(
    path: Path,
    *errors: float | None,
    seed: int = 0,
    sparsity: float = 0.98,
    method: str = "snip",
    dataset: str = "mnist",
    model: str = "lenet_300_100",
    fields: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    network: Mapping[str, Any] | None = None,
    **result: Any,
) -> Path:
    """Writes a finished run of a network for each test error, by default of 2%."""
    errors = errors or (2.0,)
    sparsity = 0.0 if method == "none" else sparsity
    names = {"dataset.name": dataset, "model.name": model, "prune.method": method}
    own = {"prune.sparsity": sparsity, "seed": seed, "seeds": len(errors)}
    write_config(path, {**names, **own, **(fields or {})})
    networks = [
        {
            "seed": seed + offset,
            "sparsity": sparsity,
            "kept": round(PARAMETERS * (1 - sparsity)),
            "layers": layers(),
            "test_error": error,
            "test_error_last": error,
            "val_error": error,
            "train_error": None,
            "best_step": 10,
            "steps": 1000,
            "prunes": 1,
            "seconds": 10.0,
            **(network or {}),
        }
        for offset, error in enumerate(errors)
    ]
    values = {"dataset": dataset, "model": model, "method": method}
    values |= {"parameters": PARAMETERS, "prunable": PARAMETERS, "epochs": 2.5}
    values |= {"networks": networks, "device": "cpu", "wall_seconds": 20.0}
    write_json(path / "result.json", {**values, **result})
    write_metrics(path, metrics)
    return path


def make_unfinished(path: Path, metrics: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Writes a run without a result."""
    names = {"dataset.name": "mnist", "model.name": "lenet_300_100"}
    write_config(path, {**names, "train.steps": 1000})
    write_metrics(path, metrics)
    return path


def write_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes evaluations; a number stands for the one seed 0."""
    lines = []
    for row in rows:
        values = {"seeds": [0], **row}
        for name in values.keys() - {"seeds", "step", "phase"}:
            if not isinstance(values[name], list):
                values[name] = [values[name]]
        lines.append(json.dumps(values))
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
