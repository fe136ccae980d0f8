"""Table 1 of the SNIP paper, measured: every method on the same training code.

A cell is one network, method, sparsity and seed, in a directory of its own; the table
and the pictures are made of the cells there are, after each of them.
"""

from snipjax.studies.table1.config import METHODS, default, validate
from snipjax.studies.table1.running import Results, run

__all__ = ["METHODS", "Results", "default", "run", "validate"]
