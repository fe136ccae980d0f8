"""Allocations: how shapes share a budget of connections among the leaves."""

import math
from collections.abc import Callable, Mapping, Sequence

import chex
import jax
import numpy as np

from snipjax._src import trees
from snipjax._src.types import Prunable
from snipjax.masks.densities import Densities
from snipjax.masks.mask import kept_count
from snipjax.masks.prunable import are_prunable, kernels

_LAST_OF_UNIFORM_PLUS = 0.2
_LAST_OF_SMART_RATIO = 0.3


def uniform(
    params: chex.ArrayTree, sparsity: float, prunable: Prunable = kernels
) -> Densities:
    r"""Returns the same density for every leaf.

    .. math:: d_l = \mathrm{round}(m (1 - sparsity)) / m

    Args:
      params: pytree of arrays; only their shapes matter.
      sparsity: share of prunable connections to prune, in [0, 1).
      prunable: predicate ``(key_path, leaf) -> bool``, or pytree of bools like
        ``params``.

    Returns:
      A pytree like ``params`` of floats, 1.0 where a leaf is not prunable.

    Raises:
      ValueError: if ``sparsity`` is outside [0, 1), or nothing is prunable.

    Example:
      >>> uniform({"v": jnp.ones((2, 4)), "w": jnp.ones((3, 4)), "b": jnp.ones(4)}, 0.5)
      {'b': 1.0, 'v': 0.5, 'w': 0.5}
    """
    return _allocated(params, sparsity, prunable, lambda shape: 1.0)


def erdos_renyi(
    params: chex.ArrayTree, sparsity: float, prunable: Prunable = kernels
) -> Densities:
    r"""Returns densities that fall with the number of units a layer connects.

    .. math:: d_l = \min\Big(1, \epsilon \,
              \frac{n_\mathrm{in} + n_\mathrm{out}}{n_\mathrm{in} n_\mathrm{out}}\Big)

    with the units :math:`n_\mathrm{in}, n_\mathrm{out}` of the last two axes of a
    kernel, whatever the size of its window, and the :math:`\epsilon` that gives the
    total. A unit has about as many connections in a layer of any width. A vector, such
    as a bias, has one factor: its ratio is one, the largest there is.

    Args:
      params: pytree of arrays with units along their last two axes, ``[..., inputs,
        outputs]``; only their shapes matter.
      sparsity: share of prunable connections to prune, in [0, 1).
      prunable: predicate ``(key_path, leaf) -> bool``, or pytree of bools like
        ``params``.

    Returns:
      A pytree like ``params`` of floats, 1.0 where a leaf is not prunable.

    Raises:
      ValueError: if ``sparsity`` is outside [0, 1), or nothing is prunable.

    Example:
      >>> erdos_renyi({"v": jnp.ones((4, 4)), "w": jnp.ones((4, 12))}, 0.5)
      {'v': 0.6666666666666666, 'w': 0.4444444444444444}

    Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science", Nature Communications 2018, equation 1.
    """
    return _allocated(
        params, sparsity, prunable, lambda shape: _sum_over_product(shape[-2:])
    )


def erk(
    params: chex.ArrayTree, sparsity: float, prunable: Prunable = kernels
) -> Densities:
    r"""Returns the Erdős-Rényi-Kernel densities, which count a kernel's window too.

    .. math:: d_l = \min\Big(1, \epsilon \,
              \frac{n_\mathrm{in} + n_\mathrm{out} + w_l + h_l}
                   {n_\mathrm{in} \, n_\mathrm{out} \, w_l \, h_l}\Big)

    for a convolution of window :math:`w_l \times h_l`, without :math:`w_l` and
    :math:`h_l` for a dense layer: the sum of a leaf's shape over its product. If
    leaves would be more than dense they are dense, and the others share the rest:
    :math:`\epsilon` is the factor that gives the total. A leaf that stacks layers, as
    ``flax.linen.scan`` makes it, is one of a window of as many positions: give such
    layers their densities by :func:`by_density`.

    Args:
      params: pytree of arrays; only their shapes matter.
      sparsity: share of prunable connections to prune, in [0, 1).
      prunable: predicate ``(key_path, leaf) -> bool``, or pytree of bools like
        ``params``.

    Returns:
      A pytree like ``params`` of floats, 1.0 where a leaf is not prunable.

    Raises:
      ValueError: if ``sparsity`` is outside [0, 1), or nothing is prunable.

    Example:
      >>> params = {"conv": jnp.ones((3, 3, 1, 8)), "dense": jnp.ones((8, 80))}
      >>> densities = erk(params, 0.75)  # 15 / 72 and 88 / 640, times epsilon
      >>> {name: round(density, 4) for name, density in densities.items()}
      {'conv': 0.36, 'dense': 0.2376}

    Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, section
    3 (1).
    """
    return _allocated(params, sparsity, prunable, _sum_over_product)


def uniform_plus(
    params: chex.ArrayTree,
    sparsity: float,
    prunable: Prunable = kernels,
    *,
    order: Sequence[str],
) -> Densities:
    r"""Returns one density for all layers but the first, which is dense, and the last.

    .. math:: d_1 = 1, \qquad d_l = d \quad (1 < l < L), \qquad d_L = \max(0.2, d)

    for the layers 1 to :math:`L`, with the :math:`d` that gives the total.

    The last layer has a density of at least 0.2. All others have the density that gives
    the total; so has the last where that is more. Vectors, such as biases, are no
    layers, and are dense.

    Args:
      params: pytree of arrays; only their shapes matter.
      sparsity: share of prunable connections to prune, in [0, 1).
      prunable: predicate ``(key_path, leaf) -> bool``, or pytree of bools like
        ``params``.
      order: names of the layers from input to output, such as ``Conv_0/kernel``; for
        instance from :func:`snipjax.masks.layer_order`. Names of other leaves may be
        among them.

    Returns:
      A pytree like ``params`` of floats, 1.0 where a leaf is not prunable.

    Raises:
      ValueError: if ``sparsity`` is outside [0, 1), nothing is prunable, a prunable
        layer is not in ``order``, or the first and last layers alone come to more
        connections than the sparsity leaves.

    Example:
      >>> params = {f"layer_{i}": jnp.ones((10, 10)) for i in range(4)}
      >>> uniform_plus(params, 0.65, order=[f"layer_{i}" for i in range(4)])
      {'layer_0': 1.0, 'layer_1': 0.1, 'layer_2': 0.1, 'layer_3': 0.2}

    Gale, Elsen, Hooker, "The State of Sparsity in Deep Neural Networks", 2019, section
    5.2.
    """

    leaves = _Leaves(params, sparsity, prunable)
    layers = leaves.layers(order)
    first, last = layers[0], layers[-1]
    fixed = dict.fromkeys(leaves.vectors(), 1.0) | {first: 1.0}
    ratios = [1.0] * len(leaves.shapes)
    densities = leaves.filled(ratios, fixed)
    least = leaves.whole(last, _LAST_OF_UNIFORM_PLUS)
    if densities[last] < least:
        densities = leaves.filled(ratios, fixed | {last: least})
    return leaves.tree(densities)


def smart_ratio(
    params: chex.ArrayTree,
    sparsity: float,
    prunable: Prunable = kernels,
    *,
    order: Sequence[str],
) -> Densities:
    r"""Returns densities that fall from layer to layer, with a last layer of 0.3.

    .. math:: d_l = \min\big(1, \epsilon \, [(L - l + 1)^2 + (L - l + 1)]\big)
              \quad (l < L), \qquad d_L = 0.3

    for the layers 1 to :math:`L`, with the :math:`\epsilon` that gives the total. If
    all others are dense, the last has the rest. Vectors, such as biases, are no
    layers, and are dense.

    Args:
      params: pytree of arrays; only their shapes matter.
      sparsity: share of prunable connections to prune, in [0, 1).
      prunable: predicate ``(key_path, leaf) -> bool``, or pytree of bools like
        ``params``.
      order: names of the layers from input to output, such as ``Conv_0/kernel``; for
        instance from :func:`snipjax.masks.layer_order`. Names of other leaves may be
        among them.

    Returns:
      A pytree like ``params`` of floats, 1.0 where a leaf is not prunable.

    Raises:
      ValueError: if ``sparsity`` is outside [0, 1), nothing is prunable, a prunable
        layer is not in ``order``, or the last alone comes to more connections than the
        sparsity leaves.

    Example:
      >>> params = {f"layer_{i}": jnp.ones((10, 10)) for i in range(3)}
      >>> densities = smart_ratio(params, 0.84, order=["layer_0", "layer_1", "layer_2"])
      >>> {name: round(d, 3) for name, d in densities.items()}  # 12 to 6, and 0.3
      {'layer_0': 0.12, 'layer_1': 0.06, 'layer_2': 0.3}

    Su et al., "Sanity-Checking Pruning Methods: Random Tickets can Win the Jackpot",
    NeurIPS 2020, section 4.
    """
    leaves = _Leaves(params, sparsity, prunable)
    layers = leaves.layers(order)
    last = leaves.whole(layers[-1], _LAST_OF_SMART_RATIO)
    fixed = dict.fromkeys(leaves.vectors(), 1.0) | {layers[-1]: last}
    ratios = [1.0] * len(leaves.shapes)
    for number, index in enumerate(reversed(layers), start=1):  # L - l + 1
        ratios[index] = float(number**2 + number)
    return leaves.tree(leaves.filled(ratios, fixed))


class _Leaves:
    """The prunable leaves of a pytree, and how many connections they may keep."""

    def __init__(
        self, params: chex.ArrayTree, sparsity: float, prunable: Prunable
    ) -> None:
        self.treedef = jax.tree.structure(params)
        self.is_prunable = are_prunable(params, prunable)
        found = [
            (name, np.shape(leaf))
            for (name, leaf), chosen in zip(
                trees.named_leaves(params), self.is_prunable
            )
            if chosen
        ]
        if not found:
            raise ValueError(
                "nothing is prunable, so that no density can be given; pass a "
                "predicate `prunable(path, leaf)` that is true for some leaf"
            )
        self.names = [name for name, _ in found]
        self.shapes = [shape for _, shape in found]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.kept = kept_count(sum(self.sizes), sparsity)

    def vectors(self) -> list[int]:
        """Returns the indices of leaves such as biases, which are no layers."""
        return [i for i, shape in enumerate(self.shapes) if len(shape) < 2]

    def layers(self, order: Sequence[str]) -> list[int]:
        """Returns the indices of all other leaves in the order of their names."""
        place = {name: number for number, name in enumerate(order)}
        layers = [i for i, shape in enumerate(self.shapes) if len(shape) >= 2]
        if not layers:
            raise ValueError(
                f"no prunable leaf has two dimensions, only {', '.join(self.names)}: "
                "there is no first and no last layer"
            )
        for i in layers:
            if self.names[i] not in place:
                raise ValueError(
                    f"'{self.names[i]}' is prunable, but not in order, the names of "
                    f"layers from input to output: {', '.join(order)}; add it, or take "
                    "order from masks.layer_order"
                )
        return sorted(layers, key=lambda i: place[self.names[i]])

    def whole(self, index: int, density: float) -> float:
        """Returns the least density of a leaf, from one on, of a whole count.

        It has the same count in every round, whatever the others are rounded to.
        """
        size = self.sizes[index]
        return math.ceil(density * size - 1e-9) / size

    def filled(
        self, ratios: Sequence[float], fixed: Mapping[int, float]
    ) -> list[float]:
        """Returns densities of some leaves as given, of all others in some ratios.

        A density that would be above one is one, and the excess is shared among the
        others, until none is. If all are, the excess goes to the leaves as given.
        """
        least = math.fsum(d * self.sizes[i] for i, d in fixed.items())
        if least > self.kept + 1e-6:
            shares = ", ".join(f"{d:g} of {self.names[i]}" for i, d in fixed.items())
            raise ValueError(
                f"a density of {shares} is {math.ceil(least):,} connections, but the "
                f"sparsity leaves {self.kept:,} of the {sum(self.sizes):,} prunable "
                "ones; prune less, or allocate with masks.erk or masks.uniform"
            )
        densities = dict(fixed)
        while free := [i for i in range(len(ratios)) if i not in densities]:
            rest = self._rest(densities)
            scale = rest / math.fsum(ratios[i] * self.sizes[i] for i in free)
            above = [i for i in free if scale * ratios[i] > 1.0]
            densities |= {i: 1.0 if above else scale * ratios[i] for i in above or free}
        if all(density == 1.0 for i, density in densities.items() if i not in fixed):
            for i, density in fixed.items():
                more = max(self._rest(densities), 0.0) / self.sizes[i]
                densities[i] = min(density + more, 1.0)
        return [densities[i] for i in range(len(ratios))]

    def tree(self, densities: Sequence[float]) -> Densities:
        """Returns the pytree of the densities of prunable leaves, and ones."""
        rest = iter(densities)
        return jax.tree.unflatten(
            self.treedef, [next(rest) if chosen else 1.0 for chosen in self.is_prunable]
        )

    def _rest(self, densities: Mapping[int, float]) -> float:
        return self.kept - math.fsum(d * self.sizes[i] for i, d in densities.items())


def _allocated(
    params: chex.ArrayTree,
    sparsity: float,
    prunable: Prunable,
    ratio: Callable[[tuple[int, ...]], float],
) -> Densities:
    leaves = _Leaves(params, sparsity, prunable)
    return leaves.tree(leaves.filled([ratio(shape) for shape in leaves.shapes], {}))


def _sum_over_product(shape: tuple[int, ...]) -> float:
    return sum(shape) / math.prod(shape)
