"""Pictures of a run. Each function draws one and writes it to a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from snipjax.training import console

if TYPE_CHECKING:  # a report draws without Flax
    from snipjax import masks
    from snipjax.initializers.signals import Signal

_COLOUR = "#3b6ea8"


def layer_densities(summary: "masks.Summary", path: Path) -> None:
    """Draws the share of connections kept in every prunable leaf, as bars.

    Args:
      summary: of :func:`snipjax.masks.summary`.
      path: the file to write, e.g. a PNG.
    """
    rows = sorted(summary, key=lambda row: console.natural_order(row.path))
    figure = Figure(figsize=(7, 1.2 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    densities = [100 * row.density for row in rows]
    bars = axes.barh([row.path for row in rows], densities, color=_COLOUR)
    axes.bar_label(bars, [f"{density:.3g}" for density in densities], padding=3)
    axes.margins(y=0.5 / len(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, max([*densities, 1e-9]) * 1.15)
    axes.set_xlabel("connections kept (%)")
    axes.spines[["top", "right"]].set_visible(False)
    _write(figure, path)


def saliency_histogram(scores: np.ndarray, threshold: float, path: Path) -> None:
    """Draws how the saliencies are distributed, and where they were cut.

    Args:
      scores: non-negative saliencies of all prunable connections, flat.
      threshold: the smallest saliency that was kept.
      path: the file to write.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    positive = scores[scores > 0]
    zeros = scores.size - positive.size
    if positive.size:
        low, high = np.log10([positive.min(), positive.max()])
        # Twelve decades below the largest say nothing more.
        edges = np.logspace(max(low, high - 12), high + 1e-6, 100)
        axes.hist(np.clip(positive, edges[0], None), bins=edges, color=_COLOUR)
        axes.set_xscale("log")
    if threshold > 0:
        axes.axvline(
            threshold, color="black", linestyle="--", label="smallest saliency kept"
        )
        axes.legend(frameon=False)
    axes.set_xlabel(f"saliency ({zeros:,} of {scores.size:,} are zero, not drawn)")
    axes.set_ylabel("connections")
    axes.spines[["top", "right"]].set_visible(False)
    _write(figure, path)


def training_curves(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws loss and error on training, validation and test data over the steps.

    Args:
      metrics: rows of ``metrics.jsonl``.
      path: the file to write.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    steps = [row["step"] for row in metrics]
    for axes, quantity, unit in (
        (loss_axes, "loss", "cross entropy (nats)"),
        (error_axes, "error", "error (%)"),
    ):
        for split, style in (("train", "-"), ("val", "--"), ("test", ":")):
            points = [
                (step, row[f"{split}_{quantity}"])
                for step, row in zip(steps, metrics)
                if row.get(f"{split}_{quantity}") is not None
            ]
            if points:
                label = {"val": "validation"}.get(split, split)
                marker = curve_marker(points)
                axes.plot(
                    *zip(*points), style, label=label, linewidth=1.5, marker=marker
                )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel(unit)
        axes.spines[["top", "right"]].set_visible(False)
    if any(np.max(line.get_ydata()) > 0 for line in loss_axes.lines):
        loss_axes.set_yscale("log")
    if error_axes.lines:
        error_axes.legend(frameon=False)
    error_axes.set_ylim(bottom=0)
    _write(figure, path)


def curve_marker(points: Sequence[Any]) -> str:
    """Returns Matplotlib's marker of a curve: a line through one point is not seen.

    Example:
      >>> curve_marker([(10, 2.3)]), curve_marker([(10, 2.3), (20, 0.1)])
      ('o', '')
    """
    return "o" if len(points) == 1 else ""


def first_layer(kept: np.ndarray, path: Path) -> None:
    """Draws how many connections of each input pixel are kept, as an image.

    Args:
      kept: counts ``[height, width]``: of a dense first layer at every pixel, of a
        convolution at every position of its kernel.
      path: the file to write.

    Lee, Ajanthan, Torr, ICLR 2019, figure 3.
    """
    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(kept, cmap="gray", vmin=0)
    axes.set_xticks([])
    axes.set_yticks([])
    figure.colorbar(image, ax=axes, label="connections kept")
    _write(figure, path)


def signals(named: Mapping[str, "Signal"], path: Path | BinaryIO) -> None:
    """Draws what initializations do to a network, layer by layer, side by side.

    Variances of activations and of back-propagated gradients, the density SNIP
    keeps, and the rank correlation of saliencies: lines are means over seeds, bands
    go from the smallest to the largest. What is not defined is left out.

    Args:
      named: of each initialization, by name, what
        `snipjax.initializers.signal` returns; all of one model.
      path: the file to write.

    Raises:
      ValueError: if there are none, or their layers differ.
    """
    models = {signal.layers for signal in named.values()}
    if len(models) != 1:
        raise ValueError(
            f"the signals are of {len(models)} different lists of layers; draw one or "
            "more initializations of one model in a picture"
        )
    (layers,) = models
    figure = Figure(figsize=(13, 2.2 + 0.3 * len(layers)), layout="constrained")
    all_axes = figure.subplots(1, 4, sharey=True)
    for axes, (title, quantity, scale) in zip(
        all_axes,
        (
            ("variance of activations", "activation_variance", 1),
            ("variance of gradients", "gradient_variance", 1),
            ("connections kept (%)", "density", 100),
            ("rank correlation of saliencies", "rank_correlation", 1),
        ),
    ):
        for number, (name, signal) in enumerate(named.items()):
            # The sum over seeds of what float32 holds may be beyond it.
            quantities = np.asarray(getattr(signal, quantity), np.float64)
            values = scale * np.atleast_2d(quantities)
            style = {
                "color": matplotlib.colormaps["tab10"](number % 10),
                "marker": "os^vDPX"[number % 7],
            }
            rows = range(len(layers))
            mean = values.mean(axis=0)
            # Hollow markers, since variances of two initializations may be the same.
            axes.plot(mean, rows, label=name, fillstyle="none", linewidth=1.2, **style)
            axes.fill_betweenx(
                rows,
                values.min(axis=0),
                values.max(axis=0),
                color=style["color"],
                alpha=0.15,
                linewidth=0,
            )
        if "variance" in quantity:
            _set_decades(axes)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_yticks(range(len(layers)), layers, parse_math=False)
    all_axes[0].set_ylim(len(layers) - 0.5, -0.5)
    all_axes[2].set_xlim(left=0)
    all_axes[3].axvline(0, color="black", linewidth=0.8)
    # At least this wide, so that what is close to zero looks close to zero.
    all_axes[3].update_datalim([(-0.1, 0), (0.1, 0)], updatey=False)
    all_axes[3].autoscale_view()
    figure.legend(
        *all_axes[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=7,
        frameon=False,
    )
    _write(figure, path)


def _set_decades(axes: Axes) -> None:
    """Makes the horizontal axis one of whole decades, if anything is positive."""
    drawn = np.concatenate([np.asarray(line.get_xdata()) for line in axes.lines])
    positive = drawn[np.isfinite(drawn) & (drawn > 0)]
    if positive.size:
        axes.set_xscale("log")
        exponents = np.log10([positive.min() / 1.2, positive.max() * 1.2])
        axes.set_xlim(10 ** np.floor(exponents[0]), 10 ** np.ceil(exponents[1]))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _write(figure: Figure, path: Path | BinaryIO) -> None:
    with matplotlib.rc_context({"svg.hashsalt": "snipjax"}):
        figure.savefig(path, dpi=120, metadata={"Software": None})


def errors_by_density(
    named: Mapping[str, Sequence[tuple[float, float, float]]], path: Path
) -> None:
    """Draws test error against density, a line for each name, with deviations.

    Args:
      named: by name, ``(density, error in percent, its standard deviation)``.
      path: the file to write.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, points in named.items():
        densities, errors, deviations = np.array(sorted(points)).T
        axes.errorbar(
            100 * densities,
            errors,
            deviations if deviations.any() else None,
            marker="o",
            capsize=3,
            linewidth=1.5,
            label=name or None,
        )
    axes.set_xscale("log")
    ticks = sorted({100 * point[0] for points in named.values() for point in points})
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("connections kept (%)")
    axes.set_ylabel("test error (%)")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if any(named):
        axes.legend(frameon=False)
    _write(figure, path)


def compared_curves(
    named: Mapping[str, Sequence[Mapping[str, Any]]], path: Path
) -> None:
    """Draws the error of several runs over their steps, on training and test data.

    Args:
      named: by name, rows of ``metrics.jsonl``.
      path: the file to write.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    all_axes = figure.subplots(1, 2, sharey=True)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(1, len(named))))
    for axes, split, title in zip(
        all_axes, ("train", "test"), ("on training data", "on test data")
    ):
        for colour, (name, rows) in zip(colours, named.items()):
            points = [
                (row["step"], row[f"{split}_error"])
                for row in rows
                if row[f"{split}_error"] is not None
            ]
            if points:
                axes.plot(
                    *zip(*points),
                    color=colour,
                    label=name,
                    linewidth=1.5,
                    marker=curve_marker(points),
                )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("error (%)")
    all_axes[0].set_ylim(bottom=0)
    if any(named.values()):
        figure.legend(
            *all_axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
            fontsize=8,
        )
    _write(figure, path)


def first_layers(named: Mapping[str, np.ndarray], path: Path) -> None:
    """Draws the connections kept of each input pixel, a picture for each name.

    White is the largest count of each picture, which stands below it: on one scale,
    those of high sparsities would be black.

    Args:
      named: by name, counts ``[height, width]``.
      path: the file to write.
    """
    columns, size = (10, 1.5) if len(named) > 10 else (min(5, len(named)), 2.1)
    rows = -(-len(named) // columns)
    figure = Figure(figsize=(size * columns, (size + 0.6) * rows), layout="constrained")
    all_axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, (name, counts) in zip(all_axes, named.items()):
        axes.imshow(counts, cmap="gray", vmin=0)
        axes.set_title(name.replace(", ", "\n"), fontsize=9)
        axes.set_xlabel(f"white: {np.max(counts):.3g}", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in all_axes[len(named) :]:
        axes.axis("off")
    _write(figure, path)


# Okabe and Ito's colours, the yellow darkened to be seen on white; and shapes, for
# those who do not see colours.
_FRONTIER_COLOURS = (
    "#000000",
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#b8a000",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
)
_FRONTIER_MARKERS = "os^vDPX*"


def frontier(
    measured: Mapping[str, Sequence[tuple[float, float, float]]],
    published: Mapping[str, Sequence[tuple[float, float]]],
    to_beat: tuple[str, Sequence[tuple[float, float]]],
    dense: float | None,
    path: Path,
) -> None:
    """Draws error against density of many methods, measured and published.

    Args:
      measured: by name, ``(density, error in percent, its standard deviation)``.
      published: by name, ``(density, error)``, drawn as hollow marks.
      to_beat: name and points of a line.
      dense: error of the dense network, drawn as a dashed line.
      path: the file to write.
    """
    figure = Figure(figsize=(7.6, 5.6), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys([*measured, *published])):
        style = {
            "color": _FRONTIER_COLOURS[number % len(_FRONTIER_COLOURS)],
            "marker": _FRONTIER_MARKERS[number % len(_FRONTIER_MARKERS)],
        }
        points = sorted(measured.get(name, ()))
        if points:
            densities, errors, deviations = np.array(points).T
            axes.errorbar(
                100 * densities,
                errors,
                deviations if deviations.any() else None,
                markersize=6,
                capsize=3,
                linewidth=1.3,
                label=name,
                **style,
            )
        for density, error in published.get(name, ()):
            axes.plot(
                [100 * density],
                [error],
                linestyle="none",
                markersize=10,
                fillstyle="none",
                markeredgewidth=1.3,
                label=None if points else f"{name}, published",
                **style,
            )
    if any(published.values()):
        axes.plot([], [], "o", color="#777777", fillstyle="none", label="published")
    name, line = to_beat
    if line:
        densities, errors = np.array(sorted(line)).T
        axes.plot(
            100 * densities,
            errors,
            "h:",
            color="#777777",
            markersize=9,
            fillstyle="none",
            linewidth=1.8,
            label=name,
        )
    if dense is not None:
        axes.axhline(dense, color="#444444", linestyle="--", linewidth=1, label="Dense")
    _set_frontier_axes(axes)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # Methods first, which Matplotlib lists last; and a name once.
        known = dict(zip(labels, handles))
        names = [name for name in measured if name in known]
        names += [label for label in known if label not in names]
        figure.legend(
            [known[label] for label in names],
            names,
            loc="outside lower center",
            ncols=4,
            frameon=False,
            fontsize=9,
        )
    _write(figure, path)


def _set_frontier_axes(axes: Axes) -> None:
    """Logarithmic density; logarithmic error where it is widely spread."""
    axes.set_xscale("log")
    errors = [value for line in axes.lines for value in line.get_ydata() if value > 0]
    if errors and max(errors) / min(errors) > 10:
        axes.set_yscale("log")
        scaled = (axes.xaxis, axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
        scaled = (axes.xaxis,)
    for axis in scaled:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("connections kept (%)")
    axes.set_ylabel("test error (%)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
