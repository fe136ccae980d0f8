"""An experiment: prune a network at initialization, train it, report.

:func:`run` is the paper's Algorithm 1 read from top to bottom.
"""

import functools
import hashlib
import importlib.metadata
import math
import operator
import platform
import signal
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import snipjax
from snipjax import config as configs
from snipjax import (
    initializers,
    masks,
    models,
    optim,
    pruning,
    saliency,
    training,
)
from snipjax._src import trees
from snipjax.data import datasets
from snipjax.masks import budgets
from snipjax.results import plots
from snipjax.training import checkpoints, console, distributed, rundir

_PRUNABLE = {
    "weights_and_biases": masks.weights_and_biases,
    "kernels": masks.kernels,
}
_SELECT = {"global": masks.global_topk, "layerwise": masks.layerwise_topk}
_BATCH_NORM = {"inference": training.inference_loss, "batch": training.batch_loss}
_DRAWN = 4_000_000  # scores in a histogram, at most
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


class Keys(NamedTuple):
    """Where the randomness of each part of an experiment comes from."""

    scored_init: chex.PRNGKey  # the sample that saliency is computed on
    saliency_batch: chex.PRNGKey
    criterion: chex.PRNGKey  # random pruning
    fresh_init: chex.PRNGKey  # the sample that is trained
    training: chex.PRNGKey


def keys_of(seed: chex.Numeric) -> Keys:
    """Returns the keys of an experiment's parts."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


class Parts(NamedTuple):
    """What an experiment is made of: data on the device, and functions.

    Where data is streamed, ``train`` has shapes in the place of arrays, and
    ``validation`` and ``test`` are sources.
    """

    config: ConfigDict
    model: nn.Module
    train: training.Batch
    validation: training.Batch
    test: training.Batch
    preprocess: training.Preprocess
    augment: training.Augment | None
    optimizer: optax.GradientTransformation  # the inner one, of the dense network
    keys: Keys
    # What is done to a loss before its gradient is taken, and where a pytree like the
    # parameters is put: what :mod:`snipjax.training.large` has them for.
    transform: training.Transform = lambda loss_fn: loss_fn
    place: Callable[[chex.ArrayTree], chex.ArrayTree] = lambda tree: tree

    @property
    def prunable(self) -> masks.Prunable:
        config = self.config.prune
        return masks.excluding(_PRUNABLE[config.prunable], *config.exclude)

    @property
    def select(self) -> pruning.Select:
        minimum = self.config.prune.min_density
        if minimum:
            return budgets.with_minimum_density(minimum)
        return _SELECT[self.config.prune.select]


class Pruned(NamedTuple):
    """The outcome of pruning: variables to train, and why."""

    variables: chex.ArrayTree
    mask: chex.ArrayTree
    scores: chex.ArrayTree


class DrawnScores(NamedTuple):
    """What a histogram of the scores shows."""

    scores: np.ndarray  # float32 [n], of prunable connections
    threshold: float  # the least of all that was kept


class StopRequest:
    """Made by an interrupt or termination; while it waits, only a second one raises.

    It is noted even where it raises, for an exception can get lost: Python drops
    those raised in callbacks of the garbage collector, of which JAX has one.
    """

    def __init__(self) -> None:
        self.is_made, self.waits = False, False

    def handle(self, number: int, frame: Any) -> None:
        """Handles a signal."""
        is_first, self.is_made = not self.is_made, True
        if not (is_first and self.waits):
            raise KeyboardInterrupt


def run(
    config: ConfigDict,
    workdir: Path | str,
    *,
    data_dir: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Prunes a network at initialization, trains it, and reports.

    Run again on the directory of an interrupted run, it goes on from the last
    checkpoint and ends with the same parameters, bit for bit, as if it had not been
    interrupted. Run on that of a finished one, it shows the result.

    Args:
      config: like :func:`snipjax.config.default`'s.
      workdir: directory of the run: ``config.json``, ``metrics.jsonl``,
        ``result.json``, ``mask.npz``, ``checkpoints/``, ``tensorboard/``, pictures.
      data_dir: TFDS data directory, where the data set is not the embedded one.
      command: the command line, to be kept with the result.

    Returns:
      The contents of ``result.json``. Errors are in percent.

    Raises:
      ValueError: for a configuration that is off, a data set that cannot be had, or
        a directory that holds something else.
      KeyboardInterrupt: after an interrupt, once a checkpoint is written.

    Example:
      >>> config = snipjax.config.default()
      >>> config.prune.sparsity = 0.95
      >>> result = run(config, "runs/digits")  # doctest: +SKIP
    """
    started = time.monotonic()
    configs.validate(config)
    if config.seeds > 1 or config.vary:
        raise ValueError(
            "config asks for several runs; use snipjax.training.seeds.run where it has seeds, "
            "and snipjax.sweep.run where it has vary"
        )
    workdir = Path(workdir)
    with rundir.claim(workdir, config), stop_requests() as stop:
        if (workdir / rundir.RESULT).exists():
            console.say(f"finished before, in {workdir}")
            result = rundir.read_json(workdir / rundir.RESULT)
            show_result(result)
            return result

        parts = assemble(config, data_dir)
        abstract = abstract_state(parts)
        # Not before all that can be wrong with a configuration has been looked at.
        rundir.write_json(workdir / rundir.CONFIG, config.to_dict())
        with checkpoints.open_directory(workdir / "checkpoints") as manager:
            restored = checkpoints.restore_latest(manager, abstract)
            if restored is None:
                pruned = prune(parts)
                report_pruning(parts, pruned, workdir)
                state = initial_state(parts, pruned)
                progress = {"best": None, "last": None, "recent": [], "seconds": 0.0}
            else:
                state, progress = restored
                console.say(f"resuming from step {int(state.step):,} in {workdir}")
            rundir.truncate_metrics(workdir, last_step=int(state.step))
            progress["seconds"] += time.monotonic() - started
            state, progress = train(parts, state, progress, manager, workdir, stop)
        result = summarize(parts, state, progress)
        write_result(result, workdir, command)
        if stop.is_made:  # too late for this run, but not for what comes after it
            raise KeyboardInterrupt
    show_result(result)
    console.say(f"everything is in {workdir}")
    return result


def assemble(config: ConfigDict, data_dir: str | None = None) -> Parts:
    """Loads the data onto the device and builds the model and the optimizer."""
    name = config.dataset.name
    model_name, dtype = config.model.name, jnp.dtype(config.model.dtype)
    models.create(model_name, 1, dtype=dtype)  # a wrong name is said before loading
    start = time.monotonic()
    console.say(f"loading {name}")
    dataset = datasets.load(name, data_dir)
    console.say(
        f"loaded {name} in {time.monotonic() - start:.1f} s: "
        f"{len(dataset.train.labels):,} examples to train on, "
        f"{len(dataset.validation.labels):,} to validate, "
        f"{len(dataset.test.labels):,} to test"
    )
    if config.dataset.random_labels:
        dataset = dataset._replace(train=with_random_labels(dataset))
    check_batch_sizes(config, dataset.train.labels)
    mean, std = datasets.mean_and_std(dataset.train.images)
    return Parts(
        config=config,
        model=models.create(model_name, dataset.num_classes, dtype=dtype),
        train=_on_device(dataset.train),
        validation=_on_device(dataset.validation),
        test=_on_device(dataset.test),
        preprocess=functools.partial(datasets.standardize, mean=mean, std=std),
        augment=augmentation(config),
        optimizer=optimizer_of(config),
        keys=keys_of(config.seed),
    )


def augmentation(config: ConfigDict) -> training.Augment | None:
    """Returns what a configuration has done to preprocessed images, if anything."""
    flip, translate = config.train.flip, config.train.translate
    if not (flip or translate):
        return None
    return functools.partial(
        training.flip_and_translate, flip=flip, translate=translate
    )


def optimizer_of(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimizer of the dense network that a configuration asks for."""
    return training.paper_optimizer(
        config.train.learning_rate,
        decay_factor=config.train.decay_factor,
        decay_every=config.train.decay_every,
        momentum=config.train.momentum,
        weight_decay=config.train.weight_decay,
    )


def with_random_labels(dataset: datasets.Dataset) -> datasets.Examples:
    """Returns the training examples with labels that have nothing to do with them.

    They are the same whatever the seed of a run is (Zhang et al., "Understanding Deep
    Learning Requires Rethinking Generalization", ICLR 2017).
    """
    labels = np.random.RandomState(0).randint(
        dataset.num_classes, size=len(dataset.train.labels)
    )
    return dataset.train._replace(labels=labels.astype(np.int32))


def prune(parts: Parts) -> Pruned:
    """Samples a network, scores its connections on a mini-batch, and prunes it."""
    return prune_on(parts, saliency_batch(parts))


def prune_on(parts: Parts, batch: training.Batch) -> Pruned:
    """The same on a given mini-batch, or stack of them.

    The variables to train are a fresh sample where the configuration says so, as it
    does by default, for the paper's reference implementation does.
    """
    scores, mask = scores_and_mask(parts, scored_sample(parts), batch)
    return Pruned(masked(mask, trained_sample(parts)), mask, scores)


def scored_sample(parts: Parts) -> chex.ArrayTree:
    """Returns the variables that saliency is computed of."""
    return init_variables(parts, parts.keys.scored_init, parts.config.init.scored)


def trained_sample(parts: Parts) -> chex.ArrayTree:
    """Returns the variables to train, which are those scored or a fresh sample."""
    if not parts.config.prune.fresh_init:
        return scored_sample(parts)
    return init_variables(parts, parts.keys.fresh_init, parts.config.init.trained)


def masked(mask: chex.ArrayTree, variables: chex.ArrayTree) -> chex.ArrayTree:
    """Returns variables with those parameters zero that the mask does not keep."""
    return {**variables, "params": masks.apply(mask, variables["params"])}


def scores_and_mask(
    parts: Parts, variables: chex.ArrayTree, batch: training.Batch
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Returns the saliencies of a sample of the variables, and what to keep by them.

    Args:
      parts: of :func:`assemble`.
      variables: the sample that is scored.
      batch: a preprocessed mini-batch, or stack of them.
    """
    config = parts.config.prune
    scored = {}

    def criterion(
        loss_fn: saliency.LossFn, params: chex.ArrayTree, batch: Any
    ) -> chex.ArrayTree:
        scored["scores"] = parts.place(criterion_of(parts)(loss_fn, params, batch))
        return scored["scores"]

    _, mask = pruning.prune(
        scored_loss(parts, variables),
        variables["params"],
        batch,
        sparsity_of(config),
        criterion=criterion,
        select=parts.select,
        prunable=parts.prunable,
        num_batches=None if config.num_batches == 1 else config.num_batches,
        rounds=config.rounds,
    )
    return scored["scores"], mask


def scored_loss(parts: Parts, variables: chex.ArrayTree) -> saliency.LossFn:
    """Returns ``(params, preprocessed batch) -> loss``, whose saliency is taken.

    Args:
      parts: of :func:`assemble`.
      variables: the sample that is scored, for the statistics of batch norm.
    """
    loss_of = _BATCH_NORM[parts.config.prune.batch_norm]
    return parts.transform(loss_of(parts.model, variables.get("batch_stats", {})))


def criterion_of(parts: Parts) -> saliency.Criterion:
    """Returns the criterion that the configuration names."""
    return {
        "snip": saliency.snip,
        "magnitude": saliency.magnitude,
        "none": saliency.magnitude,
        "random": saliency.random(parts.keys.criterion),
    }[parts.config.prune.method]


def sparsity_of(config: ConfigDict) -> float:
    """Returns the share of connections to prune, by a configuration's ``prune``."""
    return 0.0 if config.method == "none" else config.sparsity


def init_variables(
    parts: Parts, key: chex.PRNGKey, initializer: str = "fan_in"
) -> chex.ArrayTree:
    """Returns a sample of the model's variables, kernels by the initializer named."""
    model = parts.model.clone(kernel_init=initializers.by_name(initializer))
    # A model's sample depends on the images' shape alone.
    images = jnp.zeros((1, *parts.train.images.shape[1:]))
    return _init(model, key, images, parts.place)


def saliency_batch(parts: Parts) -> training.Batch:
    """Returns the mini-batch, or stack of them, that saliency is computed on."""
    config = parts.config.prune
    indices = jax.random.choice(
        parts.keys.saliency_batch,
        scorable(parts.config, parts.train.labels),
        (config.batch_size * config.num_batches,),
        replace=False,
    )
    images, labels = parts.train.images[indices], parts.train.labels[indices]
    batch = training.Batch(parts.preprocess(images), labels)
    if config.num_batches == 1:
        return batch
    return jax.tree.map(
        lambda x: x.reshape(config.num_batches, config.batch_size, *x.shape[1:]), batch
    )


def scorable(config: ConfigDict, labels: chex.Array) -> np.ndarray:
    """Returns the indices of the training examples that saliency may be taken of."""
    if config.prune.batch_class < 0:
        return np.arange(len(labels))
    return np.flatnonzero(np.asarray(labels) == config.prune.batch_class)


def initial_state(parts: Parts, pruned: Pruned) -> training.TrainState:
    """Returns the training state before the first step."""
    optimizer = optim.sparse(parts.optimizer, pruned.mask)
    return training.init_state(pruned.variables, optimizer, parts.keys.training)


def abstract_state(parts: Parts) -> training.TrainState:
    """Returns the structure, shapes and dtypes of the training state."""
    return jax.eval_shape(functools.partial(dense_state, parts))


def dense_state(parts: Parts) -> training.TrainState:
    """Returns the training state before the first step of a network not pruned."""
    variables = init_variables(parts, parts.keys.fresh_init, parts.config.init.trained)
    mask = masks.ones(variables["params"], parts.prunable)
    return initial_state(parts, Pruned(variables, mask, scores=None))


def train(
    parts: Parts,
    state: training.TrainState,
    progress: dict[str, Any],
    manager: Any,
    workdir: Path,
    stop: StopRequest,
) -> tuple[training.TrainState, dict[str, Any]]:
    """Trains to the last step, evaluating and writing checkpoints on the way.

    Returns:
      The last state, and the progress: ``best``, the metrics of the evaluation with
      the least error on validation (the later of equals), ``last``, ``recent``, what
      the next evaluation has of training so far, and ``seconds``.
    """
    train_steps = _compiled_train_steps(parts, state)
    evaluate = _compiled_evaluate(parts)
    return train_by(
        lambda state, num_steps: train_steps(state, parts.train, num_steps=num_steps),
        lambda state, examples: evaluate(state.params, state.batch_stats, examples),
        parts,
        state,
        progress,
        manager,
        workdir,
        stop,
    )


def train_by(
    train_steps: Callable[..., tuple[training.TrainState, training.Metrics]],
    evaluate: Callable[[training.TrainState, Any], training.Metrics],
    parts: Parts,
    state: training.TrainState,
    progress: dict[str, Any],
    manager: Any,
    workdir: Path,
    stop: StopRequest,
    is_stopped: Callable[[StopRequest], bool] = operator.attrgetter("is_made"),
) -> tuple[training.TrainState, dict[str, Any]]:
    """The same by any functions.

    Args:
      train_steps: ``(state, num_steps) -> (state, mean metrics over the steps)``.
      evaluate: ``(state, parts.validation or parts.test) -> metrics``.
      parts: of which it takes the configuration too.
      state: where to start from; it may be donated to ``train_steps``.
      progress: what is returned of it where the run stopped.
      manager: of the checkpoints.
      workdir: directory of the run.
      stop: what asks it to stop.
      is_stopped: how it is asked, after each call of ``train_steps``.
    """
    config = parts.config.train
    start, total = int(state.step), config.steps
    started = time.monotonic() - progress["seconds"]
    recent = [
        (num_steps, training.Metrics(loss, error))
        for num_steps, loss, error in progress["recent"]
    ]
    since, since_step = time.monotonic(), start

    def save(step: int) -> None:
        progress["seconds"] = time.monotonic() - started
        progress["recent"] = [
            (num_steps, *map(float, jax.device_get(metrics)))
            for num_steps, metrics in recent
        ]
        checkpoints.save(manager, step, state, progress)

    if start == 0:
        save(0)
    with (
        console.training_progress(total, start) as bar,
        closing(rundir.Events(workdir / "tensorboard", start)) as events,
    ):
        step, stop.waits = start, True
        while step < total:
            num_steps = steps_to_next_stop(step, config)
            state, metrics = train_steps(state, num_steps)
            if recent and is_ready(recent[-1][1]):
                bar.update(step, *_loss_and_percent(recent[-1][1]))
            step += num_steps
            recent.append((num_steps, metrics))
            if step % config.eval_every == 0 or step == total:
                row = _metrics_row(parts, state, recent, evaluate, step)
                now = time.monotonic()
                row["steps_per_second"] = round((step - since_step) / (now - since), 2)
                row["seconds"] = round(now - started, 2)
                _record(row, progress, workdir, events)
                bar.update(step, row["train_loss"], row["train_error"])
                since, since_step = time.monotonic(), step
                recent = []
            if is_stopped(stop):
                save(step)
                checkpoints.wait(manager)
                console.say(f"stopped at step {step:,}; the same command goes on")
                raise KeyboardInterrupt
            if step % config.checkpoint_every == 0 or step == total:
                save(step)
        stop.waits = False
    return state, progress


def summarize(
    parts: Parts, state: training.TrainState, progress: dict[str, Any]
) -> dict[str, Any]:
    """Returns the result of a run, as ``result.json`` holds it."""
    config = parts.config
    rows = masks.summary(state.opt_state.mask)
    best, last = progress["best"] or {}, progress["last"] or {}
    return {
        "dataset": config.dataset.name,
        "model": config.model.name,
        "method": config.prune.method,
        "sparsity": masks.sparsity(state.opt_state.mask),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "prunable": sum(row.total for row in rows),
        "kept": sum(row.kept for row in rows),
        "layers": [row._asdict() | {"shape": list(row.shape)} for row in rows],
        "test_error": best.get("test_error"),
        "test_error_last": last.get("test_error"),
        "val_error": best.get("val_error"),
        "best_step": best.get("step"),
        "steps": int(state.step),
        "epochs": round(
            int(state.step)
            / training.epoch_length(
                parts.train.labels.shape[0], config.train.batch_size
            ),
            2,
        ),
        "seed": config.seed,
        "wall_seconds": round(progress["seconds"], 1),
        "versions": {
            "snipjax": snipjax.__version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "python": platform.python_version(),
        },
        "device": jax.devices()[0].device_kind,
        "params_sha256": digest(state.params),
    }


def write_result(result: dict[str, Any], workdir: Path, command: str | None) -> None:
    """Adds the command line to a result; draws the curves, and writes it."""
    if command is not None:
        result["command"] = command
    metrics = rundir.read_metrics(workdir)
    if metrics:
        draw(plots.training_curves, metrics, workdir / "curves.png")
    rundir.write_json(workdir / rundir.RESULT, result)


def digest(params: chex.ArrayTree) -> str:
    """Returns the SHA-256 of the parameters' bytes in tree order, as hex digits."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        sha.update(distributed.on_host(leaf).tobytes())
    return sha.hexdigest()


def report_pruning(parts: Parts, pruned: Pruned, workdir: Path) -> None:
    """Prints how much is kept; writes the mask and the pictures of pruning."""
    report_mask(parts, pruned.mask, draw_scores(pruned.scores, pruned.mask), workdir)


def report_mask(
    parts: Parts, mask: chex.ArrayTree, drawn: DrawnScores, workdir: Path
) -> None:
    """The same where the scores are there no more but for what is drawn of them."""
    summary = masks.summary(mask)
    kept, total = sum(row.kept for row in summary), sum(row.total for row in summary)
    console.say(
        f"kept {kept:,} of {total:,} connections "
        f"({100 * masks.sparsity(mask):.2f}% sparsity, "
        f"method {parts.config.prune.method})"
    )
    save_mask(mask, workdir / "mask.npz")
    draw(plots.layer_densities, summary, workdir / "densities.png")
    draw(plots.saliency_histogram, *drawn, workdir / "saliency.png")
    kept_pixels = first_layer_counts(mask, parts.train.images.shape[1:])
    if kept_pixels is not None:
        np.save(workdir / "first_layer.npy", kept_pixels)
        draw(plots.first_layer, kept_pixels, workdir / "first_layer.png")


def draw_scores(scores: chex.ArrayTree, mask: chex.ArrayTree) -> DrawnScores:
    """Returns scores of prunable connections, and the smallest of all that was kept.

    Where there are millions, of every so many one: a picture shows no more.
    """
    leaves = zip(jax.tree.leaves(scores), jax.tree.leaves(mask))
    pairs = [(scores, keep) for scores, keep in leaves if keep.ndim]
    stride = -(-sum(keep.size for _, keep in pairs) // _DRAWN)
    drawn = [
        distributed.on_host(scores).ravel()[::stride].copy() for scores, _ in pairs
    ]
    least = min(float(_least_kept(scores, keep)) for scores, keep in pairs)
    return DrawnScores(np.concatenate(drawn), least if math.isfinite(least) else 0.0)


def save_mask(mask: chex.ArrayTree, path: Path) -> None:
    """Writes a mask as NumPy arrays named by the paths of their leaves.

    One after the other, so that the host need not hold them all.
    """
    partial = path.with_name("partial-" + path.name)
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, leaf in trees.named_leaves(mask):
            array = distributed.on_host(leaf)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    partial.replace(path)


def first_layer_counts(
    mask: chex.ArrayTree, image_shape: tuple[int, int, int]
) -> np.ndarray | None:
    """Returns how many connections each input pixel keeps, ``[height, width]``.

    For a convolution it is each position of the kernel. None where no leaf takes
    the image: there, the first layer is something else.
    """
    height, width, channels = image_shape
    for leaf in jax.tree.leaves(mask):
        if leaf.ndim == 2 and leaf.shape[0] == height * width * channels:
            counts = distributed.on_host(leaf).reshape(height, width, channels, -1)
        elif leaf.ndim == 4 and leaf.shape[2] == channels:
            counts = distributed.on_host(leaf)
        else:
            continue
        return counts.sum(axis=(2, 3))
    return None


def show_result(result: dict[str, Any]) -> None:
    """Prints the layer densities and the figures of a result, each as a table."""
    console.show_table(
        "Layer densities",
        ("layer", "shape", "kept", "connections", "density (%)"),
        [
            (
                layer["path"],
                "x".join(map(str, layer["shape"])),
                f"{layer['kept']:,}",
                f"{layer['total']:,}",
                f"{100 * layer['kept'] / layer['total']:.2f}",
            )
            for layer in sorted(
                result["layers"], key=lambda layer: console.natural_order(layer["path"])
            )
        ],
    )

    name = f"{result['dataset']} {result['model']} {result['method']}"
    console.show_table(
        "Result",
        ("", name),
        [
            ("parameters of the dense network", f"{result['parameters']:,}"),
            ("of these prunable", f"{result['prunable']:,}"),
            ("of these kept", f"{result['kept']:,}"),
            ("sparsity (%)", f"{100 * result['sparsity']:.2f}"),
            (
                "test error where validation error is least (%)",
                console.percent(result["test_error"]),
            ),
            (
                "test error at the last step (%)",
                console.percent(result["test_error_last"]),
            ),
        ],
    )


def check_batch_sizes(config: ConfigDict, labels: np.ndarray) -> None:
    """Raises a ``ValueError`` if there are fewer examples than a batch takes.

    Args:
      config: like :func:`snipjax.config.default`'s.
      labels: of the training examples, ``[n]``.
    """
    training.epoch_length(len(labels), config.train.batch_size)
    wanted = config.prune.batch_size * config.prune.num_batches
    available = len(scorable(config, labels))
    if not available:
        raise ValueError(
            f"config.prune.batch_class is {config.prune.batch_class}, but the classes "
            f"of {config.dataset.name} are 0 to {labels.max()}; -1 is all of them"
        )
    if wanted > available:
        of_class = "" if config.prune.batch_class < 0 else " of the class"
        raise ValueError(
            f"config.prune.batch_size * num_batches is {wanted}, but there are only "
            f"{available} training examples{of_class}; make them smaller"
        )


def _on_device(examples: datasets.Examples) -> training.Batch:
    return training.Batch(jnp.asarray(examples.images), jnp.asarray(examples.labels))


def _compiled_train_steps(
    parts: Parts, state: training.TrainState
) -> Callable[..., tuple[training.TrainState, training.Metrics]]:
    return jax.jit(
        functools.partial(
            training.train_steps,
            batch_size=parts.config.train.batch_size,
            model=parts.model,
            optimizer=optim.sparse(parts.optimizer, state.opt_state.mask),
            preprocess=parts.preprocess,
            augment=parts.augment,
        ),
        static_argnames="num_steps",
        donate_argnums=0,
    )


def _compiled_evaluate(parts: Parts) -> Callable[..., training.Metrics]:
    return jax.jit(
        functools.partial(
            training.evaluate, model=parts.model, preprocess=parts.preprocess
        )
    )


def is_ready(metrics: training.Metrics) -> bool:
    """Returns whether metrics can be read without waiting for the device."""
    return not isinstance(metrics.loss, jax.Array) or metrics.loss.is_ready()


def steps_to_next_stop(step: int, config: ConfigDict) -> int:
    """Returns the steps to the next progress, evaluation, checkpoint or end."""
    periods = (config.steps_per_dispatch, config.eval_every, config.checkpoint_every)
    return min(*(period - step % period for period in periods), config.steps - step)


def _metrics_row(
    parts: Parts,
    state: training.TrainState,
    recent: list[tuple[int, training.Metrics]],
    evaluate: Callable[[training.TrainState, Any], training.Metrics],
    step: int,
) -> dict[str, Any]:
    """Evaluates, and returns a line of ``metrics.jsonl``; errors in percent."""
    weights = [num_steps for num_steps, _ in recent]
    losses, errors = zip(*(_loss_and_percent(metrics) for _, metrics in recent))
    row = {
        "step": step,
        "train_loss": float(np.average(losses, weights=weights)),
        "train_error": float(np.average(errors, weights=weights)),
    }
    for name, examples in (("val", parts.validation), ("test", parts.test)):
        metrics = evaluate(state, examples)
        row[f"{name}_loss"], row[f"{name}_error"] = _loss_and_percent(metrics)
    return {name: rounded(value) for name, value in row.items()}


def _loss_and_percent(metrics: training.Metrics) -> tuple[float, float]:
    loss, error = jax.device_get(metrics)
    return float(loss), 100 * float(error)


def rounded(value: float) -> float | int | None:
    """Returns six digits of a number; None for one that is not finite."""
    # JSON has no NaN. Six digits are what float32 means.
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def warn_if_lost(row: dict[str, Any], last: dict[str, Any] | None) -> None:
    """Warns of a training loss that is not finite, where the one before was."""
    if row["train_loss"] is None and (last is None or last["train_loss"] is not None):
        warnings.warn(
            f"the loss is not finite at step {row['step']:,}; the network does not "
            "learn any more: lower config.train.learning_rate",
            stacklevel=3,
        )


def _record(
    row: dict[str, Any],
    progress: dict[str, Any],
    workdir: Path,
    events: rundir.Events,
) -> None:
    rundir.append_metrics(workdir, row)
    warn_if_lost(row, progress["last"])
    best = progress["best"]
    if best is None or row["val_error"] <= best["val_error"]:
        progress["best"] = row
    progress["last"] = row
    scalars = {
        name.replace("_", "/", 1): value
        for name, value in row.items()
        if name != "step" and value is not None
    }
    events.add(row["step"], scalars)
    console.say(
        f"step {row['step']:,}: loss {row['train_loss']}, "
        f"validation error {row['val_error']:.2f}%, "
        f"test error {row['test_error']:.2f}%, "
        f"{row['steps_per_second']:,.1f} steps/s"
    )


@jax.jit
def _least_kept(scores: chex.Array, keep: chex.Array) -> chex.Array:
    return jnp.min(jnp.where(keep, scores, jnp.inf))


def draw(draw: Callable[..., None], *args: Any) -> None:
    """Draws a picture; a failure is said and costs nothing else of the run."""
    if not distributed.is_first():
        return
    try:
        draw(*args)
    except Exception as error:  # whatever drawing ends in
        warnings.warn(f"{draw.__name__} was not drawn: {error}", stacklevel=2)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """What interrupts and terminations ask of the block, in the main thread."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, stop.handle) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, previous):
            signal.signal(number, handler)


@functools.partial(jax.jit, static_argnames=("model", "place"))
def _init(
    model: nn.Module,
    key: chex.PRNGKey,
    images: chex.Array,
    place: Callable[[chex.ArrayTree], chex.ArrayTree],
) -> chex.ArrayTree:
    return place(model.init(key, images, train=False))
