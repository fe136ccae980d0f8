"""Types that the core and its users share."""

from collections.abc import Callable
from typing import Any, TypeAlias

import chex

# The loss of a batch: (params, batch) -> floating-point scalar. A pure function.
LossFn: TypeAlias = Callable[[chex.ArrayTree, Any], chex.Array]

# A pytree like the parameters: scores, larger where a connection matters more.
Scores: TypeAlias = Any

# A pytree like the parameters: a bool array of a leaf's shape, true where a connection
# is kept, or a scalar True where the leaf is not prunable.
Mask: TypeAlias = Any

# (loss_fn, params, batch, *, key=None) -> scores
Criterion: TypeAlias = Callable[..., Scores]

# The path of a leaf in its pytree, as jax.tree_util.tree_flatten_with_path gives it.
KeyPath: TypeAlias = tuple[Any, ...]

# A predicate (key_path, leaf) -> bool, or a pytree of bools like the parameters.
Predicate: TypeAlias = Callable[[KeyPath, Any], bool]
Prunable: TypeAlias = Predicate | Any

# (scores, sparsity, prunable) -> mask; one with a density of its own takes None too
Select: TypeAlias = Callable[[Scores, Any, Prunable], Mask]
