"""SET, sparse evolutionary training: connections grow at random."""

import chex
import jax
import optax

from snipjax import saliency
from snipjax._src.types import Criterion, Mask
from snipjax.optim.moves import Move, moving, sparse_scores
from snipjax.optim.relocation import Structure, relocated


def set(
    inner: optax.GradientTransformation,
    mask: Mask,
    *,
    every: int,
    stop: int,
    key: chex.PRNGKey,
    fraction: optax.ScalarOrSchedule = 0.3,
    layerwise: bool = True,
    criterion: Criterion = saliency.magnitude,
    structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns an optimizer that moves weak connections to random places.

    In update :math:`t = every, 2\,every, \dots < stop`, of the :math:`n_l` kept
    connections of leaf :math:`l` the

    .. math:: k_l = \Big\lfloor \frac{\alpha}{2}
              \Big(1 + \cos\frac{\pi t}{stop}\Big) \, n_l \Big\rfloor

    with the smallest :math:`|w|` are dropped, and of the pruned ones :math:`k_l` at
    random grow. These start from zero, with the moments that the inner optimizer starts
    with; one that was just dropped and grows again keeps its weight and moments. The
    number of connections is the same after every move. A move takes the place of a
    step, as in :func:`rigl`.

    The paper drops the same share in every epoch, without a decay, and smallest
    positive and largest negative weights apart: for its share, pass
    ``fraction=optax.constant_schedule(0.3)`` and the updates of an epoch as ``every``.

    Args:
      inner: any optax transformation, extra arguments included.
      mask: pytree of bools like the params, the mask to start from.
      every: number of updates from one move to the next.
      stop: number of updates after which the mask stays.
      key: PRNG key of the places; a move takes ``fold_in(key, step)``.
      fraction: share :math:`\alpha` of the kept connections that a first move would
        drop, or a schedule ``step -> share`` in place of the cosine.
      layerwise: whether each leaf keeps its number of connections; otherwise all leaves
        are one, and connections move between them. Blocks and units are counted as one
        each, and a unit may have more connections in one leaf than in another.
      criterion: ``(loss_fn, params, batch, *, key) -> scores``; the connections of the
        least scores are dropped. For one that takes the loss, ``update`` needs
        ``loss_fn=`` and ``batch=``.
      structure: structure that moves as a whole: a function such as ``masks.blocks``,
        ``masks.units`` or ``masks.n_of_m`` with its settings bound by
        :func:`functools.partial`. The mask to start from is of the same structure.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a :class:`MovingState`; its
      ``mask`` is the mask now. Its updates take pruned entries to exactly zero.

    Raises:
      ValueError: if ``every`` or ``stop`` is not a positive integer, ``fraction`` is
        outside [0, 1], or there is no key. ``init`` raises it if the mask is not of the
        structure, and ``update`` without params.

    Example:
      >>> mask = {"w": jnp.arange(100).reshape(10, 10) < 30}
      >>> key = jax.random.key(0)
      >>> optimizer = snipjax.optim.set(optax.sgd(0.1), mask, every=1, stop=9, key=key)
      >>> params = {"w": jnp.where(mask["w"], 1.0, 0.0)}
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(params, state, params)
      >>> int(state.mask["w"].sum()), int(state.info.dropped) == int(state.info.grown)
      (30, True)

    Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science", Nature Communications 2018, algorithm 1.
    """

    if key is None:
        raise ValueError(
            "key is None, but set grows at random; pass one, e.g. jax.random.key(0)"
        )

    def moved(move: Move) -> Mask:
        assert move.key is not None
        drop_key, grow_key = jax.random.split(move.key)
        return relocated(
            move.mask,
            sparse_scores(criterion, move, drop_key),
            saliency.random(None, move.params, None, key=grow_key),
            move.fraction,
            structure=structure,
            layerwise=layerwise,
        )

    return moving(
        inner,
        mask,
        moved,
        every=every,
        stop=stop,
        fraction=fraction,
        key=key,
        structure=structure,
    )
