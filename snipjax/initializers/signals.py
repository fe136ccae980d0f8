"""Records of the signal that an initialization gives: a table, and a file."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snipjax._src import text


class Signal(NamedTuple):
    r"""Holds variances, densities and rank correlations; ``str`` gives a table.

    A value is NaN where it is not defined. For a layer's output :math:`z` and the loss
    :math:`L`, the variances are

    .. math:: \mathrm{Var}[z], \qquad \mathrm{Var}[\partial L / \partial z].

    Attributes:
      layers: names of the layers, in the order of the first call.
      activation_variance: float32 array ``[seeds, layers]``.
      gradient_variance: float32 array ``[seeds, layers]``.
      density: share of the layer's connections that SNIP keeps, a float32 array
        ``[seeds, layers]`` in [0, 1].
      rank_correlation: mean over pairs of seeds, a float32 array ``[layers]`` in
        [-1, 1].

    Example:
      >>> one = np.ones((1, 1), np.float32)
      >>> print(Signal(("Dense_0",), one, 2 * one, 0.1 * one, np.nan * one[0]))
      layer    activation variance    gradient variance  density (%)    rank correlation
      Dense_0  1.00e+00 ± 0.00e+00  2.00e+00 ± 0.00e+00  10.00 ± 0.00                 -
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
        return text.aligned([tuple(columns), *zip(*columns.values())])


def to_json(signal: Signal) -> dict[str, Any]:
    """Returns a signal as values that JSON has, with None for NaN.

    Args:
      signal: arrays ``[seeds, layers]`` and ``[layers]``.

    Returns:
      A dictionary with a list, or a list of lists, for each field.

    Example:
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
    """Returns the signal that values of JSON describe.

    Args:
      values: a dictionary as :func:`to_json` makes it, e.g. from a run's
        ``signal.json``.

    Returns:
      Float32 arrays ``[seeds, layers]``, and the rank correlation ``[layers]``; NaN for
      None.

    Raises:
      ValueError: if they do not describe one.

    Example:
      >>> one = np.full((1, 1), 0.5, np.float32)
      >>> signal = Signal(("Dense_0",), one, one, one, one[0])
      >>> from_json(to_json(signal)) == signal
      True
    """
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
