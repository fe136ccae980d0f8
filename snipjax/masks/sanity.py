"""Sanity checks: masks that should do worse than a method's own, if it is to matter.

:func:`shuffle` keeps the density of each layer and forgets which connections were kept.
Random scores with another mask's densities do so too, for any number of masks::

    scores = saliency.random(None, params, None, key=key)
    masks.by_density(scores, masks.densities(mask))

Frankle et al., "Pruning Neural Networks at Initialization: Why Are We Missing the
Mark?", ICLR 2021, section 5.
"""

import chex
import jax
import jax.numpy as jnp

from snipjax._src.types import Mask
from snipjax.masks.mask import prunable_leaves


def shuffle(mask: Mask, key: chex.PRNGKey) -> Mask:
    r"""Returns the mask with the entries of each prunable leaf in a random order.

    Every leaf keeps as many connections as before. The permutation is uniform among all
    of a leaf's entries, and independent from leaf to leaf. Layers that are stacked in
    one leaf exchange connections.

    .. math:: c'_{lj} = c_{l \pi_l(j)}

    for a permutation :math:`\pi_l` of each leaf :math:`l`.

    Args:
      mask: pytree of bools; scalar leaves are not prunable and stay as they are.
      key: PRNG key; the same key gives the same permutations.

    Returns:
      A pytree like ``mask``.

    Raises:
      ValueError: if no leaf of the mask is prunable, or ``key`` is None.

    Example:
      >>> mask = {"w": jnp.arange(100).reshape(10, 10) < 30, "b": jnp.array(True)}
      >>> shuffled = shuffle(mask, jax.random.key(0))
      >>> int(shuffled["w"].sum()), bool(jnp.all(shuffled["w"] == mask["w"]))
      (30, False)

    Frankle et al., ICLR 2021, section 5 ("randomly shuffling the pruning mask within
    each layer").
    """
    prunable_leaves(mask)  # or there is nothing to shuffle
    if key is None:
        raise ValueError("key is None; pass a PRNG key, e.g. jax.random.key(0)")
    leaves, treedef = jax.tree.flatten(mask)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        treedef,
        [
            jax.random.permutation(leaf_key, jnp.ravel(leaf)).reshape(leaf.shape)
            if jnp.ndim(leaf)
            else leaf
            for leaf_key, leaf in zip(keys, leaves)
        ],
    )
