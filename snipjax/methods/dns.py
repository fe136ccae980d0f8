"""Dynamic network surgery: connections are pruned, and spliced back where missed.

The mask T is updated while training, with a probability that decays; all weights W,
also those it hides, follow the gradient of the loss at W * T.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks, training
from snipjax.experiment import Parts
from snipjax.methods import fitting, layers, reference


class Surgery(NamedTuple):
    """What training changes while the mask moves."""

    params: chex.ArrayTree  # all of them, hidden ones too
    opt_state: optax.OptState
    mask: chex.ArrayTree
    number: chex.Array  # int32, of the step
    prunes: chex.Array  # int32, how many updates of the mask removed a connection


def dns(
    parts: Parts,
    target: float,
    *,
    pretrained: fitting.Outcome | None = None,
    surgery: float = 0.75,
    recovery: float = 0.5,
    gamma: float = 10.0,
    power: float = 1.0,
    lower: float = 0.9,
    upper: float = 1.1,
    learning_rate: float = 0.3,
    decays: int = 1,
) -> fitting.Outcome:
    """Prunes and splices while training, and then trains what is kept.

    Before a step of the surgery, with probability ``(1 + gamma t)^-power``, where t
    goes from 0 to 1, the mask T of the weights W is updated to::

        0 where |W| < a,   as it was where a <= |W| < b,   1 where b <= |W|,
        a = lower (mean + c std),   b = upper (mean + c std)

    with mean and standard deviation of each layer's ``|W|``, pretrained. The paper
    gives each layer's c by hand, smaller for smaller layers; here it is proportional
    to the logarithm of the layer's size, and at every update as large as it takes for
    T to keep as many connections as the target says. Then
    ``W -= learning rate * dL/d(W * T)``, for all of W.

    Args:
      parts: of :func:`snipjax.experiment.assemble`.
      target: sparsity to reach, of weights and biases together as configured.
      pretrained: of :func:`snipjax.methods.dense`, which is trained if left out.
      surgery: its steps, as a share of those of dense training.
      recovery: steps with the mask as it is then, as a share of the same.
      gamma: how fast updates of the mask become rare.
      power: likewise.
      lower: factor of the threshold a, below which connections are pruned.
      upper: factor of the threshold b, from which on they are spliced.
      learning_rate: of both phases, as a share of that of dense training.
      decays: of the learning rate in each of both phases.

    Returns:
      The parameters of the evaluation, during recovery, with the least error on
      validation; the mask; and the history.

    Raises:
      ValueError: if the target is outside [0, 1), another argument is out of range,
        or the network has batch norm.

    Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NeurIPS 2016.
    """
    fitting.check_target(target)
    fitting.check_share("surgery", surgery)
    fitting.check_share("recovery", recovery)
    fitting.require(0 <= gamma < jnp.inf, "gamma", gamma, "at least 0, e.g. 10.0")
    fitting.require(0 <= power < jnp.inf, "power", power, "at least 0, e.g. 1.0")
    fitting.require(0 < lower < jnp.inf, "lower", lower, "above 0, e.g. 0.9")
    fitting.require(
        lower <= upper < jnp.inf, "upper", upper, f"at least lower, {lower}, e.g. 1.1"
    )
    fitting.check_schedule(learning_rate, decays)
    pretrained = reference.dense(parts, pretrained=pretrained)
    params, mask = pretrained.params, masks.ones(pretrained.params, parts.prunable)
    mean, scale = mean_and_scale(params, mask)
    surgery_steps = fitting.share_of(parts, surgery)
    optimizer = fitting.phase_optimizer(
        parts, surgery_steps, learning_rate=learning_rate, decays=decays
    )

    def chance(number: chex.Array) -> chex.Array:
        return (1 + gamma * number / surgery_steps) ** -power

    def operate(params: chex.ArrayTree, mask: chex.ArrayTree) -> chex.ArrayTree:
        return spliced(
            params,
            mask,
            mean,
            scale,
            sparsity=target,
            prunable=parts.prunable,
            lower=lower,
            upper=upper,
        )

    def step(
        carry: Surgery, batch: training.Batch, key: chex.PRNGKey
    ) -> tuple[Surgery, training.Metrics]:
        return surgery_step(
            carry,
            batch,
            key,
            parts=parts,
            optimizer=optimizer,
            chance=chance,
            operate=operate,
        )

    zero = jnp.zeros((), jnp.int32)
    operated = fitting.fit(
        parts,
        step,
        Surgery(params, optimizer.init(params), mask, zero, zero),
        num_steps=surgery_steps,
        deployed=lambda carry: (carry.params, carry.mask),
        key=fitting.phase_key(parts, 1),
        phase="surgery",
    )
    carry = operated.carry
    masks.warn_if_disconnected(carry.mask)
    recovery_steps = fitting.share_of(parts, recovery)
    recovered = fitting.fit_sparse(
        parts,
        carry.params,
        carry.mask,
        num_steps=recovery_steps,
        optimizer=fitting.phase_optimizer(
            parts, recovery_steps, learning_rate=learning_rate, decays=decays
        ),
        key=fitting.phase_key(parts, 2),
        phase="recovery",
    )
    history = fitting.joined(
        pretrained.history,
        operated.history,
        fitting.pruning_history(prunes=int(carry.prunes)),
        recovered.history,
    )
    return fitting.Outcome(recovered.params, recovered.mask, history)


def surgery_step(
    carry: Surgery,
    batch: training.Batch,
    key: chex.PRNGKey,
    *,
    parts: Parts,
    optimizer: optax.GradientTransformation,
    chance: Callable[[chex.Array], chex.Array],
    operate: Callable[[chex.ArrayTree, chex.ArrayTree], chex.ArrayTree],
) -> tuple[Surgery, training.Metrics]:
    """Returns what one step makes of weights and mask, and the metrics before it.

    Args:
      carry: where to start from.
      batch: preprocessed.
      key: of whether the mask is updated.
      parts: of the experiment.
      optimizer: sees ``dL/d(W * T)``, and all of W.
      chance: from the step's number to the probability of an update.
      operate: ``(W, T) -> T``, the update.

    Returns:
      ``(carry, metrics)``; the metrics are those of W * T.
    """
    params = carry.params

    def cut(mask: chex.ArrayTree) -> tuple[chex.ArrayTree, chex.Array]:
        updated = operate(params, mask)
        return updated, carry.prunes + loses_any(mask, updated)

    mask, prunes = jax.lax.cond(
        jax.random.uniform(key) < chance(carry.number),
        cut,
        lambda mask: (mask, carry.prunes),
        carry.mask,
    )
    grads, metrics = fitting.gradient(parts, masks.apply(mask, params), batch)
    updates, opt_state = optimizer.update(grads, carry.opt_state, params)
    params = optax.apply_updates(params, updates)
    return Surgery(params, opt_state, mask, carry.number + 1, prunes), metrics


def mean_and_scale(
    params: chex.ArrayTree, mask: chex.ArrayTree
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Returns what a layer's thresholds are made of: ``mean + c scale``, of ``|W|``.

    The scale is the standard deviation times ``log(1 + n)``, of a layer of n prunable
    connections, so that one c suits small layers and large ones.

    Args:
      params: all weights W.
      mask: of what is prunable, and is to be looked at.

    Returns:
      Two pytrees like ``params``, with scalar leaves.

    Example:
      >>> params = {"w": jnp.array([1.0, -3.0])}
      >>> mask = masks.ones(params, masks.weights_and_biases)
      >>> mean, scale = mean_and_scale(params, mask)
      >>> float(mean["w"]), float(scale["w"]) == float(jnp.log(3.0))
      (2.0, True)
    """
    mean, std = layers.mean_and_std(jax.tree.map(jnp.abs, params), mask)
    return mean, jax.tree.map(jnp.multiply, std, layers.log_size(mask))


def spliced(
    params: chex.ArrayTree,
    mask: chex.ArrayTree,
    mean: chex.ArrayTree,
    scale: chex.ArrayTree,
    *,
    sparsity: float,
    prunable: masks.Prunable,
    lower: float,
    upper: float,
) -> chex.ArrayTree:
    """Returns the mask after one update, which prunes and splices.

    A kept connection stays if ``|w| / lower >= mean + c scale``, and a hidden one
    comes back if ``|w| / upper`` is; so c is an order statistic, over all layers, of
    these quotients less ``mean``, over ``scale``.

    Args:
      params: all weights W.
      mask: T before the update.
      mean: of ``|W|``, for each layer: a pytree like ``params``, with scalar leaves.
      scale: what c is a multiple of, likewise.
      sparsity: of the result, exactly.
      prunable: predicate ``(key_path, leaf) -> bool``, that of the mask.
      lower: factor of the threshold of what is kept.
      upper: factor of the threshold of what is hidden.

    Returns:
      T after it.

    Example:
      >>> params = {"w": jnp.array([1.0, 1.1, 1.3])}
      >>> mask = {"w": jnp.array([True, False, False])}
      >>> mean, scale = {"w": jnp.array(0.0)}, {"w": jnp.array(1.0)}
      >>> spliced(params, mask, mean, scale, sparsity=1 / 3, lower=0.9, upper=1.1,
      ...         prunable=masks.weights_and_biases)["w"].tolist()
      [True, False, True]
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
    """Returns whether a connection kept before is not kept after, as int32."""
    lost = jax.tree.map(lambda b, a: jnp.any(b & ~a), before, after)
    return jnp.any(jnp.stack(jax.tree.leaves(lost))).astype(jnp.int32)
