"""The parts of an experiment that a configuration names, and Algorithm 1's two halves.

:func:`score` and :func:`start` are for one network; a placement has them for all.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from snipjax import build, data, masks, pruning, scored_examples, training
from snipjax import config as schema
from snipjax._src import imports
from snipjax._src.types import Criterion, LossFn
from snipjax.training import console, on_mesh, sharding, side_by_side
from snipjax.training.loop import rounded
from snipjax.training.placement import Placement, Task
from snipjax.training.state import Batch, TrainState, init_state

_SCORED_LOSS = {"inference": training.inference_loss, "batch": training.batch_loss}


class Keys(NamedTuple):
    scored_init: chex.PRNGKey  # the sample that saliency is computed on
    saliency_batch: chex.PRNGKey
    criterion: chex.PRNGKey
    fresh_init: chex.PRNGKey  # the sample that is trained
    training: chex.PRNGKey


class Setup(NamedTuple):
    """The parts of an experiment, the same for every seed.

    ``init`` is ``(key, name of an initializer) -> variables``. ``facts`` are plain
    values by which to know the data again. There are either ``arrays``, the data on the
    device, or a ``stream`` and a ``mesh``, for a network that is split. A smaller
    network's setup has the setup of the ``whole`` network.
    """

    config: ConfigDict
    dataset: data.Dataset
    task: Task
    init: Callable[[chex.PRNGKey, str], chex.ArrayTree]
    facts: dict[str, Any]
    arrays: side_by_side.Arrays | None = None
    stream: on_mesh.Stream | None = None
    mesh: Mesh | None = None
    whole: Any = None

    def placement(self, seeds: range) -> Placement:
        like = abstract_state(self)
        if self.mesh is None:
            assert self.arrays is not None
            has_rounds = build.rounds(self.config) > 1
            return side_by_side.side_by_side(
                self.task, self.arrays, like, seeds, has_rounds=has_rounds
            )
        assert self.stream is not None
        steps = self.config.train.steps
        return on_mesh.on_mesh(self.task, self.stream, self.mesh, like, seeds, steps)


def algorithm(setup: Setup) -> tuple[Callable[..., Any], ...]:
    functions = score, start, saliency_batch
    return tuple(functools.partial(function, setup) for function in functions)


def make_keys(seed: chex.Numeric) -> Keys:
    return _split(jax.random.key(seed))


# Compiled as wholes: as many operations one by one take seconds to compile.
_split = jax.jit(lambda key: Keys(*jax.random.split(key, len(Keys._fields))))


def score(
    setup: Setup, seed: chex.Numeric, batch: Batch, jit: Callable[..., Any] = jax.jit
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Scores the connections of a sampled network, and selects the most salient.

    Lines 1 to 6 of Algorithm 1.
    """
    config, keys = setup.config.prune, make_keys(seed)
    variables = setup.init(keys.scored_init, setup.config.init.scored)
    criterion = scoring_criterion(setup, variables)
    scores, mask = pruning.score_and_mask(
        scored_loss(setup, variables),
        variables.pop("params"),  # which are gone after the last scores
        batch,
        0.0 if config.method == "none" else config.sparsity,
        criterion=criterion,
        select=build.select(setup.config, functools.partial(layer_order, setup)),
        prunable=build.prunable(setup.config),
        num_batches=None if config.num_batches == 1 else config.num_batches,
        rounds=build.rounds(setup.config),
        key=keys.criterion,
        may_return=config.method in build.MAY_RETURN,
        jit=jit,
    )
    if config.shuffle:
        mask = jit(masks.shuffle)(mask, jax.random.fold_in(keys.criterion, 1))
    return scores, mask


def start(setup: Setup, seed: chex.Numeric, mask: chex.ArrayTree) -> TrainState:
    """Returns the state of a pruned network before its first step.

    Line 7 of Algorithm 1. The network is a fresh sample if the configuration says so,
    as in the paper's reference implementation, else the one that was scored.
    """
    config, task, keys = setup.config, setup.task, make_keys(seed)
    if config.prune.fresh_init:
        variables = setup.init(keys.fresh_init, config.init.trained)
    else:
        variables = setup.init(keys.scored_init, config.init.scored)

    @jax.jit
    def masked_state(
        variables: chex.ArrayTree, mask: chex.ArrayTree, key: chex.PRNGKey
    ) -> TrainState:
        # Children 0 and 1 of the key are the order of the examples and augmentation.
        optimizer = task.sparse(task.optimizer, mask, jax.random.fold_in(key, 2))
        # The optimizer starts from all weights, which straight_through trains; others
        # apply the mask themselves.
        state = init_state(variables, optimizer, key)
        _check_has_mask(state.opt_state, config.optimizer.sparse.name)
        return state._replace(params=masks.apply(mask, state.params))

    return masked_state(variables, mask, keys.training)


def _check_has_mask(state: Any, name: str) -> None:
    if not hasattr(state, "mask"):
        raise ValueError(
            f"config.optimizer.sparse.name is '{name}', whose state has no mask; let "
            "an optimizer of snipjax.optim be the outermost and chain inside of it, "
            "e.g. optim.rigl(optax.chain(clip, inner), mask, ...)"
        )


def saliency_batch(setup: Setup, seed: chex.Numeric) -> Batch:
    """Returns the mini-batch for saliency, or a stack of several.

    The images are preprocessed, or uint8 if they are from a stream.
    """
    config = setup.config.prune
    if setup.stream is not None and setup.mesh is not None:
        return setup.stream.first(setup.mesh, config.batch_size, config.num_batches)
    assert setup.arrays is not None
    train, key = setup.arrays.train, make_keys(seed).saliency_batch
    indices = scored_examples.choose(
        setup.config, key, train.labels, setup.dataset.num_classes
    )
    batch = Batch(setup.task.preprocess(train.images[indices]), train.labels[indices])
    if config.num_batches == 1:
        return batch
    return jax.tree.map(
        lambda x: x.reshape(config.num_batches, -1, *x.shape[1:]), batch
    )


def path_counter(setup: Setup) -> Callable[[chex.ArrayTree], float | None]:
    """Returns the function from a mask to its effective sparsity, compiled once.

    It returns None where the configuration does not ask for it.
    """
    if not setup.config.prune.effective:
        return lambda mask: None
    name = setup.config.init.trained
    variables = jax.eval_shape(setup.init, jax.random.key(0), name)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
    params, images = zeros.pop("params"), jnp.zeros((1, *setup.facts["image_shape"]))

    def apply_fn(params: chex.ArrayTree, images: chex.Array) -> chex.Array:
        return setup.task.model.apply({"params": params, **zeros}, images, train=False)

    on_paths = jax.jit(lambda mask: masks.effective(mask, apply_fn, params, images))
    return lambda mask: masks.sparsity(on_paths(mask))


def scoring_criterion(setup: Setup, variables: chex.ArrayTree) -> Criterion:
    """Returns the criterion, given what it takes beyond a loss; see `build.OFFERS`."""
    config, task = setup.config, setup.task
    criterion = build.criterion(config)
    assert criterion is not None  # or rivals prunes instead
    takes = imports.taken(criterion, build.OFFERS)
    if not takes and not config.prune.invert:
        return criterion
    stats = variables.get("batch_stats", {})

    def network(stats: chex.ArrayTree) -> Callable[..., chex.Array]:
        return task.transform(
            lambda params, inputs: task.model.apply(
                {"params": params, "batch_stats": stats}, inputs, train=False
            )
        )

    def normalized_by(
        params: chex.ArrayTree, inputs: chex.Array
    ) -> Callable[..., chex.Array]:
        return network(training.batch_statistics(task.model, params, stats, inputs))

    def scores(
        loss_fn: LossFn, params: chex.ArrayTree, batch: Batch, *, key: chex.PRNGKey
    ) -> chex.ArrayTree:
        images = batch.images if config.prune.num_batches == 1 else batch.images[0]
        offers = {
            "apply_fn": network(stats),
            "inputs": images if setup.stream is None else task.preprocess(images),
            "init_fn": lambda key: setup.init(key, config.init.scored)["params"],
            "normalized_by": normalized_by,
        }
        given = {name: offers[name] for name in takes}
        found = criterion(loss_fn, params, batch, key=key, **given)
        return jax.tree.map(jnp.negative, found) if config.prune.invert else found

    return scores


def scored_loss(setup: Setup, variables: chex.ArrayTree) -> Callable[..., chex.Array]:
    """Returns ``(params, batch) -> loss`` with the batch statistics of a sample."""
    task, config = setup.task, setup.config.prune
    temperature = build.temperature(setup.config)

    def of_logits(logits: chex.Array, labels: chex.Array) -> chex.Array:
        return task.loss(logits / temperature, labels)

    loss = _SCORED_LOSS[config.batch_norm](
        task.model, variables.get("batch_stats", {}), loss=of_logits
    )
    if setup.stream is None:
        return loss

    def streamed(params: chex.ArrayTree, batch: Batch) -> chex.Array:
        return loss(params, Batch(task.preprocess(batch.images), batch.labels))

    return task.transform(streamed)


def layer_order(setup: Setup) -> tuple[str, ...]:
    """Returns the names of parameters in the order in which the network uses them."""
    shape, name = setup.facts["image_shape"], setup.config.init.scored
    variables = jax.eval_shape(lambda key: setup.init(key, name), jax.random.key(0))
    order = masks.layer_order(
        lambda variables, x: setup.task.model.apply(variables, x, train=False),
        variables,
        jax.ShapeDtypeStruct((1, *shape), jnp.float32),
    )
    return tuple(
        name.removeprefix("params/") for name in order if name.startswith("params/")
    )


def abstract_state(setup: Setup) -> TrainState:
    """Returns shapes and dtypes of one network's state; shardings too on a mesh."""
    state = jax.eval_shape(functools.partial(_dense_state, setup))
    return state if setup.mesh is None else sharding.abstract(setup.mesh, state)


def _dense_state(setup: Setup) -> TrainState:
    variables = setup.init(make_keys(0).fresh_init, setup.config.init.trained)
    mask = masks.ones(variables["params"], build.prunable(setup.config))
    return start(setup, 0, mask)


def assemble(config: ConfigDict, data_dir: str | None = None) -> Setup:
    """Returns the parts of an experiment, its data loaded or opened."""
    build.model(config, 1)  # a wrong name is said before loading
    mesh = None
    if schema.is_large(config):
        axes = schema.mesh_axes(config.mesh) if config.mesh else None
        mesh = sharding.make_mesh(axes)
        for name in ("train", "prune"):
            size, field = config[name].batch_size, f"{name}.batch_size"
            sharding.check_divides(mesh, size, field)
    name, started = config.dataset.name, time.monotonic()
    console.say(f"loading {name}")
    dataset = build.dataset(config, data_dir)
    console.say(
        f"loaded {name} in {time.monotonic() - started:.1f} s: "
        f"{len(dataset.train):,} examples to train on, "
        f"{len(dataset.validation):,} to validate, {len(dataset.test):,} to test"
    )
    scored_examples.check_number(config, dataset)
    if mesh is None:
        setup = _in_memory(config, dataset)
    else:
        setup = _streamed(config, dataset, mesh)
    state = abstract_state(setup)  # the network takes the images
    if build.method(config) and jax.tree.leaves(state.batch_stats):
        raise ValueError(
            f"config.model.name is {config.model.name}, a network with batch norm, but "
            f"{config.prune.method} does not follow its statistics; choose a network "
            "without, e.g. lenet_5_caffe"
        )
    return setup


def _in_memory(config: ConfigDict, dataset: data.Dataset) -> Setup:
    mean, std = data.mean_and_std(dataset.train)
    parts = dataset.train, dataset.validation, dataset.test
    arrays = [Batch(jnp.asarray(x.images), jnp.asarray(x.labels)) for x in parts]
    model, shape = build.model(config, dataset.num_classes), parts[0].images.shape[1:]
    setup = _setup(config, dataset, model, shape, mean, std)
    return setup._replace(arrays=side_by_side.Arrays(*arrays))


def _streamed(config: ConfigDict, dataset: data.Dataset, mesh: Mesh) -> Setup:
    views = data.VIEWS[config.dataset.view]
    size = image_size(config, dataset)
    mean, std = data.mean_and_std(dataset.train, image_size=size, view=views.evaluation)
    model = build.model(config, dataset.num_classes)
    remat: training.Transform = _unchanged
    if config.train.remat:
        model, remat = rematerialized(model)
    setup = _setup(
        config,
        dataset,
        model,
        (size, size, dataset.train.channels),
        mean,
        std,
        place=functools.partial(sharding.constrained, mesh),
        transform=lambda loss_fn: remat(sharding.fully_sharded(mesh, loss_fn)),
    )
    workers = config.dataset.workers
    stream = on_mesh.Stream(dataset, size, views, config.seed, workers)
    return setup._replace(stream=stream, mesh=mesh)


def _unchanged(x: Any) -> Any:
    return x


def _setup(
    config: ConfigDict,
    dataset: data.Dataset,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    mean: np.ndarray,
    std: np.ndarray,
    *,
    place: Callable[[chex.ArrayTree], chex.ArrayTree] = _unchanged,
    transform: training.Transform = _unchanged,
) -> Setup:
    task = Task(
        model=model,
        optimizer=build.optimizer(config),
        batch_size=config.train.batch_size,
        preprocess=functools.partial(data.standardize, mean=mean, std=std),
        augment=build.augment(config),
        loss=build.loss(config),
        transform=transform,
        sparse=build.sparse(config),
    )

    @functools.partial(jax.jit, static_argnames="initializer")
    def init(key: chex.PRNGKey, initializer: str) -> chex.ArrayTree:
        sampled = build.with_initializer(model, initializer)
        # A model's sample depends on the images' shape alone.
        return place(sampled.init(key, jnp.zeros((1, *image_shape)), train=False))

    facts = data.facts(dataset) | {
        "image_shape": list(image_shape),
        "mean": [rounded(float(value)) for value in mean],
        "std": [rounded(float(value)) for value in std],
    }
    return Setup(config, dataset, task, init, facts)


def image_size(config: ConfigDict, dataset: data.Dataset) -> int:
    """Returns height and width of the images in a batch of a stream.

    By default it is the size of the images, if they are square arrays.
    """
    if config.dataset.image_size:
        return config.dataset.image_size
    image, _ = dataset.train[0]
    if not isinstance(image, np.ndarray) or image.shape[0] != image.shape[1]:
        raise ValueError(
            f"config.dataset.image_size is 0, but the images of {dataset.name} are not "
            "squares of one size; give the size to see them in, e.g. 224"
        )
    return image.shape[0]


def rematerialized(model: nn.Module) -> tuple[nn.Module, training.Transform]:
    """Returns a model of less memory in the backward pass, and a wrapper of its loss.

    Blocks that a model can compute again keep their inputs only; other models keep the
    results of products and convolutions.
    """
    policies = jax.checkpoint_policies
    if hasattr(model, "remat"):
        return model.clone(remat=policies.nothing_saveable), lambda loss_fn: loss_fn
    return model, functools.partial(jax.checkpoint, policy=policies.dots_saveable)
