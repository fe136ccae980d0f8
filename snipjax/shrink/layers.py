"""The units of a network, layer by layer, and numbers that depend on them."""

import math
from typing import NamedTuple

import chex
import numpy as np


class Member(NamedTuple):
    """The entries of one parameter that belong to the units of a layer.

    Attributes:
      leaf: index of the parameter among the leaves, in tree order.
      name: name of the parameter, such as ``Dense_0/kernel``.
      axis: axis of the parameter.
      positions: integers ``[units, k]``, the positions along the axis of each unit.
      feeds: whether the entries are weights of connections that a unit feeds.
      makes: whether the entries make the values of a unit, as a bias does, and weights
        of connections that feed it. Entries of weights used twice may do both.
    """

    leaf: int
    name: str
    axis: int
    positions: np.ndarray
    feeds: bool
    makes: bool


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

    @property
    def whole(self) -> int:
        """The number with all units."""
        return self.factor * math.prod(stay + len(units) for stay, units in self.axes)

    def at(self, is_kept: np.ndarray) -> int:
        """Returns the number with some units, a bool for each of all layers."""
        sizes = (stay + int(is_kept[units].sum()) for stay, units in self.axes)
        return self.factor * math.prod(sizes)


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
