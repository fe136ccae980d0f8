"""Run directories made by hand, whose figures are known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snipjax import config as configs

LAYERS = (("Dense_0", (784, 300)), ("Dense_1", (300, 100)), ("Dense_2", (100, 10)))
PARAMETERS = 266_610


def layers(*shares: float) -> list[dict[str, Any]]:
    """Returns layers that keep shares of their weights, and no bias."""
    rows = []
    for (name, (inputs, units)), share in zip(LAYERS, shares or (0.02, 0.01, 0.5)):
        size = inputs * units
        for path, shape, kept, total in (
            ("kernel", [inputs, units], round(size * share), size),
            ("bias", [units], 0, units),
        ):
            counts = {"shape": shape, "kept": kept, "total": total}
            rows.append({"path": f"{name}/{path}", **counts})
    return rows


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def write_config(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes the default configuration with some fields changed."""
    config = configs.default().unlock()
    config.update_from_flattened_dict(fields)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", config.to_dict())


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
            "effective_sparsity": None,
            "layers": layers(),
            **dict.fromkeys(("test_error", "test_error_last", "val_error"), error),
            "train_error": None,
            **{"steps": 1000, "prunes": 1, "seconds": 10.0},
            **(network or {}),
        }
        for offset, error in enumerate(errors)
    ]
    values = {"dataset": dataset, "model": model, "method": method}
    values |= {"parameters": PARAMETERS, "prunable": PARAMETERS, "epochs": 2.5}
    values |= {"networks": networks, "device": "cpu"}
    write_json(path / "result.json", {**values, **result})
    write_metrics(path, metrics)
    return path


def make_unfinished(path: Path, metrics: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Writes a run without a result."""
    write_config(path, {"dataset.name": "mnist"})
    write_metrics(path, metrics)
    return path


def write_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes evaluations, by default of seed 0 alone."""
    lines = [json.dumps({"seeds": [0], **row}) for row in rows]
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
