r"""Soft weight-sharing: weights drawn to a mixture of Gaussians, one of them at zero.

The prior of every prunable weight is a mixture that is trained together with them,

.. math:: p(w) = \sum_{j=0}^J \pi_j N(w | \mu_j, \lambda_j^{-1}), \quad
   \mu_0 = 0, \quad \pi_0 \text{ fixed, near } 1,

with a Gamma hyper-prior on every precision :math:`\lambda_j`, and what is minimised, by
Adam, of :math:`N` examples, is

.. math:: L = -\frac{1}{N} \log p(D | w) - \frac{\tau}{N} \left(\sum_i \log p(w_i)
   + \sum_j \log p(\lambda_j)\right).

Weights then belong to the component of the largest responsibility: those of the zero
component are pruned, the others may be quantised to the mean of theirs.

Ullrich, Meeds, Welling, "Soft Weight-Sharing for Neural Network Compression", ICLR
2017. Hyper-priors and learning rates are those of the authors' published tutorial; two
constants are not. :math:`\tau` is 0.1, not 0.003, under which what the zero component
has is not near zero yet when this few steps end: LeNet-300-100, retrained for 5,400
steps and pruned to 95.6%, had a test error of 10.9% then, and of 1.6% under 0.03 (seed
0); LeNet-5-Caffe at 99.5% needs 0.1. And components start at a standard deviation of
0.05, not 0.25, which takes half the steps to come to as much: 1.8% after 2,700, against
8.6%. In the tutorial components of a divergence below 1e-10 are merged at last; these
do not come up, and are not looked for.

LeNet-5-Caffe at 99.5% comes to 1.45% of error (1.39, 1.36 and 1.60, seeds 0 to 2), 0.45
points above the published 1.0%, after 21,600 steps of dense training and 10,800 of
retraining; of seed 0 it was 2.3% after 8,100 and 4,050. What it lacks in few steps is
thought to be of two kinds: the zero component takes thousands of them to contract
(49.3% after 1,620 under 0.03), and it then keeps apart more weights than there may be
(4,664 in a run of 5,400 steps, of which 2,155 are kept), while the error in training is
still falling. LeNet-300-100 at 95.6% would rather have 0.03 and a quarter of the steps:
1.65, 1.85 and 2.13% (seeds 0 to 2), against 1.94, 2.23 and 2.15%.

Quantised to the means of their components, these networks have 1.94% (LeNet-5-Caffe,
0.061 bits a weight) and 2.43% (LeNet-300-100, 0.19 bits), 0.9 and 0.5 points above the
published errors, which are understood to be of quantised networks. More components,
which would take less from the weights that are kept, were not tried.
"""

import heapq
import math
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from snipjax import masks, training
from snipjax.experiment import Parts
from snipjax.methods import fitting, reference

# Weights whose mixture is computed at a time, few enough to stay in the cache.
_PIECE = 2**13
_BITS_OF_FLOAT = 32
_LARGEST_GAP = 2**8  # a longer run of zeros is cut by a zero that is stored


class Mixture(NamedTuple):
    """Gaussians ``[components]``; the first is the zero component, of mean 0."""

    means: chex.Array
    log_precisions: chex.Array
    log_proportions: chex.Array


class Free(NamedTuple):
    """What is trained of a mixture: see :func:`mixture_of`."""

    means: chex.Array  # [components - 1], without that of the zero component
    log_precisions: chex.Array  # [components]
    logits: chex.Array  # [components - 1], of the other proportions


class State(NamedTuple):
    """All that training changes."""

    params: chex.ArrayTree
    free: Free
    opt_state: optax.OptState


def sws(
    parts: Parts,
    target: float,
    *,
    pretrained: fitting.Outcome | None = None,
    share: float = 0.5,
    num_components: int = 17,
    zero_proportion: float = 0.99,
    strength: float = 0.1,
    initial_std: float = 0.05,
    zero_shape: float = 5000.0,
    zero_rate: float = 2.0,
    shape: float = 250.0,
    rate: float = 0.1,
    learning_rate: float = 5e-4,
    means_learning_rate: float = 1e-4,
    mixture_learning_rate: float = 3e-3,
) -> fitting.Outcome:
    r"""Retrains under the mixture, and prunes what belongs to its zero component.

    Where the other components have more than ``round(m * (1 - target))`` connections,
    only as many are kept, those of the largest odds of the likeliest other component
    against the zero component (:func:`log_odds`); where they have fewer, no more are.
    Every evaluation on the way is of the network pruned so, not quantised; its row in
    the history has ``kept_by_rule``, the connections that do not belong to the zero
    component. There is no training after pruning.

    The last row of the history, of the phase "quantised", has the errors of the
    network returned once it is quantised (:func:`quantised`), and the
    ``bits_per_weight`` it then takes (:func:`bits_per_weight`). Parameters are
    returned as they were before.

    Args:
      parts: of :func:`snipjax.experiment.assemble`.
      target: the least sparsity to reach.
      pretrained: of :func:`snipjax.methods.dense`, which is called if it is None.
      share: of the steps of training the dense network, to retrain for.
      num_components: of the mixture, with the zero component.
      zero_proportion: :math:`\pi_0`.
      strength: :math:`\tau`, of the log prior.
      initial_std: of every component; means start evenly spread, from minus to plus
        the largest magnitude of a pretrained weight.
      zero_shape: of the Gamma prior on the zero component's precision.
      zero_rate: of the same.
      shape: of the Gamma prior on any other component's precision.
      rate: of the same.
      learning_rate: of the weights.
      means_learning_rate: of the components' means.
      mixture_learning_rate: of log precisions and logits of proportions.

    Returns:
      The parameters and mask of the evaluation with the least error on validation,
      and the history, of pretraining too.

    Raises:
      ValueError: if an argument is out of its range, or the network has batch norm.

    Ullrich, Meeds, Welling, ICLR 2017.
    """
    fitting.check_target(target)
    _check_mixture(num_components, zero_proportion)
    _check_positive(
        share=share,
        initial_std=initial_std,
        zero_shape=zero_shape,
        zero_rate=zero_rate,
        shape=shape,
        rate=rate,
        learning_rate=learning_rate,
        means_learning_rate=means_learning_rate,
        mixture_learning_rate=mixture_learning_rate,
    )
    if not 0.0 <= strength < math.inf:
        raise ValueError(
            f"strength is {strength}; it is the factor of the log prior and must not "
            "be negative, e.g. 0.1"
        )
    pretrained = reference.dense(parts, pretrained=pretrained)
    everything = masks.ones(pretrained.params, parts.prunable)
    shapes = jnp.array([zero_shape] + [shape] * (num_components - 1))
    rates = jnp.array([zero_rate] + [rate] * (num_components - 1))
    num_examples = parts.train.labels.shape[0]
    optimizer = optax.partition(
        {
            "params": optax.adam(learning_rate),
            "means": optax.adam(means_learning_rate),
            "others": optax.adam(mixture_learning_rate),
        },
        ("params", Free("means", "others", "others")),
    )

    def step(
        state: State, batch: training.Batch, key: chex.PRNGKey
    ) -> tuple[State, training.Metrics]:
        del key

        def loss_fn(
            params: chex.ArrayTree, free: Free
        ) -> tuple[chex.Array, training.Metrics]:
            logits = parts.model.apply({"params": params}, batch.images)
            loss = training.cross_entropy(logits, batch.labels)
            error = jnp.mean(jnp.argmax(logits, axis=-1) != batch.labels)
            mixture = mixture_of(free, zero_proportion)
            complexity = negative_log_prior(_prunable(params, everything), mixture)
            complexity += negative_log_hyper_prior(mixture, shapes, rates)
            metrics = training.Metrics(loss, error)
            return loss + strength / num_examples * complexity, metrics

        trained = (state.params, state.free)
        grads, metrics = jax.grad(loss_fn, (0, 1), has_aux=True)(*trained)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        return State(*optax.apply_updates(trained, updates), opt_state), metrics

    def odds(state: State) -> chex.ArrayTree:
        mixture = mixture_of(state.free, zero_proportion)
        return jax.tree.map(lambda w: log_odds(w, mixture), state.params)

    def deployed(state: State) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        scores = odds(state)
        mask = masks.global_topk(scores, target, parts.prunable)
        return state.params, jax.tree.map(
            lambda keep, score: keep & (score > 0) if keep.ndim else keep, mask, scores
        )

    def measure(state: State) -> dict[str, Any]:
        by_rule = [jnp.sum(score > 0) for score in _prunable(odds(state), everything)]
        mixture = mixture_of(state.free, zero_proportion)
        return {"kept_by_rule": sum(by_rule), "mixture": mixture}

    free = initial_mixture(
        _prunable(pretrained.params, everything), num_components, initial_std
    )
    trained = (pretrained.params, free)
    fitted = fitting.fit(
        parts,
        step,
        State(*trained, optimizer.init(trained)),
        num_steps=fitting.share_of(parts, share),
        deployed=deployed,
        key=fitting.phase_key(parts, 1),
        phase="sws",
        measure=measure,
    )
    masks.warn_if_disconnected(fitted.mask)
    history = fitting.joined(
        pretrained.history,
        fitted.history,
        fitting.pruning_history(prunes=int(masks.sparsity(fitted.mask) > 0)),
        _quantised_history(parts, fitted),
    )
    return fitting.Outcome(fitted.params, fitted.mask, history)


def initial_mixture(
    weights: Iterable[chex.Array], num_components: int, std: float
) -> Free:
    """Returns components of equal proportions, evenly spread over the weights.

    Args:
      weights: arrays, of any shapes.
      num_components: with the zero component.
      std: of every component.

    Example:
      >>> initial_mixture([jnp.array([0.2, -0.6])], 4, 0.25).means
      Array([-0.6,  0. ,  0.6], dtype=float32)
    """
    largest = max(jnp.max(jnp.abs(w)) for w in weights)
    return Free(
        means=jnp.linspace(-largest, largest, num_components - 1),
        log_precisions=jnp.full(num_components, -2 * math.log(std)),
        logits=jnp.zeros(num_components - 1),
    )


def mixture_of(free: Free, zero_proportion: float) -> Mixture:
    """Returns the mixture of given parameters, with its zero component.

    Args:
      free: means and log precisions, and logits of which the softmax gives the
        proportions of what the zero component leaves.
      zero_proportion: in (0, 1).

    Example:
      >>> free = Free(jnp.array([0.5, 1.0]), jnp.zeros(3), jnp.zeros(2))
      >>> mixture = mixture_of(free, 0.5)
      >>> mixture.means, jnp.exp(mixture.log_proportions)
      (Array([0. , 0.5, 1. ], dtype=float32), Array([0.5 , 0.25, 0.25], dtype=float32))
    """
    others = jax.nn.log_softmax(free.logits) + math.log1p(-zero_proportion)
    return Mixture(
        jnp.concatenate([jnp.zeros(1), free.means]),
        free.log_precisions,
        jnp.concatenate([jnp.full(1, math.log(zero_proportion)), others]),
    )


def log_joint(weights: chex.Array, mixture: Mixture) -> chex.Array:
    r"""Returns :math:`\log \pi_j N(w_i | \mu_j, \lambda_j^{-1})`.

    Args:
      weights: of any shape.
      mixture: of J components.

    Returns:
      An array ``[components, *shape of the weights]``.

    Example:
      >>> mixture = Mixture(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1))
      >>> log_joint(jnp.array([0.0]), mixture)  # -log(2 pi) / 2
      Array([[-0.9189385]], dtype=float32)
    """
    means, log_precisions, log_proportions = (
        jnp.expand_dims(x, tuple(range(1, 1 + jnp.ndim(weights)))) for x in mixture
    )
    scaled = jnp.exp(log_precisions) * jnp.square(weights - means)
    return log_proportions + (log_precisions - math.log(2 * math.pi) - scaled) / 2


def log_odds(weights: chex.Array, mixture: Mixture) -> chex.Array:
    """Returns the log odds of the likeliest other component against the zero one.

    A weight belongs to the zero component where they are not positive.

    Args:
      weights: of any shape.
      mixture: of at least two components.

    Returns:
      An array of the weights' shape.

    Example:
      >>> mixture = Mixture(jnp.array([0.0, 1.0]), jnp.zeros(2), jnp.zeros(2))
      >>> log_odds(jnp.array([0.0, 0.5, 1.0]), mixture)
      Array([-0.5,  0. ,  0.5], dtype=float32)
    """
    joint = log_joint(weights, mixture)
    return jnp.max(joint[1:], axis=0) - joint[0]


def negative_log_prior(weights: Iterable[chex.Array], mixture: Mixture) -> chex.Array:
    r"""Returns :math:`-\sum_i \log \sum_j \pi_j N(w_i | \mu_j, \lambda_j^{-1})`.

    Args:
      weights: arrays, of any shapes.
      mixture: of the prior.

    Returns:
      A scalar.

    Example:
      >>> mixture = Mixture(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1))
      >>> round(float(negative_log_prior([jnp.zeros(2)], mixture)), 4)  # log(2 pi)
      1.8379
    """
    flat = jnp.concatenate([jnp.ravel(w) for w in weights])

    # Made anew in the backward pass, which costs less than to keep all of it.
    @jax.checkpoint
    def of_piece(piece: chex.Array) -> chex.Array:
        joint = log_joint(piece, mixture)
        return -jnp.sum(jax.nn.logsumexp(joint, axis=0))

    whole = flat.size - flat.size % _PIECE
    pieces = jax.lax.map(of_piece, flat[:whole].reshape(-1, _PIECE))
    return jnp.sum(pieces) + of_piece(flat[whole:])


def negative_log_hyper_prior(
    mixture: Mixture, shapes: chex.Array, rates: chex.Array
) -> chex.Array:
    r"""Returns :math:`-\sum_j \log \mathrm{Gamma}(\lambda_j | a_j, b_j)`.

    Up to a constant: :math:`\sum_j (1 - a_j) \log \lambda_j + b_j \lambda_j`.

    Args:
      mixture: of J components.
      shapes: ``[components]``, positive.
      rates: ``[components]``, positive.

    Returns:
      A scalar.

    Example:
      >>> mixture = Mixture(jnp.zeros(1), jnp.log(jnp.array([2.0])), jnp.zeros(1))
      >>> loss = negative_log_hyper_prior(mixture, jnp.array([3.0]), jnp.array([5.0]))
      >>> round(float(loss), 4)  # -2 log 2 + 5 * 2
      8.6137
    """
    log_precisions = mixture.log_precisions
    return jnp.sum((1 - shapes) * log_precisions + rates * jnp.exp(log_precisions))


def components_of(
    params: chex.ArrayTree, mask: chex.ArrayTree, mixture: Mixture
) -> chex.ArrayTree:
    """Returns the component of every connection: 0 where it is pruned.

    What is kept is given to the other component of the largest responsibility.

    Args:
      params: of the network.
      mask: like params; scalar leaves are of what is not prunable.
      mixture: of at least two components.

    Returns:
      A pytree like the mask, of integers; 0 where a leaf is not prunable.

    Example:
      >>> mixture = Mixture(jnp.array([0.0, -1.0, 1.0]), jnp.zeros(3), jnp.zeros(3))
      >>> params = {"w": jnp.array([0.8, -0.1, 3.0])}
      >>> components_of(params, {"w": jnp.array([True, True, False])}, mixture)
      {'w': Array([2, 1, 0], dtype=int32)}
    """
    masks.check_mask(mask, params)

    def of_leaf(keep: chex.Array, w: chex.Array) -> chex.Array:
        if not jnp.ndim(keep):
            return jnp.zeros((), jnp.int32)
        others = log_joint(w, mixture)[1:]
        return jnp.where(keep, 1 + jnp.argmax(others, axis=0), 0)

    return jax.tree.map(of_leaf, mask, params)


def quantised(
    params: chex.ArrayTree, mask: chex.ArrayTree, mixture: Mixture
) -> chex.ArrayTree:
    """Returns params with every connection at the mean of its component.

    Args:
      params: of the network.
      mask: like params; leaves that are not prunable stay as they are.
      mixture: of at least two components.

    Example:
      >>> mixture = Mixture(jnp.array([0.0, -1.0, 1.0]), jnp.zeros(3), jnp.zeros(3))
      >>> params = {"w": jnp.array([0.8, -0.1, 3.0])}
      >>> quantised(params, {"w": jnp.array([True, True, False])}, mixture)
      {'w': Array([ 1., -1.,  0.], dtype=float32)}
    """
    return jax.tree.map(
        lambda keep, w, j: mixture.means[j].astype(w.dtype) if jnp.ndim(keep) else w,
        mask,
        params,
        components_of(params, mask, mixture),
    )


def bits_per_weight(
    params: chex.ArrayTree, mask: chex.ArrayTree, mixture: Mixture
) -> float:
    r"""Returns the bits that the quantised network takes, over its connections.

    Like the paper, after Han et al., this counts the component of every entry kept,
    the gap to it from the one before (longer ones than 256 being cut by zeros that are
    stored too), each in a Huffman code of its own, and the codebook, 32 bits for every
    mean in use. It differs in that a leaf is one list, so that there are no pointers
    to rows. The tables of the codes, and what is not prunable, are not counted.

    Args:
      params: of the network.
      mask: like params, concrete.
      mixture: of at least two components.

    Returns:
      All bits divided by the number of prunable connections, pruned ones too.

    Raises:
      ValueError: if nothing is prunable.

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
    indices = jax.device_get(components_of(params, mask, mixture))
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

    Of a single kind of symbol, each takes a bit.

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


def _quantised_history(parts: Parts, fitted: fitting.Fitted) -> fitting.History:
    """One row, of no steps: the network that was chosen, quantised."""
    mixture = fitted.measured["mixture"]
    params = quantised(fitted.params, fitted.mask, mixture)
    evaluated = fitting.fit(
        parts,
        lambda carry, batch, key: (carry, training.Metrics(jnp.nan, jnp.nan)),
        (params, fitted.mask),
        num_steps=0,
        deployed=lambda carry: carry,
        key=fitting.phase_key(parts, 2),
        phase="quantised",
    )
    (row,) = evaluated.history.rows
    bits = bits_per_weight(fitted.params, fitted.mask, mixture)
    return evaluated.history._replace(rows=(row | {"bits_per_weight": bits},))


def _prunable(tree: chex.ArrayTree, mask: chex.ArrayTree) -> list[chex.Array]:
    return [
        leaf
        for leaf, keep in zip(jax.tree.leaves(tree), jax.tree.leaves(mask))
        if jnp.ndim(keep)
    ]


def _check_mixture(num_components: int, zero_proportion: float) -> None:
    if num_components < 3:
        raise ValueError(
            f"num_components is {num_components}; with the zero component there must "
            "be at least 3, one for weights of each sign, e.g. 17"
        )
    if not 0.0 < zero_proportion < 1.0:
        raise ValueError(
            f"zero_proportion is {zero_proportion}, outside (0, 1); it is the zero "
            "component's share of the mixture, e.g. 0.99"
        )


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite")
