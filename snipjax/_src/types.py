"""Types that the core and its users share."""

from collections.abc import Callable
from typing import Any, TypeAlias

import chex

LossFn: TypeAlias = Callable[[chex.ArrayTree, Any], chex.Array]
r"""The type of a loss, ``(params, batch) -> scalar``, a pure function.

.. math:: L(w; B) = \frac{1}{|B|} \sum_{(x, y) \in B} \ell(f(w; x), y)

for one. ``params`` is a pytree of floating-point arrays, ``batch`` any pytree, and the
scalar an array of shape ``[]`` of a real floating-point dtype.

Example:
  >>> def loss_fn(params, batch):
  ...     inputs, targets = batch  # [batch, 3], [batch]
  ...     return jnp.mean((inputs @ params["w"] - targets) ** 2)
  >>> loss_fn({"w": jnp.ones(3)}, (jnp.ones((2, 3)), jnp.zeros(2)))
  Array(9., dtype=float32)
"""

Scores: TypeAlias = Any
"""The type of scores, a pytree like ``params``, larger where a connection matters more.

A leaf is a float32 array :math:`s` of the parameter's shape, and :math:`s_j` the score
of its connection :math:`j`.

Example:
  >>> params = {"w": jnp.array([[1.0, -3.0]], jnp.bfloat16)}
  >>> scores = snipjax.saliency.magnitude(None, params, None)
  >>> scores["w"]
  Array([[1., 3.]], dtype=float32)
"""

Mask: TypeAlias = Any
r"""The type of a mask, a pytree like ``params`` of bools.

A leaf is a bool array of the parameter's shape, true where a connection is kept, or a
scalar ``True`` where the parameter is not prunable. The sparse network has the
parameters

.. math:: c \odot w, \qquad c_j \in \{0, 1\}.

Example:
  >>> params = {"w": jnp.array([[1.0, 2.0]]), "b": jnp.array([3.0])}
  >>> mask = {"w": jnp.array([[False, True]]), "b": jnp.array(True)}
  >>> jax.tree.map(jnp.multiply, mask, params)
  {'b': Array([3.], dtype=float32), 'w': Array([[0., 2.]], dtype=float32)}
"""

Criterion: TypeAlias = Callable[..., Scores]
"""The type of a criterion, ``(loss_fn, params, batch, *, key=None) -> scores``.

It is a traceable function of one batch, :math:`s = s(L, w, B)`. ``scores`` is a pytree
like ``params`` of float32 arrays of the same shapes. Hyperparameters are keywords,
bound by :func:`functools.partial`.

Example:
  >>> def gradient_norm(loss_fn, params, batch, *, key=None):
  ...     return jax.tree.map(jnp.abs, jax.grad(loss_fn)(params, batch))
  >>> loss_fn = lambda params, x: jnp.sum(x @ params["w"])
  >>> params, batch = {"w": jnp.ones((2, 2))}, jnp.array([[1.0, 4.0]])
  >>> params, mask = snipjax.pruning.prune(
  ...     loss_fn, params, batch, 0.5, criterion=gradient_norm)
  >>> mask["w"].tolist()
  [[False, False], [True, True]]
"""

# The path of a leaf in its pytree, as jax.tree_util.tree_flatten_with_path gives it.
KeyPath: TypeAlias = tuple[Any, ...]

# A predicate (key_path, leaf) -> bool, or a pytree of bools like the parameters.
Predicate: TypeAlias = Callable[[KeyPath, Any], bool]
Prunable: TypeAlias = Predicate | Any
"""The type of a choice of leaves, a predicate, or a pytree of bools like ``params``.

A predicate is a function ``(key_path, leaf) -> bool`` of a leaf's path, as
:func:`jax.tree_util.tree_flatten_with_path` gives it, and of the array.

Example:
  >>> params = {"head": jnp.ones((2, 3)), "body": jnp.ones((4, 2))}
  >>> is_body = lambda path, leaf: path[0].key == "body"
  >>> snipjax.masks.are_prunable(params, is_body)
  [True, False]
  >>> snipjax.masks.are_prunable(params, {"head": False, "body": True})
  [True, False]
"""

Select: TypeAlias = Callable[[Scores, Any, Prunable], Mask]
"""The type of a selection, ``(scores, sparsity, prunable) -> mask``.

``scores`` is a pytree of floating-point arrays, ``sparsity`` the share of connections
to prune, in [0, 1), and the mask a pytree like ``scores``: a bool array of a prunable
leaf's shape, a scalar ``True`` for another leaf. A selection with a density of its own
takes a sparsity of None too.

Example:
  >>> def positive(scores, sparsity, prunable):
  ...     rule = lambda leaves, sparsity: [leaf > 0 for path, leaf in leaves]
  ...     return snipjax.masks.select_leaves(scores, None, prunable, rule)
  >>> positive({"w": jnp.array([[0.0, 2.0]])}, None, snipjax.masks.kernels)
  {'w': Array([[False,  True]], dtype=bool)}
"""
