"""Pictures of the table, drawn by Matplotlib."""

import base64
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from snipjax.initializers import signals
from snipjax.results import plots, published
from snipjax.results.report.aggregation import Row, by_network
from snipjax.results.report.layers import layer_densities, one_per_network
from snipjax.results.report.runs import Run, metrics_of
from snipjax.results.report.titles import (
    DATASETS,
    dataset_name,
    network_name,
    row_kind,
    row_label,
    title,
)
from snipjax.results.report.values import finite

_SIZE = (4.8, 3.6)  # inches; legible where a narrow screen shrinks it
_MOST_NAMES = 30  # of layers, side by side on an axis of this size
_COLOURS = ("#3b6ea8", "#c4622d", "#3a8a5c", "#8a5aa8", "#b08a1e", "#a83b5c", "#4a9aa8")


def pictures(table: Sequence[Row]) -> list[tuple[str, str]]:
    """Returns pictures of the table, each a data URI and its caption."""
    labelled = [row for row in table if not row.has_random_labels]
    by_heart = [row for row in table if row.has_random_labels]
    drawn = []
    for rows_of in by_network(labelled).values():
        name = _network_and_data(rows_of)
        sparsities = {row.sparsity for row in rows_of if row.method != "none"}
        if len(sparsities) > 1 and any(row.error is not None for row in rows_of):
            drawn.append(
                (
                    _picture(_draw_errors, rows_of),
                    f"Test error against the share of connections kept: {name}. Bars "
                    "are standard deviations over seeds; hollow marks are published.",
                )
            )
        drawn += _density_pictures(rows_of, name)
        drawn += [
            (
                _picture(_draw_curves, rows_of, quantity, axis),
                f"{what} while training: {name}. A line for every seed.",
            )
            for quantity, axis, what in (
                ("train_loss", "cross entropy (nats)", "Training loss"),
                ("test_error", "test error (%)", "Test error"),
            )
            if any(_curves(row, quantity) for row in rows_of)
        ]
    for rows_of in by_network(by_heart).values():
        name = _network_and_data(rows_of)
        drawn += _density_pictures(rows_of, f"{name} with random labels")
        quantity, axis = "train_error", "training error (%)"
        if any(_curves(row, quantity) for row in rows_of):
            drawn.append(
                (
                    _picture(_draw_curves, rows_of, quantity, axis),
                    f"Training error on random labels: {name}, each point the mean "
                    "over the steps since the last one. Labels that have nothing to do "
                    "with the images can only be learnt by heart, which a network has "
                    "done where its error is 0. A line for every seed.",
                )
            )
    chosen = one_per_network(table)
    if len(chosen) > 1:
        drawn.append(
            (
                _picture(_draw_networks, chosen),
                "Where pruning takes place across networks: share of connections kept, "
                "from the first layer to the last.",
            )
        )
    return drawn


def _density_pictures(table: Sequence[Row], name: str) -> list[tuple[str, str]]:
    """A picture of where the rows of a network are pruned, if any is."""
    if not any(layer_densities(row) for row in table if row.method != "none"):
        return []
    caption = (
        f"Share of connections kept in each layer: {name}. Weights only; biases are "
        "left out."
    )
    return [(_picture(_draw_densities, table), caption)]


def _network_and_data(table: Sequence[Row]) -> str:
    return f"{network_name(table[0])} on {dataset_name(table[0])}"


def signal_pictures(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Returns what initializations do to each network, as data URIs with captions.

    Runs with a measured signal (``config.signal_seeds``) of the same network on the
    same data are side by side, by the initialization that saliency is computed on.
    """
    networks: dict[tuple[Any, ...], dict[str, Run]] = {}
    for run in runs:
        if run.signal is None:
            continue
        names = run.config["dataset.name"], run.config["model.name"]
        named = networks.setdefault((*names, run.signal.layers), {})
        label = str(run.config["init.scored"]).replace("_", " ")
        named[_literal(run.name if label in named else label)] = run
    drawn = []
    for (dataset, model, _), named in networks.items():
        picture = _signals_side_by_side(named)
        if picture is None:
            continue
        drawn.append(
            (
                data_uri(picture, "image/png"),
                f"What initializations do before any training, layer by layer: "
                f"{published.NETWORKS.get(model, model)} on "
                f"{DATASETS.get(dataset, dataset)}. Lines are means "
                "over seeds, bands from the smallest to the largest.",
            )
        )
    return drawn


def _signals_side_by_side(named: Mapping[str, Run]) -> bytes | None:
    """A picture of runs' signals, without those that cannot be drawn even alone."""
    try:
        return _signals_picture(named)
    except Exception:  # whatever drawing ends in
        sound = {name: run for name, run in named.items() if _is_drawn_alone(name, run)}
    return _signals_picture(sound) if sound else None


def _is_drawn_alone(name: str, run: Run) -> bool:
    """Whether a run's signal can be drawn; warns if it cannot."""
    try:
        _signals_picture({name: run})
    except Exception as error:  # whatever drawing ends in
        file = run.path / signals.FILE
        warnings.warn(f"left out: '{file}' was not drawn: {error}", stacklevel=2)
        return False
    return True


def _signals_picture(named: Mapping[str, Run]) -> bytes:
    file = io.BytesIO()
    plots.signals({name: run.signal for name, run in named.items()}, file)
    return file.getvalue()


def _picture(draw: Callable[..., None], table: Sequence[Row], *args: Any) -> str:
    """Draws on axes, and returns the picture as a data URI."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    draw(axes, table, *args)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        labels = [label if len(label) < 60 else label[:59] + "…" for label in labels]
        columns = 2 if max(map(len, labels)) < 30 else 1
        figure.set_figheight(_SIZE[1] + 0.18 * math.ceil(len(labels) / columns))
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=columns,
            fontsize=8,
            frameon=False,
        )
    file = io.BytesIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": "snipjax"}),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of letters that the font lacks
        figure.savefig(file, format="svg", metadata={"Date": None})
    return data_uri(file.getvalue(), "image/svg+xml")


def _draw_errors(axes: Axes, table: Sequence[Row]) -> None:
    lines: dict[str, list[Row]] = {}
    for row in table:
        if row.error is not None:
            lines.setdefault(_literal(row_kind(row)), []).append(row)
    for (label, rows_of), colour in zip(lines.items(), _colours(len(lines))):
        if rows_of[0].method == "none":
            axes.axhline(
                rows_of[0].error, color=colour, linestyle="--", label=label, lw=1
            )
            continue
        axes.errorbar(
            [100 * (1 - row.sparsity) for row in rows_of],
            [row.error for row in rows_of],
            [row.std or 0.0 for row in rows_of],
            color=colour,
            label=label,
            marker="o",
            markersize=4,
            capsize=3,
            lw=1.5,
        )
        known = [row for row in rows_of if row.published]
        if known:
            axes.plot(
                [100 * (1 - row.sparsity) for row in known],
                [row.published.error for row in known],
                "D",
                color=colour,
                markerfacecolor="none",
                label=f"{label}, published",
            )
    axes.set_xscale("log")
    kept = {100 * (1 - row.sparsity) for row in table if row.method != "none"}
    axes.set_xticks(sorted(kept), [f"{share:.3g}" for share in sorted(kept)])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("connections kept (%)")
    axes.set_ylabel("test error (%)")
    _set_log_where_wide(axes, min_ratio=10.0)


def _draw_densities(axes: Axes, table: Sequence[Row]) -> None:
    pruned = [row for row in table if row.method != "none" and layer_densities(row)]
    names = list(
        dict.fromkeys(name for row in pruned for name, _ in layer_densities(row))
    )
    for row, colour in zip(pruned, _colours(len(pruned))):
        places, shares = zip(
            *((names.index(name), share) for name, share in layer_densities(row))
        )
        axes.plot(
            places, shares, "o-", color=colour, label=_literal(row_label(row)), ms=4
        )
    short = [name if len(name) < 18 else "…" + name[-16:] for name in names]
    is_crowded = sum(map(len, short)) > 40
    # Ends of slanted names at their ticks, or long ones lie on short ones beside them.
    slanted = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "fontsize": 8}
    every = math.ceil(len(names) / _MOST_NAMES)
    axes.set_xticks(
        range(0, len(names), every),
        map(_literal, short[::every]),
        **(slanted if is_crowded else {}),
    )
    _set_density_scale(axes)


def _draw_networks(axes: Axes, table: Sequence[Row]) -> None:
    for row, colour in zip(table, _colours(len(table))):
        shares = [share for _, share in layer_densities(row)]
        last = max(len(shares) - 1, 1)
        axes.plot(
            [100 * place / last for place in range(len(shares))],
            shares,
            "o-",
            color=colour,
            label=_literal(title(row)),
            ms=4,
        )
    axes.set_xlabel("depth: first layer 0, last layer 100")
    _set_density_scale(axes)


def _draw_curves(axes: Axes, table: Sequence[Row], quantity: str, axis: str) -> None:
    is_by_heart = quantity == "train_error"
    for row, colour in zip(table, _colours(len(table))):
        label = _literal(row_label(row))
        # How often each label was seen is what learning by heart is told in.
        unit = _epochs_of_a_step(row) if is_by_heart else 1
        for points in _curves(row, quantity):
            axes.plot(
                [unit * step for step, _ in points],
                [value for _, value in points],
                color=colour,
                label=label,
                lw=1,
                alpha=0.8,
                marker=plots.curve_marker(points),
            )
            label = None
    if is_by_heart:
        axes.set_ylim(bottom=0)  # which is what it is about
    else:
        _set_log_where_wide(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("epoch" if is_by_heart else "step")
    axes.set_ylabel(axis)


def _epochs_of_a_step(row: Row) -> float:
    member = row.members[0]
    return member.epochs / max(member.steps, 1)


def _curves(row: Row, quantity: str) -> list[tuple[tuple[float, float], ...]]:
    """Points of every network of a row."""
    curves = dict.fromkeys(
        tuple(
            (line["step"], line[quantity])
            for line in metrics_of(run, member)
            if finite(line.get(quantity)) is not None
        )
        for member, run in zip(row.members, row.runs)
    )
    return [points for points in curves if points]


def _set_log_where_wide(axes: Axes, min_ratio: float = 1.0) -> None:
    values = [value for line in axes.lines for value in line.get_ydata()]
    low, high = min(values), max(values)
    if low > 0 and high / low >= min_ratio:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    else:
        axes.set_ylim(bottom=0)


def _set_density_scale(axes: Axes) -> None:
    shares = [share for line in axes.lines for share in line.get_ydata()]
    axes.set_ylabel("connections kept (%)")
    if min(shares) > 0:
        _set_log_where_wide(axes)
        return
    # Logarithmic, and yet with a place for layers of which nothing is kept.
    threshold = min((share for share in shares if share > 0), default=1.0)
    axes.set_yscale("symlog", linthresh=threshold, linscale=0.4)
    # None between the two, where ticks of the logarithm would lie on that of zero.
    powers = [tick for tick in axes.get_yticks() if tick > 2 * threshold]
    axes.set_yticks([0, threshold, *powers])
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.set_ylim(0, 1.2 * max(*shares, threshold))


def _colours(count: int) -> list[Any]:
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    return list(
        matplotlib.colormaps["turbo"]([(i + 0.5) / count for i in range(count)])
    )


def _literal(text: str) -> str:
    # Or dollars would begin a formula, and an underscore hide it from the legend.
    return ("\N{ZERO WIDTH SPACE}" if text[:1] == "_" else "") + text.replace(
        "$", r"\$"
    )


def data_uri(data: bytes, kind: str) -> str:
    """Returns data as a URI that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
