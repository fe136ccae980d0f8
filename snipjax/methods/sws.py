r"""Soft weight-sharing: weights drawn to a mixture of Gaussians, one of them at zero.

The mixture is trained together with the weights. Adam minimizes, for :math:`N`
examples,

.. math:: L = -\frac{1}{N} \log p(D | w) - \frac{\tau}{N} \left(\sum_i \log p(w_i)
   + \sum_j \log p(\lambda_j)\right)

with the prior of :mod:`snipjax.methods.mixtures`. Weights then belong to the component
of the largest responsibility. Weights of the zero component are pruned; the others may
be quantized to the mean of theirs.

Hyper-priors and learning rates come from the authors' published tutorial; two
constants are not. :math:`\tau` is 0.1, not 0.003, and components start at a standard
deviation of 0.05, not 0.25: with the tutorial's values the zero component takes more
steps to contract than there are here. In the tutorial components of a divergence below
1e-10 are merged at last; these do not come up, and are not looked for.

Ullrich, Meeds, Welling, "Soft Weight-Sharing for Neural Network Compression", ICLR
2017.
"""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks
from snipjax.methods import phases
from snipjax.methods.dense import start
from snipjax.methods.mixtures import (
    Free,
    Mixture,
    initial_mixture,
    log_odds,
    negative_log_hyper_prior,
    negative_log_prior,
    with_zero_component,
)
from snipjax.methods.problem import Aux, History, Outcome, Problem, joined
from snipjax.methods.quantization import bits_per_weight, quantize
from snipjax.methods.settings import Settings, bounded
from snipjax.training import Metrics


@dataclasses.dataclass(frozen=True)
class SWS(Settings):
    r"""Holds the hyperparameters of :func:`sws`.

    Attributes:
      share: steps, as a share of dense training's.
      num_components: number of components, the zero component included.
      zero_proportion: :math:`\pi_0`, in (0, 1).
      strength: :math:`\tau`, the factor of the log prior.
      initial_std: standard deviation of every component at the start, where means are
        evenly spread, from minus to plus the largest magnitude of a pretrained weight.
      zero_shape: shape of the Gamma prior on the zero component's precision.
      zero_rate: rate of the same.
      shape: shape of the Gamma prior on any other component's precision.
      rate: rate of the same.
      learning_rate: learning rate of the weights.
      means_learning_rate: learning rate of the components' means.
      mixture_learning_rate: learning rate of log precisions and logits of proportions.

    Example:
      >>> settings = SWS(num_components=9)
      >>> settings.num_components, settings.strength
      (9, 0.1)
    """

    share: float = 0.5
    num_components: int = bounded(17, least=3)  # one for weights of each sign
    zero_proportion: float = bounded(0.99, above=0, below=1)
    strength: float = bounded(0.1, least=0)
    initial_std: float = 0.05
    zero_shape: float = 5000.0
    zero_rate: float = 2.0
    shape: float = 250.0
    rate: float = 0.1
    learning_rate: float = 5e-4
    means_learning_rate: float = 1e-4
    mixture_learning_rate: float = 3e-3


class State(NamedTuple):
    params: chex.ArrayTree
    free: Free
    opt_state: optax.OptState


def sws(
    problem: Problem,
    sparsity: float,
    settings: SWS = SWS(),
    pretrained: Outcome | None = None,
) -> Outcome:
    r"""Retrains under the mixture, and prunes the weights of its zero component.

    .. math:: c = \mathbb{1}\Big[\pi_0 N(w; 0, \sigma_0^2) <
              \max_{k > 0} \pi_k N(w; \mu_k, \sigma_k^2)\Big]

    for the proportions, means and variances of the mixture's components, of which 0 is
    the zero component. If the other components have more than
    ``round(m * (1 - sparsity))`` connections, only as many are kept, with the largest
    odds of the likeliest other component against the zero component. If they have
    fewer, all of them are kept. Every evaluation on the way is of the network pruned
    so, not quantized. Its row in the history has ``kept_by_rule``, the number of
    connections outside the zero component. There is no training after pruning.

    The last row of the history, of the phase "quantized", has the errors of the
    network returned once it is quantized, and the ``bits_per_weight`` it then takes.
    Parameters are returned as they were before. The sparsity is the
    least to reach.

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

        settings = methods.SWS(num_components=9)
        params, mask, history = methods.sws(problem, 0.95, settings)

    Ullrich, Meeds, Welling, ICLR 2017.
    """
    pretrained = start(problem, sparsity, pretrained)
    everything = masks.ones(pretrained.params, problem.prunable)
    others = settings.num_components - 1
    shapes = jnp.array([settings.zero_shape] + [settings.shape] * others)
    rates = jnp.array([settings.zero_rate] + [settings.rate] * others)
    optimizer = optax.partition(
        {
            "params": optax.adam(settings.learning_rate),
            "means": optax.adam(settings.means_learning_rate),
            "others": optax.adam(settings.mixture_learning_rate),
        },
        ("params", Free("means", "others", "others")),
    )

    def whole(free: Free) -> Mixture:
        return with_zero_component(free, settings.zero_proportion)

    def step(state: State, batch: Any, key: chex.PRNGKey) -> tuple[State, Metrics]:
        del key

        def objective(
            params: chex.ArrayTree, free: Free
        ) -> tuple[chex.Array, tuple[chex.Array, Aux]]:
            loss, aux = problem.loss(params, batch)
            mixture = whole(free)
            complexity = negative_log_prior(_prunable(params, everything), mixture)
            complexity += negative_log_hyper_prior(mixture, shapes, rates)
            factor = settings.strength / problem.num_examples
            return loss + factor * complexity, (loss, aux)

        network = (state.params, state.free)
        grads, (loss, aux) = jax.grad(objective, (0, 1), has_aux=True)(*network)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        metrics = Metrics(loss, jnp.asarray(aux.error, jnp.float32))
        params, free = optax.apply_updates(network, updates)
        return State(params, free, opt_state), metrics

    def odds(state: State) -> chex.ArrayTree:
        mixture = whole(state.free)
        return jax.tree.map(lambda w: log_odds(w, mixture), state.params)

    def deployed(state: State) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        scores = odds(state)
        mask = masks.global_topk(scores, sparsity, problem.prunable)
        return state.params, jax.tree.map(
            lambda keep, score: keep & (score > 0) if keep.ndim else keep, mask, scores
        )

    def measure(state: State) -> dict[str, Any]:
        by_rule = [jnp.sum(score > 0) for score in _prunable(odds(state), everything)]
        return {"kept_by_rule": sum(by_rule), "mixture": whole(state.free)}

    free = initial_mixture(
        _prunable(pretrained.params, everything),
        settings.num_components,
        settings.initial_std,
    )
    network = (pretrained.params, free)
    phase = phases.Phase(problem, step, deployed, measure)
    fitted = phase(
        State(*network, optimizer.init(network)),
        num_steps=problem.share(settings.share),
        key=problem.phase_key(1),
        name="sws",
    )
    params, mask, mixture = fitted.params, fitted.mask, fitted.measured["mixture"]
    masks.warn_if_disconnected(mask)
    few = quantize(params, mask, mixture)
    row = phases.evaluated(problem, few, mask, "quantized")
    row["bits_per_weight"] = bits_per_weight(params, mask, mixture)
    pruned = History((row,), prunes=int(masks.sparsity(mask) > 0))
    return Outcome(params, mask, joined(pretrained.history, fitted.history, pruned))


def _prunable(tree: chex.ArrayTree, mask: chex.ArrayTree) -> list[chex.Array]:
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(mask))
    return [leaf for leaf, keep in leaves if jnp.ndim(keep)]
