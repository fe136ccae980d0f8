"""Networks with few different weights, and the bits that they take."""

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax import masks
from snipjax.methods.mixtures import Mixture, log_joint

_BITS_OF_FLOAT = 32
_LARGEST_GAP = 2**8  # a longer run of zeros is cut by a zero that is stored


def likeliest_components(
    params: chex.ArrayTree, mask: chex.ArrayTree, mixture: Mixture
) -> chex.ArrayTree:
    """Returns the component of every connection: 0 where it is pruned.

    A kept connection gets the component of the largest responsibility among the others.
    Leaves that are not prunable get a scalar 0.
    """
    masks.check_mask(mask, params)

    def one(keep: chex.Array, w: chex.Array) -> chex.Array:
        if not jnp.ndim(keep):
            return jnp.zeros((), jnp.int32)
        others = log_joint(w, mixture)[1:]
        return jnp.where(keep, 1 + jnp.argmax(others, axis=0), 0)

    return jax.tree.map(one, mask, params)


def quantize(
    params: chex.ArrayTree, mask: chex.ArrayTree, mixture: Mixture
) -> chex.ArrayTree:
    """Returns the parameters with every connection at the mean of its component.

    Leaves that are not prunable stay as they are.
    """
    return jax.tree.map(
        lambda keep, w, j: mixture.means[j].astype(w.dtype) if jnp.ndim(keep) else w,
        mask,
        params,
        likeliest_components(params, mask, mixture),
    )


def bits_per_weight(
    params: chex.ArrayTree, mask: chex.ArrayTree, mixture: Mixture
) -> float:
    """Returns the bits that the quantized network takes, over its connections.

    Like the paper, after Han et al., this counts the component of every entry kept, the
    gap to it from the one before (longer ones than 256 being cut by zeros that are
    stored too), each in a Huffman code of its own, and a codebook of 32 bits for every
    mean in use. Unlike there, a leaf is one list, without pointers to rows. The tables
    of the codes and leaves that are not prunable do not count.

    Example:
      >>> mixture = Mixture(jnp.array([0.0, -1.0, 1.0]), jnp.zeros(3), jnp.zeros(3))
      >>> params = {"w": jnp.array([0.8, -0.1, 0.0, 0.0])}
      >>> mask = {"w": jnp.array([True, True, False, False])}
      >>> bits_per_weight(params, mask, mixture)  # (2 + 2 + 64) / 4
      17.0

    Ullrich, Meeds, Welling, ICLR 2017, after Han, Mao, Dally, "Deep Compression",
    ICLR 2016, section 3.
    """
    components, gaps, total = [], [], 0
    indices = jax.device_get(likeliest_components(params, mask, mixture))
    for keep, leaf in zip(jax.tree.leaves(mask), jax.tree.leaves(indices)):
        if not jnp.ndim(keep):
            continue
        total += leaf.size
        (positions,) = np.nonzero(leaf.ravel())
        for gap, j in zip(np.diff(positions, prepend=-1), leaf.ravel()[positions]):
            zeros = (int(gap) - 1) // _LARGEST_GAP
            gaps += [_LARGEST_GAP] * zeros + [int(gap) - zeros * _LARGEST_GAP]
            components += [0] * zeros + [int(j)]
    if not total:
        raise ValueError(
            "no leaf of the mask is prunable: all are scalars; a prunable leaf is a "
            "bool array of the parameter's shape"
        )
    codebook = _BITS_OF_FLOAT * len(set(components) - {0})
    return (huffman_bits(components) + huffman_bits(gaps) + codebook) / total


def huffman_bits(symbols: Iterable[Hashable]) -> int:
    """Returns the length in bits of symbols in their own Huffman code.

    Each symbol takes a bit if there is a single kind.

    Example:
      >>> huffman_bits("aabc")  # 0, 0, 10, 11
      6
    """
    counts = Counter(symbols).values()
    if len(counts) == 1:
        return sum(counts)
    heap, bits = sorted(counts), 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged
        heapq.heappush(heap, merged)
    return bits
