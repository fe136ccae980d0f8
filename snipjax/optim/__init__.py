"""Optimizers of sparse networks."""

from snipjax.optim.moves import Info, MovingState
from snipjax.optim.rigl import rigl
from snipjax.optim.set import set
from snipjax.optim.sparse import SparseState, sparse

__all__ = ["Info", "MovingState", "SparseState", "rigl", "set", "sparse"]
