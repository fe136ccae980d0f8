"""An experiment: prune networks at initialization, train them, report.

:func:`run` is Algorithm 1 of the paper, read from top to bottom: Lee, Ajanthan, Torr,
"SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019.
"""

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from snipjax import assembly, build, records, reporting, rivals, smaller
from snipjax import config as schema
from snipjax.assembly import Setup
from snipjax.training import (
    checkpoints,
    console,
    contents,
    distributed,
    events,
    loop,
    rundir,
    sessions,
)
from snipjax.training.placement import Placement, variables
from snipjax.training.sessions import Session
from snipjax.training.side_by_side import groups, number_that_fits
from snipjax.training.state import Metrics, TrainState

__all__ = ["run"]


def run(
    config: ConfigDict,
    workdir: Path | str,
    *,
    data_dir: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    r"""Prunes networks at initialization and trains them: Algorithm 1 of the paper.

    .. math:: s = \frac{|\partial L/\partial c|}{\sum_j |\partial L/\partial c_j|}, \;
              c_j = \mathbb{1}[s_j \ge s_{(\kappa)}], \;
              \min_w L(c \odot w)

    for the mask :math:`c` that keeps the :math:`\kappa` largest saliencies :math:`s`.

    Args:
      config: a configuration like the default.
      workdir: the directory of the run. An interrupted run in it goes on, on the same
        devices to the same parameters bit for bit; a finished run is shown.
      data_dir: the TFDS data directory.
      command: the command line, to keep with the result.

    Returns:
      The contents of ``result.json``. Errors are in percent.

    Raises:
      ValueError: if the configuration, the data or the directory is invalid.
      OSError: if a file cannot be written, or another process has died.
      KeyboardInterrupt: after an interrupt, once a checkpoint is written.

    Example:
      Prunes LeNet-300-100 to 2% of its connections and trains it, in some seconds:

      .. code-block:: python

        from snipjax import config, experiment

        settings = config.default()
        settings.prune.sparsity = 0.98
        settings.train.steps = 200
        result = experiment.run(settings, "runs/digits")
        print(result["networks"][0]["test_error"])
    """
    with opened(config, Path(workdir)) as session:
        result = session.read(rundir.RESULT)
        if result is None:
            setup, networks = begin(config, data_dir, session)
            for seeds in remaining_seeds(setup, networks, session):
                if method := build.method(config):  # it prunes trained networks
                    networks += rivals.train(method, setup, seeds, session)
                    continue
                with wandb_runs(config, session) as wandb:  # or none
                    part = smaller.without_units(setup, seeds, session)  # if asked for
                    score, start, batch = assembly.algorithm(part)
                    place = part.placement(seeds)
                    with saved_work(place, session) as saved:
                        if saved.state is None:
                            # w ~ variance scaling; s = |dL/dc| / sum |dL/dc|; c = top s
                            scores, mask = place.score(score, batch)
                            reporting.report_pruning(part, place, scores, mask, session)
                            del scores  # before there is another sample, and momentum
                            saved = saved.started(place.start(start, mask))  # c * w
                        # min L(c * w)
                        entries = train(part, place, saved, wandb, session)
                    networks += smaller.described(part, entries)
            result = records.summarize(setup, networks, command)
            session.write(rundir.RESULT, result)
        else:
            check_seeds(config, result["networks"], session, rundir.RESULT)
            reporting.check_files(session.directory, result["networks"])
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
        seconds = time.monotonic() - self.since
        return self._replace(state=state, progress=loop.Progress(seconds=seconds))


@contextlib.contextmanager
def opened(config: ConfigDict, workdir: Path) -> Iterator[Session]:
    """Yields the session of a valid configuration in a directory of its own."""
    schema.validate(config)
    events.check_wandb(config.wandb)
    if config.vary:
        raise ValueError(
            f"config.vary is {config.vary}, which asks for several runs; use "
            "snipjax.sweep.run_all"
        )

    def differences(written: Mapping[str, Any]) -> list[str]:
        elsewhere = ["dataset.workers", "wandb"]  # fields that a run may go on with
        fields = dict(schema.fields(written))
        if fields.get("mesh") or fields.get("dataset.stream"):  # not a run in memory
            elsewhere.append("mesh")
        lines = schema.differences(config.to_dict(), dict(written))
        return [line for line in lines if line.split(":")[0] not in elsewhere]

    with sessions.opened(workdir, dict(schema.fields(config)), differences) as session:
        yield session


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
    # Files are written only after every check.
    session.write(rundir.CONFIG, config.to_dict())
    session.write(rundir.DATA, setup.facts)
    networks = session.read(rundir.NETWORKS) or []
    check_seeds(config, networks, session, rundir.NETWORKS)
    return setup, networks


def check_seeds(
    config: ConfigDict,
    networks: Sequence[Mapping[str, Any]],
    session: Session,
    name: str,
) -> None:
    """Raises a ``ValueError`` if a file's networks are not of the first seeds."""
    found = [entry["seed"] for entry in networks]
    if found != list(all_seeds(config)[: len(found)]):
        raise rundir.damaged(
            session.directory / name, f"networks of seeds {str(found)[:50]}"
        )


def all_seeds(config: ConfigDict) -> range:
    return range(config.seed, config.seed + config.seeds)


@contextlib.contextmanager
def wandb_runs(
    config: ConfigDict, session: Session
) -> Iterator[Sequence[events.WandbRun]]:
    """Yields the run of Weights & Biases that the first process has, if any."""
    project = config.wandb if distributed.is_first() else ""
    runs = events.wandb_runs(project, session.output, config.to_dict())
    with contextlib.ExitStack() as stack:
        yield distributed.by_all(lambda: stack.enter_context(runs))


def remaining_seeds(
    setup: Setup, networks: Sequence[Mapping[str, Any]], session: Session
) -> Iterator[range]:
    """Yields the seeds of each group of networks that is not finished.

    A run keeps the groups it began with, on whatever machine it goes on. The entries
    that the caller adds to ``networks`` are written before the next group.
    """
    config, spans = setup.config, session.read(rundir.GROUPS)
    seeds = all_seeds(config)
    if spans is None:
        differ = build.method(config) or build.removes_units(config)
        is_alone = config.seeds == 1 or differ
        at_once = 1 if is_alone else config.seeds_at_once
        if not at_once:
            batch = functools.partial(assembly.saliency_batch, setup)
            state = assembly.abstract_state(setup)
            at_once = number_that_fits(state, jax.eval_shape(batch, 0))
        spans = groups(seeds, at_once)
        session.write(rundir.GROUPS, spans)
    ends = [seeds.start, *(last + 1 for _, last in spans)]
    if [*(first for first, _ in spans), seeds.stop] != ends or ends != sorted({*ends}):
        path = session.directory / rundir.GROUPS
        raise rundir.damaged(path, f"groups of seeds {str(spans)[:50]}")
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
        like: Any = {"state": place.like, "snapshot": variables(place.like)}
        kind = contents.progress(len(seeds))
        restored = checkpoints.restore_latest(manager, like, kind)
        saved, last_step = SavedWork(manager, began), 0
        if restored is not None:
            tree, plain = restored
            progress = _progress(plain, tree["snapshot"])
            saved = saved._replace(state=tree["state"], progress=progress)
            last_step = progress.step
            console.say(f"resuming from step {last_step:,} in {session.directory}")
        rundir.truncate_metrics(session.output, seeds, last_step)
        yield saved


def train(
    setup: Setup,
    place: Placement,
    saved: SavedWork,
    wandb: Sequence[events.WandbRun],
    session: Session,
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
        # With the last mask, whose sparsity the result tells.
        best_from=build.last_move(setup.config) + 1,
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
        events.opened(session.output, first, wandb) as add_scalars,
        place.training(first) as programs,
    ):
        evaluated = functools.partial(
            reporting.record, session, place.seeds, add_scalars, set()
        )
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
    reporting.write_networks(place, state, progress.snapshot, session)
    assert progress.best is not None and progress.last is not None
    best, last = map(records.rows_by_network, (progress.best, progress.last))
    effective_sparsity = assembly.path_counter(setup)
    pruning = setup.config.prune
    prunes = 0 if pruning.method == "none" else build.rounds(setup.config)
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
            effective_sparsity=effective_sparsity(one.opt_state.mask),
        )
        for index, (seed, one) in enumerate(zip(place.seeds, place.networks(state)))
    ]


def save(manager: Any, state: TrainState, progress: loop.Progress) -> None:
    """Starts to write a checkpoint of a state and the progress of its training."""
    best = progress.snapshot
    if best is None:
        best = variables(state)
    plain = {
        **progress._asdict(),
        "snapshot": None,
        "recent": [
            (num_steps, *(np.atleast_1d(x).tolist() for x in jax.device_get(metrics)))
            for num_steps, metrics in progress.recent
        ],
    }
    checkpoints.save(manager, progress.step, {"state": state, "snapshot": best}, plain)


def _progress(plain: Mapping[str, Any], snapshot: Any) -> loop.Progress:
    recent = tuple(
        (num_steps, Metrics(np.array(loss), np.array(error)))
        for num_steps, loss, error in plain.get("recent") or ()
    )
    best, last = plain.get("best"), plain.get("last")
    snapshot = snapshot if best else None
    return loop.Progress(plain["step"], best, last, recent, plain["seconds"], snapshot)
