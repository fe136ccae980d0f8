r"""Sparse variational dropout: weights whose noise outgrows them are pruned.

Every prunable weight has a posterior :math:`q(w) = N(\theta, \sigma^2)`, with
:math:`\alpha = \sigma^2 / \theta^2`, under a log-uniform prior, and

.. math:: L(\theta, \sigma) = \frac{1}{n} \sum_i^n E_q[-\log p(y_i | x_i, w)]
   + \frac{\beta}{N} \sum_w \mathrm{KL}(q(w) \| p(w))

of a batch of :math:`n` of :math:`N` examples is minimised by Adam, whose learning rate
falls linearly to zero, in both :math:`\theta` and :math:`\log \sigma^2` (the
additive-noise parametrisation), while :math:`\beta` rises linearly to 1 (the warm-up).

Molchanov, Ashukha, Vetrov, "Variational Dropout Sparsifies Deep Neural Networks",
ICML 2017. In the authors' code biases have no posterior; here they have one where
``config.prune.prunable`` counts them as connections, each being the weight of a
constant input, and none where it does not. The learning rate is twice the authors',
for a half or less of their steps: every step of Adam changes a log variance by no more
than the learning rate, and it has far to go.

LeNet-5-Caffe at 99.6% comes to 1.27% of error (1.28, 1.27 and 1.25, seeds 0 to 2),
0.47 points above the published 0.8%, with 10,800 steps after 21,600 of dense training;
with 4,050 after 8,100 it was 1.69% (1.59 and 1.78). The rule alone still keeps three
times as many weights as may be (4,770 to 5,113, of 1,724), so that the rest is cut by
rank: more steps are thought to close what is left.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from snipjax import masks, training
from snipjax._src import trees
from snipjax.experiment import Parts
from snipjax.methods import fitting, reference

_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695
_LOG_VARIANCES = "snipjax_log_variances"
_NOISE = "snipjax_noise"
# Of a mean, or a variance of outputs, that may be zero.
_EPSILON = 1e-8


class Posterior(NamedTuple):
    """Independent Gaussians over weights."""

    means: chex.ArrayTree  # the params
    log_variances: chex.ArrayTree  # of those leaves that have noise, a sub-tree


class State(NamedTuple):
    """All that training changes."""

    step: chex.Array  # int32 scalar
    posterior: Posterior
    opt_state: optax.OptState


def sparse_vd(
    parts: Parts,
    target: float,
    *,
    pretrained: fitting.Outcome | None = None,
    share: float = 0.5,
    warm_up: float = 0.3,
    learning_rate: float = 2e-3,
    initial_log_variance: float = -10.0,
    threshold: float = 3.0,
) -> fitting.Outcome:
    r"""Prunes the weights whose noise is larger than they are, all at once at the end.

    The paper's rule prunes where :math:`\log \alpha` exceeds the threshold. Where it
    keeps more than ``round(m * (1 - target))`` connections, only as many are kept,
    those of least :math:`\log \alpha`; where it keeps fewer, no more are. Every
    evaluation on the way is of the network pruned so; its row in the history has
    ``kept_by_rule``, the connections that the rule alone would keep. The weights
    kept are the means; there is no training after pruning.

    Args:
      parts: of :func:`snipjax.experiment.assemble`; a model of ``nn.Dense`` and
        ``nn.Conv``.
      target: the least sparsity to reach.
      pretrained: of :func:`snipjax.methods.dense`, which is called if it is None.
      share: of the steps of training the dense network, to train the posterior for.
      warm_up: share of those in which the factor of the KL term rises from 0 to 1.
      learning_rate: of Adam at the first step; it falls linearly to zero.
      initial_log_variance: of every weight.
      threshold: of :math:`\log \alpha`; 3 is a dropout rate of 0.95.

    Returns:
      The parameters and mask of the evaluation with the least error on validation,
      and the history, of pretraining too.

    Raises:
      ValueError: if an argument is out of its range, the network has batch norm, or
        it has prunable parameters outside of ``nn.Dense`` and ``nn.Conv``.

    Molchanov, Ashukha, Vetrov, ICML 2017.
    """
    fitting.check_target(target)
    _check(share, warm_up, learning_rate, initial_log_variance, threshold)
    pretrained = reference.dense(parts, pretrained=pretrained)
    posterior = initial_posterior(
        parts.model,
        pretrained.params,
        _image(parts),
        parts.prunable,
        initial_log_variance,
    )
    num_steps = fitting.share_of(parts, share)
    num_warm_up = warm_up * num_steps
    optimizer = optax.adam(optax.linear_schedule(learning_rate, 0.0, num_steps))
    num_examples = parts.train.labels.shape[0]

    def step(
        state: State, batch: training.Batch, key: chex.PRNGKey
    ) -> tuple[State, training.Metrics]:
        beta = jnp.minimum(1.0, (state.step + 1) / (num_warm_up + 1))

        grads, metrics = jax.grad(objective, has_aux=True)(
            state.posterior,
            batch,
            key,
            model=parts.model,
            kl_factor=beta / num_examples,
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        posterior = optax.apply_updates(state.posterior, updates)
        return State(state.step + 1, posterior, opt_state), metrics

    def deployed(state: State) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        scores = _scores(state.posterior)
        mask = masks.global_topk(scores, target, parts.prunable)
        by_rule = _kept_by_rule(scores, threshold, parts.prunable)
        return state.posterior.means, jax.tree.map(jnp.logical_and, mask, by_rule)

    def measure(state: State) -> dict[str, chex.Array]:
        by_rule = _kept_by_rule(_scores(state.posterior), threshold, parts.prunable)
        return {
            "kept_by_rule": sum(
                jnp.sum(keep) for keep in jax.tree.leaves(by_rule) if keep.ndim
            )
        }

    fitted = fitting.fit(
        parts,
        step,
        State(jnp.zeros((), jnp.int32), posterior, optimizer.init(posterior)),
        num_steps=num_steps,
        deployed=deployed,
        key=fitting.phase_key(parts, 1),
        phase="sparse_vd",
        measure=measure,
    )
    masks.warn_if_disconnected(fitted.mask)
    history = fitting.joined(
        pretrained.history,
        fitted.history,
        fitting.pruning_history(prunes=int(masks.sparsity(fitted.mask) > 0)),
    )
    return fitting.Outcome(fitted.params, fitted.mask, history)


def initial_posterior(
    model: nn.Module,
    params: chex.ArrayTree,
    images: chex.Array,
    prunable: masks.Prunable,
    log_variance: float,
) -> Posterior:
    """Returns a posterior around trained weights, with noise on those prunable.

    Args:
      model: a Flax Linen model of ``nn.Dense`` and ``nn.Conv``.
      params: of the model.
      images: ``[n, ...]``, for their shape.
      prunable: predicate ``(key_path, leaf) -> bool``.
      log_variance: of every weight with noise.

    Returns:
      The posterior.

    Raises:
      ValueError: if a prunable leaf belongs to no ``nn.Dense`` or ``nn.Conv``.

    Example:
      >>> model, images = nn.Dense(2), jnp.ones((1, 3))
      >>> params = model.init(jax.random.key(0), images)["params"]
      >>> posterior = initial_posterior(model, params, images, masks.kernels, -8.0)
      >>> jax.tree.map(jnp.shape, posterior.log_variances)
      {'kernel': (3, 2)}
    """
    layers = _noisy_layers(model, params, images)
    log_variances = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = tuple(entry.key for entry in path)
        if not (jnp.ndim(leaf) and prunable(path, leaf)):
            continue
        if names[:-1] not in layers or names[-1] not in ("kernel", "bias"):
            raise ValueError(
                f"parameter '{trees.path_name(path)}' is prunable, but of no nn.Dense "
                "or nn.Conv (inside of nn.RNN they do not count), which alone have "
                "local reparametrisation; build the model of these, or choose "
                "config.prune.prunable without it"
            )
        log_variances[names] = jnp.full_like(leaf, log_variance)
    return Posterior(params, traverse_util.unflatten_dict(log_variances))


def objective(
    posterior: Posterior,
    batch: training.Batch,
    key: chex.PRNGKey,
    *,
    model: nn.Module,
    kl_factor: chex.Numeric,
) -> tuple[chex.Array, training.Metrics]:
    r"""Returns what is minimised: a batch's mean loss under noise, and the KL term.

    .. math:: \frac{1}{n} \sum_i^n -\log p(y_i | x_i, w_i)
       + f \sum_w \mathrm{KL}(q(w) \| p(w)), \quad w_i \sim q

    Args:
      posterior: q, over the model's params.
      batch: of n examples, preprocessed.
      key: PRNG key of the noise.
      model: a Flax Linen model of ``nn.Dense`` and ``nn.Conv``.
      kl_factor: f, which is :math:`\beta / N` in training.

    Returns:
      ``(objective, metrics)``; the metrics are of the noisy outputs, without the KL.

    Example:
      >>> batch = training.Batch(jnp.zeros((1, 3)), jnp.array([0]))
      >>> posterior = Posterior({"kernel": jnp.ones((3, 2))}, {})
      >>> total, _ = objective(
      ...     posterior, batch, jax.random.key(0), model=nn.Dense(2, use_bias=False),
      ...     kl_factor=0.1)
      >>> round(float(total), 4)  # log 2, for nothing has noise
      0.6931

    Molchanov et al., ICML 2017, section 3.2.
    """
    logits = noisy_outputs(model, posterior, batch.images, key)
    loss = training.cross_entropy(logits, batch.labels)
    error = jnp.mean(jnp.argmax(logits, axis=-1) != batch.labels)
    metrics = training.Metrics(loss, error)
    return loss + kl_factor * kl_divergence(posterior), metrics


def noisy_outputs(
    model: nn.Module,
    posterior: Posterior,
    images: chex.Array,
    key: chex.PRNGKey,
) -> chex.Array:
    r"""Returns a model's outputs with weights drawn for every example on its own.

    By local reparametrisation: the outputs of a layer of independent Gaussian weights,
    :math:`y = \sum_i x_i w_i`, are drawn, not the weights,

    .. math:: y \sim N\left(\sum_i x_i \theta_i, \sum_i x_i^2 \sigma_i^2\right).

    In a convolution they are drawn independently at every position, as the paper has
    it, where the same weights would make them dependent. The variance is the layer
    itself applied to squared inputs with variances for weights.

    Args:
      model: a Flax Linen model of ``nn.Dense`` and ``nn.Conv``.
      posterior: over its params.
      images: ``[n, ...]``, as the model takes them.
      key: PRNG key.

    Returns:
      What the model returns.

    Example:
      >>> model, images = nn.Dense(1), jnp.ones((2, 3))
      >>> params = {"kernel": jnp.ones((3, 1)), "bias": jnp.zeros(1)}
      >>> noise = {"kernel": jnp.full((3, 1), -9.0)}
      >>> y = noisy_outputs(model, Posterior(params, noise), images, jax.random.key(0))
      >>> bool(y[0, 0] != y[1, 0]), bool(jnp.all(jnp.abs(y - 3) < 0.1))
      (True, True)

    Kingma, Salimans, Welling, "Variational Dropout and the Local Reparameterization
    Trick", NeurIPS 2015, equation 6; Molchanov et al., ICML 2017, section 4.4.
    """
    variables = {"params": posterior.means, _LOG_VARIANCES: posterior.log_variances}
    with nn.intercept_methods(_with_noise):
        return model.apply(variables, images, rngs={_NOISE: key})


def log_alpha(mean: chex.Array, log_variance: chex.Array) -> chex.Array:
    r"""Returns :math:`\log \alpha = \log \sigma^2 - \log \theta^2`.

    Example:
      >>> round(float(log_alpha(jnp.array(2.0), jnp.array(0.0))), 3)  # -log 4
      -1.386
    """
    return log_variance - jnp.log(jnp.square(mean) + _EPSILON)


def kl_from_log_alpha(log_alpha: chex.Array) -> chex.Array:
    r"""Returns :math:`\mathrm{KL}(N(\theta, \alpha \theta^2) \| p)`, approximately.

    Of the log-uniform prior :math:`p(w) \propto 1 / |w|`, up to a constant such that
    it goes to zero with rising :math:`\alpha`:

    .. math:: k_1 - k_1 \mathrm{sigmoid}(k_2 + k_3 \log \alpha)
       + \tfrac{1}{2} \log(1 + \alpha^{-1})

    with k = 0.63576, 1.87320, 1.48695.

    Args:
      log_alpha: of any shape.

    Returns:
      An array of the same shape.

    Example:
      >>> round(float(kl_from_log_alpha(jnp.array(0.0))), 4)
      0.4312

    Molchanov et al., ICML 2017, equation 14.
    """
    return (
        _K1 * jax.nn.sigmoid(-_K2 - _K3 * log_alpha) + jax.nn.softplus(-log_alpha) / 2
    )


def kl_divergence(posterior: Posterior) -> chex.Array:
    """Returns the sum of :func:`kl_from_log_alpha` over all weights with noise.

    Example:
      >>> posterior = Posterior({"w": jnp.ones(2)}, {"w": jnp.zeros(2)})
      >>> round(float(kl_divergence(posterior)), 4)
      0.8625
    """
    means = traverse_util.flatten_dict(posterior.means)
    log_variances = traverse_util.flatten_dict(posterior.log_variances)
    return sum(
        jnp.sum(kl_from_log_alpha(log_alpha(means[path], log_variance)))
        for path, log_variance in log_variances.items()
    )


def _with_noise(
    next_fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Interceptor of the layers that have log variances among their variables.

    The layer that gives the variance has none, and so is not intercepted again.
    """
    module, mean = context.module, next_fun(*args, **kwargs)
    if context.method_name != "__call__" or not isinstance(module, nn.Dense | nn.Conv):
        return mean
    variances = {
        name: jnp.exp(module.get_variable(_LOG_VARIANCES, name))
        for name in ("kernel", "bias")
        if module.has_variable(_LOG_VARIANCES, name)
    }
    if not variances:
        return mean
    certain = jax.tree.map(jnp.zeros_like, module.variables["params"])
    (inputs,) = args or kwargs.values()
    variance = module.clone(parent=None, name=None).apply(
        {"params": {**certain, **variances}}, jnp.square(inputs)
    )
    noise = _standard_normal(module.make_rng(_NOISE), mean)
    return mean + jnp.sqrt(variance + _EPSILON) * noise


def _standard_normal(key: chex.PRNGKey, like: chex.Array) -> chex.Array:
    """Draws in a loop of two rounds, for what is in a loop is computed once.

    Outside of it, XLA for the CPU draws again wherever the numbers are used: forward,
    backward and in pooling, which took half of a training step.
    """
    num_rows = -(-like.shape[0] // 2)

    def draw(half_key: chex.PRNGKey) -> chex.Array:
        return jax.random.normal(half_key, (num_rows, *like.shape[1:]), like.dtype)

    halves = jax.lax.map(draw, jax.random.split(key))
    return halves.reshape(-1, *like.shape[1:])[: like.shape[0]]


def _noisy_layers(
    model: nn.Module, params: chex.ArrayTree, images: chex.Array
) -> set[tuple[str, ...]]:
    """Paths of the ``nn.Dense`` and ``nn.Conv`` that are called and get noise.

    Those inside of a lifted transformation, as ``nn.RNN``, see no log variances.
    """
    paths = set()

    def record(
        next_fun: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        layer = context.module
        is_noisy = layer.has_variable(_LOG_VARIANCES, "kernel")
        if is_noisy and isinstance(layer, nn.Dense | nn.Conv):
            paths.add(layer.path)
        return next_fun(*args, **kwargs)

    variables = {"params": params, _LOG_VARIANCES: params}
    with nn.intercept_methods(record):
        jax.eval_shape(lambda x: model.apply(variables, x), images)
    return paths


def _scores(posterior: Posterior) -> chex.ArrayTree:
    """The larger, the rather kept: minus log alpha; 0 of what has no noise."""
    log_variances = traverse_util.flatten_dict(posterior.log_variances)
    return traverse_util.unflatten_dict(
        {
            path: -log_alpha(mean, log_variances[path])
            if path in log_variances
            else jnp.zeros_like(mean)
            for path, mean in traverse_util.flatten_dict(posterior.means).items()
        }
    )


def _kept_by_rule(
    scores: chex.ArrayTree, threshold: float, prunable: masks.Prunable
) -> chex.ArrayTree:
    return jax.tree.map(
        lambda keep, score: score >= -threshold if keep.ndim else keep,
        masks.ones(scores, prunable),
        scores,
    )


def _image(parts: Parts) -> chex.Array:
    return jax.eval_shape(parts.preprocess, parts.train.images[:1])


def _check(
    share: float,
    warm_up: float,
    learning_rate: float,
    initial_log_variance: float,
    threshold: float,
) -> None:
    if not 0.0 < share < float("inf"):
        raise ValueError(
            f"share is {share}, but it is of the steps of training the dense network "
            "and must be positive, e.g. 1.0"
        )
    if not 0.0 <= warm_up <= 1.0:
        raise ValueError(
            f"warm_up is {warm_up}, outside [0, 1]; it is the share of the steps in "
            "which the KL term rises, e.g. 0.3"
        )
    if not 0.0 < learning_rate < float("inf"):
        raise ValueError(
            f"learning_rate is {learning_rate}; it must be positive, e.g. 2e-3"
        )
    for name, value, usual in (
        ("initial_log_variance", initial_log_variance, -10),
        ("threshold", threshold, 3),
    ):
        if not abs(value) < float("inf"):
            raise ValueError(f"{name} is {value}; it must be finite, e.g. {usual}")
