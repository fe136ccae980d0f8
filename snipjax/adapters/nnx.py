"""Pruning Flax NNX modules, which hold their parameters, statistics and keys."""

from collections.abc import Callable
from typing import Any

import chex
import jax

try:
    from flax import nnx
except ModuleNotFoundError as error:
    message = f"{__name__} needs Flax: pip install flax"
    raise ModuleNotFoundError(message, name=error.name) from error

from snipjax import masks, pruning
from snipjax._src.types import LossFn, Mask


def prune(
    loss_fn: Callable[[Any, Any], chex.Array],
    model: nnx.Module,
    batch: Any,
    sparsity: float | None = None,
    *,
    wrt: Any = nnx.Param,
    **options: Any,
) -> tuple[Any, Mask]:
    r"""Prunes an NNX module by the saliency of its connections on a mini-batch.

    .. math:: s = criterion(L, w, B), \qquad c = select(s, sparsity), \qquad
              w \leftarrow c \odot w

    for the loss :math:`L`, the parameters :math:`w` of the module and the batch
    :math:`B`.

    The loss is evaluated on copies of the module: statistics of batch norms and
    counters of random streams stay as they are, in the given module and in the pruned
    one. Every evaluation draws the same noise.

    Train with ``nnx.Optimizer(model, optim.sparse(inner, mask), wrt=wrt)``, which
    leaves pruned entries exactly zero.

    Args:
      loss_fn: ``(model, batch) -> scalar``; it may change the model it is given.
      model: an NNX module, in the mode in which ``loss_fn`` is to see it.
      batch: any pytree of arrays that ``loss_fn`` takes.
      sparsity: share of prunable connections to prune, in [0, 1); None for a selection
        with a density of its own.
      wrt: NNX filter of the variables that are trained, as ``nnx.Optimizer`` takes it.
      **options: keyword arguments of :func:`snipjax.pruning.prune`.

    Returns:
      ``(model, mask)``: a pruned copy of the module, and the mask, a state of bools
      like ``nnx.state(model, wrt)``.

    Raises:
      ValueError: as :func:`snipjax.pruning.prune` does, and for a model without
        parameters, such as a class.

    Example:
      >>> import optax
      >>> from snipjax import optim
      >>> def loss_fn(model, batch):
      ...     return jnp.mean((model(batch) - 1) ** 2)
      >>> model = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
      >>> model, mask = prune(loss_fn, model, jnp.ones((8, 4)), sparsity=0.9)
      >>> int(jnp.sum(model.kernel[...] != 0))
      2
      >>> inner = optax.adam(1e-3)
      >>> optimizer = nnx.Optimizer(model, optim.sparse(inner, mask), wrt=nnx.Param)
    """
    pure_loss, params, merge = split(loss_fn, model, wrt=wrt)
    scores, mask = pruning.score_and_mask(pure_loss, params, batch, sparsity, **options)
    pruning.warn_if_weak(scores, mask, stacklevel=3)
    return merge(masks.apply(mask, params)), mask


def split(
    loss_fn: Callable[[Any, Any], chex.Array],
    model: nnx.Module,
    *,
    wrt: Any = nnx.Param,
) -> tuple[LossFn, Any, Callable[[Any], Any]]:
    r"""Splits a loss of an NNX module into a pure function and its parameters.

    .. math:: L(merge(w), B) = L_\mathrm{pure}(w, B)

    for the parameters :math:`w` and any batch :math:`B`.

    Args:
      loss_fn: ``(model, batch) -> scalar``; it may change the model it is given.
      model: an NNX module.
      wrt: NNX filter of the variables that are parameters.

    Returns:
      ``(loss_fn, params, merge)``: a pure ``(params, batch) -> scalar``, for any
      function of snipjax; the state of the parameters; and a function that puts
      such a state into a new copy of the module.

    Example:
      >>> from snipjax import saliency
      >>> model = nnx.Linear(1, 2, use_bias=False, rngs=nnx.Rngs(0))
      >>> loss_fn, params, _ = split(lambda model, x: jnp.sum(model(x)), model)
      >>> scores = saliency.snip(loss_fn, params, jnp.ones((8, 1)))
      >>> scores["kernel"][...].shape
      (1, 2)
    """
    graphdef, params, *rest = nnx.split(model, wrt, ...)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"model, a {type(model).__name__}, has no variables to prune, "
            f"wrt={getattr(wrt, '__name__', wrt)}; pass loss_fn, then an nnx.Module, "
            "not its class, and in wrt= the kind of its parameters"
        )

    def merge(params: Any) -> Any:
        # Copies, so that no evaluation changes the variables of another.
        return nnx.merge(graphdef, params, *rest, copy=True)

    def pure_loss(params: Any, batch: Any) -> chex.Array:
        return loss_fn(merge(params), batch)

    return pure_loss, params, merge
