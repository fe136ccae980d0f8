r"""Sparse variational dropout: weights whose noise outgrows them are pruned.

Every prunable weight has a posterior :math:`q(w) = N(\theta, \sigma^2)`, with
:math:`\alpha = \sigma^2 / \theta^2`, under a log-uniform prior. Adam minimizes, for a
batch of :math:`n` of :math:`N` examples,

.. math:: L(\theta, \sigma) = \frac{1}{n} \sum_i^n E_q[-\log p(y_i | x_i, w)]
   + \frac{\beta}{N} \sum_w \mathrm{KL}(q(w) \| p(w))

in both :math:`\theta` and :math:`\log \sigma^2` (the additive-noise parametrization).
The learning rate falls linearly to zero, while :math:`\beta` rises linearly to 1 (the
warm-up).

In the authors' code biases have no posterior; here they have one if they are prunable,
each being the weight of a constant input. The learning rate is twice the authors', for
a half or less of their steps: every step of Adam changes a log variance by no more
than the learning rate, and it has far to go.

Molchanov, Ashukha, Vetrov, "Variational Dropout Sparsifies Deep Neural Networks",
ICML 2017.
"""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks
from snipjax._src import trees
from snipjax.methods import phases
from snipjax.methods.dense import start
from snipjax.methods.linear_sites import Network, Site, check_covered, trace
from snipjax.methods.problem import Aux, History, Outcome, Problem, joined
from snipjax.methods.settings import Settings, bounded
from snipjax.training import Metrics

_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695
# Keeps divisions by a zero mean or variance finite.
_EPSILON = 1e-8


@dataclasses.dataclass(frozen=True)
class SparseVD(Settings):
    r"""Holds the hyperparameters of :func:`sparse_vd`.

    Attributes:
      share: steps, as a share of dense training's.
      warm_up: share of those in which the factor of the KL term rises from 0 to 1.
      learning_rate: learning rate of Adam at the first step; it falls to zero.
      initial_log_variance: log variance of every weight at the start.
      threshold: threshold of :math:`\log \alpha`; 3 is a dropout rate of 0.95.

    Example:
      >>> settings = SparseVD(threshold=2.0)
      >>> settings.threshold, settings.share
      (2.0, 0.5)
    """

    share: float = 0.5
    warm_up: float = bounded(0.3, least=0, most=1)
    learning_rate: float = 2e-3
    initial_log_variance: float = bounded(-10.0)
    threshold: float = bounded(3.0)


class Posterior(NamedTuple):
    """Independent Gaussians over weights.

    ``log_variances`` has only the leaves with noise, by their names.
    """

    means: chex.ArrayTree
    log_variances: dict[str, chex.Array]


class State(NamedTuple):
    step: chex.Array  # int32 scalar
    posterior: Posterior
    opt_state: optax.OptState


def sparse_vd(
    problem: Problem,
    sparsity: float,
    settings: SparseVD = SparseVD(),
    pretrained: Outcome | None = None,
) -> Outcome:
    r"""Prunes the weights whose noise is larger than they are, all at once at the end.

    The paper's rule keeps the weights :math:`q(w) = N(\theta, \sigma^2)` of little
    noise:

    .. math:: c = \mathbb{1}[\log \alpha \le threshold], \qquad
              \log \alpha = \log \sigma^2 - \log \theta^2.

    If it keeps more than ``round(m * (1 - sparsity))`` connections, only as many are
    kept, with the least :math:`\log \alpha`. If it keeps fewer, all of them are kept.
    Every evaluation on the way is of the network pruned so; its row in the history has
    ``kept_by_rule``, the number of connections that the rule alone would keep. The
    weights kept are the means; there is no training after pruning.

    Every prunable parameter must be the kernel of a matrix product or of a convolution,
    or the bias added to it; another one is a ``ValueError``. The sparsity is the
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

        settings = methods.SparseVD(threshold=2.0)
        params, mask, history = methods.sparse_vd(problem, 0.95, settings)

    Molchanov, Ashukha, Vetrov, ICML 2017.
    """
    network = trace(problem)
    everything = masks.ones(problem.params, problem.prunable)
    check_covered(network, everything, "its noise cannot be drawn in outputs")
    pretrained = start(problem, sparsity, pretrained)
    posterior = initial_posterior(
        pretrained.params, everything, settings.initial_log_variance
    )
    num_steps = problem.share(settings.share)
    num_warm_up = settings.warm_up * num_steps
    optimizer = optax.adam(
        optax.linear_schedule(settings.learning_rate, 0.0, num_steps)
    )

    def step(state: State, batch: Any, key: chex.PRNGKey) -> tuple[State, Metrics]:
        beta = jnp.minimum(1.0, (state.step + 1) / (num_warm_up + 1))
        factor = beta / problem.num_examples
        grads, metrics = jax.grad(objective, has_aux=True)(
            state.posterior, batch, key, network=network, kl_factor=factor
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        posterior = optax.apply_updates(state.posterior, updates)
        return State(state.step + 1, posterior, opt_state), metrics

    def by_rule(scores: chex.ArrayTree) -> chex.ArrayTree:
        return jax.tree.map(
            lambda keep, score: score >= -settings.threshold if keep.ndim else keep,
            everything,
            scores,
        )

    def deployed(state: State) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        scores = negative_log_alpha(state.posterior)
        mask = masks.global_topk(scores, sparsity, problem.prunable)
        mask = jax.tree.map(jnp.logical_and, mask, by_rule(scores))
        return state.posterior.means, mask

    def measure(state: State) -> dict[str, chex.Array]:
        kept = jax.tree.leaves(by_rule(negative_log_alpha(state.posterior)))
        return {"kept_by_rule": sum(jnp.sum(keep) for keep in kept if keep.ndim)}

    phase = phases.Phase(problem, step, deployed, measure)
    fitted = phase(
        State(jnp.zeros((), jnp.int32), posterior, optimizer.init(posterior)),
        num_steps=num_steps,
        key=problem.phase_key(1),
        name="sparse_vd",
    )
    masks.warn_if_disconnected(fitted.mask)
    pruned = History(prunes=int(masks.sparsity(fitted.mask) > 0))
    history = joined(pretrained.history, fitted.history, pruned)
    return Outcome(fitted.params, fitted.mask, history)


def initial_posterior(
    params: chex.ArrayTree, mask: chex.ArrayTree, log_variance: float
) -> Posterior:
    leaves = zip(trees.named_leaves(params), jax.tree.leaves(mask))
    log_variances = {
        name: jnp.full_like(leaf, log_variance)
        for (name, leaf), keep in leaves
        if jnp.ndim(keep)
    }
    return Posterior(params, log_variances)


def objective(
    posterior: Posterior,
    batch: Any,
    key: chex.PRNGKey,
    *,
    network: Network,
    kl_factor: chex.Numeric,
) -> tuple[chex.Array, Metrics]:
    r"""Returns a batch's mean loss under noise, plus the KL term.

    .. math:: \frac{1}{n} \sum_i^n -\log p(y_i | x_i, w_i)
       + f \sum_w \mathrm{KL}(q(w) \| p(w)), \quad w_i \sim q

    The factor f is :math:`\beta / N` in training. The metrics are of the noisy
    outputs, without the KL.

    Molchanov et al., ICML 2017, section 3.2.
    """
    loss, aux = noisy_loss(network, posterior, batch, key)
    metrics = Metrics(loss, jnp.asarray(aux.error, jnp.float32))
    return loss + kl_factor * kl_divergence(posterior), metrics


def noisy_loss(
    network: Network, posterior: Posterior, batch: Any, key: chex.PRNGKey
) -> tuple[chex.Array, Aux]:
    r"""Returns a loss with weights drawn for every example on its own.

    By local reparametrization: the outputs of a layer of independent Gaussian weights,
    :math:`y = \sum_i x_i w_i`, are drawn, not the weights,

    .. math:: y \sim N\left(\sum_i x_i \theta_i, \sum_i x_i^2 \sigma_i^2\right).

    In a convolution they are drawn independently at every position, as the paper has
    it, where the same weights would make them dependent. The variance is the layer
    itself applied to squared inputs with variances for weights.

    Kingma, Salimans, Welling, "Variational Dropout and the Local Reparameterization
    Trick", NeurIPS 2015, equation 6; Molchanov et al., ICML 2017, section 4.4.
    """
    log_variances = posterior.log_variances
    named = list(trees.named_leaves(posterior.means))

    def weights_variance(leaf: int) -> chex.Array:
        name, mean = named[leaf]
        has_noise = name in log_variances
        return jnp.exp(log_variances[name]) if has_noise else jnp.zeros_like(mean)

    def at(site: Site) -> chex.Array:
        layer, mean = site.layer, site.outputs
        leaves = [leaf for leaf in (layer.kernel, layer.bias) if leaf is not None]
        if not any(named[leaf][0] in log_variances for leaf in leaves):
            return mean
        variance = site.apply(jnp.square(site.inputs), *map(weights_variance, leaves))
        noise = _standard_normal(_site_key(key, site), mean)
        return mean + jnp.sqrt(variance + _EPSILON) * noise

    return network(posterior.means, batch, at)


def log_alpha(mean: chex.Array, log_variance: chex.Array) -> chex.Array:
    return log_variance - jnp.log(jnp.square(mean) + _EPSILON)


def kl_from_log_alpha(log_alpha: chex.Array) -> chex.Array:
    r"""Returns :math:`\mathrm{KL}(N(\theta, \alpha \theta^2) \| p)`, approximately.

    For the log-uniform prior :math:`p(w) \propto 1 / |w|`, up to a constant such that
    it goes to zero with rising :math:`\alpha`:

    .. math:: k_1 - k_1 \mathrm{sigmoid}(k_2 + k_3 \log \alpha)
       + \tfrac{1}{2} \log(1 + \alpha^{-1})

    with k = 0.63576, 1.87320, 1.48695.

    Molchanov et al., ICML 2017, equation 14.
    """
    return (
        _K1 * jax.nn.sigmoid(-_K2 - _K3 * log_alpha) + jax.nn.softplus(-log_alpha) / 2
    )


def kl_divergence(posterior: Posterior) -> chex.Array:
    means = dict(trees.named_leaves(posterior.means))
    terms = [
        jnp.sum(kl_from_log_alpha(log_alpha(means[name], log_variance)))
        for name, log_variance in posterior.log_variances.items()
    ]
    return sum(terms, start=jnp.float32(0))


def negative_log_alpha(posterior: Posterior) -> chex.ArrayTree:
    """Returns scores for pruning, a pytree like the parameters; 0 without noise."""
    scores = [
        -log_alpha(mean, posterior.log_variances[name])
        if name in posterior.log_variances
        else jnp.zeros_like(mean)
        for name, mean in trees.named_leaves(posterior.means)
    ]
    return jax.tree.unflatten(jax.tree.structure(posterior.means), scores)


def _site_key(key: chex.PRNGKey, site: Site) -> chex.PRNGKey:
    """Returns a key for a call of a layer that does not depend on other layers."""
    digest = hashlib.sha1((site.layer.name + chr(site.repeat + 1)).encode()).digest()
    return jax.random.fold_in(key, jnp.uint32(int.from_bytes(digest[:4], "big")))


def _standard_normal(key: chex.PRNGKey, like: chex.Array) -> chex.Array:
    """Returns normal numbers, drawn in a loop of two rounds.

    Outside of a loop, XLA for the CPU draws them again wherever they are used: forward,
    backward and in pooling.
    """
    num_rows = -(-like.shape[0] // 2)

    def draw(half_key: chex.PRNGKey) -> chex.Array:
        return jax.random.normal(half_key, (num_rows, *like.shape[1:]), like.dtype)

    halves = jax.lax.map(draw, jax.random.split(key))
    return halves.reshape(-1, *like.shape[1:])[: like.shape[0]]
