"""Selection of units: from their scores to a mask of whole units within a budget."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax._src import checks
from snipjax._src.types import Mask
from snipjax.shrink.layers import Count, Units

Budget = Literal["units", "parameters", "operations"]


def keep(
    scores: Mapping[str, chex.Array],
    units: Units,
    density: float,
    *,
    budget: Budget = "units",
    least: int = 1,
    multiple: int = 1,
) -> Mask:
    r"""Returns the mask that keeps the units with the largest scores within a budget.

    .. math:: K = \{u : S_u \ge \tau\}, \qquad
              \mathrm{size}(K) \le density \cdot \mathrm{size}(\text{all units})

    for the scores :math:`S_u`, with the least :math:`\tau` that the budget allows.

    Units are taken in the order of their scores, over all layers, as long as the
    network has at most the share ``density`` of all units, parameters or operations:
    exactly ``round(density * n)`` of ``n`` units, and as near below the budget as whole
    units come. Ties go to the earlier unit.

    Args:
      scores: an array ``[units]`` for each layer, by its name, as
        :func:`snipjax.shrink.unit_scores` makes them.
      units: the units of the network.
      density: share of the budget to keep, in (0, 1].
      budget: what the share is of: ``"units"``, ``"parameters"``, or ``"operations"``,
        floating-point operations of products.
      least: units of each layer to keep at least.
      multiple: each layer keeps a multiple of so many units, or all: channels in eights
        where hardware likes that. Units are then taken so many of a layer at a time, in
        the order of their mean scores.

    Returns:
      A pytree of bools like the parameters: arrays where units have entries, scalars
      ``True`` where not.

    Raises:
      ValueError: if ``density`` is outside (0, 1], a layer has no score or one that is
        not finite, or even the least of each layer is beyond the budget.

    Example:
      >>> from snipjax import shrink
      >>> params = {"v": jnp.ones((2, 3)), "w": jnp.ones((3, 1))}
      >>> apply_fn = lambda params, x: jnp.tanh(x @ params["v"]) @ params["w"]
      >>> units = shrink.units(apply_fn, params, jnp.ones((1, 2)))
      >>> keep({"v": jnp.array([3.0, 1.0, 2.0])}, units, 2 / 3)["v"]
      Array([[ True, False,  True],
             [ True, False,  True]], dtype=bool)
    """
    checks.check_positive_integer(least, "least")
    checks.check_positive_integer(multiple, "multiple")
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; it must be in (0, 1], the share kept")
    chunks = _chunks(scores, units, least, multiple)
    counts = _counts(units, budget)
    total = sum(layer.size for layer in units.layers)
    everything = sum(count.whole for count in counts)
    # A product such as 0.29 * 100 is a little less than 29.
    allowed = density * everything * (1 + 1e-12)
    if budget == "units":
        allowed = round(density * everything)
    is_kept = np.zeros(total, bool)
    for chunk in (chunk for chunk in chunks if chunk.is_needed):
        is_kept[chunk.units] = True
    if sum(count.at(is_kept) for count in counts) > allowed:
        raise ValueError(
            f"density is {density}, but {least} units of each layer are more than "
            f"that share of the {budget}; make it larger, or `least` smaller"
        )
    rest = [chunk for chunk in chunks if not chunk.is_needed]
    _add_most(is_kept, rest, counts, allowed)
    return _mask(units, is_kept)


class _Chunk(NamedTuple):
    """Units of a layer that are kept together, and the mean of their scores."""

    layer: str
    is_needed: bool
    score: float
    units: np.ndarray


def _chunks(
    scores: Mapping[str, chex.Array], units: Units, least: int, multiple: int
) -> list[_Chunk]:
    """Returns chunks of all layers, from the largest score on."""
    chunks, first = [], 0
    for layer in units.layers:
        if layer.name not in scores:
            raise ValueError(
                f"scores have no layer '{layer.name}'; take them from "
                "shrink.unit_scores with the same units"
            )
        values = np.asarray(scores[layer.name], np.float64)
        if values.shape != (layer.size,):
            raise ValueError(
                f"the scores of '{layer.name}' have shape {values.shape}, but it has "
                f"{layer.size} units; take them from shrink.unit_scores"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"the scores of '{layer.name}' are not finite")
        order = np.argsort(-values, kind="stable")
        for begin in range(0, layer.size, multiple):
            chosen = order[begin : begin + multiple]
            mean, is_needed = float(values[chosen].mean()), begin < least
            chunks.append(_Chunk(layer.name, is_needed, mean, first + chosen))
        first += layer.size
    return sorted(chunks, key=lambda chunk: -chunk.score)


def _counts(units: Units, budget: Budget) -> tuple[Count, ...]:
    number = sum(layer.size for layer in units.layers)
    counts = {
        "units": (Count(1, ((0, np.arange(number)),)),),
        "parameters": units.parameters,
        "operations": units.products,
    }
    if budget not in counts:
        raise ValueError(f"budget is '{budget}'; there are {', '.join(counts)}")
    return counts[budget]


def _add_most(
    is_kept: np.ndarray,
    chunks: list[_Chunk],
    counts: tuple[Count, ...],
    allowed: float,
) -> None:
    """Marks units in their order while they fit, then later ones that still do."""

    def is_allowed(number: int) -> bool:
        trial = is_kept.copy()
        for chunk in chunks[:number]:
            trial[chunk.units] = True
        return sum(count.at(trial) for count in counts) <= allowed

    low, high = 0, len(chunks)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_allowed(middle) else (low, middle - 1)
    for chunk in chunks[:low]:
        is_kept[chunk.units] = True
    full: set[str] = set()  # layers of which no more fits
    for chunk in chunks[low:]:
        if chunk.layer not in full:
            is_kept[chunk.units] = True
            if sum(count.at(is_kept) for count in counts) > allowed:
                is_kept[chunk.units] = False
                full.add(chunk.layer)


def _mask(units: Units, is_kept: np.ndarray) -> Mask:
    leaves, treedef = jax.tree.flatten(units.like)
    kept: dict[int, np.ndarray] = {}
    first = 0
    for layer in units.layers:
        pruned = ~is_kept[first : first + layer.size]
        first += layer.size
        for member in layer.members:
            leaf = kept.setdefault(
                member.leaf, np.ones(leaves[member.leaf].shape, bool)
            )
            positions = member.positions[pruned].ravel()
            leaf[(slice(None),) * member.axis + (positions,)] = False
    return jax.tree.unflatten(
        treedef, [jnp.asarray(kept.get(i, True)) for i in range(len(leaves))]
    )
