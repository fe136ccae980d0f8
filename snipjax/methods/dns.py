"""Dynamic network surgery: connections are pruned, and spliced back where missed."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks
from snipjax.methods import layers, phases
from snipjax.methods.dense import start
from snipjax.methods.problem import History, Outcome, Problem, joined
from snipjax.methods.settings import Settings, bounded
from snipjax.training import Metrics


@dataclasses.dataclass(frozen=True)
class DNS(Settings):
    """Holds the hyperparameters of :func:`dns`.

    Attributes:
      surgery: steps of the surgery, as a share of dense training's.
      recovery: steps with the last mask, as a share of the same.
      gamma: number of steps in which updates of the mask become rare, as a factor.
      power: power by which they become rare.
      lower: factor of the threshold a, below which connections are pruned.
      upper: factor of the threshold b, from which on they are spliced.
      learning_rate: learning rate of both phases, as a share of dense training's.
      decays: number of decays of the learning rate in each of both phases.

    Example:
      >>> settings = DNS(surgery=0.5)
      >>> settings.surgery, settings.recovery
      (0.5, 0.5)
    """

    surgery: float = 0.75
    recovery: float = 0.5
    gamma: float = bounded(10.0, least=0)
    power: float = bounded(1.0, least=0)
    lower: float = 0.9
    upper: float = bounded(1.1, least=0)
    learning_rate: float = 0.3
    decays: int = bounded(1, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.upper < self.lower:
            raise ValueError(
                f"upper is {self.upper}; it must be at least lower, {self.lower}, "
                "e.g. 1.1"
            )


class Surgery(NamedTuple):
    """The carry of training while the mask T moves.

    ``params`` has hidden weights too. ``prunes`` counts the updates of the mask that
    removed a connection.
    """

    params: chex.ArrayTree
    opt_state: optax.OptState
    mask: chex.ArrayTree
    number: chex.Array
    prunes: chex.Array


def dns(
    problem: Problem,
    sparsity: float,
    settings: DNS = DNS(),
    pretrained: Outcome | None = None,
) -> Outcome:
    r"""Prunes and splices while training, and then trains the remaining connections.

    Before a step of the surgery, with probability :math:`(1 + \gamma t)^{-power}`,
    where :math:`t` goes from 0 to 1, the mask :math:`T` of the weights :math:`W` is
    updated, and then all weights follow the gradient:

    .. math:: T \leftarrow \begin{cases} 0 & |W| < a \\ T & a \le |W| < b \\
                                         1 & b \le |W| \end{cases} \qquad
              \begin{aligned} a &= lower \, (\mu + c \sigma) \\
                              b &= upper \, (\mu + c \sigma) \end{aligned}
              \qquad W \leftarrow W - \eta \frac{\partial L}{\partial (W \odot T)}

    with mean :math:`\mu` and standard deviation :math:`\sigma` of each layer's
    :math:`|W|`, pretrained. The paper gives each layer's :math:`c` by hand, smaller for
    smaller layers. Here it is proportional to the logarithm of the layer's size, and at
    every update as large as it takes for :math:`T` to reach the sparsity. The network
    returned is the best of the recovery.

    Args:
      problem: the network, its data and its training.
      sparsity: share of all prunable connections to remove, in [0, 1).
      settings: the hyperparameters.
      pretrained: the outcome of :func:`dense` to start from; trained first if it is
        None.

    Returns:
      The parameters of the evaluation with the least error on validation, a mask of
      bool arrays like them, and the history.

    Raises:
      ValueError: if the sparsity or a field of the problem is out of range, or
        ``pretrained`` is of another network.

    Example:
      ``problem`` is a :class:`Problem`, as its example makes one:

      .. code-block:: python

        from snipjax import methods

        settings = methods.DNS(surgery=0.5, recovery=0.25)
        params, mask, history = methods.dns(problem, 0.95, settings)

    Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NeurIPS 2016.
    """
    pretrained = start(problem, sparsity, pretrained)
    params, mask = pretrained.params, masks.ones(pretrained.params, problem.prunable)
    operate = functools.partial(
        spliced,
        *mean_and_scale(params, mask),
        sparsity=sparsity,
        prunable=problem.prunable,
        lower=settings.lower,
        upper=settings.upper,
    )
    num_steps = problem.share(settings.surgery)
    rate, decays = settings.learning_rate, settings.decays
    optimizer = phases.optimizer(problem, num_steps, rate, decays)

    def step(carry: Surgery, batch: Any, key: chex.PRNGKey) -> tuple[Surgery, Metrics]:
        params = carry.params

        def cut(mask: chex.ArrayTree) -> tuple[chex.ArrayTree, chex.Array]:
            updated = operate(params, mask)
            return updated, carry.prunes + loses_any(mask, updated)

        mask, prunes = jax.lax.cond(
            jax.random.uniform(key) < update_chance(carry.number / num_steps, settings),
            cut,
            lambda mask: (mask, carry.prunes),
            carry.mask,
        )
        grads, metrics = problem.gradient(masks.apply(mask, params), batch)
        updates, opt_state = optimizer.update(grads, carry.opt_state, params)
        params = optax.apply_updates(params, updates)
        return Surgery(params, opt_state, mask, carry.number + 1, prunes), metrics

    zero = jnp.zeros((), jnp.int32)
    surgery = phases.Phase(problem, step, lambda carry: (carry.params, carry.mask))
    operated = surgery(
        Surgery(params, optimizer.init(params), mask, zero, zero),
        num_steps=num_steps,
        key=problem.phase_key(1),
        name="surgery",
    )
    params, _, mask, _, prunes = operated.carry
    masks.warn_if_disconnected(mask)
    num_steps = problem.share(settings.recovery)
    optimizer = phases.optimizer(problem, num_steps, rate, decays)
    recovery = phases.SparsePhase(problem, optimizer)
    recovered = recovery(
        recovery.start(params, mask),
        num_steps=num_steps,
        key=problem.phase_key(2),
        name="recovery",
    )
    history = joined(
        pretrained.history,
        operated.history,
        History(prunes=int(prunes)),
        recovered.history,
    )
    return Outcome(recovered.params, recovered.mask, history)


def update_chance(time: chex.Numeric, settings: DNS) -> chex.Numeric:
    """Returns the probability of an update of the mask, ``(1 + gamma t)^-power``.

    The time t goes from 0 at the first step of the surgery to 1 at its end.
    """
    return (1 + settings.gamma * time) ** -settings.power


def mean_and_scale(
    params: chex.ArrayTree, mask: chex.ArrayTree
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Returns the parts of a layer's thresholds, which are ``mean + c scale``.

    The mean is of the layer's ``|W|``. The scale is the standard deviation times
    ``log(1 + n)``, for a layer of n prunable connections, so that one c suits small
    layers and large ones.
    """
    mean, std = layers.mean_and_std(jax.tree.map(jnp.abs, params), mask)
    return mean, jax.tree.map(jnp.multiply, std, layers.log_size(mask))


def spliced(
    mean: chex.ArrayTree,
    scale: chex.ArrayTree,
    params: chex.ArrayTree,
    mask: chex.ArrayTree,
    *,
    sparsity: float,
    prunable: masks.Prunable,
    lower: float,
    upper: float,
) -> chex.ArrayTree:
    """Returns the mask after one update, which prunes and splices.

    A kept connection stays if ``|w| / lower >= mean + c scale``, and a hidden one
    comes back if ``|w| / upper`` is. So c is an order statistic, over all layers, of
    these quotients less ``mean``, over ``scale``.
    """
    scores = jax.tree.map(
        lambda keep, w, mean, scale: (
            (jnp.abs(w) / jnp.where(keep, lower, upper) - mean) / scale
        ),
        mask,
        params,
        mean,
        scale,
    )
    return masks.global_topk(scores, sparsity, prunable)


def loses_any(before: chex.ArrayTree, after: chex.ArrayTree) -> chex.Array:
    """Returns 1 if a connection kept before is not kept after, else 0, as int32."""
    lost = jax.tree.map(lambda b, a: jnp.any(b & ~a), before, after)
    return jnp.any(jnp.stack(jax.tree.leaves(lost))).astype(jnp.int32)
