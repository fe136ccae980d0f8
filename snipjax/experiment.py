"""An experiment: prune networks at initialization, train them, report.

:func:`run` is Algorithm 1 of the paper, read from top to bottom: Lee, Ajanthan, Torr,
"SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019.
"""

import contextlib
import functools
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from snipjax import assembly, build, io, masks, records, rivals
from snipjax import config as schema
from snipjax._src import trees
from snipjax.assembly import Setup
from snipjax.training import checkpoints, console, distributed, loop, rundir, sessions
from snipjax.training.events import Events
from snipjax.training.placement import Placement
from snipjax.training.sessions import Session
from snipjax.training.side_by_side import groups, number_that_fits
from snipjax.training.state import Metrics, TrainState

_DRAWN = 4_000_000  # scores in a histogram, at most


def run(
    config: ConfigDict,
    workdir: Path | str,
    *,
    data_dir: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Prunes networks at initialization and trains them: Algorithm 1 of the paper.

    Args:
      config: a configuration like the default.
      workdir: the directory of the run. An interrupted run in it goes on, on the same
        devices to the same parameters bit for bit; a finished run is shown.
      data_dir: the TFDS data directory.
      command: the command line, to keep with the result.

    Returns:
      The contents of ``result.json``. Errors are in percent.

    Raises:
      ValueError: if the configuration, the data or the directory is off.
      OSError: if a file cannot be written, or another process has died.
      KeyboardInterrupt: after an interrupt, once a checkpoint is written.
    """
    with opened(config, Path(workdir)) as session:
        result = session.read(rundir.RESULT)
        if result is None:
            setup, networks = begin(config, data_dir, session)
            score, start, batch = assembly.algorithm(setup)
            for seeds in remaining_seeds(setup, networks, session):
                if method := build.method(config):  # it prunes trained networks
                    networks += rivals.train(method, setup, seeds, session)
                    continue
                place = setup.placement(seeds)
                with saved_work(place, session) as saved:
                    if saved.state is None:
                        # w ~ variance scaling; s = |dL/dc| / sum |dL/dc|; c = top s
                        scores, mask = place.score(score, batch)
                        report_pruning(setup, place, scores, mask, session)
                        del scores  # before there is another sample, and momentum
                        saved = saved.started(place.start(start, mask))  # c * w
                    networks += train(setup, place, saved, session)  # min L(c * w)
            result = records.summarize(setup, networks, command)
            session.write(rundir.RESULT, result)
        else:
            console.say(f"finished before, in {workdir}")
        records.show(result)
    console.say(f"everything is in {workdir}")
    return result


class SavedWork(NamedTuple):
    """The state of some networks as the last checkpoint has it, or None without one.

    ``since`` is the time at which this process began with these networks, in seconds.
    """

    manager: Any
    since: float
    state: TrainState | None = None
    progress: loop.Progress = loop.Progress()

    def started(self, state: TrainState) -> "SavedWork":
        """Returns the work with the state before the first step."""
        seconds = time.monotonic() - self.since
        return self._replace(state=state, progress=loop.Progress(seconds=seconds))


@contextlib.contextmanager
def opened(config: ConfigDict, workdir: Path) -> Iterator[Session]:
    """Yields the session of a valid configuration in a directory of its own."""
    schema.validate(config)
    if config.vary:
        raise ValueError(
            f"config.vary is {config.vary}, which asks for several runs; use "
            "snipjax.sweep.run"
        )
    fields = dict(schema.fields(config))
    differences = functools.partial(_differences, config.to_dict())
    with sessions.opened(workdir, fields, differences) as session:
        yield session


def _differences(config: dict[str, Any], written: Mapping[str, Any]) -> list[str]:
    """The fields in which two runs differ, but for the devices they may go on on."""
    elsewhere = ["dataset.workers"]
    if written["mesh"] or written["dataset"]["stream"]:  # not a run in memory
        elsewhere.append("mesh")
    lines = schema.differences(config, dict(written))
    return [line for line in lines if line.split(":")[0] not in elsewhere]


def begin(
    config: ConfigDict, data_dir: str | None, session: Session
) -> tuple[Setup, list[dict[str, Any]]]:
    """Returns the parts of an experiment, and the entries of finished networks."""
    setup = distributed.by_all(lambda: assembly.assemble(config, data_dir))
    distributed.check_same(dict(schema.fields({"data": setup.facts})))
    differences = functools.partial(schema.differences, setup.facts)
    distributed.by_first(lambda: rundir.check_data(session.directory, differences))
    if setup.mesh is not None:
        console.say(
            f"devices: {setup.mesh.shape['data']} along data, "
            f"{setup.mesh.shape['model']} along model; processes: {jax.process_count()}"
        )
    # Not before all that can be wrong with a configuration has been looked at.
    session.write(rundir.CONFIG, config.to_dict())
    session.write(rundir.DATA, setup.facts)
    return setup, session.read(rundir.NETWORKS) or []


def remaining_seeds(
    setup: Setup, networks: Sequence[Mapping[str, Any]], session: Session
) -> Iterator[range]:
    """Yields the seeds of each group of networks that is not finished.

    A run keeps the groups it began with, on whatever machine it goes on. The caller
    adds entries to ``networks``, and this function writes them before the next group.
    """
    config = setup.config
    spans = session.read(rundir.GROUPS)
    if spans is None:
        seeds = range(config.seed, config.seed + config.seeds)
        is_alone = config.seeds == 1 or build.method(config)
        at_once = 1 if is_alone else config.seeds_at_once
        if not at_once:
            batch = functools.partial(assembly.saliency_batch, setup)
            state = assembly.abstract_state(setup)
            at_once = number_that_fits(state, jax.eval_shape(batch, 0))
        spans = groups(seeds, at_once)
        session.write(rundir.GROUPS, spans)
    for first, last in spans:
        if first not in [entry["seed"] for entry in networks]:
            if last > first:
                console.say(f"seeds {first} to {last}, at once")
            yield range(first, last + 1)
            session.write(rundir.NETWORKS, networks)


@contextlib.contextmanager
def saved_work(place: Placement, session: Session) -> Iterator[SavedWork]:
    """Yields the work that the checkpoints of some networks hold."""
    began, seeds = time.monotonic(), place.seeds
    directory = session.directory / "checkpoints" / f"seeds-{seeds[0]}-{seeds[-1]}"
    with checkpoints.open_directory(directory) as manager:
        variables = {
            "params": place.like.params,
            "batch_stats": place.like.batch_stats,
        }
        like = {"state": place.like, "snapshot": variables}
        restored = checkpoints.restore_latest(manager, like)
        saved, last_step = SavedWork(manager, began), 0
        if restored is not None:
            tree, progress = _from_json(*restored)
            saved = saved._replace(state=tree["state"], progress=progress)
            last_step = progress.step
            console.say(f"resuming from step {last_step:,} in {session.directory}")
        rundir.truncate_metrics(session.output, seeds, last_step)
        yield saved


def train(
    setup: Setup, place: Placement, saved: SavedWork, session: Session
) -> list[dict[str, Any]]:
    """Trains networks to the last step, writes them, and returns their entries."""
    config, stop = setup.config.train, session.stop
    assert saved.state is not None
    first = saved.progress.step
    schedule = loop.Schedule(
        config.steps,
        config.eval_every,
        config.checkpoint_every,
        config.steps_per_dispatch,
    )

    def checkpoint(state: TrainState, progress: loop.Progress) -> None:
        save(saved.manager, place.portable(state), progress)

    def stop_if_asked(state: TrainState, progress: loop.Progress) -> None:
        if distributed.any_of(stop.is_made):
            checkpoint(state, progress)
            checkpoints.wait(saved.manager)
            console.say(f"stopped at step {progress.step:,}; the same command goes on")
            raise KeyboardInterrupt

    with (
        contextlib.closing(Events(session.output / "tensorboard", first)) as events,
        place.training(first) as programs,
    ):
        evaluated = functools.partial(record, session, place.seeds, events, set())
        hooks = loop.Hooks(evaluated, checkpoint=checkpoint, stop=stop_if_asked)
        stop.waits = True
        state, progress = loop.train(
            place.put(saved.state),
            programs,
            schedule,
            progress=saved.progress,
            hooks=hooks,
        )
        stop.waits = False
    write_networks(place, state, progress.snapshot, session)
    assert progress.best is not None and progress.last is not None
    best, last = map(records.rows_by_network, (progress.best, progress.last))
    pruning = setup.config.prune
    prunes = 0 if pruning.method == "none" else pruning.rounds
    return [
        records.network(
            seed,
            one.params,
            one.opt_state.mask,
            best=best[index],
            last=last[index],
            steps=progress.step,
            prunes=prunes,
            seconds=progress.seconds / len(place.seeds),
        )
        for index, (seed, one) in enumerate(zip(place.seeds, place.networks(state)))
    ]


def save(manager: Any, state: TrainState, progress: loop.Progress) -> None:
    """Starts to write a checkpoint of a state and the progress of its training."""
    best = progress.snapshot
    if best is None:
        best = {"params": state.params, "batch_stats": state.batch_stats}
    plain = {
        **progress._asdict(),
        "snapshot": None,
        "recent": [
            (num_steps, *(np.atleast_1d(x).tolist() for x in jax.device_get(metrics)))
            for num_steps, metrics in progress.recent
        ],
    }
    checkpoints.save(manager, progress.step, {"state": state, "snapshot": best}, plain)


def _from_json(
    tree: dict[str, Any], plain: Mapping[str, Any]
) -> tuple[dict[str, Any], loop.Progress]:
    recent = tuple(
        (num_steps, Metrics(np.array(loss), np.array(error)))
        for num_steps, loss, error in plain["recent"]
    )
    snapshot = None if plain["best"] is None else tree["snapshot"]
    return tree, loop.Progress(**{**plain, "recent": recent, "snapshot": snapshot})


def record(
    session: Session,
    seeds: range,
    events: Events,
    lost: set[int],
    row: dict[str, Any],
) -> None:
    """Writes and prints an evaluation of networks, and warns of one that is lost.

    Seeds that were warned of are added to ``lost``. TensorBoard gets means over the
    networks.
    """
    step = row["step"][0]  # which they have in common
    rundir.append_metrics(
        session.output, {"seeds": list(seeds), "phase": "train", **row, "step": step}
    )
    for seed, loss in zip(seeds, row["train_loss"]):
        if step and loss is None and seed not in lost:
            lost.add(seed)
            of_seed = f" of seed {seed}" if len(seeds) > 1 else ""
            warnings.warn(
                f"the loss{of_seed} is not finite at step {step:,}; the network does "
                "not learn any more: lower config.optimizer.learning_rate",
                stacklevel=2,
            )
    names = [f"{split}_{kind}" for split in _SPLITS for kind in ("loss", "error")]
    means = {name: _mean(row[name]) for name in names}
    events.add(
        step,
        {k.replace("_", "/", 1): v for k, v in means.items() if v is not None},
    )
    over = f"means over {len(seeds)} seeds: " if len(seeds) > 1 else ""
    console.say(
        f"step {step:,}: {over}loss {means['train_loss']}, "
        f"validation error {console.percent(means['val_error'])}%, "
        f"test error {console.percent(means['test_error'])}%, "
        f"{row['steps_per_second']:,.1f} steps/s"
    )


_SPLITS = ("train", "val", "test")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return loop.rounded(sum(known) / len(known)) if len(known) == len(values) else None


def report_pruning(
    setup: Setup,
    place: Placement,
    scores: chex.ArrayTree,
    mask: chex.ArrayTree,
    session: Session,
) -> None:
    """Prints how much is kept, and writes the masks and a sample of the scores."""
    write_masks(place, mask, session)
    if len(place.seeds) > 1:
        check_finite(place.seeds, scores)
        for one in place.networks(mask):
            masks.warn_if_disconnected(one)
    first = next(place.networks(mask))
    rows = masks.summary(first)
    each = " of each" if len(place.seeds) > 1 else ""
    console.say(
        f"kept {sum(row.kept for row in rows):,} of "
        f"{sum(row.total for row in rows):,} connections{each} "
        f"({100 * masks.sparsity(first):.2f}% sparsity, "
        f"method {setup.config.prune.method})"
    )
    if len(place.seeds) == 1:
        sample = sample_scores(next(place.networks(scores)), first)
        io.save_arrays(sample, session.output / rundir.SCORES)


def check_finite(seeds: range, scores: chex.ArrayTree) -> None:
    """Raises a ``ValueError`` that names a leaf and the seeds without finite scores."""
    for name, leaf in trees.named_leaves(scores):
        finite = np.asarray(jnp.isfinite(leaf).reshape(len(seeds), -1).all(axis=1))
        if not finite.all():
            raise ValueError(
                f"saliency is not finite in {name} of seed "
                f"{np.array(seeds)[~finite]}; check the inputs, the initialization and "
                "the dtype"
            )


def sample_scores(
    scores: chex.ArrayTree, mask: chex.ArrayTree
) -> dict[str, np.ndarray]:
    """Returns scores of prunable connections for a histogram, and the smallest kept.

    ``scores`` has every so many one of the millions; ``threshold`` is a scalar.
    """
    leaves = zip(jax.tree.leaves(scores), jax.tree.leaves(mask))
    pairs = [(scores, keep) for scores, keep in leaves if keep.ndim]
    stride = -(-sum(keep.size for _, keep in pairs) // _DRAWN)
    drawn = [
        distributed.on_host(scores).ravel()[::stride].copy() for scores, _ in pairs
    ]
    least_kept = jax.jit(lambda s, keep: jnp.min(jnp.where(keep, s, jnp.inf)))
    least = min(float(least_kept(scores, keep)) for scores, keep in pairs)
    threshold = np.array(least if math.isfinite(least) else 0.0, np.float32)
    return {"scores": np.concatenate(drawn), "threshold": threshold}


def write_masks(place: Placement, mask: chex.ArrayTree, session: Session) -> None:
    """Writes the mask of each network into its directory."""
    for seed, one in zip(place.seeds, place.networks(mask)):
        directory = session.output / f"seed-{seed}"
        directory.mkdir(exist_ok=True)
        io.save_arrays(one, directory / rundir.MASK, on_host=distributed.on_host)


def write_networks(
    place: Placement, state: TrainState, best: chex.ArrayTree, session: Session
) -> None:
    """Writes the best variables of each network, and masks that are missing."""
    directories = [session.directory / f"seed-{seed}" for seed in place.seeds]
    if not distributed.any_of(all((d / rundir.MASK).exists() for d in directories)):
        write_masks(place, state.opt_state.mask, session)
    for seed, one in zip(place.seeds, place.networks(best)):
        directory = session.output / f"seed-{seed}"
        directory.mkdir(exist_ok=True)
        for name, tree in one.items():
            if jax.tree.leaves(tree):
                path = directory / f"{name}.npz"
                io.save_arrays(tree, path, on_host=distributed.on_host)
