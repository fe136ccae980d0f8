"""The methods of the SNIP paper's table 1, on any parameters and loss.

Each is a function ``(problem, sparsity, settings, pretrained) -> Outcome``. The problem
is the user's own (:class:`Problem`); the settings are a frozen dataclass, whose fields
are the method's hyperparameters; ``pretrained`` is the outcome of :func:`dense`, from
which all of them start.

Example:
  >>> trained = dense(problem)  # doctest: +SKIP
  >>> params, mask, history = lwc(
  ...     problem, 0.95, LWC(rounds=3), trained)  # doctest: +SKIP
"""

from snipjax.methods.dense import dense
from snipjax.methods.dns import DNS, dns
from snipjax.methods.lc import LC, lc
from snipjax.methods.lobs import LOBS, lobs
from snipjax.methods.lwc import LWC, lwc
from snipjax.methods.obd import OBD, obd
from snipjax.methods.problem import Aux, History, Outcome, Problem
from snipjax.methods.sparse_vd import SparseVD, sparse_vd
from snipjax.methods.sws import SWS, sws

__all__ = [
    "DNS",
    "LC",
    "LOBS",
    "LWC",
    "OBD",
    "SWS",
    "Aux",
    "History",
    "Outcome",
    "Problem",
    "SparseVD",
    "dense",
    "dns",
    "lc",
    "lobs",
    "lwc",
    "obd",
    "sparse_vd",
    "sws",
]
