"""Pictures of runs, sweeps and tables; each function draws one and writes it.

``path`` is a file, e.g. a PNG, or a binary file object, which gets an SVG.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from snipjax.initializers import Signal
from snipjax.results import look

Points = Sequence[tuple[float, float]]
Style = dict[str, Any]
_COLOR = "#3b6ea8"
_GRAY = "#777777"
_MOST_NAMES = 30  # of layers, side by side on an axis


def saliency_histogram(
    scores: np.ndarray, threshold: float, path: Path | BinaryIO
) -> None:
    """Draws the distribution of the saliencies, and the threshold that cuts them.

    The threshold is the smallest saliency that was kept.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    positive = scores[scores > 0]
    zeros = scores.size - positive.size
    if positive.size:
        low, high = np.log10([positive.min(), positive.max()])
        # Twelve decades below the largest say nothing more.
        edges = np.logspace(max(low, high - 12), high + 1e-6, 100)
        axes.hist(np.clip(positive, edges[0], None), bins=edges.tolist(), color=_COLOR)
        axes.set_xscale("log")
    if threshold > 0:
        label = "smallest saliency kept"
        axes.axvline(threshold, color="black", linestyle="--", label=label)
        axes.legend(frameon=False)
    axes.set_xlabel(f"saliency ({zeros:,} of {scores.size:,} are zero, not drawn)")
    axes.set_ylabel("connections")
    look.write(figure, path)


def training_curves(metrics: pd.DataFrame, path: Path | BinaryIO) -> None:
    """Draws loss and error on training, validation and test data over the steps.

    Several seeds are drawn as their mean.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    units = {"loss": "cross entropy (nats)", "error": "error (%)"}
    for axes, (quantity, unit) in zip(figure.subplots(1, 2), units.items()):
        for split, style in (("train", "-"), ("val", "--"), ("test", ":")):
            mean = metrics.groupby("total_step")[f"{split}_{quantity}"].mean()
            label = {"val": "validation"}.get(split, split)
            look.plot_curve(
                axes, mean.index, mean, linestyle=style, label=label, lw=1.5
            )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel(unit)
        look.set_log_where_wide(axes, 1.0 if quantity == "loss" else math.inf)
    look.set_legend(figure)
    look.write(figure, path)


def compared_curves(
    named: Mapping[str, pd.DataFrame],
    quantities: Mapping[str, str],
    path: Path | BinaryIO,
    *,
    steps_per_epoch: float | None = None,
) -> None:
    """Draws quantities of several runs over their steps, a line for every seed.

    ``quantities`` has the label of the vertical axis by column of the metrics, e.g.
    ``"test_error"``. With ``steps_per_epoch`` the horizontal axis counts epochs.
    """
    figure = Figure(figsize=(4.8 * len(quantities), 3.9), layout="constrained")
    for axes, (column, unit) in zip(
        figure.subplots(1, len(quantities), squeeze=False).flat, quantities.items()
    ):
        for (name, metrics), style in zip(named.items(), look.styles(len(named))):
            label: str | None = look.literal(name)
            for _, seed in metrics.groupby("seed"):
                steps = seed["total_step"] / (steps_per_epoch or 1)
                style = {"color": style["color"], "lw": 1.2, "alpha": 0.85}
                if look.plot_curve(axes, steps, seed[column], label=label, **style):
                    label = None
        look.set_log_where_wide(axes, 1.0 if column.endswith("loss") else math.inf)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("epoch" if steps_per_epoch else "step")
        axes.set_ylabel(unit)
    look.set_legend(figure)
    look.write(figure, path)


def first_layers(named: Mapping[str, np.ndarray], path: Path | BinaryIO) -> None:
    """Draws the connections kept of each input pixel, a picture for each name.

    Counts are ``[height, width]``, of a convolution at every position of its kernel.
    White is the largest count of each picture, written below it: on one scale,
    pictures of high sparsities would be black. See figure 3 of the SNIP paper.
    """
    columns, size = (10, 1.5) if len(named) > 10 else (min(5, len(named)), 2.1)
    size = size if len(named) > 1 else 4.0
    rows = math.ceil(len(named) / columns)
    figure = Figure(figsize=(size * columns, (size + 0.6) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, counts) in zip(grid, named.items()):
        axes.imshow(counts, cmap="gray", vmin=0)
        axes.set_title(look.literal(name).replace(", ", "\n"), fontsize=9)
        axes.set_xlabel(f"white: {np.max(counts):.3g}", fontsize=8)
        axes.set(xticks=[], yticks=[])
    for axes in list(grid)[len(named) :]:
        axes.axis("off")
    look.write(figure, path, frame=True)


def signals(named: Mapping[str, Signal], path: Path | BinaryIO) -> None:
    """Draws the signal of several initializations, layer by layer, side by side.

    Variances of activations and of back-propagated gradients, the density SNIP
    keeps, and the rank correlation of saliencies: lines are means over seeds, bands
    go from the smallest to the largest. Undefined values are left out.
    """
    models = {signal.layers for signal in named.values()}
    if len(models) != 1:
        raise ValueError(
            f"the signals are of {len(models)} different lists of layers; draw one or "
            "more initializations of one model in a picture"
        )
    (layers,) = models
    rows = range(len(layers))
    figure = Figure(figsize=(13, 2.2 + 0.3 * len(layers)), layout="constrained")
    grid = figure.subplots(1, 4, sharey=True)
    for axes, (title, quantity, scale) in zip(
        grid,
        (
            ("variance of activations", "activation_variance", 1),
            ("variance of gradients", "gradient_variance", 1),
            ("connections kept (%)", "density", 100),
            ("rank correlation of saliencies", "rank_correlation", 1),
        ),
    ):
        for (name, signal), style in zip(named.items(), look.styles(len(named))):
            # The sum over seeds of float32 values may be beyond float32.
            quantities = np.asarray(getattr(signal, quantity), np.float64)
            values = scale * np.atleast_2d(quantities)
            # Hollow markers, since variances of two initializations may be the same.
            style = {**style, "fillstyle": "none", "linewidth": 1.2}
            axes.plot(values.mean(axis=0), rows, label=look.literal(name), **style)
            low, high = values.min(axis=0), values.max(axis=0)
            band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
            axes.fill_betweenx(rows, low, high, **band)
        if "variance" in quantity:
            look.set_decades(axes)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
    grid[0].set_yticks(rows, layers, parse_math=False)
    grid[0].set_ylim(len(layers) - 0.5, -0.5)
    grid[2].set_xlim(left=0)
    grid[3].axvline(0, color="black", linewidth=0.8)
    # At least this wide, so that a value close to zero looks close to zero.
    grid[3].update_datalim([(-0.1, 0), (0.1, 0)], updatey=False)
    grid[3].autoscale_view()
    handles, labels = grid[0].get_legend_handles_labels()
    place: Style = {"loc": "outside upper center", "ncols": 7, "frameon": False}
    figure.legend(handles, labels, **place)
    look.write(figure, path)


def errors_by_density(
    measured: Mapping[str, Sequence[tuple[float, float, float]]],
    path: Path | BinaryIO,
    *,
    published: Mapping[str, Points] | None = None,
    dense: Mapping[str, float] | None = None,
    to_beat: Points = (),
) -> None:
    """Draws test error against density, a line for each name.

    ``measured`` has ``(density, error in percent, its standard deviation)`` by name.
    Published points are hollow marks, errors of dense networks dashed lines, and the
    points to beat, of sparse momentum, a dotted line.
    """
    published = published or {}
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for (name, points), style in zip(measured.items(), look.styles(len(measured))):
        density, error, deviation = np.array(sorted(points)).T
        bars: Style = {"yerr": deviation if deviation.any() else None, "capsize": 3}
        line: Style = {"label": look.literal(name), "lw": 1.4, "markersize": 5}
        axes.errorbar(100 * density, error, **bars, **line, **style)
        hollow: Style = {"linestyle": "none", "fillstyle": "none", "markersize": 10}
        for density, error in published.get(name, ()):
            axes.plot([100 * density], [error], **hollow, **style)
    if any(published.values()):
        axes.plot([], [], "o", color=_GRAY, fillstyle="none", label="published")
    if to_beat:
        density, error = np.array(sorted(to_beat)).T
        label = "sparse momentum, published"
        line = {"color": _GRAY, "markersize": 9, "fillstyle": "none", "lw": 1.8}
        axes.plot(100 * density, error, "h:", label=label, **line)
    colors = itertools.cycle(("#444444", *look.COLORS))
    for (name, error), color in zip((dense or {}).items(), colors):
        line = {"color": color, "linestyle": "--", "lw": 1}
        axes.axhline(error, label=look.literal(name), **line)
    axes.set_xscale("log")
    look.set_ticks(axes.xaxis)
    look.set_log_where_wide(axes)
    axes.set_xlabel("connections kept (%)")
    axes.set_ylabel("test error (%)")
    axes.grid(alpha=0.25)
    look.set_legend(figure)
    look.write(figure, path)


def densities_by_layer(
    named: Mapping[str, Mapping[str, float]], path: Path | BinaryIO
) -> None:
    """Draws the share of connections kept in each layer, a line for each name."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    layers = list(dict.fromkeys(layer for shares in named.values() for layer in shares))
    for (name, shares), style in zip(named.items(), look.styles(len(named))):
        places = [layers.index(layer) for layer in shares]
        axes.plot(places, [*shares.values()], label=look.literal(name), ms=4, **style)
    every = math.ceil(len(layers) / _MOST_NAMES)
    names = [
        look.literal(name if len(name) < 18 else "…" + name[-16:])
        for name in layers[::every]
    ]
    # The ends of slanted names stand at their ticks, and do not lie on each other.
    axes.set_xticks(range(0, len(layers), every), names, fontsize=8)
    axes.tick_params("x", rotation=60)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    look.set_density_scale(axes)
    look.set_legend(figure)
    look.write(figure, path)


def densities_by_depth(
    named: Mapping[str, Sequence[float]], path: Path | BinaryIO
) -> None:
    """Draws the share kept in networks of any depth, from first to last layer."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for (name, shares), style in zip(named.items(), look.styles(len(named))):
        depths = np.linspace(0, 100, len(shares))
        axes.plot(depths, shares, label=look.literal(name), ms=4, **style)
    axes.set_xlabel("depth: first layer 0, last layer 100")
    look.set_density_scale(axes)
    look.set_legend(figure)
    look.write(figure, path)


def draw(function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Draws a picture; a failure warns and costs the picture alone."""
    try:
        function(*args, **kwargs)
    except Exception as error:  # drawing can raise anything
        name = function.__name__
        warnings.warn(f"picture '{name}' was not drawn: {error}", stacklevel=2)
