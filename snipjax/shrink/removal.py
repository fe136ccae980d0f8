"""Removal: a smaller function and parameters, without the units that a mask prunes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax import masks
from snipjax._src import trees
from snipjax._src.types import Mask
from snipjax.shrink import small
from snipjax.shrink.layers import Layer, Units
from snipjax.shrink.positions import Axes
from snipjax.shrink.units import units


class Removed(NamedTuple):
    """Holds the positions that are removed of each parameter.

    Attributes:
      like: pytree of shapes and dtypes of the whole parameters.
      gone: for each leaf, bools along each axis; None for an axis of which all stays.

    Example:
      >>> gone = np.array([True, False, True])
      >>> removed = Removed({"w": jax.ShapeDtypeStruct((3,), jnp.float32)}, ((gone,),))
      >>> small_apply = removed.function(lambda params, x: jnp.sum(params["w"]) * x)
      >>> small_apply(removed.params({"w": jnp.array([0.0, 5.0, 0.0])}), 2.0)
      Array(10., dtype=float32)
    """

    like: chex.ArrayTree
    gone: tuple[Axes, ...]

    def params(self, params: chex.ArrayTree) -> chex.ArrayTree:
        """Returns a pytree like the whole parameters, without the removed units.

        Example:
          >>> removed = Removed({"w": jnp.zeros(3)}, ((np.array([1, 0, 1], bool),),))
          >>> removed.params({"w": jnp.arange(3)})
          {'w': Array([1], dtype=int32)}
        """
        leaves, treedef = jax.tree.flatten(params)
        return jax.tree.unflatten(
            treedef,
            [
                small.whole(leaf).without(gone) if jnp.ndim(leaf) else leaf
                for leaf, gone in zip(leaves, self.gone, strict=True)
            ],
        )

    def state(self, state: chex.ArrayTree) -> chex.ArrayTree:
        """Returns a state with trees like the parameters, without the removed units.

        It may be the state of an optimizer, or batch statistics. An array is taken for
        a parameter's if the last parts of its path, and its shape, are the same.
        Others, such as the factors of Adafactor, stay whole.
        """
        # Parameters that are a single array have no path.
        treedef: Any = jax.tree.structure(self.like)
        least = 0 if jax.tree_util.treedef_is_leaf(treedef) else 1
        named = [
            (name.split("/"), leaf.shape, gone)
            for (name, leaf), gone in zip(trees.named_leaves(self.like), self.gone)
        ]

        def shrunken(path: Any, leaf: Any) -> Any:
            parts = trees.path_name(path).split("/")
            found = [
                ((_number_alike(parts, name), -len(name)), gone)
                for name, shape, gone in named
                if jnp.shape(leaf) == shape
            ]
            most = max((number for number, _ in found), default=(-1, 0))
            if most[0] < least:
                return leaf
            gone = next(gone for number, gone in found if number == most)
            return small.whole(leaf).without(gone)

        return jax.tree_util.tree_map_with_path(shrunken, state)

    def function(self, apply_fn: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of the smaller parameters, from one of the whole ones.

        It may be another function than the one that units were found for, such as one
        for training that returns new batch statistics too. They are smaller as well.
        """
        treedef: Any = jax.tree.structure(self.like)

        def small_apply(params: chex.ArrayTree, *inputs: Any) -> Any:
            leaves = jax.tree.leaves(params)
            if jax.tree.structure(params) != treedef:
                raise ValueError("the parameters are no pytree like the whole ones")
            self._check(leaves)
            like = jax.tree.map(  # parameters may have been cast since
                lambda whole, x: (
                    whole
                    if whole.dtype == jax.typeof(x).dtype
                    else jax.ShapeDtypeStruct(whole.shape, jax.typeof(x).dtype)
                ),
                self.like,
                params,
            )
            closed, shapes = jax.make_jaxpr(apply_fn, return_shape=True)(like, *inputs)
            values = [small.Value(x, gone) for x, gone in zip(leaves, self.gone)]
            values += map(small.whole, jax.tree.leaves(inputs))
            results = [value.array for value in small.small_outputs(closed, values)]
            return jax.tree.unflatten(jax.tree.structure(shapes), results)

        return small_apply

    def _check(self, leaves: Sequence[Any]) -> None:
        for leaf, gone, (name, whole) in zip(
            leaves, self.gone, trees.named_leaves(self.like)
        ):
            shape = small.sizes(whole.shape, gone)
            if jnp.shape(leaf) != shape:
                raise ValueError(
                    f"'{name}' has shape {jnp.shape(leaf)}, but the smaller network "
                    f"takes {shape}; pass the smaller parameters"
                )


def shrink(
    apply_fn: Callable[..., Any], params: chex.ArrayTree, mask: Mask, *inputs: Any
) -> tuple[Callable[..., Any], chex.ArrayTree]:
    r"""Returns a smaller function and parameters, without the units that a mask prunes.

    They equal the masked network up to rounding:

    .. math:: f_\mathrm{small}(w_\mathrm{small}, x) = f(c \odot w, x)

    for the mask :math:`c`. A unit is removed if all of its
    entries are pruned, or all connections that it feeds, or all that feed it: what a
    mask of single connections leaves without effect is removed too. Masked entries of
    what stays are zero.

    The function takes inputs of any batch size. It can be trained, compiled, mapped,
    sharded and exported like the original.

    Args:
      apply_fn: ``(params, *inputs) -> outputs``, a traceable function of any library.
      params: pytree of arrays.
      mask: pytree of bools like ``params``; a leaf has the parameter's shape or ().
      *inputs: pytrees of arrays, of which shapes and dtypes matter.

    Returns:
      ``(small_apply, small_params)``: a function like ``apply_fn``, and a pytree like
      ``params`` of smaller arrays.

    Raises:
      ValueError: if the mask does not fit, or prunes all units of a layer.

    Example:
      >>> params = {"v": jnp.ones((2, 3)), "w": jnp.ones((3, 1))}
      >>> apply_fn = lambda params, x: jnp.tanh(x @ params["v"]) @ params["w"]
      >>> mask = {"v": jnp.array([[True, False, True]] * 2), "w": jnp.array(True)}
      >>> x = jnp.ones((1, 2))
      >>> small_apply, small_params = shrink(apply_fn, params, mask, x)
      >>> small_params["v"].shape, small_params["w"].shape
      ((2, 2), (2, 1))
      >>> small_apply(small_params, x) == apply_fn(masks.apply(mask, params), x)
      Array([[ True]], dtype=bool)
    """
    found = removed(units(apply_fn, params, *inputs), mask)
    small_params = found.params(masks.apply(mask, params))
    return found.function(apply_fn), small_params


def removed(units: Units, mask: Mask) -> Removed:
    r"""Returns the positions of the units that a mask leaves without effect.

    .. math:: c_u = 0 \; \text{or} \; c_{F_u} = 0 \; \text{or} \; c_{M_u} = 0

    tells that a unit :math:`u` is removed: all of its entries are pruned, or all
    connections :math:`F_u` that it feeds, or all connections :math:`M_u` that feed it.

    Args:
      units: the units of a network.
      mask: pytree of bools like the parameters; a leaf has the parameter's shape or ().

    Returns:
      The positions, with which to shrink parameters, states and functions.

    Raises:
      ValueError: if the mask does not fit, or no unit of a layer is left.

    Example:
      >>> from snipjax import shrink
      >>> params = {"v": jnp.ones((2, 3)), "w": jnp.ones((3, 1))}
      >>> apply_fn = lambda params, x: jnp.tanh(x @ params["v"]) @ params["w"]
      >>> units = shrink.units(apply_fn, params, jnp.ones((1, 2)))
      >>> mask = {"v": jnp.array([[True, False, True]] * 2), "w": jnp.array(True)}
      >>> smaller = shrink.removed(units, mask)
      >>> small_params = smaller.params(params)
      >>> small_params["v"].shape, small_params["w"].shape
      ((2, 2), (2, 1))
      >>> small_apply = smaller.function(apply_fn)
      >>> small_apply(small_params, jnp.ones((1, 2))).shape
      (1, 1)
    """
    masks.check_mask(mask, units.like)
    whole = [leaf.shape for leaf in jax.tree.leaves(units.like)]
    kept = [
        np.array(np.broadcast_to(m, s)) for m, s in zip(jax.tree.leaves(mask), whole)
    ]
    gone: list[list[np.ndarray]] = [
        [np.zeros(n, bool) for n in shape] for shape in whole
    ]
    dead = [np.zeros(layer.size, bool) for layer in units.layers]
    while True:  # until no more units have lost what they feed, or what feeds them
        news = [_dead(layer, kept) & ~old for layer, old in zip(units.layers, dead)]
        if not any(new.any() for new in news):
            break
        for layer, new, old in zip(units.layers, news, dead):
            old |= new
            for member in layer.members:
                positions = member.positions[new].ravel()
                index = (slice(None),) * member.axis + (positions,)
                kept[member.leaf][index] = False
                gone[member.leaf][member.axis][positions] = True
    for layer, old in zip(units.layers, dead):
        if old.all():
            raise ValueError(
                f"the mask leaves no unit of '{layer.name}', so that no input reaches "
                "an output through it; keep some, as shrink.keep does"
            )
    return Removed(
        units.like,
        tuple(tuple(a if a.any() else None for a in axes) for axes in gone),
    )


def _dead(layer: Layer, kept: list[np.ndarray]) -> np.ndarray:
    """Returns which units of a layer change nothing, a bool for each."""
    fed, made, any_left = np.zeros((3, layer.size), bool)
    for member in layer.members:
        rest = tuple(i for i in range(kept[member.leaf].ndim) if i != member.axis)
        has_any = np.asarray(kept[member.leaf].any(axis=rest))
        found = has_any[member.positions].any(axis=1)
        fed |= found & member.feeds
        made |= found & member.makes
        any_left |= found
    unfed = ~fed & any(m.feeds for m in layer.members) & (not layer.is_hidden)
    unmade = ~made & any(m.makes for m in layer.members) & (not layer.is_loud)
    return unfed | unmade | ~any_left


def _number_alike(a: Sequence[str], b: Sequence[str]) -> int:
    """Returns how many of the last entries of two sequences are the same."""
    number = 0
    for x, y in zip(reversed(a), reversed(b)):
        if x != y:
            break
        number += 1
    return number
