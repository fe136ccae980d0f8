"""Table 1 of the SNIP paper, measured: every method on the same training code.

A cell is one network, method, sparsity and seed, with a run directory of its own. The
table and the pictures are made of the finished cells, after each of them.
"""

from snipjax.studies.table1.cells import METHODS, default, validate
from snipjax.studies.table1.running import make

__all__ = ["METHODS", "default", "make", "validate"]
