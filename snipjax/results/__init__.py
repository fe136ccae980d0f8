"""Results of runs: tables, published figures, pictures, and a page of all of them.

Example:
  .. code-block:: python

    from snipjax import results

    networks = results.read("runs")
    networks.groupby("prune.sparsity").test_error.mean()
    results.report(["runs"], "report")
"""

import importlib
from typing import Any

_MODULES = {
    "aggregate": "rows",
    "read": "reading",
    "read_metrics": "reading",
    "report": "page",
    "write": "compare",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
