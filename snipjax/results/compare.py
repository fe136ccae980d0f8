"""The files that a run's or a sweep's directory gets from its results."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from snipjax import config as configs
from snipjax._src.text import natural_order
from snipjax.initializers import signals
from snipjax.io import arrays
from snipjax.results import figures, page, reading, words
from snipjax.schema import FIELDS
from snipjax.training import contents, rundir

_TABLE = {
    "density (%)": ("density", ".2f"),
    "effective density (%)": ("effective_density", ".2f"),
    "kept": ("kept", ",.0f"),
    "seeds": ("seeds", ".0f"),
    "test error (%)": ("test_error", ".2f"),
    "standard deviation": ("test_error_std", ".2f"),
    "at the last step (%)": ("test_error_last", ".2f"),
    "training error (%)": ("train_error", ".2f"),
}
Settings = dict[str, str]


def write(workdir: Path | str) -> pd.DataFrame | None:
    """Writes the pictures of a run, or the table and the pictures of a sweep.

    A run gets ``densities.png``, ``curves.png``, ``saliency.png`` and
    ``first_layer.png``; a sweep ``table.csv``, ``table.md``, ``layers.csv`` with the
    densities of all layers, ``errors.png``, ``curves.png``, ``first_layers.png`` and
    ``signals.png``, as far as there is something to show. A picture that cannot be
    drawn is left out, with a warning.

    Args:
      workdir: the directory of a run, or of a sweep with all its runs.

    Returns:
      The table of a sweep, a row for each combination in the order of the values;
      None for a run.

    Raises:
      ValueError: if there is no run, or it is damaged.

    Example:
      .. code-block:: python

        from snipjax import results

        table = results.write("runs/sweep")
    """
    workdir = Path(workdir)
    runs, sweeps = reading.find(workdir)
    sweeps = [sweep for sweep in sweeps if sweep.path == workdir]
    for run in runs:
        if run.result and not (sweeps and (run.path / "densities.png").exists()):
            _draw_run(run)
    if not sweeps:
        return None
    compared = _compared(sweeps[0], runs)
    table = _table(compared)
    table.to_csv(workdir / "table.csv", index=False)
    _layers(compared).to_csv(workdir / "layers.csv", index=False)
    text = page.markdown_table(shown_table(table).to_dict("records"))
    (workdir / "table.md").write_text(f"{text}\n", encoding="utf-8")
    _draw_sweep(workdir, compared, table)
    return table


def shown_table(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the table of a sweep as text, with a dash for missing figures."""
    fields = [name for name in table if name not in dict(_TABLE.values())]
    shown = table[fields].astype(str)
    for head, (name, form) in _TABLE.items():
        if name in table:
            shown[head] = [words.plain(value, form) for value in table[name]]
    return shown


def first_layer(directory: Path) -> np.ndarray | None:
    """Returns how many connections each input pixel keeps, the mean over the seeds.

    Counts are ``[height, width]``, for a convolution of each position of the kernel;
    None if no leaf takes the image.
    """
    if not (directory / rundir.DATA).exists():
        return None
    facts = rundir.read_json(directory / rundir.DATA)
    contents.check(facts, contents.IMAGE)
    height, width, channels = facts["image_shape"]
    counts = []
    for path in sorted(directory.glob(f"seed-*/{rundir.MASK}")):
        for leaf in arrays.read_named(path).values():  # in tree order
            if leaf.ndim == 2 and leaf.shape[0] == height * width * channels:
                leaf = leaf.reshape(height, width, channels, -1)
            if leaf.ndim == 4 and leaf.shape[2] == channels:
                counts.append(leaf.sum(axis=(2, 3)))
                break
    return np.mean(counts, axis=0) if counts else None


def _draw_run(run: reading.Run) -> None:
    directory, draw = run.path, figures.draw
    assert run.result is not None
    layers = run.result["networks"][0]["layers"]
    layers = sorted(layers, key=lambda layer: natural_order(layer["path"]))
    shares = {layer["path"]: 100 * layer["kept"] / layer["total"] for layer in layers}
    draw(figures.densities_by_layer, {"density": shares}, directory / "densities.png")
    metrics = reading.metrics([run])
    if len(metrics):
        draw(figures.training_curves, metrics, directory / "curves.png")
    if (directory / rundir.SCORES).exists():
        draw(saliency, directory)
    counts = first_layer(directory)
    if counts is not None:
        named = {"connections kept": counts}
        draw(figures.first_layers, named, directory / "first_layer.png")


def saliency(directory: Path) -> None:
    """Draws the histogram of a run's scores into its ``saliency.png``."""
    found = arrays.read_named(directory / rundir.SCORES)
    scores, threshold = found["scores"], float(found["threshold"])
    figures.saliency_histogram(scores, threshold, directory / "saliency.png")


def _compared(
    sweep: reading.Sweep, runs: list[reading.Run]
) -> list[tuple[Settings, reading.Run]]:
    """Returns the finished runs of a sweep with their settings, in their order."""
    entries = [configs.parse_entry(entry) for entry in sweep.varied]
    names = [names for names, _ in entries]

    def is_of(run: reading.Run, values: tuple[Any, ...]) -> bool:
        pairs = zip(itertools.chain(*names), itertools.chain(*values))
        return all(run.config[name] == value for name, value in pairs)

    return [
        (dict(map(configs.setting, names, values)), run)
        for values in itertools.product(*(values for _, values in entries))
        for run in runs
        if run.result and is_of(run, values)
    ]


def _table(compared: list[tuple[Settings, reading.Run]]) -> pd.DataFrame:
    rows = []
    for settings, run in compared:
        networks = reading.networks([run])
        means = networks[["kept", "test_error", "test_error_last", "train_error"]]
        density = networks["kept"].mean() / networks["prunable"].iloc[0]
        std = networks["test_error"].std()
        counts = {"density": density * 100, "seeds": len(networks)}
        if networks["effective_sparsity"].notna().all():
            mean = networks["effective_sparsity"].mean()
            counts["effective_density"] = 100 * (1 - mean)
        rows.append({**settings, **counts, **means.mean(), "test_error_std": std})
    return pd.DataFrame(rows)


def _layers(compared: list[tuple[Settings, reading.Run]]) -> pd.DataFrame:
    rows = []
    for settings, run in compared:
        assert run.result is not None
        of_seeds = [network["layers"] for network in run.result["networks"]]
        for layers in zip(*of_seeds, strict=True):
            kept = float(np.mean([layer["kept"] for layer in layers]))
            path, total = layers[0]["path"], layers[0]["total"]
            density = 100 * kept / total if total else math.nan
            counts = {"kept": kept, "total": total, "density": density}
            rows.append({**settings, "layer": path, **counts})
    return pd.DataFrame(rows)


def _draw_sweep(
    workdir: Path, compared: list[tuple[Settings, reading.Run]], table: pd.DataFrame
) -> None:
    draw = figures.draw
    errors: dict[str, list[tuple[float, float, float]]] = {}
    for (settings, _), row in zip(compared, table.itertuples()):
        others = {k: v for k, v in settings.items() if k != "prune.sparsity"}
        if not math.isnan(row.test_error):
            std = 0.0 if math.isnan(row.test_error_std) else row.test_error_std
            point = row.density / 100, row.test_error, std
            errors.setdefault(_label(others) or "test error", []).append(point)
    if errors and table["density"].nunique() > 1:
        draw(figures.errors_by_density, errors, workdir / "errors.png")
    named = {_label(settings): run for settings, run in compared}
    curves = {name: _mean_curves(run) for name, run in named.items()}
    curves = {name: metrics for name, metrics in curves.items() if len(metrics)}
    if curves:
        units = {"train_error": "training error (%)", "test_error": "test error (%)"}
        draw(figures.compared_curves, curves, units, workdir / "curves.png")
    layers = {name: first_layer(run.path) for name, run in named.items()}
    if all(counts is not None for counts in layers.values()):
        draw(figures.first_layers, layers, workdir / "first_layers.png")
    found = {n: signals.read(run.path / rundir.SIGNAL) for n, run in named.items()}
    if known := {name: signal for name, signal in found.items() if signal}:
        draw(figures.signals, known, workdir / "signals.png")


def _mean_curves(run: reading.Run) -> pd.DataFrame:
    metrics = reading.metrics([run])
    means = metrics.groupby("total_step", as_index=False).mean(numeric_only=True)
    return means.assign(seed=0)


def _label(settings: Mapping[str, Any]) -> str:
    """Returns a name for pictures, such as ``sparsity 0.9, he`` or ``random, erk``."""
    known = {field.name: str(field.default) for field in FIELDS}
    names = []
    for joined, values in settings.items():
        fields = joined.split("&")
        for number, (field, value) in enumerate(zip(fields, values.split("&"))):
            if number and value == known[field]:
                continue
            name = field.split(".")[-1]
            if value == "True":
                names.append(name)
            else:
                names.append(value if value.isidentifier() else f"{name} {value}")
    return ", ".join(names).replace("_", " ")
