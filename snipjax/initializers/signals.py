"""What initializations do to a network, measured: as values, a table and a file."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snipjax.training import rundir

FILE = "signal.json"


class Signal(NamedTuple):
    """What :func:`snipjax.initializers.signal` measured; ``str`` gives it as a table.

    A value is NaN where it is not defined: see :func:`snipjax.initializers.signal`.
    """

    layers: tuple[str, ...]  # in the order of the first call
    activation_variance: np.ndarray  # float32 [seeds, layers]
    gradient_variance: np.ndarray  # float32 [seeds, layers]
    density: np.ndarray  # float32 [seeds, layers], in [0, 1]
    rank_correlation: np.ndarray  # float32 [layers], in [-1, 1]

    def __str__(self) -> str:
        heads = (
            "layer",
            "activation variance",
            "gradient variance",
            "density (%)",
            "rank correlation",
        )
        columns = (
            self.layers,
            [_mean_and_std(values, ".2e") for values in self.activation_variance.T],
            [_mean_and_std(values, ".2e") for values in self.gradient_variance.T],
            [_mean_and_std(100 * values, ".2f") for values in self.density.T],
            [_mean_and_std(value, ".3f") for value in self.rank_correlation],
        )
        widths = [max(map(len, column)) for column in zip(heads, *zip(*columns))]
        return "\n".join(
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
            )
            for row in (heads, *zip(*columns))
        )


def as_json(signal: Signal) -> dict[str, Any]:
    """Returns a signal as JSON has it, which has no NaN."""
    values = {
        name: np.where(np.isnan(array), None, array.astype(object)).tolist()
        for name, array in signal._asdict().items()
        if name != "layers"
    }
    return {"layers": list(signal.layers)} | values


def from_json(values: dict[str, Any]) -> Signal:
    """Returns the signal that :func:`as_json` made this of.

    Raises:
      ValueError: if it is anything else, or of no seed or layer.

    Example:
      >>> values = {"layers": ["Dense_0"], "rank_correlation": [None]}
      >>> values |= dict.fromkeys(
      ...     ("activation_variance", "gradient_variance", "density"), [[0.5]])
      >>> from_json(values).layers
      ('Dense_0',)
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
    *of_seeds, over_seeds = (array.shape for array in arrays.values())
    shape = (*arrays["density"].shape[:1], len(layers))
    if any(each != shape for each in of_seeds) or over_seeds != shape[1:]:
        raise ValueError("it is a signal whose layers, seeds and values do not fit")
    if 0 in shape:
        raise ValueError("it is a signal of no seed or no layer")
    return Signal(layers, **arrays)


def _mean_and_std(values: np.ndarray, spec: str) -> str:
    """For example ``0.95 ± 0.01``; the mean alone of a scalar, a dash of a NaN."""
    if np.any(np.isnan(values)):
        return "-"
    mean = f"{np.mean(values):{spec}}"
    return f"{mean} ± {np.std(values):{spec}}" if np.ndim(values) else mean


def read(path: Path) -> Signal | None:
    """Returns the signal in a file, or None if there is none.

    One that is damaged counts as none, with a warning: it costs itself, and not the
    runs beside it.

    Args:
      path: a file of :data:`FILE`'s name in a run's directory.

    Example:
      >>> read(Path("runs/new/signal.json")) is None
      True
    """
    if not path.is_file():
        return None
    try:
        return from_json(rundir.read_json(path))
    except (ValueError, RecursionError, OSError) as error:
        warnings.warn(f"left out: '{path}': {error}", stacklevel=2)
        return None
