"""Results of runs: tables, published figures, pictures, and a page of all of them.

Example:
  >>> from snipjax import results
  >>> networks = results.read("runs")  # doctest: +SKIP
  >>> networks.groupby("prune.sparsity").test_error.mean()  # doctest: +SKIP
  >>> results.report(["runs"], "report")  # doctest: +SKIP
"""

from snipjax.results.compare import write
from snipjax.results.page import report
from snipjax.results.reading import read, read_metrics
from snipjax.results.rows import aggregate

__all__ = ["aggregate", "read", "read_metrics", "report", "write"]
