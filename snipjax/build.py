"""The one place where the names in a configuration become functions.

A name stands for an import path. An import path of one's own may stand in its place,
``package.module:name``, to an installed module or one in the current directory.

Importing this module loads no JAX; its functions do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from snipjax._src import imports

if TYPE_CHECKING:
    import flax.linen as nn
    import optax

    from snipjax import data, training
    from snipjax._src.types import Criterion, Prunable, Select

# A new criterion is one file, one export, and one line here.
CRITERIA: Mapping[str, str] = {
    "snip": "snipjax.saliency:snip",
    "magnitude": "snipjax.saliency:magnitude",
    "random": "snipjax.saliency:random",
    "hessian_diagonal": "snipjax.saliency:obd",
    "hessian_inverse": "snipjax.saliency:obs",
    "grasp": "snipjax.saliency:grasp",
    "grasp_magnitude": "snipjax.saliency:grasp_magnitude",
    "synflow": "snipjax.saliency:synflow",
    "synflow_l2": "snipjax.saliency:synflow_l2",
    "force": "snipjax.saliency:snip",
    "prospr": "snipjax.saliency:prospr",
    "prospr_first_order": "snipjax.saliency:prospr_first_order",
    "ntk_sap": "snipjax.saliency:ntk_sap",
    "fisher": "snipjax.saliency:fisher",
    "taylor": "snipjax.saliency:taylor",
    "taylor_fisher": "snipjax.saliency:taylor_fisher",
}
# The rounds of scoring that papers take, where it is not one.
ROUNDS: Mapping[str, int] = {
    "synflow": 100,
    "synflow_l2": 100,
    "force": 60,
    "ntk_sap": 20,
}
# Criteria with rounds from which pruned connections may return.
MAY_RETURN = ("force",)
# Keywords that a criterion is given if it takes them: the network in evaluation mode
# with the batch statistics of the scored sample, a mini-batch, a sampler of params, and
# the network with the statistics of given params and inputs.
OFFERS = ("apply_fn", "inputs", "init_fn", "normalized_by")
# The divisors of the logits that papers take, where it is not one.
TEMPERATURES: Mapping[str, float] = {"grasp": 200.0, "grasp_magnitude": 200.0}
# Methods that start from a trained network, and their settings.
RIVALS: Mapping[str, tuple[str, str]] = {
    "lwc": ("snipjax.methods:lwc", "snipjax.methods:LWC"),
    "dns": ("snipjax.methods:dns", "snipjax.methods:DNS"),
    "lc": ("snipjax.methods:lc", "snipjax.methods:LC"),
    "sws": ("snipjax.methods:sws", "snipjax.methods:SWS"),
    "sparse_vd": ("snipjax.methods:sparse_vd", "snipjax.methods:SparseVD"),
    "obd": ("snipjax.methods:obd", "snipjax.methods:OBD"),
    "lobs": ("snipjax.methods:lobs", "snipjax.methods:LOBS"),
}
METHODS = (*CRITERIA, "none", *RIVALS)
PRUNABLE: Mapping[str, str] = {
    "weights_and_biases": "snipjax.masks:weights_and_biases",
    "kernels": "snipjax.masks:kernels",
}
SELECTIONS: Mapping[str, str] = {
    "global": "snipjax.masks:global_topk",
    "layerwise": "snipjax.masks:layerwise_topk",
}
# Selections of whole units, which a smaller network is trained without.
UNITS = ("units", "units_layerwise")
# Selections of the largest scores of each leaf, with densities that go by shapes.
ALLOCATIONS: Mapping[str, str] = {
    "uniform": "snipjax.masks:uniform",
    "uniform_plus": "snipjax.masks:uniform_plus",
    "erdos_renyi": "snipjax.masks:erdos_renyi",
    "erk": "snipjax.masks:erk",
    "smart_ratio": "snipjax.masks:smart_ratio",
}
OPTIMIZERS: Mapping[str, str] = {
    "sgd": "snipjax.training.optimizers:sgd",
    "adam": "snipjax.training.optimizers:adam",
    "adamw": "snipjax.training.optimizers:adamw",
    "lamb": "snipjax.training.optimizers:lamb",
}
# From an optimizer of the dense network and a mask to one of the sparse network.
SPARSE: Mapping[str, str] = {
    "static": "snipjax.optim:sparse",
    "rigl": "snipjax.optim:rigl",
    "set": "snipjax.optim:set",
    "sparse_momentum": "snipjax.optim:sparse_momentum",
    "gradual_magnitude": "snipjax.optim:gradual_magnitude",
    "straight_through": "snipjax.optim:straight_through",
}
# Those that bring the mask to a sparsity of their own.
ENDS_AT_SPARSITY = ("gradual_magnitude", "straight_through")
LOSSES: Mapping[str, str] = {"cross_entropy": "snipjax.training:cross_entropy"}
SCHEDULES = ("step", "cosine", "constant")
INITIALIZERS = (
    "fan_in",
    "random_normal",
    "truncated_normal",
    "xavier",
    "he",
    "heuristic_uniform",
    "glorot_uniform",
)
VIEWS = ("none", "translate", "translate_flip", "imagenet")


def check_names(config: ConfigDict) -> None:
    """Raises a ``ValueError`` for a wrong name of a part other than the data."""
    model(config, 1)
    for part in (criterion, method, prunable, select, loss, optimizer, sparse):
        part(config)


def model(config: ConfigDict, num_classes: int) -> nn.Module:
    """Returns the network that a configuration names.

    A class or function of one's own is called with ``num_classes``, and with ``dtype``
    if it takes that; it returns a Flax module.
    """
    import flax.linen as nn
    import jax.numpy as jnp

    from snipjax import models

    name, dtype = config.model.name, jnp.dtype(config.model.dtype)
    if not imports.is_import_path(name):
        return models.create(name, num_classes, dtype=dtype)
    required, offers = {"num_classes": num_classes}, {"dtype": dtype}
    if dtype != jnp.float32:
        required |= offers
    return imports.call(name, "model.name", nn.Module, required, offers)


def with_initializer(network: nn.Module, name: str) -> nn.Module:
    """Returns a network whose kernels are sampled by the initializer of that name.

    A network without a field ``kernel_init`` has its own initializers, and is
    returned as it is where the name is the default, ``fan_in``.
    """
    from snipjax import initializers

    if hasattr(network, "kernel_init"):
        return network.clone(kernel_init=initializers.INITIALIZERS[name])
    if name != "fan_in":
        raise ValueError(
            f"config.init has '{name}', but {type(network).__name__} has no field "
            "kernel_init; add one, or leave config.init.scored and trained at 'fan_in'"
        )
    return network


def dataset(config: ConfigDict, data_dir: str | None = None) -> data.Dataset:
    """Returns the data that a configuration names, in memory or as streams.

    A function of one's own returns a :class:`snipjax.data.Dataset`; it is called with
    ``data_dir`` if it takes that.
    """
    from snipjax import data

    name = config.dataset.name
    if imports.is_import_path(name):
        offers = {"data_dir": data_dir}
        required = offers if data_dir is not None else {}
        loaded = imports.call(name, "dataset.name", data.Dataset, required, offers)
    else:
        loaded = data.load(name, data_dir, stream=config.dataset.stream)
    if config.dataset.random_labels:
        return data.with_random_labels(loaded)
    return loaded


def criterion(config: ConfigDict) -> Criterion | None:
    """Returns the criterion that a configuration names; None for another method.

    It has the settings in its section. For no pruning it is the magnitude, of which all
    is kept.
    """
    name = config.prune.method
    if name in RIVALS:
        return None
    path = CRITERIA.get("magnitude" if name == "none" else name, name)
    function = imports.load_function(
        path, "prune.method", ("loss_fn", "params", "batch"), ("key",), OFFERS
    )
    settings = config[name] if name in CRITERIA and name in config else {}
    return functools.partial(function, **settings) if settings else function


def rounds(config: ConfigDict) -> int:
    """Returns the number of rounds of scoring; by default the method's own.

    >>> from snipjax import config as configs
    >>> config = configs.default()
    >>> config.prune.method = "synflow"
    >>> rounds(config)
    100
    """
    return config.prune.rounds or ROUNDS.get(config.prune.method, 1)


def temperature(config: ConfigDict) -> float:
    """Returns the divisor of the logits while scoring; by default the method's own.

    >>> from snipjax import config as configs
    >>> config = configs.default()
    >>> config.prune.method = "grasp"
    >>> temperature(config)
    200.0
    """
    return config.prune.temperature or TEMPERATURES.get(config.prune.method, 1.0)


def method(config: ConfigDict) -> tuple[Callable[..., Any], Any] | None:
    """Returns the method that a configuration names, and its settings.

    They are a function of :mod:`snipjax.methods` and an instance of its settings; None
    where the configuration names a criterion.
    """
    name = config.prune.method
    if name not in RIVALS:
        return None
    function, settings = (imports.load(path, "prune.method") for path in RIVALS[name])
    try:
        return function, settings(**config[name])
    except ValueError as error:
        raise ValueError(f"config.{name}: {error}") from None


def prunable(config: ConfigDict) -> Prunable:
    """Returns the predicate of what may be pruned, ``(key_path, leaf) -> bool``."""
    from snipjax import masks

    name = config.prune.prunable
    path = PRUNABLE.get(name, name)
    predicate = imports.load_function(path, "prune.prunable", ("key_path", "leaf"))
    return masks.excluding(predicate, *config.prune.exclude)


def removes_units(config: ConfigDict) -> bool:
    """Returns whether a configuration trains a smaller network, without some units."""
    return config.prune.select in UNITS


def select(config: ConfigDict, order: Callable[[], Sequence[str]] = tuple) -> Select:
    """Returns the selection, ``(scores, sparsity, prunable) -> mask``.

    ``order`` returns the names of layers from input to output; it is called where a
    selection or an allocation takes them, as ``order``.
    """
    from snipjax import masks

    if config.prune.min_density:
        return masks.with_minimum_density(config.prune.min_density)
    name, field = config.prune.select, "prune.select"
    if name in UNITS:  # and all connections of the others
        name = "global"
    path = {**SELECTIONS, **ALLOCATIONS}.get(name, name)
    first = "params" if name in ALLOCATIONS else "scores"
    arguments = (first, "sparsity", "prunable")
    function = imports.load_function(path, field, arguments, offers=("order",))
    if imports.taken(function, ["order"]):
        function = functools.partial(function, order=order())
    return masks.by_allocation(function) if name in ALLOCATIONS else function


def loss(config: ConfigDict) -> Callable[..., Any]:
    """Returns the loss, ``(logits, labels) -> scalar``, a mean over examples."""
    name = config.train.loss
    return imports.load_function(
        LOSSES.get(name, name), "train.loss", ("logits", "labels")
    )


def augment(config: ConfigDict) -> training.Augment | None:
    from snipjax import training

    flip, translate = config.train.flip, config.train.translate
    if not (flip or translate):
        return None
    return functools.partial(
        training.flip_and_translate, flip=flip, translate=translate
    )


def schedule(config: ConfigDict) -> optax.Schedule:
    r"""Returns the learning rate of each step.

    During a warm-up of :math:`n` steps, step :math:`t` takes the schedule's value times
    :math:`\min(1, (t + 1) / n)`. The cosine would be zero one step after the last.
    """
    import jax.numpy as jnp
    import optax

    settings = config.optimizer
    rate = settings.learning_rate
    decayed = {
        "step": functools.partial(
            optax.exponential_decay,
            rate,
            settings.decay_every,
            settings.decay_factor,
            staircase=True,
        ),
        "cosine": functools.partial(
            optax.cosine_decay_schedule, rate, max(1, config.train.steps)
        ),
        "constant": functools.partial(optax.constant_schedule, rate),
    }[settings.schedule]()
    if not settings.warmup_steps:
        return decayed
    return lambda step: (
        decayed(step) * jnp.minimum(1.0, (step + 1) / settings.warmup_steps)
    )


def optimizer(
    config: ConfigDict, learning_rate: optax.ScalarOrSchedule | None = None
) -> optax.GradientTransformation:
    """Returns the optimizer of the dense network; the paper's by default.

    An optimizer of one's own is called with the learning rate, and with ``momentum``
    and ``weight_decay`` if it takes them, as most of optax do. ``learning_rate``, a
    number or a schedule, takes the place of the configured schedule.
    """
    import optax

    settings = config.optimizer
    rate = schedule(config) if learning_rate is None else learning_rate
    return imports.call(
        OPTIMIZERS.get(settings.name, settings.name),
        "optimizer.name",
        optax.GradientTransformation,
        {"learning_rate": rate},
        {"momentum": settings.momentum, "weight_decay": settings.weight_decay},
    )


def sparse(config: ConfigDict) -> Callable[..., Any]:
    """Returns ``(optimizer, mask, key) -> optimizer of the sparse network``.

    A function of one's own is called with ``inner``, ``mask`` and ``key``, and with the
    settings in ``optimizer.sparse`` that its signature names. The
    shares of the training's steps become numbers of steps.
    """
    settings = config.optimizer.sparse
    name, field = settings.name, "optimizer.sparse.name"
    offers = {
        **{k: v for k, v in settings.items() if k != "name"},
        "start": round(settings.start * config.train.steps),
        "stop": last_move(config),
    }
    if not settings.fraction:
        del offers["fraction"]  # the optimizer's own
    function = imports.load_function(
        SPARSE.get(name, name), field, ("inner", "mask"), offers=(*offers, "key")
    )
    given = {k: offers[k] for k in imports.taken(function, [*offers])}
    takes_key = bool(imports.taken(function, ["key"]))

    def sparse_optimizer(inner: Any, mask: Any, key: Any) -> Any:
        return function(inner, mask, **given, **({"key": key} if takes_key else {}))

    return sparse_optimizer


def last_move(config: ConfigDict) -> int:
    """Returns the step of the last move of the mask, at most; 0 for a static one.

    >>> from snipjax import config as configs
    >>> config = configs.default()
    >>> config.optimizer.sparse.name = "rigl"
    >>> last_move(config), config.train.steps
    (750, 1000)
    """
    settings = config.optimizer.sparse
    if settings.name == "static":
        return 0
    return last_step(settings.stop, config.train.steps)


def last_step(share: float, steps: int) -> int:
    """Returns the step of the last move, for a share of the steps of training."""
    return max(1, min(round(share * steps), steps - 1))
