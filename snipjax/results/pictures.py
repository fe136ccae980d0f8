"""The pictures of a page, drawn from the tables or read from directories."""

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from snipjax.initializers import signals
from snipjax.results import figures, reading, words
from snipjax.results.conclusions import line_to_beat
from snipjax.results.rows import Row, by_network, layer_densities, one_per_network
from snipjax.training import rundir


class Picture(NamedTuple):
    """A picture as a data URI, and the file that Markdown shows, if any."""

    uri: str
    caption: str
    file: str = ""


def drawn(
    caption: str, draw: Callable[..., None], *args: Any, **kwargs: Any
) -> Picture:
    file = io.BytesIO()
    draw(*args, file, **kwargs)
    return Picture(_data_uri(file.getvalue(), "svg+xml"), caption)


def in_directory(path: Path) -> list[Picture]:
    files = sorted(path.glob("*.png"))
    return [Picture(_data_uri(file.read_bytes(), "png"), file.name) for file in files]


def of_rows(table: pd.DataFrame, metrics: pd.DataFrame) -> list[Picture]:
    pictures = []
    rows = list(table.itertuples())
    for group in by_network(row for row in rows if not row.random_labels):
        name = words.on_data(group[0])
        if len({row.sparsity for row in group if row.error >= 0} - {0}) > 1:
            pictures.append(of_errors(group))
        pictures += _densities(group, name)
        units = {
            "train_loss": "training loss (nats)",
            "test_error": "test error (%)",
        }
        caption = f"Loss and error while training: {name}. A line for every seed."
        pictures += _curves(group, metrics, units, caption)
    for group in by_network(row for row in rows if row.random_labels):
        name = words.on_data(group[0])
        pictures += _densities(group, f"{name} with random labels")
        caption = (
            f"Training error on random labels, which can only be learned by heart: "
            f"{name}. Each point is the mean over the steps since the last one. A line "
            "for every seed."
        )
        first = group[0].networks.iloc[0]
        # How often each label was seen is the measure of learning by heart.
        rate = max(first["steps"], 1) / (first["epochs"] or 1)
        units = {"train_error": "training error (%)"}
        pictures += _curves(group, metrics, units, caption, steps_per_epoch=rate)
    chosen = one_per_network(table)
    if len(chosen) > 1:
        named = {words.title(r): [*layer_densities(r).values()] for r in chosen}
        caption = (
            "Pruning across networks: share of connections kept, from the first layer "
            "to the last."
        )
        pictures.append(drawn(caption, figures.densities_by_depth, named))
    return pictures


def of_errors(rows: Sequence[Row], path: Path | None = None) -> Picture:
    """Returns the picture of error against density; ``path`` is written as well.

    Rows are of one network. Published errors stand beside the measured ones.
    """
    measured: dict[str, list[tuple[float, float, float]]] = {}
    printed: dict[str, list[tuple[float, float]]] = {}
    dense = {}
    for row in (row for row in rows if not math.isnan(row.error)):
        name = words.kind(row)
        if row.method == "none":
            dense[name] = row.error
            continue
        std = 0.0 if math.isnan(row.std) else row.std
        measured.setdefault(name, []).append((1 - row.sparsity, row.error, std))
        if not math.isnan(row.published):
            printed.setdefault(name, []).append((1 - row.asked, row.published))
    line = line_to_beat(rows[0].dataset, rows[0].model)
    options = {
        "published": printed,
        "dense": dense,
        "to_beat": [(1 - sparsity, error) for sparsity, error in line.items()],
    }
    caption = (
        "Test error against the share of connections kept: "
        f"{words.on_data(rows[0])}. Bars are standard deviations over seeds; hollow "
        "marks are published, and so is the dotted line, of sparse momentum."
    )
    draw = figures.errors_by_density
    if path is not None:
        figures.draw(draw, measured, path, **options)
    picture = drawn(caption, draw, measured, **options)
    return picture._replace(file=path.name if path else "")


def of_signals(runs: Iterable[reading.Run]) -> list[Picture]:
    """Returns pictures of the signal of initializations, one for each network.

    Runs of the same network on the same data are side by side, by the initialization
    that saliency is computed on.
    """
    networks: dict[tuple[Any, ...], dict[str, signals.Signal]] = {}
    for run in runs:
        signal = signals.read(run.path / rundir.SIGNAL)
        if signal is None:
            continue
        place = run.config["model.name"], run.config["dataset.name"], signal.layers
        named = networks.setdefault(place, {})
        label = run.config["init.scored"].replace("_", " ")
        named[run.name if label in named else label] = signal
    return [
        drawn(
            "The signal of initializations before any training, layer by layer: "
            f"{words.network_name(model)} on {words.dataset_name(dataset)}. Lines are "
            "means over seeds, bands from the smallest to the largest.",
            figures.signals,
            named,
        )
        for (model, dataset, _), named in networks.items()
    ]


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _densities(rows: Sequence[Row], name: str) -> list[Picture]:
    pruned = [row for row in rows if row.method != "none"]
    named = {words.label(row): layer_densities(row) for row in pruned}
    named = {label: shares for label, shares in named.items() if shares}
    caption = f"Share of connections kept in each layer, biases left out: {name}."
    return [drawn(caption, figures.densities_by_layer, named)] if named else []


def _curves(
    rows: Sequence[Row],
    metrics: pd.DataFrame,
    units: Mapping[str, str],
    caption: str,
    **options: Any,
) -> list[Picture]:
    named = {}
    for row in rows:
        own = row.networks[["directory", "seed"]].merge(metrics)
        if own[[*units]].notna().any(axis=None):
            named[words.label(row)] = own
    draw = figures.compared_curves
    return [drawn(caption, draw, named, units, **options)] if named else []
