"""Units: positions of axes of parameters that can only be removed together."""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from snipjax._src import trees
from snipjax.shrink.positions import Labels
from snipjax.shrink.walk import Value, Walk

_MOST_ANALYSES = 8


class Member(NamedTuple):
    """The entries of one parameter that belong to the units of a layer.

    Attributes:
      leaf: index of the parameter among the leaves, in tree order.
      name: name of the parameter, such as ``Dense_0/kernel``.
      axis: axis of the parameter.
      positions: integers ``[units, k]``, the positions along the axis of each unit.
      feeds: whether the entries are weights of connections that a unit feeds, not of
        connections that feed it.
    """

    leaf: int
    name: str
    axis: int
    positions: np.ndarray
    feeds: bool


class Layer(NamedTuple):
    """Units alike: each has as many entries of the same parameters.

    Attributes:
      name: name of the first parameter that makes the units.
      size: number of units.
      members: the entries that belong to them.
      is_hidden: whether entries of a unit meet others than parameters. A unit that
        feeds nothing then changes outputs still.
      is_loud: whether a unit that nothing feeds is not zero.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    is_hidden: bool
    is_loud: bool


class Count(NamedTuple):
    """A number that depends on the units kept: a factor times sizes of axes.

    An axis is a number of positions that stay, and the units of the other positions,
    numbered through all layers.
    """

    factor: int
    axes: tuple[tuple[int, np.ndarray], ...]

    def at(self, is_kept: np.ndarray) -> int:
        """Returns the number with some units, a bool for each of all layers."""
        sizes = (stay + int(is_kept[units].sum()) for stay, units in self.axes)
        result = self.factor
        for size in sizes:
            result *= size
        return result


class Units(NamedTuple):
    """The units of a network.

    Attributes:
      layers: the units, layer by layer.
      unknown: names of operations that are not understood. All that meets them stays.
      means: names of the layers over which means are taken.
      like: pytree of shapes and dtypes of the parameters.
      parameters: the number of entries of each leaf.
      products: the floating-point operations of each product, for the inputs given.
    """

    layers: tuple[Layer, ...]
    unknown: tuple[str, ...]
    means: tuple[str, ...]
    like: chex.ArrayTree
    parameters: tuple[Count, ...]
    products: tuple[Count, ...]


def units(
    apply_fn: Callable[..., Any],
    params: chex.ArrayTree,
    *inputs: Any,
    over_means: bool = False,
) -> Units:
    """Returns the units of a network that can be removed without a trace.

    A unit is a set of positions of axes of parameters, such as the column of a kernel
    that makes a feature, its bias, and the rows of the kernels that it feeds. They are
    found by the operations of the function. A network whose parameters are zero at all
    positions of some units equals the smaller network without these positions.

    All that reaches an input, an output or an operation that is not understood stays,
    and so does a unit that would not be silent: one over which a softmax is taken, for
    instance. Heads of an attention go as wholes, and so do groups of convolutions.

    Args:
      apply_fn: ``(params, *inputs) -> outputs``, a traceable function of any library.
        All that belongs to the units, such as batch statistics, is in ``params``.
      params: pytree of arrays, of which shapes and dtypes matter.
      *inputs: pytrees of arrays, of which shapes and dtypes matter.
      over_means: whether units may go over which a mean is taken, as a layer norm does.
        The mean is taken over what is left, so that the smaller network is not equal to
        the masked one.

    Returns:
      The units, layer by layer.

    Example:
      >>> params = {"v": jnp.ones((2, 3)), "w": jnp.ones((3, 1))}
      >>> apply_fn = lambda params, x: jnp.tanh(x @ params["v"]) @ params["w"]
      >>> (layer,) = units(apply_fn, params, jnp.ones((1, 2))).layers
      >>> layer.size, [(member.name, member.axis) for member in layer.members]
      (3, [('v', 1), ('w', 0)])
    """
    like, others = jax.tree.map(_shape, (params, inputs))
    closed = jax.make_jaxpr(apply_fn)(like, *others)
    choices: dict[int, int] = {}
    for _ in range(_MOST_ANALYSES):
        walk = Walk(Labels(choices), over_means)
        leaves = _follow(walk, closed, like)
        found = walk.labels.other_choices()
        if found == choices:
            break
        choices = found
    return _collected(walk, leaves, like)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    array = jax.typeof(x)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, weak_type=array.weak_type)


def _follow(walk: Walk, closed: Any, like: chex.ArrayTree) -> list[Value]:
    """Follows a jaxpr, and returns the parameters it begins with."""
    labels, leaves = walk.labels, jax.tree.leaves(like)
    number = len(leaves)
    used = {v for equation in closed.jaxpr.eqns for v in equation.invars
            if not hasattr(v, "val")}  # fmt: skip
    parameters = [
        Value(
            tuple(labels.new(n) if n > 1 and v in used else None for n in leaf.shape),
            is_parameter=True,
        )
        for v, leaf in zip(closed.jaxpr.invars, leaves)
    ]
    labels.leaves = labels.number
    inputs = closed.jaxpr.invars[number:]
    rest = [Value((None,) * len(v.aval.shape)) for v in inputs]
    for output in walk.run(closed, [*parameters, *rest]):
        for axis in output.axes:
            labels.fix(axis)
    return parameters


def _collected(walk: Walk, leaves: list[Value], like: chex.ArrayTree) -> Units:
    """Returns the units of the labels that are not fixed."""
    labels, names = walk.labels, [name for name, _ in trees.named_leaves(like)]
    feeding = np.zeros(labels.number, bool)
    for nodes in labels.feeding:
        feeding[nodes] = True
    # The signature of a label: what of which parameters belongs to it.
    signatures: dict[int, list[tuple[int, int, int, bool]]] = {}
    places: dict[tuple[int, int], np.ndarray] = {}
    for leaf, value in enumerate(leaves):
        for i, axis in enumerate(value.axes):
            if axis is None:
                continue
            roots = labels.roots(axis >> 1)
            places[leaf, i] = roots
            found, first, counts = np.unique(roots, return_index=True, return_counts=True)
            feeds = feeding[axis[first] >> 1]
            for root, k, feed in zip(found.tolist(), counts.tolist(), feeds.tolist()):
                if root:
                    signatures.setdefault(root, []).append((leaf, i, k, feed))
    layers = collections.defaultdict(list)
    for root, signature in signatures.items():
        layers[tuple(signature)].append(root)
    hidden, loud = (
        {*labels.roots(np.concatenate([*found, np.zeros(1, np.int64)])).tolist()}
        for found in (labels.hidden, labels.loud)
    )
    numbers = np.full(labels.number, -1)
    result, first = [], 0
    for signature, roots in layers.items():
        numbers[roots] = first + np.arange(len(roots))
        members = tuple(
            Member(leaf, names[leaf], axis, _positions(places[leaf, axis], roots), feed)
            for leaf, axis, _, feed in signature
        )
        # A kernel rather than a bias or a statistic, if there is one.
        by_name = sorted(
            members, key=lambda m: (m.feeds, -len(leaves[m.leaf].axes), m.leaf)
        )
        result.append(
            Layer(
                by_name[0].name,
                len(roots),
                members,
                not hidden.isdisjoint(roots),
                not loud.isdisjoint(roots),
            )
        )
        first += len(roots)

    def count(factor: int, sizes: Any, axes: Any) -> Count:
        return Count(
            factor,
            tuple(
                (size, np.zeros(0, int))
                if axis is None
                else _stay_and_units(numbers[labels.roots(axis)])
                for size, axis in zip(sizes, axes)
            ),
        )

    shapes = [leaf.shape for leaf in jax.tree.leaves(like)]
    averaged = {*np.concatenate([*walk.averaged, np.zeros(1, np.int64)]).tolist()}
    averaged = {*labels.roots(np.array(sorted(averaged))).tolist()}
    return Units(
        tuple(_distinct(result)),
        tuple(walk.unknown),
        tuple(
            layer.name
            for layer, roots in zip(_distinct(result), layers.values())
            if not averaged.isdisjoint(roots)
        ),
        like,
        tuple(
            count(1, shape, [None if a is None else a >> 1 for a in value.axes])
            for shape, value in zip(shapes, leaves)
        ),
        tuple(
            count(product.factor, [0] * len(product.axes), product.axes)
            for product in walk.products
        ),
    )


def _positions(roots: np.ndarray, units_of_layer: list[int]) -> np.ndarray:
    """Returns the positions of each unit along an axis, ``[units, k]``."""
    order = np.argsort(roots, kind="stable")
    ranked = roots[order]
    begin = np.searchsorted(ranked, units_of_layer)
    end = np.searchsorted(ranked, units_of_layer, side="right")
    return order[begin[:, None] + np.arange(end[0] - begin[0])]


def _stay_and_units(numbers: np.ndarray) -> tuple[int, np.ndarray]:
    return int((numbers < 0).sum()), numbers[numbers >= 0]


def _distinct(layers: list[Layer]) -> list[Layer]:
    """Returns layers of distinct names."""
    seen: collections.Counter[str] = collections.Counter()
    named = []
    for layer in layers:
        seen[layer.name] += 1
        number = seen[layer.name]
        name = layer.name if number == 1 else f"{layer.name}#{number}"
        named.append(layer._replace(name=name))
    return named
