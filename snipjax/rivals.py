"""Experiments with the paper's rivals: methods that prune a trained network."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax import build, io, masks, methods, records, training
from snipjax.assembly import Setup, make_keys
from snipjax.training import rundir
from snipjax.training.loop import rounded
from snipjax.training.sessions import Session
from snipjax.training.state import Batch, Metrics
from snipjax.training.step import preparation

Method = tuple[Callable[..., methods.Outcome], Any]

# The columns of metrics that have one value for all networks.
_COMMON = ("phase", "step", "seconds", "steps_per_second")


def train(
    method: Method, setup: Setup, seeds: range, session: Session
) -> list[dict[str, Any]]:
    """Runs a method on the network of one seed, writes it, and returns its entry.

    An interrupted method begins again.
    """
    began, (seed,) = time.monotonic(), seeds
    function, settings = method
    config = setup.config
    rundir.truncate_metrics(session.output, seeds, -1)
    network = problem(setup, seed)
    pretrained, seconds = None, 0.0
    if config.prune.pretrained:
        directory = Path(config.prune.pretrained)
        pretrained, seconds = dense_outcome(directory, network, seed)
    outcome = function(network, config.prune.sparsity, settings, pretrained=pretrained)
    params = masks.apply(outcome.mask, outcome.params)
    directory = session.output / f"seed-{seed}"
    directory.mkdir(exist_ok=True)
    io.save_arrays(outcome.mask, directory / rundir.MASK)
    io.save_arrays(params, directory / rundir.PARAMS)
    seconds += time.monotonic() - began
    for row in outcome.history.rows:
        columns = {k: v if k in _COMMON else [v] for k, v in row.items()}
        rundir.append_metrics(session.output, {"seeds": [seed], **columns})
    errors = {
        f"{split}_error": rounded(100 * float(metrics.error))
        for split, metrics in jax.jit(network.evaluate)(params).items()
    }
    last = outcome.history.rows[-1]
    return [
        records.network(
            seed,
            params,
            outcome.mask,
            best={**errors, "step": None},
            last=last,
            steps=outcome.history.steps,
            prunes=outcome.history.prunes,
            seconds=seconds,
        )
    ]


def problem(setup: Setup, seed: int) -> methods.Problem:
    """Returns the training of one network as a plain problem.

    The data must be in memory, and the network without batch norm.
    """
    config, task, arrays = setup.config, setup.task, setup.arrays
    assert arrays is not None
    keys = make_keys(seed)
    variables = setup.init(keys.fresh_init, config.init.trained)

    def loss_fn(params: chex.ArrayTree, batch: Batch) -> tuple[chex.Array, methods.Aux]:
        logits: Any = task.model.apply({"params": params}, batch.images, train=True)
        error = jnp.mean(jnp.argmax(logits, axis=-1) != batch.labels)
        # Logits tell optimal brain damage the curvature of cross entropy.
        is_cross_entropy = task.loss is training.cross_entropy
        aux = methods.Aux(error, logits if is_cross_entropy else None)
        return task.loss(logits, batch.labels), aux

    def evaluate(params: chex.ArrayTree) -> dict[str, Metrics]:
        evaluation = functools.partial(
            training.evaluate,
            params,
            {},
            model=task.model,
            preprocess=task.preprocess,
            loss=task.loss,
        )
        splits = {"val": arrays.validation, "test": arrays.test}
        return {name: evaluation(examples) for name, examples in splits.items()}

    settings = config.optimizer
    return methods.Problem(
        loss_fn,
        variables["params"],
        train=arrays.train,
        evaluate=evaluate,
        optimizer=functools.partial(build.optimizer, config),
        learning_rate=settings.learning_rate,
        steps=config.train.steps,
        decay_every=settings.decay_every,
        decay_factor=settings.decay_factor,
        eval_every=config.train.eval_every,
        batch_size=config.train.batch_size,
        prunable=build.prunable(config),
        key=keys.training,
        prepare=preparation(task.preprocess, task.augment),
        momentum=settings.momentum,
    )


def dense_outcome(
    directory: Path, network: methods.Problem, seed: int
) -> tuple[methods.Outcome, float]:
    """Returns the dense network that a run trained, and the seconds it took."""
    path = directory / f"seed-{seed}" / rundir.PARAMS
    if not (path.exists() and (directory / rundir.RESULT).exists()):
        raise ValueError(
            f"config.prune.pretrained is '{directory}', but that holds no finished run "
            f"with a network of seed {seed}; train one there with "
            "--config.prune.method=none"
        )
    params = io.load_arrays(path, network.params)
    entries = rundir.read_json(directory / rundir.RESULT)["networks"]
    (entry,) = (entry for entry in entries if entry["seed"] == seed)
    mask = masks.ones(params, network.prunable)
    history = methods.History(steps=entry["steps"], seconds=entry["seconds"])
    return methods.Outcome(params, mask, history), entry["seconds"]
