"""Records of the signal that an initialization gives: a table, and a file."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Signal(NamedTuple):
    """Variances, densities and rank correlations of layers; ``str`` gives a table.

    A value is NaN where it is not defined.
    """

    layers: tuple[str, ...]  # in the order of the first call
    activation_variance: np.ndarray  # float32 [seeds, layers]
    gradient_variance: np.ndarray  # float32 [seeds, layers]
    density: np.ndarray  # float32 [seeds, layers], in [0, 1]
    rank_correlation: np.ndarray  # float32 [layers], in [-1, 1]

    def __str__(self) -> str:
        columns = {
            "layer": self.layers,
            "activation variance": _cells(self.activation_variance.T, ".2e"),
            "gradient variance": _cells(self.gradient_variance.T, ".2e"),
            "density (%)": _cells(100 * self.density.T, ".2f"),
            "rank correlation": _cells(self.rank_correlation, ".3f"),
        }
        rows = [tuple(columns), *zip(*columns.values())]
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join(
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
            )
            for row in rows
        )


def to_json(signal: Signal) -> dict[str, Any]:
    """Returns a signal as values that JSON has, with None for NaN.

    >>> one = np.full((1, 1), 0.5, np.float32)
    >>> to_json(Signal(("Dense_0",), one, one, np.nan * one, one[0]))["density"]
    [[None]]
    """
    values = {
        name: np.array(np.where(np.isnan(array), None, array.astype(object))).tolist()
        for name, array in signal._asdict().items()
        if name != "layers"
    }
    return {"layers": list(signal.layers)} | values


def from_json(values: Mapping[str, Any]) -> Signal:
    """Returns the signal that values of JSON describe, or raises a ``ValueError``."""
    try:
        with np.errstate(over="ignore"):
            arrays = {
                name: np.asarray(values[name], np.float32)
                for name in Signal._fields
                if name != "layers"
            }
        layers = tuple(map(str, values["layers"]))
    except (KeyError, TypeError, ValueError):
        raise ValueError("it is not a signal as snipjax writes it") from None
    *per_seed, over_seeds = (array.shape for array in arrays.values())
    shape = (*arrays["density"].shape[:1], len(layers))
    if 0 in shape or {*per_seed} != {shape} or over_seeds != shape[1:]:
        raise ValueError("it is a signal whose layers, seeds and values do not fit")
    return Signal(layers, **arrays)


def read(path: Path) -> Signal | None:
    """Returns the signal in a file, or None if there is none.

    A damaged file counts as none, with a warning.
    """
    if not path.is_file():
        return None
    try:
        return from_json(json.loads(path.read_text()))
    except (ValueError, RecursionError, OSError) as error:
        warnings.warn(f"left out: '{path}': {error}", stacklevel=2)
        return None


def _cells(rows: np.ndarray, spec: str) -> list[str]:
    """Returns texts such as ``0.95 ± 0.01``; the mean alone of a scalar, - of a NaN."""
    cells = []
    for values in rows:
        mean = f"{np.mean(values):{spec}}"
        text = f"{mean} ± {np.std(values):{spec}}" if np.ndim(values) else mean
        cells.append("-" if np.any(np.isnan(values)) else text)
    return cells
