"""Measurement of the signal that an initialization gives, before any training."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from snipjax import masks, saliency
from snipjax.initializers.signals import Signal

Loss = Callable[[chex.Array, chex.Array], chex.Array]

_OUTPUTS = "snipjax_outputs"
_PERTURBATIONS = "snipjax_perturbations"


def _mean_cross_entropy(logits: chex.Array, labels: chex.Array) -> chex.Array:
    logits = logits.astype(jnp.float32)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def signal(
    model: nn.Module,
    keys: chex.PRNGKey,
    batch: tuple[chex.Array, chex.Array],
    sparsity: float,
    *,
    prunable: Any = masks.weights_and_biases,
    loss: Loss = _mean_cross_entropy,
) -> Signal:
    r"""Measures the signal that a model's initialization gives, before any training.

    For every layer (a module that owns a kernel, i.e. an array of two or more
    dimensions, and has no submodule with parameters) and every seed:

    - activation variance, :math:`\mathrm{Var}[z]`, of the layer's output :math:`z`
      over examples, positions and units, before nonlinearity or normalization;
    - gradient variance, :math:`\mathrm{Var}[\partial L / \partial z]`, over the same.
      If the loss is a mean over ``n`` examples, it has a factor ``1 / n**2``;
    - density: the share of the layer's prunable connections that SNIP keeps when it
      prunes the whole network to ``sparsity``.

    And for every layer, the rank correlation,

    .. math:: \frac{2}{S (S - 1)} \sum_{a < b}
              \mathrm{corr}(\mathrm{rank}(s^{(a)}), \mathrm{rank}(s^{(b)})),

    over :math:`S` seeds with saliencies :math:`s^{(a)}`: Spearman's correlation of the
    saliencies of its kernels (not of biases) between two seeds, the mean over all
    pairs. Equal saliencies, such as the zeros behind pixels that are always black,
    share the mean of their ranks.

    A module that is called several times, being shared, is one layer whose variances
    are over all calls. The output of a layer inside a lifted loop (``nn.scan``,
    ``nn.vmap``, so the cells of an ``nn.RNN``) cannot be seen, nor can the output of a
    layer that returns no single array: their variances are NaN. So are the density of a
    layer with nothing prunable, all densities of a seed with a saliency that is not
    finite, the correlation of a layer with such a one or with all saliencies equal, and
    the correlation of a single seed.

    Seeds are measured one after the other and compiled once; memory holds the
    saliencies of one seed and a sum of ranks, whatever their number.

    Args:
      model: a Flax Linen module, called as ``model.apply(variables, images)``, with
        ``train=False``, ``training=False`` or ``deterministic=True`` if it takes
        these: batch norm uses the statistics of initialization.
      keys: PRNG keys ``[seeds]``, at least one, each of one initialization.
      batch: a pair of preprocessed images ``[n, ...]`` and labels ``[n]``.
      sparsity: share of connections to prune, in [0, 1).
      prunable: predicate ``(key_path, leaf) -> bool``, or a pytree of bools.
      loss: function ``(logits, labels) -> scalar``, by default the mean cross entropy.

    Returns:
      Arrays ``[seeds, layers]``, and the rank correlation ``[layers]``.

    Raises:
      ValueError: if the model is no Linen module or has no layer, ``sparsity`` is
        outside [0, 1), or nothing is prunable.

    Example:
      >>> model = snipjax.models.create("lenet_300_100", num_classes=10)
      >>> images = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
      >>> keys = jax.random.split(jax.random.key(1))
      >>> signal(model, keys, (images, jnp.arange(8)), 0.9).layers
      ('Dense_0', 'Dense_1', 'Dense_2')

    Glorot and Bengio, AISTATS 2010, section 4.2; Lee, Ajanthan, Torr, ICLR 2019,
    section 4.2.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model is {model!r:.80}, which is no Flax Linen module; pass an instance "
            "of a flax.linen.Module"
        )
    masks.kept_count(0, sparsity)
    paths = _layer_paths(model, batch[0])
    if not paths:
        raise ValueError(
            f"{type(model).__name__} has no layer: no module that owns a parameter of "
            "two or more dimensions and has no submodules; build the model of such "
            "modules, e.g. nn.Dense"
        )
    measure = jax.jit(
        functools.partial(_measure, model, paths, sparsity, prunable, loss)
    )
    measured, sums = [], [np.zeros(1)] * len(paths)  # of the ranks of each layer
    for key in keys:
        variances_and_density, scores = jax.device_get(measure(key, batch))
        sums = [total + _ranks(layer) for total, layer in zip(sums, scores)]
        measured.append(variances_and_density)
    correlations = [_mean_correlation(total, len(keys)) for total in sums]
    activation_variance, gradient_variance, density = map(np.stack, zip(*measured))
    return Signal(
        layers=tuple("/".join(path) or type(model).__name__ for path in paths),
        activation_variance=activation_variance,
        gradient_variance=gradient_variance,
        density=density,
        rank_correlation=np.array(correlations, np.float32),
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    """Returns ranks of mean 0 and norm 1; NaN if a value is not finite or all equal."""
    import pandas  # a start without it is faster

    ranks = pandas.Series(values).rank().to_numpy()  # equal values share their mean
    ranks = ranks - ranks.mean()
    norm = np.linalg.norm(ranks)
    return ranks / norm if norm and np.isfinite(values).all() else np.nan * values


def _mean_correlation(total: np.ndarray, samples: int) -> float:
    """Returns the mean of Spearman's correlation over all pairs of samples.

    The correlation of two samples is the product of their ranks, of norm 1. Over all
    ordered pairs, products add up to the squared norm of the sum of ranks, less 1 for
    each sample.
    """
    if samples < 2:
        return np.nan
    return (np.sum(total**2) - samples) / (samples * (samples - 1))


_Path = tuple[str, ...]


def _measure(
    model: nn.Module,
    paths: tuple[_Path, ...],
    sparsity: float,
    prunable: Any,
    loss: Loss,
    key: chex.PRNGKey,
    batch: tuple[chex.Array, chex.Array],
) -> tuple[tuple[chex.Array, ...], list[chex.Array]]:
    """Returns variances and densities ``[layers]``, and each layer's saliencies."""
    flags = _inference_flags(model)
    variables = model.init(key, batch[0][:1], **flags)

    def loss_fn(
        params: chex.ArrayTree, batch: tuple[chex.Array, chex.Array]
    ) -> chex.Array:
        images, labels = batch
        return loss(
            model.apply({**variables, "params": params}, images, **flags), labels
        )

    scores = saliency.snip(loss_fn, variables["params"], batch)
    mask = masks.global_topk(scores, sparsity, prunable)
    outputs, gradients = _outputs_and_gradients(model, paths, loss, variables, batch)
    total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(scores))
    nan_unless_finite = jnp.where(jnp.isfinite(total), 0.0, jnp.nan)
    measured = (
        jnp.stack([_variance(_subtree(outputs, path)) for path in paths]),
        jnp.stack([_variance(_subtree(gradients, path)) for path in paths]),
        jnp.stack([_density(_subtree(mask, path)) for path in paths])
        + nan_unless_finite,
    )
    return measured, [_kernels(_subtree(scores, path)) for path in paths]


def _inference_flags(model: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(type(model).__call__).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {"train": False}
    flags = {"train": False, "training": False, "deterministic": True}
    return {name: flag for name, flag in flags.items() if name in parameters}


def _outputs_and_gradients(
    model: nn.Module,
    paths: tuple[_Path, ...],
    loss: Loss,
    variables: chex.ArrayTree,
    batch: tuple[chex.Array, chex.Array],
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Returns the layers' outputs, and the loss's gradient by zeros added to them."""
    images, labels = batch

    def apply(variables: chex.ArrayTree, mutable: list[str]) -> tuple[Any, Any]:
        with nn.intercept_methods(_perturbation(paths)):
            return model.apply(
                variables, images, **_inference_flags(model), mutable=mutable
            )

    def perturbed_loss(zeros: chex.ArrayTree) -> tuple[chex.Array, chex.ArrayTree]:
        logits, state = apply({**variables, _PERTURBATIONS: zeros}, [_OUTPUTS])
        return loss(logits, labels), state.get(_OUTPUTS, {})

    _, state = jax.eval_shape(lambda: apply(variables, [_OUTPUTS, _PERTURBATIONS]))
    zeros = jax.tree.map(
        lambda z: jnp.zeros(z.shape, z.dtype), state.get(_PERTURBATIONS, {})
    )
    gradients, outputs = jax.grad(perturbed_loss, has_aux=True)(zeros)
    return outputs, gradients


def _perturbation(paths: tuple[_Path, ...]) -> Callable[..., Any]:
    """Returns an interceptor that adds a perturbation to layers' outputs and sows them.

    Flax's collections, and not a closure, carry both: they pass lifted transforms such
    as nn.remat, and are absent inside the transforms that cannot pass them.
    """

    def interceptor(
        next_fun: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        output = next_fun(*args, **kwargs)
        module = context.module
        is_layer = context.method_name == "__call__" and module.path in paths
        if not (is_layer and isinstance(output, jax.Array)):
            return output
        call = len(module.get_variable(_OUTPUTS, "calls", ()))
        output = module.perturb(f"call_{call}", output, _PERTURBATIONS)
        module.sow(_OUTPUTS, "calls", output)
        return output

    return interceptor


def _layer_paths(model: nn.Module, images: chex.Array) -> tuple[_Path, ...]:
    """Returns paths of the modules that own a kernel, in the order of first calls."""
    called: dict[_Path, None] = {}

    def record(
        next_fun: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        called.setdefault(context.module.path)
        return next_fun(*args, **kwargs)

    init = functools.partial(model.init, **_inference_flags(model))
    with nn.intercept_methods(record):
        variables = jax.eval_shape(init, jax.random.key(0), images)
    owners = _owners(variables.get("params", {}))
    # Modules inside a lifted loop have another path when they are called.
    uncalled = [path for path in owners if path not in called]
    return (*(path for path in called if path in owners), *uncalled)


def _owners(params: Mapping[str, Any], path: _Path = ()) -> list[_Path]:
    children = {k: child for k, child in params.items() if isinstance(child, Mapping)}
    if not children and any(jnp.ndim(leaf) >= 2 for leaf in params.values()):
        return [path]
    below = [_owners(child, (*path, name)) for name, child in children.items()]
    return [owner for owners in below for owner in owners]


def _subtree(tree: Any, path: _Path) -> Any:
    for name in path:
        tree = tree.get(name, {})
    return tree


def _variance(tree: chex.ArrayTree) -> chex.Array:
    arrays = jax.tree.leaves(tree)
    if not arrays:
        return jnp.array(jnp.nan)
    return jnp.var(jnp.concatenate([z.astype(jnp.float32).ravel() for z in arrays]))


def _density(mask: chex.ArrayTree) -> chex.Array:
    leaves = [keep for keep in jax.tree.leaves(mask) if keep.ndim]
    if not leaves:
        return jnp.array(jnp.nan)
    kept = sum(jnp.sum(keep, dtype=jnp.float32) for keep in leaves)
    return kept / sum(keep.size for keep in leaves)


def _kernels(scores: chex.ArrayTree) -> chex.Array:
    leaves = [leaf for leaf in jax.tree.leaves(scores) if leaf.ndim >= 2]
    return jnp.concatenate([leaf.ravel() for leaf in leaves])
