"""Initializers of weights, and what they do to the signal before any training.

An initializer is a function ``(key, shape, dtype) -> array``, as in
``jax.nn.initializers``. With :math:`n_\\mathrm{in}` and :math:`n_\\mathrm{out}` the
fans of a kernel of shape ``[..., inputs, outputs]``: inputs and outputs, each times
the receptive field (the product of the leading dimensions, 1 of a dense layer).
Variance scaling makes the variance of the weights fall with the fans, so that the
variance of activations and gradients is that of the layer before or after;
:func:`signal` measures whether it is.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snipjax import masks, saliency, training
from snipjax.initializers.signals import Signal

Initializer = jax.nn.initializers.Initializer
Loss = Callable[[chex.Array, chex.Array], chex.Array]

# The paper states no standard deviation for its random and truncated normal, and its
# published code has neither. This is the default of tf.keras.initializers; with the
# 1.0 of TensorFlow 1, the logits of an untrained LeNet are in the thousands.
NORMAL_STDDEV = 0.05

_OUTPUTS = "snipjax_outputs"
_PERTURBATIONS = "snipjax_perturbations"


def random_normal(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns :math:`w \sim N(0, 0.05^2)`, whatever the shape: the paper's RN.

    The paper gives no standard deviation: see :data:`NORMAL_STDDEV`.

    Args:
      key: PRNG key.
      shape: of the array.
      dtype: of the array.

    Example:
      >>> bool(jnp.std(random_normal(jax.random.key(0), (100, 100))) < 0.06)
      True

    Lee, Ajanthan, Torr, ICLR 2019, table 3.
    """
    return jax.nn.initializers.normal(NORMAL_STDDEV)(key, shape, dtype)


def truncated_normal(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns :math:`N(0, 0.05^2)` cut at two standard deviations: the paper's TN.

    0.05 (:data:`NORMAL_STDDEV`) is the standard deviation before cutting, as in
    TensorFlow; after it, that is 0.044. Arguments are those of
    :func:`random_normal`.

    Example:
      >>> w = truncated_normal(jax.random.key(0), (100, 100))
      >>> bool(jnp.max(jnp.abs(w)) <= 0.1)
      True

    Lee, Ajanthan, Torr, ICLR 2019, table 3.
    """
    return jax.nn.initializers.truncated_normal(NORMAL_STDDEV)(key, shape, dtype)


def xavier(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns a truncated normal of variance
    :math:`2 / (n_\mathrm{in} + n_\mathrm{out})`: the paper's VS-X.

    Cut at two standard deviations of the normal, whose variance makes up for it.
    Arguments are those of :func:`random_normal`.

    Raises:
      ValueError: if ``shape`` has fewer than two dimensions.

    Example:
      >>> w = xavier(jax.random.key(0), (100, 300))  # of variance 1/200
      >>> bool(0.004 < jnp.var(w) < 0.006)
      True

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward
    neural networks", AISTATS 2010.
    """
    return jax.nn.initializers.glorot_normal()(key, shape, dtype)


def he(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns a truncated normal of variance :math:`2 / n_\mathrm{in}`: VS-H.

    Twice that of :func:`fan_in`, because ReLU halves the second moment. Cut, with
    arguments and errors, like :func:`xavier`.

    Example:
      >>> w = he(jax.random.key(0), (100, 300))  # of variance 1/50
      >>> bool(0.015 < jnp.var(w) < 0.025)
      True

    He et al., "Delving Deep into Rectifiers", ICCV 2015.
    """
    return jax.nn.initializers.he_normal()(key, shape, dtype)


def fan_in(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns a truncated normal of variance :math:`1 / n_\mathrm{in}`.

    The default of this library and of the authors' code. Cut, with arguments and
    errors, like :func:`xavier`.

    Example:
      >>> w = fan_in(jax.random.key(0), (100, 300))  # of variance 1/100
      >>> bool(0.008 < jnp.var(w) < 0.012)
      True

    LeCun et al., "Efficient BackProp", 1998.
    """
    return jax.nn.initializers.lecun_normal()(key, shape, dtype)


def heuristic_uniform(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns :math:`U[-1/\sqrt{n_\mathrm{in}}, 1/\sqrt{n_\mathrm{in}}]`.

    The common heuristic. Its variance :math:`1 / (3 n_\mathrm{in})` is a third of
    what keeps the signal of a linear network, so gradients shrink backward: by
    three with every layer where widths are equal. Arguments and errors are those of
    :func:`xavier`.

    Example:
      >>> w = heuristic_uniform(jax.random.key(0), (100, 300))
      >>> bool(0.09 < jnp.max(jnp.abs(w)) <= 0.1)
      True

    Glorot and Bengio, AISTATS 2010, equation 1.
    """
    one_third = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return one_third(key, shape, dtype)


def glorot_uniform(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns :math:`U[-a, a], a = \sqrt{6 / (n_\mathrm{in} + n_\mathrm{out})}`.

    Glorot's normalised initialization, of the variance of :func:`xavier`. Arguments
    and errors are those of :func:`xavier`.

    Example:
      >>> w = glorot_uniform(jax.random.key(0), (200, 400))
      >>> bool(0.09 < jnp.max(jnp.abs(w)) <= 0.1)
      True

    Glorot and Bengio, AISTATS 2010, equation 16.
    """
    return jax.nn.initializers.glorot_uniform()(key, shape, dtype)


INITIALIZERS: Mapping[str, Initializer] = MappingProxyType(
    {
        "random_normal": random_normal,
        "truncated_normal": truncated_normal,
        "xavier": xavier,
        "he": he,
        "fan_in": fan_in,
        "heuristic_uniform": heuristic_uniform,
        "glorot_uniform": glorot_uniform,
    }
)


def by_name(name: str) -> Initializer:
    """Returns the initializer of that name.

    Args:
      name: a key of :data:`INITIALIZERS`.

    Raises:
      ValueError: if the name is unknown; the message gives the nearest one.

    Example:
      >>> by_name("xavier")(jax.random.key(0), (3, 2)).shape
      (3, 2)
    """
    if name not in INITIALIZERS:
        nearest = difflib.get_close_matches(name, INITIALIZERS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown initializer '{name}'; did you mean '{nearest}'? "
            f"There are {', '.join(INITIALIZERS)}"
        )
    return INITIALIZERS[name]


def signal(
    model: nn.Module,
    keys: chex.PRNGKey,
    batch: training.Batch,
    sparsity: float,
    *,
    prunable: masks.Prunable = masks.weights_and_biases,
    loss: Loss = training.cross_entropy,
) -> Signal:
    r"""Returns what the initialization of a model does, before any training.

    For every layer (a module that owns a kernel, that is an array of two or more
    dimensions, and has no submodule with parameters) and every seed:

    - activation variance, :math:`\mathrm{Var}[z]`, of the layer's output :math:`z`
      over examples, positions and units, before nonlinearity or normalisation;
    - gradient variance, :math:`\mathrm{Var}[\partial L / \partial z]`, over the
      same. Where the loss is a mean over ``n`` examples, this has a factor
      ``1 / n**2``;
    - density: the share of the layer's prunable connections that SNIP keeps when it
      prunes the whole network to ``sparsity``.

    And for every layer, the rank correlation: Spearman's correlation of the
    saliencies of its kernels (not of biases) between two seeds, the mean over all
    pairs. Equal saliencies, such as the zeros behind pixels that are always black,
    share the mean of their ranks.

    A module that is called several times, being shared, is one layer whose variances
    are over all calls. The output of a layer inside a lifted loop (``nn.scan``,
    ``nn.vmap``, so the cells of an ``nn.RNN``) cannot be seen, nor that of a layer
    that returns no single array: their variances are NaN. So are the density of
    a layer with nothing prunable, all densities of a seed with a saliency that is
    not finite, the correlation of a layer with such a one or with all saliencies
    equal, and the correlation of a single seed.

    Seeds are gone through one after the other and compiled once; memory holds the
    saliencies of one seed and a sum of ranks, whatever their number.

    Args:
      model: a Flax Linen module, called as ``model.apply(variables, images)``, with
        ``train=False``, ``training=False`` or ``deterministic=True`` if it takes
        these: batch norm uses the statistics of initialization.
      keys: PRNG keys ``[seeds]``, each of one initialization.
      batch: a pair of preprocessed images ``[n, ...]`` and labels ``[n]``.
      sparsity: the share of connections to prune, in [0, 1).
      prunable: predicate ``(key_path, leaf) -> bool``.
      loss: ``(logits, labels) -> scalar``.

    Returns:
      Arrays ``[seeds, layers]``, and the rank correlation ``[layers]``.

    Raises:
      ValueError: if the model is no Linen module, ``keys`` is not a one-dimensional
        array or empty, ``batch`` is, or its labels are not as many as its images,
        ``sparsity`` is outside [0, 1), the model has no layer, or nothing is prunable.

    Example:
      >>> model = snipjax.models.create("lenet_300_100", num_classes=10)
      >>> images = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
      >>> batch = training.Batch(images, jnp.arange(8))
      >>> signal(model, jax.random.split(jax.random.key(1)), batch, 0.9).layers
      ('Dense_0', 'Dense_1', 'Dense_2')

    Glorot and Bengio, AISTATS 2010, section 4.2; Lee, Ajanthan, Torr, ICLR
    2019, section 4.2.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model is {model!r:.80}, which is no Flax Linen module; pass an instance "
            "of a flax.linen.Module"
        )
    keys, batch = _checked(keys), _checked_batch(batch)
    masks.kept_count(0, sparsity)
    paths = _layer_paths(model, batch.images)
    if not paths:
        raise ValueError(
            f"{type(model).__name__} has no layer: no module that owns a parameter of "
            "two or more dimensions and has no submodules; build the model of such "
            "modules, e.g. nn.Dense"
        )
    measure = jax.jit(
        functools.partial(_measure, model, paths, sparsity, prunable, loss)
    )
    measured, ranks = [], [_RankSums(0.0, 0.0)] * len(paths)
    for key in keys:
        variances_and_density, scores = measure(key, batch)
        ranks = [_add_ranks(*layer) for layer in zip(ranks, scores)]
        measured.append(jax.device_get(variances_and_density))
    return Signal(
        tuple("/".join(path) or type(model).__name__ for path in paths),
        *map(np.stack, zip(*measured)),
        rank_correlation=np.stack(
            [_mean_over_pairs(sums, len(keys)) for sums in ranks]
        ),
    )


_Path = tuple[str, ...]


def _measure(
    model: nn.Module,
    paths: tuple[_Path, ...],
    sparsity: float,
    prunable: masks.Prunable,
    loss: Loss,
    key: chex.PRNGKey,
    batch: training.Batch,
) -> tuple[tuple[chex.Array, ...], list[chex.Array]]:
    """Variances and densities ``[layers]``, and the saliencies of each's kernels."""
    variables = model.init(key, batch.images[:1], **_inference(model))
    others = {name: tree for name, tree in variables.items() if name != "params"}
    outputs, gradients = _outputs_and_gradients(model, paths, loss, variables, batch)
    # The other variables go with the batch: a loss that closed over them, traced,
    # would stay in saliency's cache.
    scores = saliency.snip(
        functools.partial(_inference_loss, model, loss),
        variables["params"],
        (others, batch),
    )
    mask = masks.global_topk(scores, sparsity, prunable)
    total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(scores))
    nan_unless_finite = jnp.where(jnp.isfinite(total), 0.0, jnp.nan)
    measured = (
        jnp.stack([_variance(outputs, path) for path in paths]),
        jnp.stack([_variance(gradients, path) for path in paths]),
        jnp.stack([_density(_at(mask, path)) for path in paths]) + nan_unless_finite,
    )
    return measured, [_kernels(_at(scores, path)) for path in paths]


def _inference_loss(
    model: nn.Module,
    loss: Loss,
    params: chex.ArrayTree,
    others_and_batch: tuple[chex.ArrayTree, training.Batch],
) -> chex.Array:
    others, batch = others_and_batch
    variables = {"params": params, **others}
    logits = model.apply(variables, batch.images, **_inference(model))
    return loss(logits, batch.labels)


def _inference(model: nn.Module) -> dict[str, bool]:
    """What to call a model with, beside images, so that it does not train."""
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
    batch: training.Batch,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Outputs of the layers, and the gradient of the loss in zeros added to them."""

    def perturbed_loss(zeros: chex.ArrayTree) -> tuple[chex.Array, chex.ArrayTree]:
        with nn.intercept_methods(_perturb(paths)):
            logits, state = model.apply(
                {**variables, _PERTURBATIONS: zeros},
                batch.images,
                **_inference(model),
                mutable=[_OUTPUTS],
            )
        return loss(logits, batch.labels), state.get(_OUTPUTS, {})

    def perturbations() -> chex.ArrayTree:
        with nn.intercept_methods(_perturb(paths)):
            _, state = model.apply(
                variables,
                batch.images,
                **_inference(model),
                mutable=[_OUTPUTS, _PERTURBATIONS],
            )
        return state.get(_PERTURBATIONS, {})

    zeros = jax.tree.map(
        lambda z: jnp.zeros(z.shape, z.dtype), jax.eval_shape(perturbations)
    )
    gradients, outputs = jax.grad(perturbed_loss, has_aux=True)(zeros)
    return outputs, gradients


def _perturb(paths: tuple[_Path, ...]) -> Callable[..., Any]:
    """An interceptor that adds a perturbation to the layers' outputs, and sows them.

    Flax's collections, and not a closure, carry both: they pass lifted transforms
    such as nn.remat, and are absent inside those that cannot pass them.
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
    """Paths of the modules that own a kernel, in the order of their first call."""
    called: dict[_Path, None] = {}

    def record(
        next_fun: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        called.setdefault(context.module.path)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        variables = jax.eval_shape(
            functools.partial(model.init, **_inference(model)),
            jax.random.key(0),
            images,
        )
    owners = _owners(variables.get("params", {}))
    return tuple(
        [path for path in called if path in owners]
        + [path for path in owners if path not in called]
    )


def _owners(params: Mapping[str, Any], path: _Path = ()) -> list[_Path]:
    children = [
        (name, child) for name, child in params.items() if isinstance(child, Mapping)
    ]
    if not children and any(jnp.ndim(leaf) >= 2 for leaf in jax.tree.leaves(params)):
        return [path]
    below = [_owners(child, (*path, name)) for name, child in children]
    return [owner for owners in below for owner in owners]


def _at(tree: Any, path: _Path) -> Any:
    for name in path:
        tree = tree.get(name, {})
    return tree


def _variance(tree: chex.ArrayTree, path: _Path) -> chex.Array:
    arrays = jax.tree.leaves(_at(tree, path))
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


class _RankSums(NamedTuple):
    """Sums over seeds, of a layer's standardised ranks and of their squared norms."""

    ranks: chex.Array  # [connections], or a scalar 0 of no seed
    squares: chex.Array  # scalar


def _add_ranks(sums: _RankSums, scores: chex.Array) -> _RankSums:
    ranks = _standardised_ranks(scores)
    return _RankSums(sums.ranks + ranks, sums.squares + jnp.sum(ranks**2))


# Compiled by itself, once for layers of equal size and all calls of `signal`: sorts
# are slow to compile.
@jax.jit
def _standardised_ranks(values: chex.Array) -> chex.Array:
    """Ranks of ``values [n]``, of mean 0 and norm 1; equal ones share their mean."""
    order = jnp.argsort(values)
    ascending = values[order]
    index = jnp.arange(values.size)
    differs = ascending[1:] != ascending[:-1]
    edge = jnp.ones(1, jnp.bool_)
    first = jax.lax.cummax(jnp.where(jnp.append(edge, differs), index, 0))
    last = jax.lax.cummin(
        jnp.where(jnp.append(differs, edge), index, values.size), reverse=True
    )
    # The mean of ranks 0..n-1 is (n - 1) / 2, with ties as without.
    ranks = (first + last - (values.size - 1)) / (2 * values.size)
    centred = jnp.zeros(values.size).at[order].set(ranks)
    standardised = centred / jnp.linalg.norm(centred)
    return jnp.where(jnp.isfinite(jnp.sum(values)), standardised, jnp.nan)


def _mean_over_pairs(sums: _RankSums, seeds: int) -> np.float32:
    """The mean product of two seeds' ranks, which is their correlation.

    Over all ordered pairs, products add up to the squared norm of the sum of ranks,
    less the squared norm of each.
    """
    if seeds < 2:
        return np.float32(np.nan)
    products = jnp.sum(sums.ranks**2) - sums.squares
    return np.float32(products / (seeds * (seeds - 1)))


def _checked_batch(batch: tuple[chex.Array, chex.Array]) -> training.Batch:
    images, labels = (jnp.shape(array) for array in batch)
    if not images or not images[0] or images[:1] != labels[:1]:
        raise ValueError(
            f"batch has images {images} and labels {labels}; pass a pair of images "
            "[n, ...] and labels [n], of n >= 1 examples"
        )
    return training.Batch(*batch)


def _checked(keys: chex.PRNGKey) -> chex.PRNGKey:
    if not isinstance(keys, jax.Array | np.ndarray):
        raise ValueError(
            f"keys is of type {type(keys).__name__}; pass an array with one key for "
            "each initialization, e.g. jax.random.split(key, 5)"
        )
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        keys = jax.random.wrap_key_data(keys)
    if keys.ndim != 1 or not keys.size:
        raise ValueError(
            f"keys has shape {keys.shape}, not [seeds]; pass one key for each "
            "initialization, e.g. jax.random.split(key, 5)"
        )
    return keys
