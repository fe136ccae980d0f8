"""The methods of the SNIP paper's table 1, one file each, on the same training code.

Each is a function ``(parts, target, *, pretrained=None, ...) -> Outcome`` whose other
arguments are the method's own hyperparameters.

Example:
  >>> from snipjax import config, experiment, masks
  >>> parts = experiment.assemble(config.default())  # doctest: +SKIP
  >>> params, mask, history = snip(parts, 0.95)  # doctest: +SKIP
"""

from snipjax.baselines.dns import dns
from snipjax.baselines.fitting import (
    Fitted,
    History,
    Outcome,
    abstract_params,
    hyperparameters,
)
from snipjax.baselines.lc import lc
from snipjax.baselines.lobs import lobs
from snipjax.baselines.lwc import lwc
from snipjax.baselines.obd import obd
from snipjax.baselines.reference import dense, snip
from snipjax.baselines.sparse_vd import sparse_vd
from snipjax.baselines.sws import sws

__all__ = [
    "Fitted",
    "History",
    "Outcome",
    "abstract_params",
    "dense",
    "dns",
    "hyperparameters",
    "lc",
    "lobs",
    "lwc",
    "obd",
    "snip",
    "sparse_vd",
    "sws",
]
