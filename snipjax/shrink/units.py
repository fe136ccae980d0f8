"""Units: positions of axes of parameters that can only be removed together."""

import collections
from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np

from snipjax._src import trees
from snipjax.shrink.layers import Count, Layer, Member, Units
from snipjax.shrink.positions import Labels
from snipjax.shrink.walk import Value, Walk

_MOST_ANALYSES = 8


def units(
    apply_fn: Callable[..., Any],
    params: chex.ArrayTree,
    *inputs: Any,
    over_means: bool = False,
) -> Units:
    r"""Returns the units of a network that can be removed without a trace.

    A unit is a set of positions of axes of parameters, such as the column of a kernel
    that makes a feature, its bias, and the rows of the kernels that it feeds. They are
    found by the operations of the function. A network whose parameters are zero at all
    positions of some units equals the smaller network without these positions:

    .. math:: w_U = 0 \;\Rightarrow\; f(w, x) = f_\mathrm{small}(w_{\bar U}, x)

    for the positions :math:`U` and all others :math:`\bar U`.

    All that reaches an input, an output or an operation that is not understood stays,
    and so does a unit that would not be silent: one over which a softmax is taken, for
    instance. Heads of an attention go as wholes, and so do groups of convolutions.

    Args:
      apply_fn: ``(params, *inputs) -> outputs``, a traceable function of any library.
        All that belongs to the units, such as batch statistics, is in ``params``.
      params: pytree of arrays, of which shapes and dtypes matter.
      *inputs: pytrees of arrays, of which shapes and dtypes matter.
      over_means: whether units may go over which a mean is taken, as a layer norm does.
        The mean is taken over the units that stay, so that the smaller network differs
        from the masked one.

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
    for output in walk.outputs(closed, [*parameters, *rest]):
        for axis in output.axes:
            labels.fix(axis)
    return parameters


def _collected(walk: Walk, leaves: list[Value], like: chex.ArrayTree) -> Units:
    """Returns the units of the labels that are not fixed."""
    labels = walk.labels
    signatures, places = _signatures(labels, leaves)
    alike = collections.defaultdict(list)
    for root, signature in signatures.items():
        alike[tuple(signature)].append(root)
    hidden, loud, averaged = (
        set(labels.roots(np.concatenate([[0], *found])).tolist())
        for found in (labels.hidden, labels.loud, walk.averaged)
    )
    names = [name for name, _ in trees.named_leaves(like)]
    numbers = np.full(labels.number, -1)  # of the units, by label
    layers, means, seen, first = [], [], collections.Counter[str](), 0
    for entries, roots in alike.items():
        numbers[roots] = first + np.arange(len(roots))
        first += len(roots)
        members = tuple(
            Member(
                leaf, names[leaf], axis, _positions(places[leaf, axis], roots), *uses
            )
            for leaf, axis, _, *uses in entries
        )
        # Named by a kernel rather than a bias or a statistic, if there is one.
        name = min(members, key=lambda m: (m.feeds, -len(leaves[m.leaf].axes))).name
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name}#{seen[name]}"
        layers.append(
            Layer(
                name,
                len(roots),
                members,
                not hidden.isdisjoint(roots),
                not loud.isdisjoint(roots),
            )
        )
        if not averaged.isdisjoint(roots):
            means.append(name)

    def counted(axis: np.ndarray | None, size: int) -> tuple[int, np.ndarray]:
        if axis is None:
            return size, np.zeros(0, int)
        found = numbers[labels.roots(axis)]
        return int((found < 0).sum()), found[found >= 0]

    parameters = tuple(
        Count(
            1,
            tuple(
                counted(axis if axis is None else axis >> 1, size)
                for axis, size in zip(value.axes, leaf.shape)
            ),
        )
        for value, leaf in zip(leaves, jax.tree.leaves(like))
    )
    products = tuple(
        Count(product.factor, tuple(counted(axis, 0) for axis in product.axes))
        for product in walk.products
    )
    unknown = tuple(walk.unknown)
    return Units(tuple(layers), unknown, tuple(means), like, parameters, products)


# A leaf, an axis, the number of positions, whether the unit feeds or is made by them.
_Entry = tuple[int, int, int, bool, bool]


def _signatures(
    labels: Labels, leaves: list[Value]
) -> tuple[dict[int, list[_Entry]], dict[tuple[int, int], np.ndarray]]:
    """Returns what belongs to each free label, and the labels of each axis."""
    feeding, making = np.zeros((2, labels.number), bool)
    for flags, nodes in ((feeding, labels.feeding), (making, labels.making)):
        flags[np.concatenate([np.zeros(0, int), *nodes])] = True
        for known, other in reversed(labels.alike):  # the latest operation first
            np.logical_or.at(flags, other, flags[known])
    signatures: dict[int, list[_Entry]] = {}
    places = {}
    for leaf, value in enumerate(leaves):
        for i, axis in enumerate(value.axes):
            if axis is None:
                continue
            roots = places[leaf, i] = labels.roots(axis >> 1)
            found, inverse, counts = np.unique(
                roots, return_inverse=True, return_counts=True
            )
            feeds, makes = np.zeros((2, len(found)), bool)
            for column, known in ((feeds, feeding), (makes, making)):
                np.logical_or.at(column, inverse, known[axis >> 1])
            columns = (found, counts, feeds, makes)
            for root, *rest in zip(*(x.tolist() for x in columns)):
                if root:
                    signatures.setdefault(root, []).append((leaf, i, *rest))
    return signatures, places


def _positions(roots: np.ndarray, wanted: list[int]) -> np.ndarray:
    """Returns the positions of some labels along an axis, ``[labels, k]``."""
    order = np.argsort(roots, kind="stable")
    begin = np.searchsorted(roots[order], wanted)
    end = np.searchsorted(roots[order], wanted, side="right")
    return order[begin[:, None] + np.arange(end[0] - begin[0])]
