"""Pruning Equinox modules, whose leaves are not all parameters."""

import warnings
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

try:
    import equinox as eqx
except ModuleNotFoundError as error:
    message = f"{__name__} needs Equinox: pip install equinox"
    raise ModuleNotFoundError(message, name=error.name) from error

from snipjax import masks, pruning
from snipjax._src.types import LossFn, Mask


def prune(
    loss_fn: Callable[[Any, Any], chex.Array],
    model: Any,
    batch: Any,
    sparsity: float | None = None,
    *,
    filter_spec: Any = eqx.is_inexact_array,
    **options: Any,
) -> tuple[Any, Mask]:
    r"""Prunes an Equinox module by the saliency of its connections on a mini-batch.

    .. math:: s = criterion(L, w, B), \qquad c = select(s, sparsity), \qquad
              w \leftarrow c \odot w

    for the loss :math:`L`, the parameters :math:`w` of the module and the batch
    :math:`B`.

    Train with ``optimizer = optim.sparse(inner, mask)``, whose state and updates are
    of ``eqx.filter(model, filter_spec)``; it leaves pruned entries exactly zero.

    Args:
      loss_fn: ``(model, batch) -> scalar``, a pure function.
      model: an Equinox module, or any pytree.
      batch: any pytree of arrays that ``loss_fn`` takes.
      sparsity: share of prunable connections to prune, in [0, 1); None for a selection
        with a density of its own.
      filter_spec: parameters, as ``eqx.filter`` takes them: a predicate, or a pytree
        of bools that is a prefix of the model. All else, such as activation functions,
        integers and frozen layers, stays as it is.
      **options: keyword arguments of :func:`snipjax.pruning.prune`.

    Returns:
      ``(model, mask)``: the pruned module, and the mask, a pytree of bools like
      ``eqx.filter(model, filter_spec)``.

    Raises:
      ValueError: as :func:`snipjax.pruning.prune` does, and for a model without
        parameters, such as a class.

    Warns:
      UserWarning: as :func:`snipjax.pruning.prune` does, and if a row of an
        ``eqx.nn.WeightNorm`` keeps no connection, which makes its outputs NaN.

    Example:
      >>> import optax
      >>> from snipjax import optim
      >>> def loss_fn(model, batch):
      ...     return jnp.mean((jax.vmap(model)(batch) - 1) ** 2)
      >>> model = eqx.nn.Linear(4, 5, key=jax.random.key(0))
      >>> model, mask = prune(loss_fn, model, jnp.ones((8, 4)), sparsity=0.9)
      >>> int(jnp.sum(model.weight != 0))
      2
      >>> optimizer = optim.sparse(optax.adam(1e-3), mask)
      >>> opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    """
    pure_loss, params, merge = split(loss_fn, model, filter_spec=filter_spec)
    scores, mask = pruning.score_and_mask(pure_loss, params, batch, sparsity, **options)
    pruning.warn_if_weak(scores, mask, stacklevel=3)
    pruned = merge(masks.apply(mask, params))
    _warn_of_rows_without_norm(pruned)
    return pruned, mask


def split(
    loss_fn: Callable[[Any, Any], chex.Array],
    model: Any,
    *,
    filter_spec: Any = eqx.is_inexact_array,
) -> tuple[LossFn, Any, Callable[[Any], Any]]:
    r"""Splits a loss of an Equinox module into a function of arrays and its parameters.

    .. math:: L(merge(w), B) = L_\mathrm{pure}(w, B)

    for the parameters :math:`w` and any batch :math:`B`.

    Args:
      loss_fn: ``(model, batch) -> scalar``, a pure function.
      model: an Equinox module, or any pytree.
      filter_spec: parameters, as ``eqx.filter`` takes them.

    Returns:
      ``(loss_fn, params, merge)``: a pure ``(params, batch) -> scalar``, for any
      function of snipjax; ``eqx.filter(model, filter_spec)``; and a function that puts
      such parameters into the module.

    Example:
      >>> from snipjax import saliency
      >>> model = eqx.nn.Linear(1, 2, use_bias=False, key=jax.random.key(0))
      >>> loss_fn, params, _ = split(lambda model, x: jnp.sum(model(x)), model)
      >>> saliency.snip(loss_fn, params, jnp.ones(1)).weight.shape
      (2, 1)
    """
    params, rest = eqx.partition(model, filter_spec)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"model, a {type(model).__name__}, has no parameters, as filter_spec "
            "tells them; pass loss_fn, then a module, not its class"
        )

    def merge(params: Any) -> Any:
        return eqx.combine(params, rest)

    def pure_loss(params: Any, batch: Any) -> chex.Array:
        return loss_fn(merge(params), batch)

    return pure_loss, params, merge


def _warn_of_rows_without_norm(model: Any) -> None:
    """Warns of weight norms that divide by zero, the norm of a row pruned whole."""

    def is_weight_norm(node: Any) -> bool:
        return isinstance(node, eqx.nn.WeightNorm)

    count = 0
    for node in filter(is_weight_norm, jax.tree.leaves(model, is_leaf=is_weight_norm)):
        weight = getattr(node.layer, node.weight_name)
        if not isinstance(weight, jax.core.Tracer):
            axes = tuple(n for n in range(weight.ndim) if n != node.axis)
            count += int(jnp.sum(jnp.all(weight == 0, axes)))
    if count:
        warnings.warn(
            f"{count} rows of eqx.nn.WeightNorm keep no connection, and divided by "
            "their norm, zero, they are NaN; prune less, or the same share of each "
            "row, e.g. with select=masks.n_of_m(1, 4, axis=-1) and no sparsity",
            stacklevel=3,
        )
