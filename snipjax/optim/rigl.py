"""RigL: connections grow where the gradient is large."""

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import saliency
from snipjax._src.types import Criterion, Mask
from snipjax.optim.moves import Move, moving, sparse_scores
from snipjax.optim.relocation import Structure, relocated


def rigl(
    inner: optax.GradientTransformation,
    mask: Mask,
    *,
    every: int,
    stop: int,
    fraction: optax.ScalarOrSchedule = 0.3,
    layerwise: bool = True,
    criterion: Criterion = saliency.magnitude,
    structure: Structure | None = None,
    key: chex.PRNGKey | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns an optimizer that moves weak connections to where gradients are large.

    In update :math:`t = every, 2\,every, \dots < stop`, of the :math:`n_l` kept
    connections of leaf :math:`l` the

    .. math:: k_l = \Big\lfloor \frac{\alpha}{2}
              \Big(1 + \cos\frac{\pi t}{stop}\Big) \, n_l \Big\rfloor

    with the smallest :math:`|w|` are dropped, and of the pruned ones the :math:`k_l`
    with the largest :math:`|\partial L / \partial w|` grow. Candidates for growth are,
    as in the paper, also the connections just dropped; these keep their weight and
    moments. All others that grow start from zero, with the moments that the inner
    optimizer starts with; moments of connections that are dropped start anew too. The
    number of connections is the same after every move.

    As in the paper, a move takes the place of a step: the inner optimizer does not see
    its gradient. In all other updates it is :func:`sparse` with the mask of the time.
    Like it, this is the outermost transformation: inside ``optax.lookahead``, the slow
    params keep dropped connections. Moments that a row or column of connections shares,
    of Adafactor and SM3, or that are projections, of GaLore, stay in a move. The
    gradient is the dense one, of pruned connections too, as :func:`jax.grad` gives it
    at masked params; if an entry is not finite, the update is a step and no move. There
    is no move in the first update, in which the paper's code has one, and of equal
    weights or gradients the first in flat order is kept, where that code adds noise.

    Args:
      inner: any optax transformation, extra arguments included.
      mask: pytree of bools like the params, the mask to start from.
      every: number of updates from one move to the next.
      stop: number of updates after which the mask stays; the paper's is three quarters
        of all.
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
      key: PRNG key for a criterion that draws random numbers.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a :class:`MovingState`; its
      ``mask`` is the mask now. Its updates take pruned entries to exactly zero.

    Raises:
      ValueError: if ``every`` or ``stop`` is not a positive integer, or ``fraction`` is
        outside [0, 1]. ``init`` raises it if the mask is not of the structure, and
        ``update`` without params.

    Example:
      >>> mask = {"w": jnp.array([[True, True, False, False]])}
      >>> optimizer = rigl(optax.sgd(0.1), mask, every=1, stop=10, fraction=0.6)
      >>> params = {"w": jnp.array([[1.0, 3.0, 0.0, 0.0]])}
      >>> gradient, state = {"w": jnp.array([[0.0, 0.0, 2.0, 4.0]])}, None
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(gradient, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> state.mask["w"].tolist(), params["w"].tolist()
      ([[False, True, False, True]], [[0.0, 3.0, 0.0, 0.0]])

    Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, algorithm
    1.
    """

    def moved(move: Move) -> Mask:
        return relocated(
            move.mask,
            sparse_scores(criterion, move, move.key),
            jax.tree.map(lambda g: jnp.abs(g.astype(jnp.float32)), move.gradient),
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
