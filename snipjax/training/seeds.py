"""An experiment with many seeds at once: as many networks, trained side by side.

Each network is the one that :func:`snipjax.experiment.run` trains with its seed; here
they are initialised, scored, pruned, trained and evaluated under `jax.vmap`, and lie on
all devices alike. A CPU's device takes its own one after the other, which is faster
there, and `train.py` makes every core a device: two networks on a core each take half
the time of one after the other on both.
What is reported is the mean over them and its deviation, as the paper does (20 runs of
each LeNet).
"""

import functools
import math
import operator
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from snipjax import config as configs
from snipjax import experiment as single
from snipjax import masks, optim, training
from snipjax._src import trees
from snipjax.results import plots
from snipjax.training import checkpoints, console, rundir

# Where members lie in a training state: the step is theirs in common.
_AXES = training.TrainState(None, 0, 0, 0, 0)
# And over which devices; without an axis all have the whole.
_MEMBERS, _WHOLE = PartitionSpec("members"), PartitionSpec()
_ON_DEVICES = training.TrainState(_WHOLE, _MEMBERS, _MEMBERS, _MEMBERS, _MEMBERS)
# What a state may take of the memory: training holds a second one, and gradients.
_SHARE_OF_MEMORY = 0.1
_FIRST_LAYER = "first_layer.npy"


def run(
    config: ConfigDict,
    workdir: Path | str,
    *,
    data_dir: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Prunes and trains networks of ``config.seeds`` seeds, and reports on all.

    They go in groups where the memory does not hold them all at once. An interrupted
    run goes on with the same groups, on whatever machine, from the last checkpoint of
    the one it was at.

    Args:
      config: like :func:`snipjax.config.default`'s; ``config.seed`` is the first.
      workdir: directory of the run: ``config.json``, ``groups.json``,
        ``result.json``, pictures, and a directory for each group with its
        ``metrics.jsonl``, ``masks.npz`` and checkpoints.
      data_dir: TFDS data directory, where the data set is not the embedded one.
      command: the command line, to be kept with the result.

    Returns:
      The contents of ``result.json``: ``members`` has a result for each seed, like
      that of a single run, and ``summary`` their means and standard deviations
      (of a sample, with n - 1). Errors are in percent.

    Raises:
      ValueError: as :func:`snipjax.experiment.run` does.
      KeyboardInterrupt: after an interrupt, once a checkpoint is written.

    Example:
      >>> config = snipjax.config.default()
      >>> config.seeds = 20
      >>> result = run(config, "runs/twenty")  # doctest: +SKIP
    """
    configs.validate(config)
    if config.vary:
        raise ValueError("config.vary asks for several settings; use snipjax.sweep.run")
    workdir = Path(workdir)
    with rundir.claim(workdir, config), single.stop_requests() as stop:
        if (workdir / rundir.RESULT).exists():
            console.say(f"finished before, in {workdir}")
            result = rundir.read_json(workdir / rundir.RESULT)
            show_result(result)
            return result
        parts = single.assemble(config, data_dir)
        rundir.write_json(workdir / rundir.CONFIG, config.to_dict())
        members = []
        for seeds in groups(parts, workdir):
            directory = rundir.group_directory(workdir, seeds)
            members += _finished(directory) or _run_group(parts, seeds, directory, stop)
        result = summarize(parts, members, command)
        _draw_pictures(workdir)
        rundir.write_json(workdir / rundir.RESULT, result)
        if stop.is_made:  # too late for this run, but not for what comes after it
            raise KeyboardInterrupt
    show_result(result)
    console.say(f"everything is in {workdir}")
    return result


def groups(parts: single.Parts, workdir: Path) -> list[np.ndarray]:
    """Returns the seeds in the groups of the run, which are written to its directory.

    A run has those it was started with. New ones are as large as the memory holds,
    and all devices have as many of a group, or it has no more than one for a device.

    Args:
      parts: of :func:`snipjax.experiment.assemble`.
      workdir: directory of the run.
    """
    config = parts.config
    found = [list(seeds) for seeds in rundir.groups(workdir)]
    started = {seed for seeds in found for seed in seeds}
    every = range(config.seed, config.seed + config.seeds)
    left = [seed for seed in every if seed not in started]
    if left:
        found = sorted(found + _consecutive(left, _at_once(parts)))
        rundir.write_groups(workdir, found)
    return [np.array(seeds) for seeds in found]


def prune(parts: single.Parts, seeds: np.ndarray) -> single.Pruned:
    """Returns what :func:`snipjax.experiment.prune` does for each seed, stacked.

    Under `jax.vmap`, but on a CPU one after the other: there a mini-batch may be most
    of the data set, and the memory need not hold those of all seeds.

    Raises:
      ValueError: if a saliency is not finite, naming the leaf and the seed.
    """

    def member(seed: chex.Numeric) -> single.Parts:
        return parts._replace(keys=single.keys_of(seed))

    def batch(seed: chex.Numeric) -> training.Batch:
        return single.saliency_batch(member(seed))

    def prune_on(seed: chex.Numeric, batch: training.Batch) -> single.Pruned:
        return single.prune_on(member(seed), batch)

    on_device = jnp.asarray(seeds, jnp.uint32)
    if jax.default_backend() == "cpu":
        # Blocking, or the host could run ahead and make the mini-batches of all.
        prune_on = jax.jit(prune_on)
        members = [
            jax.block_until_ready(prune_on(seed, batch(seed))) for seed in on_device
        ]
        pruned = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    else:
        pruned = jax.jit(jax.vmap(prune_on))(on_device, jax.vmap(batch)(on_device))
    for name, scores in trees.named_leaves(pruned.scores):
        finite = jnp.isfinite(scores).reshape(len(seeds), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"saliency is not finite in {name} of seed {seeds[~np.asarray(finite)]}"
                "; check the inputs, the initialization and the dtype"
            )
    return pruned


def initial_state(
    parts: single.Parts, pruned: single.Pruned, seeds: np.ndarray
) -> training.TrainState:
    """Returns the training states before the first step, stacked but for the step."""

    def state(pruned: single.Pruned, seed: chex.Numeric) -> training.TrainState:
        member = parts._replace(keys=single.keys_of(seed))
        return single.initial_state(member, pruned)

    seeds = jnp.asarray(seeds, jnp.uint32)
    return jax.vmap(state, out_axes=_AXES)(pruned, seeds)


def over_members(
    function: Callable[..., Any], state: training.TrainState, *args: Any
) -> Any:
    """Returns ``function(member, *args)`` for every member of a state, stacked.

    On a CPU's device one after the other, inside one program: there batched products
    of matrices are slower than as many single ones (`python -m benchmarks.seeds`).
    Elsewhere under `jax.vmap`.
    """

    def member(*rest: Any) -> Any:
        return function(training.TrainState(state.step, *rest), *args)

    if jax.default_backend() != "cpu":
        return jax.vmap(member)(*state[1:])
    return jax.lax.map(lambda rest: member(*rest), state[1:])


def mesh_of(members: int) -> Mesh:
    """Returns the devices that members are trained on, each having as many.

    Args:
      members: how many; all devices have some if it is a multiple of their number, and
        there is one for each member if there are enough.

    Example:
      >>> mesh_of(1).size
      1
    """
    devices = jax.local_devices()[:members]
    used = max(n for n in range(1, len(devices) + 1) if members % n == 0)
    return Mesh(np.array(devices[:used]), ("members",))


def train(
    parts: single.Parts,
    state: training.TrainState,
    progress: dict[str, Any],
    manager: Any,
    workdir: Path,
    stop: single.StopRequest,
) -> tuple[training.TrainState, dict[str, Any]]:
    """Trains all members to the last step; as :func:`snipjax.experiment.train`.

    Returns:
      The last state, and the progress: ``best`` and ``last``, a list of metrics with
      one entry for each member, ``recent``, with lists of as many, and ``seconds``.
    """
    config = parts.config.train
    started = time.monotonic() - progress["seconds"]
    mesh = mesh_of(len(jax.tree.leaves(state.params)[0]))
    train_steps, evaluate = _compiled(parts, state, mesh)
    everywhere = functools.partial(jax.device_put, device=NamedSharding(mesh, _WHOLE))
    parts = parts._replace(
        train=everywhere(parts.train),
        validation=everywhere(parts.validation),
        test=everywhere(parts.test),
    )
    state = _spread(state, mesh)
    step = int(state.step)
    recent = [
        (num_steps, training.Metrics(np.asarray(losses), np.asarray(errors)))
        # A checkpoint of before this was kept was written right after an evaluation.
        for num_steps, losses, errors in progress.get("recent", ())
    ]

    def save() -> None:
        progress["seconds"] = time.monotonic() - started
        progress["recent"] = [
            (num_steps, *(values.tolist() for values in jax.device_get(metrics)))
            for num_steps, metrics in recent
        ]
        # On one device, as a run that goes on may have others.
        whole = jax.device_put(state, jax.local_devices()[0])
        checkpoints.save(manager, step, whole, progress)

    if step == 0:
        save()
    with console.training_progress(config.steps, step) as bar:
        stop.waits = True
        while step < config.steps:
            num_steps = single.steps_to_next_stop(step, config)
            state, metrics = train_steps(state, parts.train, num_steps=num_steps)
            if recent and single.is_ready(recent[-1][1]):
                loss, error = jax.device_get(recent[-1][1])
                bar.update(step, float(loss.mean()), 100 * float(error.mean()))
            step += num_steps
            recent.append((num_steps, metrics))
            if step % config.eval_every == 0 or step == config.steps:
                rows = _rows(parts, state, recent, evaluate, step)
                seconds = round(time.monotonic() - started, 2)
                _record(rows, progress, workdir, seconds)
                recent = []
            if stop.is_made:
                save()
                checkpoints.wait(manager)
                console.say(f"stopped at step {step:,}; the same command goes on")
                raise KeyboardInterrupt
            if step % config.checkpoint_every == 0 or step == config.steps:
                save()
        stop.waits = False
    return state, progress


def summarize(
    parts: single.Parts, members: Sequence[dict[str, Any]], command: str | None = None
) -> dict[str, Any]:
    """Returns the result of a run of many seeds, as ``result.json`` holds it."""
    first = members[0]
    common = ("dataset", "model", "method", "parameters", "prunable", "steps")
    return {
        **{name: first[name] for name in common},
        "epochs": first["epochs"],
        "members": list(members),
        "summary": [summary(members)],
        "wall_seconds": round(sum(member["wall_seconds"] for member in members), 1),
        "versions": first["versions"],
        "device": first["device"],
        **({} if command is None else {"command": command}),
    }


def summary(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns means over members, and standard deviations (of a sample) of errors."""
    result = {
        "sparsity": members[0]["sparsity"],
        "seeds": len(members),
        "kept": members[0]["kept"],
    }
    for name in ("test_error", "test_error_last", "val_error"):
        values = [member[name] for member in members]
        known = None not in values
        result[name] = float(np.mean(values)) if known else None
        is_spread = known and len(values) > 1
        result[f"{name}_std"] = float(np.std(values, ddof=1)) if is_spread else None
    return result


def mean_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the means of a run's metrics over the seeds of all groups.

    Args:
      workdir: directory of the run.

    Returns:
      Rows like those of a single run's ``metrics.jsonl``, at the steps that all groups
      have; a value is None where it is for one of the seeds.

    Raises:
      ValueError: if the file of the groups is damaged.

    Example:
      >>> mean_metrics(Path("runs/new"))
      []
    """
    groups = [
        {row["step"]: row["members"] for row in rundir.read_metrics(directory)}
        for directory in rundir.group_directories(workdir)
    ]
    return [
        _means([member for group in groups for member in group[step]])
        for step in (groups[0] if groups else ())
        if all(step in group for group in groups)
    ]


def first_layer(workdir: Path) -> np.ndarray | None:
    """Returns how many connections each input pixel keeps, the mean over all seeds.

    Args:
      workdir: directory of the run.

    Returns:
      Counts ``[height, width]``; None if no first layer takes the image.

    Raises:
      ValueError: if the file of the groups is damaged.

    Example:
      >>> first_layer(Path("runs/new")) is None
      True
    """
    paths = [path / _FIRST_LAYER for path in rundir.group_directories(workdir)]
    counts = [np.load(path) for path in paths if path.exists()]
    return np.concatenate(counts).mean(axis=0) if counts else None


def show_result(result: dict[str, Any]) -> None:
    """Prints the figures of each seed and their mean as a table."""

    rows = [
        (str(member["seed"]), *(console.percent(member[key]) for key in _shown))
        for member in result["members"]
    ]
    for row in result["summary"]:
        rows.append(("mean", *(console.percent(row[key]) for key in _shown)))
        rows.append(
            (
                "standard deviation",
                *(console.percent(row[f"{key}_std"]) for key in _shown),
            )
        )
    first = result["summary"][0]
    console.show_table(
        f"{result['dataset']} {result['model']} {result['method']}: "
        f"{first['kept']:,} of {result['prunable']:,} kept "
        f"({100 * first['sparsity']:.2f}% sparsity), {first['seeds']} seeds",
        ("seed", "test error (%)", "at the last step (%)", "validation error (%)"),
        rows,
    )


_shown = ("test_error", "test_error_last", "val_error")


def _run_group(
    parts: single.Parts, seeds: np.ndarray, workdir: Path, stop: single.StopRequest
) -> list[dict[str, Any]]:
    """Prunes and trains a group of seeds; returns and writes their results."""
    workdir.mkdir(exist_ok=True)
    console.say(f"seeds {seeds[0]} to {seeds[-1]}, at once")
    like = jax.eval_shape(lambda: _abstract_state(parts, seeds))
    with checkpoints.open_directory(workdir / "checkpoints") as manager:
        restored = checkpoints.restore_latest(manager, like)
        if restored is None:
            start = time.monotonic()
            pruned = prune(parts, seeds)
            _report_pruning(parts, pruned, workdir)
            state = initial_state(parts, pruned, seeds)
            seconds = time.monotonic() - start
            progress = {"best": None, "last": None, "recent": [], "seconds": seconds}
        else:
            state, progress = restored
            console.say(f"resuming from step {int(state.step):,} in {workdir}")
        rundir.truncate_metrics(workdir, last_step=int(state.step))
        state, progress = train(parts, state, progress, manager, workdir, stop)
    results = _member_results(parts, state, progress, seeds)
    rundir.write_json(workdir / rundir.RESULT, results)
    return results


def _spread(state: training.TrainState, mesh: Mesh) -> training.TrainState:
    shardings = jax.tree.map(functools.partial(NamedSharding, mesh), _ON_DEVICES)
    return training.TrainState(*map(jax.device_put, state, shardings))


def _member(stacked: chex.ArrayTree, index: int) -> chex.ArrayTree:
    return jax.tree.map(operator.itemgetter(index), stacked)


def _finished(workdir: Path) -> list[dict[str, Any]] | None:
    path = workdir / rundir.RESULT
    return rundir.read_json(path) if path.exists() else None


def _abstract_state(parts: single.Parts, seeds: np.ndarray) -> training.TrainState:
    def state(seed: chex.Numeric) -> training.TrainState:
        return single.dense_state(parts._replace(keys=single.keys_of(seed)))

    return jax.vmap(state, out_axes=_AXES)(jnp.asarray(seeds, jnp.uint32))


def _consecutive(seeds: Sequence[int], at_once: int) -> list[list[int]]:
    """Groups of consecutive seeds, of as many at most."""
    groups: list[list[int]] = []
    for seed in seeds:
        if groups and groups[-1][-1] == seed - 1 and len(groups[-1]) < at_once:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def _at_once(parts: single.Parts) -> int:
    """How many seeds a new group has."""
    config, devices = parts.config, jax.local_device_count()
    at_once = min(config.seeds_at_once or _that_fit(parts), config.seeds)
    return at_once - at_once % devices if at_once > devices else at_once


def _that_fit(parts: single.Parts) -> int:
    """How many members' states take their share of the memory.

    With their mini-batches for saliency, where these lie side by side too.
    """
    stats = jax.devices()[0].memory_stats() or {}
    memory = stats.get("bytes_limit") or (
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )
    leaves = jax.tree.leaves(single.abstract_state(parts))
    member = sum(math.prod(leaf.shape) * 4 for leaf in leaves)
    if jax.default_backend() != "cpu":
        batch = jax.eval_shape(lambda: single.saliency_batch(parts))
        member += batch.images.size * 4
    return max(1, int(_SHARE_OF_MEMORY * memory / member))


def _compiled(
    parts: single.Parts, state: training.TrainState, mesh: Mesh
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    # Each member's own mask is in its state; the optimizer needs any of them.
    mask = _member(state.opt_state.mask, 0)
    train_steps = functools.partial(
        training.train_steps,
        batch_size=parts.config.train.batch_size,
        model=parts.model,
        optimizer=optim.sparse(parts.optimizer, mask),
        preprocess=parts.preprocess,
        augment=parts.augment,
    )
    evaluate = functools.partial(
        training.evaluate, model=parts.model, preprocess=parts.preprocess
    )

    on_devices = functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(_ON_DEVICES, _WHOLE),
        check_vma=False,  # members have nothing to do with each other
    )

    @functools.partial(jax.jit, static_argnames="num_steps", donate_argnums=0)
    def all_train_steps(
        state: training.TrainState, examples: training.Batch, *, num_steps: int
    ) -> tuple[training.TrainState, training.Metrics]:
        @functools.partial(on_devices, out_specs=(_ON_DEVICES, _MEMBERS))
        def steps(state: training.TrainState, examples: training.Batch) -> Any:
            step = functools.partial(train_steps, num_steps=num_steps)
            members, metrics = over_members(step, state, examples)
            return members._replace(step=state.step + num_steps), metrics

        return steps(state, examples)

    @jax.jit
    @functools.partial(on_devices, out_specs=_MEMBERS)
    def all_evaluate(
        state: training.TrainState, examples: training.Batch
    ) -> training.Metrics:
        def member(state: training.TrainState, examples: training.Batch) -> Any:
            return evaluate(state.params, state.batch_stats, examples)

        return over_members(member, state, examples)

    return all_train_steps, all_evaluate


def _rows(
    parts: single.Parts,
    state: training.TrainState,
    recent: list[tuple[int, training.Metrics]],
    evaluate: Callable[..., training.Metrics],
    step: int,
) -> list[dict[str, Any]]:
    """Metrics of every member at a step; errors in percent."""
    weights = [num_steps for num_steps, _ in recent]
    columns = {
        "train": [
            np.average(values, axis=0, weights=weights)
            for values in zip(*(jax.device_get(metrics) for _, metrics in recent))
        ],
        "val": jax.device_get(evaluate(state, parts.validation)),
        "test": jax.device_get(evaluate(state, parts.test)),
    }
    return [
        {
            "step": step,
            **{
                f"{split}_{name}": single.rounded(scale * float(values[member]))
                for split, (loss, error) in columns.items()
                for name, scale, values in (("loss", 1, loss), ("error", 100, error))
            },
        }
        for member in range(len(columns["val"][0]))
    ]


def _record(
    rows: list[dict[str, Any]], progress: dict[str, Any], workdir: Path, seconds: float
) -> None:
    last = progress["last"] or [None] * len(rows)
    for row, row_before in zip(rows, last):
        single.warn_if_lost(row, row_before)
    best = progress["best"] or rows
    progress["best"] = [
        row if row["val_error"] <= old["val_error"] else old
        for row, old in zip(rows, best)
    ]
    progress["last"] = rows
    means = _means(rows)
    line = {**means, "seconds": seconds, "members": rows}
    rundir.append_metrics(workdir, line)
    console.say(
        f"step {rows[0]['step']:,}: means over {len(rows)} seeds: loss "
        f"{means['train_loss']}, validation error {means['val_error']:.2f}%, "
        f"test error {means['test_error']:.2f}%, {seconds:,.0f} s"
    )


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of rows of one step, which stays whole."""
    means = {name: _mean(row[name] for row in rows) for name in rows[0]}
    return {**means, "step": rows[0]["step"]}


def _mean(values: Iterator[float | None]) -> float | None:
    values = list(values)
    return None if None in values else single.rounded(float(np.mean(values)))


def _member_results(
    parts: single.Parts,
    state: training.TrainState,
    progress: dict[str, Any],
    seeds: np.ndarray,
) -> list[dict[str, Any]]:
    """A result like a single run's for every member, with its share of the time."""
    best, last = (progress[name] or [None] * len(seeds) for name in ("best", "last"))
    results = []
    for index, seed in enumerate(seeds):
        member = training.TrainState(state.step, *_member(state[1:], index))
        config = parts.config.copy_and_resolve_references()
        config.seed = int(seed)
        of_member = {
            "best": best[index],
            "last": last[index],
            "seconds": progress["seconds"] / len(seeds),
        }
        results.append(
            single.summarize(parts._replace(config=config), member, of_member)
        )
    return results


def _report_pruning(parts: single.Parts, pruned: single.Pruned, workdir: Path) -> None:
    """Prints how much is kept, writes the masks, and warns of what they cut off."""
    seeds = len(jax.tree.leaves(pruned.mask)[0])
    members = [_member(pruned.mask, index) for index in range(seeds)]
    first = members[0]
    rows = masks.summary(first)
    kept, total = sum(row.kept for row in rows), sum(row.total for row in rows)
    console.say(
        f"kept {kept:,} of {total:,} connections of each "
        f"({100 * masks.sparsity(first):.2f}% sparsity, "
        f"method {parts.config.prune.method})"
    )
    single.save_mask(pruned.mask, workdir / "masks.npz")
    for member in members:
        masks.warn_if_disconnected(member)
    image_shape = parts.train.images.shape[1:]
    counts = [single.first_layer_counts(member, image_shape) for member in members]
    if counts[0] is not None:
        np.save(workdir / _FIRST_LAYER, np.stack(counts))


def _draw_pictures(workdir: Path) -> None:
    """Draws the mean curves and what is kept on average, where there is any of it."""
    metrics, counts = mean_metrics(workdir), first_layer(workdir)
    if metrics:
        single.draw(plots.training_curves, metrics, workdir / "curves.png")
    if counts is not None:
        single.draw(plots.first_layer, counts, workdir / "first_layer.png")
