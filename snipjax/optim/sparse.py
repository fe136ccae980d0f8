"""Sparse training: any optax optimizer that leaves pruned entries exactly zero."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks
from snipjax._src import checks, trees
from snipjax.masks import counting

_LOOKAHEAD_AROUND = (
    "its params are pairs, fast and slow, which a mask does not fit; let it be around "
    "sparse, as optax.lookahead(sparse(inner, mask), ...), and start it with "
    "optax.LookaheadParams.init_synced(masks.apply(mask, params))"
)


class SparseState(NamedTuple):
    """Holds the state of :func:`sparse`: the mask and the inner optimizer's state.

    Attributes:
      mask: the mask, a pytree of bools like the params; a leaf has the parameter's
        shape or ().
      inner_state: state of the inner optimizer, which sees masked params and gradients.

    Example:
      >>> mask = {"w": jnp.array([True, False])}
      >>> optimizer = sparse(optax.sgd(0.1, momentum=0.9), mask)
      >>> state = optimizer.init({"w": jnp.array([1.0, 0.0])})
      >>> state.mask
      {'w': Array([ True, False], dtype=bool)}
    """

    mask: chex.ArrayTree
    inner_state: optax.OptState


def sparse(
    inner: optax.GradientTransformation, mask: chex.ArrayTree
) -> optax.GradientTransformationExtraArgs:
    r"""Returns ``inner`` restricted to the connections that the mask keeps.

    With the mask :math:`c` and the inner update :math:`u`, the update of params
    :math:`w` with gradient :math:`g` is

    .. math:: \Delta w_j = \begin{cases} u_j(c \odot g, c \odot w) & c_j = 1 \\
                                         -w_j & c_j = 0. \end{cases}

    ``inner`` sees masked gradients and masked parameters, so that it computes
    norms, moments, weight decay and clipping of the pruned network; kept entries move
    exactly as it moves them. A pruned entry's update is ``-param``: it becomes
    exactly 0.0 with the first step, and stays so. ``grad_fn`` and ``value_fn``, by
    which some optimizers evaluate the loss themselves, see the pruned network too.

    The mask is part of the state, hence an argument of a compiled step and not a
    constant in it, and travels through ``jit``, ``vmap`` and checkpoints. It is
    copied there, so that donating the state leaves your mask alone.

    Let this be the outermost transformation: one that scales its updates would scale
    ``-param`` too, and ``contrib.sam`` around it moves pruned entries. Only
    ``optax.lookahead`` goes around it, since its params are pairs.

    Args:
      inner: any optax transformation, extra arguments included.
      mask: pytree of bools like the params, as :mod:`snipjax.masks` makes it.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. Its ``init`` and ``update`` raise
      a ``ValueError`` if the mask does not fit what they are given, or another
      transformation is around this one.

    Warns:
      UserWarning: if ``init`` is given params with pruned entries that are not zero.

    Example:
      >>> mask = {"w": jnp.array([True, False])}
      >>> optimizer = sparse(optax.sgd(0.1), mask)
      >>> params = masks.apply(mask, {"w": jnp.array([1.0, 2.0])})
      >>> updates, _ = optimizer.update(
      ...     {"w": jnp.ones(2)}, optimizer.init(params), params)
      >>> optax.apply_updates(params, updates)
      {'w': Array([0.9, 0. ], dtype=float32)}
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> SparseState:
        if not jax.tree.leaves(params):  # a placeholder, of optax.tree.map_params
            return SparseState(params, inner.init(params))
        check_place(params, mask)
        pruned_params = masks.apply(mask, params)
        _warn_unless_equal(params, pruned_params)
        inner_state = inner.init(pruned_params)
        check_inside(inner_state)
        return SparseState(
            jax.tree.map(lambda m: jnp.array(m, copy=True), mask), inner_state
        )

    def update(
        updates: optax.Updates,
        state: SparseState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SparseState]:
        _check_mask(state.mask)
        checks.check_same_structure(updates, state.mask, "the gradient", "the mask")
        kept_params = None if params is None else masks.apply(state.mask, params)

        def at_pruned(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda params, *args, **kwargs: function(
                masks.apply(state.mask, params), *args, **kwargs
            )

        if "value_fn" in extra_args:
            extra_args["value_fn"] = at_pruned(extra_args["value_fn"])
        if "grad_fn" in extra_args:
            gradient = at_pruned(extra_args["grad_fn"])
            extra_args["grad_fn"] = lambda *args: masks.apply(
                state.mask, gradient(*args)
            )
        updates, inner_state = inner.update(
            masks.apply(state.mask, updates),
            state.inner_state,
            kept_params,
            **extra_args,
        )
        if params is None:
            updates = masks.apply(state.mask, updates)
        else:
            updates = jax.tree.map(_update_or_clear, state.mask, updates, params)
        return updates, SparseState(state.mask, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _update_or_clear(
    keep: chex.Array, update: chex.Array, param: chex.Array
) -> chex.Array:
    # In the wider of the two dtypes, so that adding it to the parameter gives zero.
    return jnp.where(keep, update, -param)


def check_place(params: chex.ArrayTree, mask: chex.ArrayTree) -> None:
    """Raises a ``ValueError`` if params show that this is in the wrong place."""
    if isinstance(params, optax.LookaheadParams):
        raise ValueError(f"params are optax.LookaheadParams; {_LOOKAHEAD_AROUND}")
    nodes = jax.tree.leaves(params, is_leaf=_is_masked_node)
    structure: Any = jax.tree.structure(params)
    is_like_mask = structure == jax.tree.structure(mask)
    if any(map(_is_masked_node, nodes)) and not is_like_mask:
        raise ValueError(
            "params lack the leaves that optax.masked or optax.partition leaves out; "
            "let sparse be around it, as sparse(optax.masked(inner, ...), mask)"
        )


def check_inside(inner_state: chex.ArrayTree) -> None:
    """Raises a ``ValueError`` if lookahead, whose params are pairs, is inside."""

    def is_lookahead(node: object) -> bool:
        return isinstance(node, optax.LookaheadState)

    if any(map(is_lookahead, jax.tree.leaves(inner_state, is_leaf=is_lookahead))):
        raise ValueError(f"optax.lookahead is inside of sparse; {_LOOKAHEAD_AROUND}")


def _is_masked_node(node: object) -> bool:
    return isinstance(node, optax.MaskedNode)


def _check_mask(mask: chex.ArrayTree) -> None:
    """Raises a ``ValueError`` if something computed with the mask of a state."""
    for name, leaf in trees.named_leaves(mask):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.bool_):
            raise ValueError(
                f"the mask of the state has dtype {jnp.result_type(leaf)} in '{name}': "
                "a transformation around sparse computed with it, e.g. optax."
                "contrib.sam; let sparse be around it, as sparse(sam(...), mask)"
            )


def _warn_unless_equal(params: chex.ArrayTree, pruned: chex.ArrayTree) -> None:
    if trees.is_traced((params, pruned)):
        return
    before, after = (
        sum(counting.counts(_is_not_zero, jax.tree.leaves(tree)))
        for tree in (params, pruned)
    )
    if before != after:
        warnings.warn(
            f"{before - after:,} pruned entries of params are not zero; pass "
            "masks.apply(mask, params). The first update would clear them, unless "
            "sparse is inside of a transformation that changes it, e.g. optax.chain",
            stacklevel=3,
        )


def _is_not_zero(xp: Any, x: Any) -> Any:
    del xp
    return x != 0
