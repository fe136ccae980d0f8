"""Scores of units, from scores of connections."""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax._src import checks
from snipjax._src.types import Scores
from snipjax.shrink.layers import Layer, Member, Units


def unit_scores(scores: Scores, units: Units) -> dict[str, chex.Array]:
    r"""Returns the score of each unit: the magnitude of a sum over connections.

    .. math:: S_u = \Big| \sum_{j \in F_u} s_j \Big|, \quad
              F_u = \text{the connections that } u \text{ feeds}.

    With the signed derivative in each connection, :func:`snipjax.saliency.sensitivity`,
    this is the derivative of the loss in a gate on the unit's activation,
    :math:`|\partial L / \partial g_u|`, unless a leaf both makes a unit and is fed by
    it, as a tied embedding is, or is divided by its own norm. With scores that are not
    negative, of any criterion, it is their sum. A unit that feeds no connection of its
    own, such as a channel of a depthwise convolution's result, is scored by the
    connections that feed it.

    Args:
      scores: pytree of floating-point arrays like the parameters.
      units: the units of the network.

    Returns:
      A float32 array ``[units]`` for each layer, by its name.

    Raises:
      ValueError: if the structures or shapes do not match.

    Example:
      >>> from snipjax import shrink
      >>> params = {"v": jnp.ones((2, 3)), "w": jnp.ones((3, 1))}
      >>> apply_fn = lambda params, x: jnp.tanh(x @ params["v"]) @ params["w"]
      >>> units = shrink.units(apply_fn, params, jnp.ones((1, 2)))
      >>> scores = {"v": jnp.zeros((2, 3)), "w": jnp.array([[1.0], [-2.0], [3.0]])}
      >>> unit_scores(scores, units)
      {'v': Array([1., 2., 3.], dtype=float32)}
    """
    checks.check_same_structure(scores, units.like, "scores", "the parameters")
    leaves = jax.tree.leaves(scores)
    return {layer.name: _of_layer(leaves, layer) for layer in units.layers}


def layerwise(scores: Mapping[str, chex.Array]) -> dict[str, chex.Array]:
    r"""Returns scores by which every layer keeps the same share of its units.

    The earlier of equal scores is larger.

    .. math:: S'_u = 1 - \frac{p_u + 1/2}{n}

    for the unit with the place :math:`p_u = 0, 1, \dots` among the :math:`n` units of
    its layer, from the largest score to the smallest.

    Args:
      scores: an array ``[units]`` for each layer, by its name.

    Returns:
      A float32 array ``[units]`` of numbers between 0 and 1 for each layer.

    Example:
      >>> layerwise({"v": jnp.array([5.0, 7.0]), "w": jnp.array([0.1, 0.3])})
      {'v': Array([0.25, 0.75], dtype=float32), 'w': Array([0.25, 0.75], dtype=float32)}
    """

    def ranks(values: chex.Array) -> chex.Array:
        order = jnp.argsort(-values, stable=True)
        places = jnp.zeros(values.shape).at[order].set(jnp.arange(values.size))
        return 1 - (places + 0.5) / values.size

    return {name: ranks(values) for name, values in scores.items()}


def _of_layer(leaves: list[chex.Array], layer: Layer) -> chex.Array:
    members = [m for m in layer.members if m.feeds] or layer.members
    sums = (_sums(leaves[member.leaf], member) for member in members)
    return jnp.abs(sum(sums, start=jnp.zeros(layer.size)))


def _sums(leaf: chex.Array, member: Member) -> chex.Array:
    """Returns the sum of the scores of one parameter for each unit."""
    rest = tuple(i for i in range(jnp.ndim(leaf)) if i != member.axis)
    totals = jnp.sum(jnp.asarray(leaf, jnp.float32), rest)
    return jnp.sum(totals[np.asarray(member.positions)], axis=1)
