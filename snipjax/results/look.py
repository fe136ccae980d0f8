"""The look of all pictures: colors, curves, legends and axes."""

import math
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

# Okabe and Ito's colors, the yellow darkened to be seen on white; and shapes, for
# readers who do not see colors.
COLORS = (
    *("#000000", "#e69f00", "#56b4e9", "#009e73"),
    *("#b8a000", "#0072b2", "#d55e00", "#cc79a7"),
)
MARKERS = "os^vDPX*"
_LONGEST_NAME = 59  # in a legend


def write(figure: Figure, path: Path | BinaryIO, frame: bool = False) -> None:
    """Writes a figure to a file as its suffix says, to a file object as SVG."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(frame)
    is_file = isinstance(path, Path)
    options: dict[str, Any] = {"metadata": {"Software": None}}
    if not is_file:
        options = {"format": "svg", "metadata": {"Date": None}}
    with (
        matplotlib.rc_context({"svg.hashsalt": "snipjax"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph")  # names may have any letters
        figure.savefig(path, dpi=120, **options)


def plot_curve(axes: Axes, steps: Any, values: Any, **style: Any) -> bool:
    """Plots the finite points of a curve; a single one as a mark. False if none is."""
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    is_point = np.isfinite(values)
    marker = "o" if is_point.sum() == 1 else ""
    if is_point.any():
        axes.plot(steps[is_point], values[is_point], marker=marker, **style)
    return bool(is_point.any())


def styles(count: int) -> list[dict[str, Any]]:
    colors: Any = COLORS
    if count > len(COLORS):
        colors = matplotlib.colormaps["turbo"]((np.arange(count) + 0.5) / count)
    markers = (MARKERS[number % len(MARKERS)] for number in range(count))
    return [{"color": c, "marker": marker} for c, marker in zip(colors, markers)]


def set_legend(figure: Figure) -> None:
    """Puts the names of all axes below the figure, each once, errors bars first."""
    known: dict[str, Any] = {}
    for axes in figure.axes:
        bars = {str(drawn.get_label()): drawn for drawn in axes.containers}
        handles, labels = axes.get_legend_handles_labels()
        known = bars | dict(zip(labels, handles)) | known
    if not known:
        return
    labels = [
        name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"
        for name in known
    ]
    room = int(figure.get_figwidth() * 11 / (max(map(len, labels)) + 5))
    columns = min(4, max(1, room))
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * rows)
    place: dict[str, Any] = {
        "loc": "outside lower center",
        "ncols": columns,
        "fontsize": 9,
    }
    figure.legend(list(known.values()), labels, frameon=False, **place)


def heights(axes: Axes) -> list[float]:
    return [x for line in axes.lines for x in np.asarray(line.get_ydata()).tolist()]


def set_ticks(axis: Any) -> None:
    """Puts ticks at 1, 2 and 5 times powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def set_log_where_wide(axes: Axes, least_ratio: float = 10.0) -> None:
    """Makes the vertical axis logarithmic if values are that far apart."""
    values = heights(axes)
    if values and min(values) > 0 and max(values) / min(values) >= least_ratio:
        axes.set_yscale("log")
        set_ticks(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)


def set_decades(axes: Axes) -> None:
    """Makes the horizontal axis one of whole decades, if anything is positive."""
    drawn = np.concatenate([np.asarray(line.get_xdata()) for line in axes.lines])
    positive = drawn[np.isfinite(drawn) & (drawn > 0)]
    if positive.size:
        axes.set_xscale("log")
        exponents = np.log10([positive.min() / 1.2, positive.max() * 1.2])
        axes.set_xlim(10 ** np.floor(exponents[0]), 10 ** np.ceil(exponents[1]))
        axes.xaxis.set_minor_formatter(NullFormatter())


def set_density_scale(axes: Axes) -> None:
    """Makes the vertical axis one of densities, with a place for zero."""
    shares = heights(axes)
    axes.set_ylabel("connections kept (%)")
    if min(shares) > 0:
        set_log_where_wide(axes, least_ratio=1.0)
        return
    # Logarithmic, and yet with a place for layers without any connection.
    threshold = min((share for share in shares if share > 0), default=1.0)
    axes.set_yscale("symlog", linthresh=threshold, linscale=0.4)
    # None between the two, where ticks of the logarithm would lie on the zero's.
    powers = [tick for tick in axes.get_yticks() if tick > 2 * threshold]
    axes.set_yticks([0, threshold, *powers])
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.set_ylim(0, 1.2 * max(*shares, threshold))


def literal(text: str) -> str:
    """Returns a name that Matplotlib shows as it is."""
    # Or dollars would begin a formula, and an underscore hide it from the legend.
    hidden = "\N{ZERO WIDTH SPACE}" if text[:1] == "_" else ""
    return hidden + text.replace("$", r"\$")
