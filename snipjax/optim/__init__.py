"""Optimizers of sparse networks."""

from snipjax.optim.sparse import SparseState, sparse

__all__ = ["SparseState", "sparse"]
