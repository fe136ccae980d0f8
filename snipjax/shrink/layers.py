"""The units of a network, layer by layer, and numbers that depend on them."""

import math
from typing import NamedTuple

import chex
import numpy as np


class Member(NamedTuple):
    """Names the entries of one parameter that belong to the units of a layer.

    Attributes:
      leaf: index of the parameter among the leaves, in tree order.
      name: name of the parameter, such as ``Dense_0/kernel``.
      axis: axis of the parameter.
      positions: integers ``[units, k]``, the positions along the axis of each unit.
      feeds: whether the entries are weights of connections that a unit feeds.
      makes: whether the entries make the values of a unit, as a bias does, and weights
        of connections that feed it. Entries of weights used twice may do both.

    Example:
      >>> from snipjax import shrink
      >>> params = {"v": jnp.ones((2, 3)), "w": jnp.ones((3, 1))}
      >>> apply_fn = lambda params, x: jnp.tanh(x @ params["v"]) @ params["w"]
      >>> units = shrink.units(apply_fn, params, jnp.ones((1, 2)))
      >>> makes, feeds = units.layers[0].members
      >>> makes.name, makes.axis, makes.positions.tolist(), makes.makes
      ('v', 1, [[0], [1], [2]], True)
      >>> feeds.name, feeds.axis, feeds.feeds
      ('w', 0, True)
    """

    leaf: int
    name: str
    axis: int
    positions: np.ndarray
    feeds: bool
    makes: bool


class Layer(NamedTuple):
    """Describes units alike: each has as many entries of the same parameters.

    Attributes:
      name: name of the first parameter that makes the units.
      size: number of units.
      members: the entries that belong to them.
      is_hidden: whether entries of a unit meet others than parameters. A unit that
        feeds nothing then changes outputs still.
      is_loud: whether a unit that nothing feeds is not zero.

    Example:
      >>> from snipjax import shrink
      >>> params = {"v": jnp.ones((2, 3)), "w": jnp.ones((3, 1))}
      >>> apply_fn = lambda params, x: jnp.tanh(x @ params["v"]) @ params["w"]
      >>> units = shrink.units(apply_fn, params, jnp.ones((1, 2)))
      >>> layer = units.layers[0]
      >>> layer.name, layer.size, layer.is_hidden, layer.is_loud
      ('v', 3, False, False)
    """

    name: str
    size: int
    members: tuple[Member, ...]
    is_hidden: bool
    is_loud: bool


class Count(NamedTuple):
    r"""Holds a number that depends on the units kept: a factor times sizes of axes.

    .. math:: factor \cdot \prod_a (stay_a + |units_a \cap K|)

    for the set :math:`K` of units kept.

    An axis is a number of positions that stay, and the units of the other positions,
    numbered through all layers.

    Attributes:
      factor: the factor.
      axes: for each axis the number of positions that stay, and the integer array of
        the units of the other positions.

    Example:
      >>> count = Count(4, ((1, np.array([0, 1, 2])),))  # 4 * (1 + units kept)
      >>> count.whole, count.at(np.array([True, False, True]))
      (16, 12)
    """

    factor: int
    axes: tuple[tuple[int, np.ndarray], ...]

    @property
    def whole(self) -> int:
        """Returns the number with all units."""
        return self.factor * math.prod(stay + len(units) for stay, units in self.axes)

    def at(self, is_kept: np.ndarray) -> int:
        """Returns the number with some units, a bool for each of all layers."""
        sizes = (stay + int(is_kept[units].sum()) for stay, units in self.axes)
        return self.factor * math.prod(sizes)


class Units(NamedTuple):
    """Holds the units of a network, as :func:`snipjax.shrink.units` finds them.

    Attributes:
      layers: the units, layer by layer.
      unknown: names of operations that are not understood. All that meets them stays.
      means: names of the layers over which means are taken.
      like: pytree of shapes and dtypes of the parameters.
      parameters: the number of entries of each leaf.
      products: the floating-point operations of each product, for the inputs given.

    Example:
      >>> from snipjax import shrink
      >>> params = {"v": jnp.ones((2, 3)), "w": jnp.ones((3, 1))}
      >>> apply_fn = lambda params, x: jnp.tanh(x @ params["v"]) @ params["w"]
      >>> units = shrink.units(apply_fn, params, jnp.ones((1, 2)))
      >>> [layer.name for layer in units.layers], units.unknown
      (['v'], ())
      >>> [count.whole for count in units.parameters]
      [6, 3]
    """

    layers: tuple[Layer, ...]
    unknown: tuple[str, ...]
    means: tuple[str, ...]
    like: chex.ArrayTree
    parameters: tuple[Count, ...]
    products: tuple[Count, ...]
