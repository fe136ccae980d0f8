"""Types that the core and its users share."""

from collections.abc import Callable
from typing import Any

import chex

# The loss of a batch: (params, batch) -> floating-point scalar. A pure function.
LossFn = Callable[[chex.ArrayTree, Any], chex.Array]

# A pytree like the parameters: arrays of scores, larger where a connection matters more.
Scores = chex.ArrayTree

# A pytree like the parameters: a bool array of a leaf's shape, true where a connection
# is kept, or a scalar True where the leaf is not prunable.
Mask = chex.ArrayTree

# (loss_fn, params, batch, *, key=None) -> scores
Criterion = Callable[..., Scores]

# The path of a leaf in its pytree, as jax.tree_util.tree_flatten_with_path gives it.
KeyPath = tuple[Any, ...]

# A predicate (key_path, leaf) -> bool, or a pytree of bools like the parameters.
Prunable = Callable[[KeyPath, Any], bool] | chex.ArrayTree

# (scores, sparsity, prunable) -> mask
Select = Callable[[Scores, float, Prunable], Mask]
