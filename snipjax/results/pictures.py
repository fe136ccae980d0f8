"""The pictures of a page, drawn from the tables or read from directories."""

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image

from snipjax.results import figures, reading, words
from snipjax.results.rows import by_network, layer_densities, one_per_network

_OF_SWEEPS = {
    "errors.png": "Test error against the share of connections kept",
    "curves.png": "Error on training and on test data over the steps",
    "first_layers.png": "Connections kept of every input pixel: the lighter, the more",
}


class Picture(NamedTuple):
    """A picture as a data URI; an empty one is damaged."""

    uri: str
    caption: str
    alt: str
    is_wide: bool = False


def of_rows(table: pd.DataFrame, metrics: pd.DataFrame) -> list[Picture]:
    """Returns pictures of the rows of a table."""
    drawn = []
    rows = list(table.itertuples())
    for group in by_network(row for row in rows if not row.random_labels):
        name = words.on_data(group[0])
        pruned = [row for row in group if row.method != "none"]
        measured = [row for row in pruned if not math.isnan(row.error)]
        if len({row.sparsity for row in pruned}) > 1 and measured:
            drawn.append(_errors(group, name))
        drawn += _densities(pruned, name)
        quantities = {
            "train_loss": "training loss (nats)",
            "test_error": "test error (%)",
        }
        caption = (
            f"Training loss and test error while training: {name}. A line for every "
            "seed."
        )
        drawn += _curves(group, metrics, quantities, caption)
    for group in by_network(row for row in rows if row.random_labels):
        name = words.on_data(group[0])
        pruned = [row for row in group if row.method != "none"]
        drawn += _densities(pruned, f"{name} with random labels")
        caption = (
            f"Training error on random labels: {name}, each point the mean over the "
            "steps since the last one. Labels that have nothing to do with the images "
            "can only be learned by heart, which a network has done where its error is "
            "0. A line for every seed."
        )
        first = group[0].networks.iloc[0]
        # How often each label was seen is the measure of learning by heart.
        rate = max(first["steps"], 1) / (first["epochs"] or 1)
        quantities = {"train_error": "training error (%)"}
        drawn += _curves(group, metrics, quantities, caption, steps_per_epoch=rate)
    chosen = one_per_network(table)
    if len(chosen) > 1:
        named = {words.title(r): [*layer_densities(r).values()] for r in chosen}
        caption = (
            "Where pruning takes place across networks: share of connections kept, "
            "from the first layer to the last."
        )
        drawn.append(_picture(figures.densities_by_depth, named, caption=caption))
    return drawn


def of_signals(runs: Iterable[reading.Run]) -> list[Picture]:
    """Returns pictures of the signal of initializations, one for each network.

    Runs with a measured signal of the same network on the same data are side by side,
    by the initialization that saliency is computed on.
    """
    networks: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in runs:
        signal = reading.read_signal(run.path)
        if signal is None:
            continue
        place = run.config["dataset.name"], run.config["model.name"], signal.layers
        named = networks.setdefault(place, {})
        label = str(run.config["init.scored"]).replace("_", " ")
        named[run.name if label in named else label] = signal
    return [
        _picture(
            figures.signals,
            named,
            caption="The signal of initializations before any training, layer by "
            f"layer: {words.network_name(model)} on {words.dataset_name(dataset)}. "
            "Lines are means over seeds, bands from the smallest to the largest.",
            is_wide=True,
        )
        for (dataset, model, _), named in networks.items()
    ]


def embedded(path: Path, caption: str, alt: str, is_wide: bool = False) -> Picture:
    """Returns a PNG file as a picture; a damaged one has no URI."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            is_wide = is_wide and image.width > 1.5 * image.height
            image.verify()
        return Picture(_data_uri(path.read_bytes(), "png"), caption, alt, is_wide)
    except Exception:  # a decoder ends in anything
        return Picture(
            "", f"{words.printable(path.name)} is damaged and left out.", alt
        )


def _picture(
    draw: Callable[..., None],
    *args: Any,
    caption: str,
    is_wide: bool = False,
    **kwargs: Any,
) -> Picture:
    file = io.BytesIO()
    draw(*args, file, **kwargs)
    return Picture(_data_uri(file.getvalue(), "svg+xml"), caption, caption, is_wide)


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _errors(rows: Sequence[Any], name: str) -> Picture:
    measured: dict[str, list[tuple[float, float, float]]] = {}
    printed: dict[str, list[tuple[float, float]]] = {}
    dense = {}
    for row in rows:
        if math.isnan(row.error):
            continue
        if row.method == "none":
            dense[words.kind(row)] = row.error
            continue
        std = 0.0 if math.isnan(row.std) else row.std
        point = 1 - row.sparsity, row.error, std
        measured.setdefault(words.kind(row), []).append(point)
        if not math.isnan(row.published):
            shown = 1 - row.asked, row.published
            printed.setdefault(words.kind(row), []).append(shown)
    caption = (
        f"Test error against the share of connections kept: {name}. Bars are standard "
        "deviations over seeds; hollow marks are published."
    )
    draw = figures.errors_by_density
    return _picture(draw, measured, caption=caption, published=printed, dense=dense)


def _densities(rows: Sequence[Any], name: str) -> list[Picture]:
    named = {words.label(row): layer_densities(row) for row in rows}
    named = {label: shares for label, shares in named.items() if shares}
    caption = (
        f"Share of connections kept in each layer: {name}. Weights only; biases are "
        "left out."
    )
    draw = figures.densities_by_layer
    return [_picture(draw, named, caption=caption)] if named else []


def _curves(
    rows: Sequence[Any],
    metrics: pd.DataFrame,
    quantities: dict[str, str],
    caption: str,
    **kwargs: Any,
) -> list[Picture]:
    named = {}
    for row in rows:
        own = row.networks[["directory", "seed"]].merge(metrics)
        if len(own) and own[[*quantities]].notna().any(axis=None):
            named[words.label(row)] = own
    draw = figures.compared_curves
    is_wide = len(quantities) > 1
    more = {"caption": caption, "is_wide": is_wide, **kwargs}
    return [_picture(draw, named, quantities, **more)] if named else []


def galleries(places: Iterable[tuple[Path, str, Sequence[str]]]) -> list[Any]:
    """Returns name and pictures of each directory that has some."""
    galleries = []
    for path, name, varied in places:
        captions = {
            file: f"{caption}, by {', '.join(varied)}."
            for file, caption in _OF_SWEEPS.items()
            if varied
        }
        shown = [
            embedded(
                file,
                captions.get(file.name, words.printable(file.name)),
                f"{words.printable(file.name)} of {name}",
                is_wide=file.name in captions,
            )
            for file in sorted(path.glob("*.png"))
            if not (varied and file.name == "signals.png")  # drawn from the signals
        ]
        if shown:
            galleries.append((name, shown))
    return galleries
