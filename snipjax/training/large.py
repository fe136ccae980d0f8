"""An experiment on a mesh of devices, from data that is read batch by batch.

:func:`run` is Algorithm 1 of the paper as :func:`snipjax.experiment.run` is, for
networks and data that one device does not hold: parameters lie split over the mesh
(:mod:`snipjax.training.sharding`), examples come from a stream (:mod:`snipjax.data.streams`), and
several processes may take part (:mod:`snipjax.training.distributed`).
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

import snipjax
from snipjax import config as configs
from snipjax import (
    experiment,
    masks,
    models,
    optim,
    pruning,
    saliency,
    training,
)
from snipjax._src import trees
from snipjax.data import datasets, streams
from snipjax.training import (
    checkpoints,
    console,
    distributed,
    rundir,
    sharding,
)

_TRAINING, _SALIENCY = range(2)  # the streams of a run


class Plan(NamedTuple):
    """What an experiment is made of, and where."""

    parts: experiment.Parts
    mesh: Mesh
    sources: streams.Sources
    views: streams.Views
    image_size: int
    facts: dict[str, Any]  # of the data, to know them again by

    @property
    def config(self) -> ConfigDict:
        return self.parts.config


def run(
    config: ConfigDict,
    workdir: Path | str,
    *,
    data_dir: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Prunes a network at initialization, trains it, and reports.

    Each process calls it alike. Run again on the directory of an interrupted run, it
    goes on from the last checkpoint: on the same mesh it ends with the same
    parameters, bit for bit; on another, or on another number of processes, with the
    same ones but for rounding.

    Args:
      config: like :func:`snipjax.config.default`'s; ``mesh``, or ``dataset.stream``
        and all devices along ``data``.
      workdir: directory of the run, as of :func:`snipjax.experiment.run`, which all
        processes see.
      data_dir: of TFDS, as :func:`snipjax.data.streams.open` takes it.
      command: the command line, to be kept with the result.

    Returns:
      The contents of ``result.json``.

    Raises:
      ValueError: for a configuration or mesh that is off, a data set that cannot be
        had or has changed since the run was started, a directory that holds something
        else, or processes that were not given the same.
      OSError: if a checkpoint cannot be written, or another process has died.
      KeyboardInterrupt: after an interrupt of any process, once a checkpoint is
        written.

    Example:
      >>> config = snipjax.config.default()
      >>> config.mesh = "data=4,model=2"
      >>> result = run(config, "runs/digits")  # doctest: +SKIP
    """
    started = time.monotonic()
    configs.validate(config)
    directory = Path(workdir)
    with (
        distributed.lost_peers(),
        claim(directory, config),
        distributed.one_voice(directory) as workdir,
        experiment.stop_requests() as stop,
    ):
        if distributed.any_of((directory / rundir.RESULT).exists()):
            console.say(f"finished before, in {directory}")
            result = rundir.read_json(directory / rundir.RESULT)
            experiment.show_result(result)
            return result

        plan = distributed.by_all(lambda: assemble(config, data_dir))
        distributed.check_same(dict(configs.fields({"data": plan.facts})))
        distributed.by_first(lambda: rundir.check_data(directory, plan.facts))
        abstract = abstract_state(plan)
        console.say(
            f"devices: {plan.mesh.shape['data']} along data, "
            f"{plan.mesh.shape['model']} along model; processes: {jax.process_count()}"
        )
        # Not before all that can be wrong with a configuration has been looked at.
        rundir.write_json(workdir / rundir.CONFIG, config.to_dict())
        rundir.write_json(workdir / rundir.DATA, plan.facts)
        with checkpoints.open_directory(directory / "checkpoints") as manager:
            restored = checkpoints.restore_latest(manager, abstract)
            if restored is None:
                state, scores = prune(plan, saliency_batches(plan))
                progress = {"best": None, "last": None, "recent": [], "seconds": 0.0}
                seconds = time.monotonic() - started
                # What cannot be drawn or written next costs no pruning.
                checkpoints.save(manager, 0, state, {**progress, "seconds": seconds})
                report_pruning(plan, state, scores, workdir)
                del scores
            else:
                state, progress = restored
                console.say(f"resuming from step {int(state.step):,} in {workdir}")
                if not distributed.any_of((directory / "mask.npz").exists()):
                    experiment.save_mask(state.opt_state.mask, workdir / "mask.npz")
            rundir.truncate_metrics(workdir, last_step=int(state.step))
            progress["seconds"] += time.monotonic() - started
            state, progress = train(plan, state, progress, manager, workdir, stop)
        result = summarize(plan, state, progress)
        experiment.write_result(result, workdir, command)
        if stop.is_made:  # too late for this run, but not for what comes after it
            raise KeyboardInterrupt
        experiment.show_result(result)
        console.say(f"everything is in {workdir}")
    return result


@contextlib.contextmanager
def claim(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """As :func:`snipjax.training.rundir.claim`, by the first process for all of them.

    Another mesh than the directory's is no other configuration. Processes that were
    not given the same are refused.
    """
    distributed.check_same(facts_of_start(workdir, config))
    with contextlib.ExitStack() as stack:
        claimed = rundir.claim(workdir, config, differences=rundir.of_large)
        distributed.by_first(lambda: stack.enter_context(claimed))
        yield


def facts_of_start(workdir: Path, config: ConfigDict) -> dict[str, Any]:
    """Returns what all processes of a run must have been given alike.

    Args:
      workdir: the directory of the run.
      config: its configuration.
    """
    package = Path(snipjax.__file__).parent
    code = [file.read_bytes() for file in sorted(package.rglob("*.py"))]
    return {
        **{f"config.{name}": value for name, value in configs.fields(config)},
        "workdir": str(workdir.absolute()),
        "the version of snipjax": f"{snipjax.__version__} {streams.digest_of(*code)}",
        "the version of JAX": jax.__version__,
    }


def assemble(config: ConfigDict, data_dir: str | None = None) -> Plan:
    """Opens the data, and builds the mesh, the model and the optimizer.

    Args:
      config: like :func:`snipjax.config.default`'s.
      data_dir: of TFDS.

    Raises:
      ValueError: for a mesh that there is not, or that does not divide the batches;
        an unknown model; a data set that cannot be had; images without one size.
    """
    name, train_config = config.dataset.name, config.train
    mesh = sharding.mesh_of(config.mesh)
    sharding.check_divides(mesh, train_config.batch_size, "train.batch_size")
    sharding.check_divides(mesh, config.prune.batch_size, "prune.batch_size")
    create = functools.partial(
        models.create, config.model.name, dtype=jnp.dtype(config.model.dtype)
    )
    create(1)  # a wrong name is said before loading
    if config.dataset.stream:
        sources = streams.open(name, data_dir)
    else:
        sources = streams.in_memory(datasets.load(name, data_dir))
    console.say(
        f"opened {name}: {len(sources.train):,} examples to train on, "
        f"{len(sources.validation):,} to validate, {len(sources.test):,} to test"
    )
    for batch_size in (train_config.batch_size, config.prune.batch_size):
        training.epoch_length(len(sources.train), batch_size)
    size, views = image_size(config, sources), streams.VIEWS[config.dataset.view]
    mean, std = streams.mean_and_std(
        sources.train, image_size=size, view=views.evaluation
    )
    model = create(sources.num_classes)
    transforms = [functools.partial(sharding.fully_sharded, mesh)]
    if train_config.remat:
        model, remat = rematerialized(model)
        transforms.append(remat)
    count = len(sources.train)
    parts = experiment.Parts(
        config=config,
        model=model,
        train=training.Batch(
            jax.ShapeDtypeStruct((count, size, size, sources.train.channels), "uint8"),
            jax.ShapeDtypeStruct((count,), "int32"),
        ),
        validation=sources.validation,
        test=sources.test,
        preprocess=functools.partial(datasets.standardize, mean=mean, std=std),
        augment=experiment.augmentation(config),
        optimizer=experiment.optimizer_of(config),
        keys=experiment.keys_of(config.seed),
        transform=lambda loss_fn: functools.reduce(
            lambda f, transform: transform(f), transforms, loss_fn
        ),
        place=lambda tree: jax.lax.with_sharding_constraint(
            tree, sharding.of(mesh, tree)
        ),
    )
    facts = streams.facts(sources) | {
        "image_size": size,
        "mean": [experiment.rounded(float(value)) for value in mean],
        "std": [experiment.rounded(float(value)) for value in std],
    }
    return Plan(parts, mesh, sources, views, size, facts)


def image_size(config: ConfigDict, sources: streams.Sources) -> int:
    """Returns height and width of the images in a batch.

    Args:
      config: its ``dataset.image_size``, or 0 for that of images that are arrays.
      sources: whose first image is looked at.

    Raises:
      ValueError: if it is 0, and images are files or not square.
    """
    if config.dataset.image_size:
        return config.dataset.image_size
    image, _ = sources.train[0]
    if not isinstance(image, np.ndarray) or image.shape[0] != image.shape[1]:
        raise ValueError(
            f"config.dataset.image_size is 0, but the images of {sources.name} are not "
            "squares of one size; give the size to see them in, e.g. 224"
        )
    return image.shape[0]


def rematerialized(model: nn.Module) -> tuple[nn.Module, training.Transform]:
    """Returns a model of less memory in the backward pass, and what to do to its loss.

    Where the model is made of blocks that can be computed again, only what enters
    them is kept; of others, only what products and convolutions give.

    Args:
      model: a network of :mod:`snipjax.models`.
    """
    policies = jax.checkpoint_policies
    if hasattr(model, "remat"):
        return model.clone(remat=policies.nothing_saveable), lambda loss_fn: loss_fn
    return model, functools.partial(jax.checkpoint, policy=policies.dots_saveable)


def saliency_batches(plan: Plan) -> list[training.Batch]:
    """Returns the mini-batches that saliency is computed on.

    They are the first of a stream of their own, as uint8 images on the mesh.
    """
    config = plan.config.prune
    put = functools.partial(
        jax.make_array_from_process_local_data, sharding.of_batch(plan.mesh)
    )
    return [
        training.Batch(put(images), put(labels))
        for images, labels in _stream(
            plan, _SALIENCY, config.batch_size, num_steps=config.num_batches
        )
    ]


def prune(
    plan: Plan, batches: Sequence[training.Batch]
) -> tuple[training.TrainState, experiment.DrawnScores]:
    """Samples a network, scores and prunes it, and makes its state.

    No device has more of it at any time than its part, and a layer; and no more
    memory than a training step takes, however many batches and rounds there are.
    What is trained is sampled when what was scored is gone, and the scores too.

    Args:
      plan: of :func:`assemble`.
      batches: of :func:`saliency_batches`.

    Returns:
      ``(state, scores)``: the training state before the first step, with the mask in
      its ``opt_state``, and what a histogram shows of the saliencies.

    Raises:
      ValueError: if a saliency is not finite.
    """
    scores, mask = scores_and_mask(plan, batches)
    masks.warn_if_disconnected(mask)
    drawn = experiment.draw_scores(scores, mask)
    del scores  # before there is another sample, and momentum
    with jax.set_mesh(plan.mesh):
        trained = experiment.trained_sample(plan.parts)
    return compiled_initial_state(plan)(trained, mask), drawn


def scores_and_mask(
    plan: Plan, batches: Sequence[training.Batch]
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Returns the saliencies of a sample of the variables, and what to keep by them.

    As :func:`snipjax.experiment.scores_and_mask`, but that each batch and each
    selection is a program of its own: of a loop over batches, or of two rounds in one
    program, XLA joins the gathers of a parameter, and keeps it whole in between.

    Args:
      plan: of :func:`assemble`.
      batches: of :func:`saliency_batches`.

    Raises:
      ValueError: if a saliency is not finite.
    """
    scored_of = _what_is_scored(plan, batches)
    mask = None
    for done in range(1, plan.config.prune.rounds + 1):
        scores = None  # or they would be there beside the next ones
        select = compiled_selection(plan, done)
        scores, mask, finite = select(scored_of(mask), mask)
        _check_finite(finite)
    return scores, mask


def compiled_addition(plan: Plan) -> Callable[..., chex.ArrayTree]:
    """Returns ``(total, variables, batch of uint8 images) -> total``, compiled.

    It adds the sensitivity on a batch to the total, which is donated.

    Args:
      plan: of :func:`assemble`.
    """

    def addition(
        total: chex.ArrayTree, variables: chex.ArrayTree, batch: training.Batch
    ) -> chex.ArrayTree:
        batch = training.Batch(plan.parts.preprocess(batch.images), batch.labels)
        loss_fn = experiment.scored_loss(plan.parts, variables)
        sensitivity = saliency.sensitivity(loss_fn, variables["params"], batch)
        return jax.tree.map(jnp.add, total, sensitivity)

    variables = _abstract_sample(plan, experiment.scored_sample)
    total = _abstract_total(plan)
    batch = _abstract_batch(plan, plan.config.prune.batch_size)
    compilation = sharding.compiled_for_memory
    return _compiled(plan, compilation, addition, total, variables, batch, donate=(0,))


def compiled_selection(plan: Plan, done: int = 1) -> Callable[..., Any]:
    """Returns ``(scored, mask before) -> (scores, mask, finite)``, compiled.

    What is scored is the sum of sensitivities, or the parameters if the criterion
    takes no gradient. The mask before is ``None`` in the first round. ``finite`` says
    of each leaf whether all of its scores are. The sum and the mask are donated.

    Args:
      plan: of :func:`assemble`.
      done: the number of the round, from 1.
    """
    parts, config = plan.parts, plan.config.prune

    def selection(scored: chex.ArrayTree, before: chex.ArrayTree | None) -> Any:
        if _takes_gradient(plan):
            scores = saliency.normalized(scored)
        else:
            scores = experiment.criterion_of(parts)(None, scored, None)
        scores = parts.place(scores)
        mask = pruning.mask_of_round(
            scores,
            experiment.sparsity_of(config),
            before=before,
            done=done,
            rounds=config.rounds,
            select=parts.select,
            prunable=parts.prunable,
        )
        finite = jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), scores)
        return scores, mask, finite

    if _takes_gradient(plan):
        scored, donate = _abstract_total(plan), (0, 1)
    else:
        sample = _abstract_sample(plan, experiment.scored_sample)
        scored, donate = sample["params"], (1,)
    before = None if done == 1 else abstract_state(plan).opt_state.mask
    compilation = sharding.compiled_for_memory
    return _compiled(plan, compilation, selection, scored, before, donate=donate)


def compiled_initial_state(plan: Plan) -> Callable[..., training.TrainState]:
    """Returns ``(variables, mask) -> state`` before the first step, compiled.

    Both are donated, so that only momentum takes memory of its own.

    Args:
      plan: of :func:`assemble`.
    """

    def initial_state(
        variables: chex.ArrayTree, mask: chex.ArrayTree
    ) -> training.TrainState:
        pruned = experiment.Pruned(experiment.masked(mask, variables), mask, None)
        return experiment.initial_state(plan.parts, pruned)

    variables = _abstract_sample(plan, experiment.trained_sample)
    mask = abstract_state(plan).opt_state.mask
    return _compiled(
        plan, sharding.compiled, initial_state, variables, mask, donate=(0, 1)
    )


def abstract_state(plan: Plan) -> training.TrainState:
    """Returns shapes, dtypes and shardings of the training state."""
    return _abstract(plan, experiment.abstract_state(plan.parts))


def report_pruning(
    plan: Plan,
    state: training.TrainState,
    drawn: experiment.DrawnScores,
    workdir: Path,
) -> None:
    """As :func:`snipjax.experiment.report_mask`, of a state."""
    experiment.report_mask(plan.parts, state.opt_state.mask, drawn, workdir)


def train(
    plan: Plan,
    state: training.TrainState,
    progress: dict[str, Any],
    manager: Any,
    workdir: Path,
    stop: experiment.StopRequest,
) -> tuple[training.TrainState, dict[str, Any]]:
    """Trains to the last step; as :func:`snipjax.experiment.train`."""
    config, step = plan.config.train, compiled_train_step(plan)
    placed = sharding.of_batch(plan.mesh)
    stream = _stream(
        plan,
        _TRAINING,
        config.batch_size,
        start_step=int(state.step),
        num_steps=config.steps,
        workers=plan.config.dataset.workers,
    )
    with streams.to_device(stream, placed) as batches:

        def train_steps(
            state: training.TrainState, num_steps: int
        ) -> tuple[training.TrainState, training.Metrics]:
            total = training.Metrics(0.0, 0.0)
            for batch in itertools.islice(batches, num_steps):
                state, metrics = step(state, training.Batch(*batch))
                total = jax.tree.map(jnp.add, total, metrics)
            return state, jax.tree.map(lambda x: x / num_steps, total)

        return experiment.train_by(
            train_steps,
            functools.partial(evaluate, plan, compiled_evaluate(plan)),
            plan.parts,
            state,
            progress,
            manager,
            workdir,
            stop,
            is_stopped=lambda stop: distributed.any_of(stop.is_made),
        )


def compiled_train_step(plan: Plan) -> Callable[..., Any]:
    """Returns ``(state, batch of uint8 images) -> (state, metrics)``, compiled.

    The state is donated.
    """
    parts, mesh = plan.parts, plan.mesh
    state = abstract_state(plan)
    batch = _abstract_batch(plan, plan.config.train.batch_size)

    def step(
        state: training.TrainState, batch: training.Batch
    ) -> tuple[training.TrainState, training.Metrics]:
        _, augment_key = jax.random.split(state.key)
        images = parts.preprocess(batch.images)
        if parts.augment is not None:
            images = parts.augment(jax.random.fold_in(augment_key, state.step), images)
        return training.train_step(
            state,
            training.Batch(images, batch.labels),
            model=parts.model,
            optimizer=optim.sparse(parts.optimizer, state.opt_state.mask),
            transform=parts.transform,
        )

    out = sharding.of(mesh, state), sharding.replicated(mesh)
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, out_shardings=out, donate_argnums=0)
        return sharding.compiled(mesh, jitted.lower(state, batch))


def compiled_evaluate(plan: Plan) -> Callable[..., training.Metrics]:
    """Returns ``(state, batch, counted) -> sums over the examples that count``.

    The batch is of uint8 images, and ``counted`` of float32, 0 where one is padding.
    """
    parts, mesh = plan.parts, plan.mesh
    batch = _abstract_batch(plan, plan.config.train.batch_size)
    counted = jax.ShapeDtypeStruct(
        batch.labels.shape, "float32", sharding=batch.labels.sharding
    )

    def sums(
        state: training.TrainState, batch: training.Batch, counted: chex.Array
    ) -> training.Metrics:
        params = sharding.gathered(mesh, state.params)
        batch = training.Batch(parts.preprocess(batch.images), batch.labels)
        return training.metric_sums(
            params, state.batch_stats, batch, counted > 0, model=parts.model
        )

    with jax.set_mesh(mesh):
        jitted = jax.jit(sums, out_shardings=sharding.replicated(mesh))
        return sharding.compiled(
            mesh, jitted.lower(abstract_state(plan), batch, counted)
        )


def evaluate(
    plan: Plan,
    sums: Callable[..., training.Metrics],
    state: training.TrainState,
    source: streams.Source,
) -> training.Metrics:
    """Returns the mean loss and error over all examples of a source.

    Args:
      plan: of :func:`assemble`.
      sums: of :func:`compiled_evaluate`.
      state: the training state.
      source: the examples.
    """
    batches = streams.evaluation_batches(
        source,
        batch_size=plan.config.train.batch_size,
        image_size=plan.image_size,
        view=plan.views.evaluation,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=plan.config.dataset.workers,
    )
    total = training.Metrics(0.0, 0)
    with streams.to_device(batches, sharding.of_batch(plan.mesh)) as batches:
        for images, labels, counted in batches:
            metrics = sums(state, training.Batch(images, labels), counted)
            total = jax.tree.map(jnp.add, total, metrics)
    return jax.tree.map(lambda x: x / len(source), total)


def summarize(
    plan: Plan, state: training.TrainState, progress: dict[str, Any]
) -> dict[str, Any]:
    """Returns the result of a run, as ``result.json`` holds it."""
    return experiment.summarize(plan.parts, state, progress) | {
        "mesh": dict(plan.mesh.shape),
        "processes": jax.process_count(),
    }


def _abstract(plan: Plan, tree: chex.ArrayTree) -> Any:
    """Shapes and dtypes of a tree, and where its leaves lie."""
    return jax.tree.map(
        lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
        tree,
        sharding.of(plan.mesh, tree),
    )


def _abstract_sample(
    plan: Plan, sample: Callable[[experiment.Parts], chex.ArrayTree]
) -> Any:
    """Shapes, dtypes and shardings of variables, those scored or those to train."""
    with jax.set_mesh(plan.mesh):
        shapes = jax.eval_shape(lambda: sample(plan.parts))
    return _abstract(plan, shapes)


def _abstract_total(plan: Plan) -> Any:
    """Sensitivities that are added up."""
    params = _abstract_sample(plan, experiment.scored_sample)["params"]
    return jax.tree.map(lambda w: w.update(dtype=jnp.float32), params)


def _abstract_batch(plan: Plan, batch_size: int) -> training.Batch:
    """A batch of uint8 images."""
    shape = (batch_size, *plan.parts.train.images.shape[1:])
    placed = sharding.of_batch(plan.mesh)
    return training.Batch(
        jax.ShapeDtypeStruct(shape, "uint8", sharding=placed),
        jax.ShapeDtypeStruct(shape[:1], "int32", sharding=placed),
    )


def _takes_gradient(plan: Plan) -> bool:
    return plan.config.prune.method == "snip"


def _what_is_scored(
    plan: Plan, batches: Sequence[training.Batch]
) -> Callable[[chex.ArrayTree | None], chex.ArrayTree]:
    """``mask before -> the first argument of compiled_selection``.

    The sample is made again in each round: it takes no memory during a selection.
    """
    abstract = _abstract_sample(plan, experiment.scored_sample)
    shapes = _abstract_total(plan)
    apply_mask = jax.jit(
        experiment.masked,
        donate_argnames="variables",
        out_shardings=sharding.of(plan.mesh, abstract),
    )
    zeros = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
        out_shardings=sharding.of(plan.mesh, shapes),
    )
    add = compiled_addition(plan) if _takes_gradient(plan) else None

    def scored(mask: chex.ArrayTree | None) -> chex.ArrayTree:
        with jax.set_mesh(plan.mesh):
            variables = experiment.scored_sample(plan.parts)
        if mask is not None:
            variables = apply_mask(mask, variables)
        if add is None:
            return variables["params"]
        total = zeros()
        for batch in batches:
            total = add(total, variables, batch)
        return total

    return scored


def _compiled(
    plan: Plan,
    compilation: Callable[..., jax.stages.Compiled],
    function: Callable[..., Any],
    *arguments: Any,
    donate: tuple[int, ...],
) -> Callable[..., Any]:
    """A program of abstract arguments, by one of the compilations of sharding."""
    with jax.set_mesh(plan.mesh):
        shapes = jax.eval_shape(function, *arguments)
        placed = sharding.of(plan.mesh, shapes)
        jitted = jax.jit(function, out_shardings=placed, donate_argnums=donate)
        return compilation(plan.mesh, jitted.lower(*arguments))


def _check_finite(finite: chex.ArrayTree) -> None:
    bad = [name for name, ok in trees.named_leaves(jax.device_get(finite)) if not ok]
    if bad:
        raise ValueError(
            f"saliency is not finite in {', '.join(bad)}; the loss or its gradient "
            "overflows on this batch: check the data and config.model.dtype"
        )


def _stream(plan: Plan, part: int, batch_size: int, **settings: Any) -> Iterator[Any]:
    """This process's part of the batches of one of a run's streams."""
    seed = np.random.SeedSequence((plan.config.seed, part)).generate_state(1)
    return streams.batches(
        plan.sources.train,
        batch_size=batch_size,
        seed=int(seed[0]),
        image_size=plan.image_size,
        view=plan.views.train,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **settings,
    )
