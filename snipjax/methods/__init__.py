"""The methods of the SNIP paper's table 1, on any parameters and loss.

Every method is a function ``(problem, sparsity, settings, pretrained) -> Outcome`` that
prunes a trained network and trains what it keeps. The history has the rows of dense
training first. The constructor of the settings raises a ``ValueError`` for a field that
is out of range.

Example:
  .. code-block:: python

    trained = methods.dense(problem)
    params, mask, history = methods.lwc(problem, 0.95, methods.LWC(rounds=3), trained)
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
