"""The methods of the SNIP paper's table 1, one file each, on the same training code.

Each is a function ``(parts, target, *, pretrained=None, ...) -> Outcome`` whose other
arguments are the method's own hyperparameters.

Example:
  >>> from snipjax import config, experiment, masks
  >>> parts = experiment.assemble(config.default())  # doctest: +SKIP
  >>> params, mask, history = snip(parts, 0.95)  # doctest: +SKIP
"""

from snipjax.methods.dns import dns
from snipjax.methods.fitting import (
    Fitted,
    History,
    Outcome,
    abstract_params,
    hyperparameters,
)
from snipjax.methods.lc import lc
from snipjax.methods.lobs import lobs
from snipjax.methods.lwc import lwc
from snipjax.methods.obd import obd
from snipjax.methods.reference import dense, snip
from snipjax.methods.sparse_vd import sparse_vd
from snipjax.methods.sws import sws

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
