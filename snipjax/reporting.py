"""The reports of a run on its way: printed lines, rows of metrics, and files."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax import io, masks, pruning
from snipjax._src import trees
from snipjax.assembly import Setup
from snipjax.training import console, distributed, loop, rundir
from snipjax.training.placement import Placement
from snipjax.training.sessions import Session
from snipjax.training.state import TrainState

_SPLITS = ("train", "val", "test")
_DRAWN = 4_000_000  # scores in a histogram, at most


def record(
    session: Session,
    seeds: range,
    add_scalars: Callable[[int, Mapping[str, float]], None],
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
    add_scalars(
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
    is_static = setup.config.optimizer.sparse.name == "static"
    write_masks(place, mask, session, rundir.MASK if is_static else rundir.FIRST_MASK)
    if len(place.seeds) > 1:
        check_finite(place.seeds, scores)
    for one, its_scores in zip(place.networks(mask), place.networks(scores)):
        pruning.warn_if_weak(its_scores, one)
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
    drawn, least = [], math.inf
    for scores, keep in pairs:  # one leaf at a time on the host
        whole = distributed.on_host(scores).ravel()
        kept = distributed.on_host(keep).ravel()
        drawn.append(whole[::stride].copy())
        least = min(least, float(np.min(whole, where=kept, initial=np.inf)))
    threshold = np.array(least if math.isfinite(least) else 0.0, np.float32)
    return {"scores": np.concatenate(drawn), "threshold": threshold}


def write_masks(
    place: Placement, mask: chex.ArrayTree, session: Session, name: str = rundir.MASK
) -> None:
    for seed, one in zip(place.seeds, place.networks(mask)):
        directory = session.output / f"seed-{seed}"
        directory.mkdir(exist_ok=True)
        io.save_arrays(one, directory / name, on_host=distributed.on_host)


def check_files(directory: Path, networks: Sequence[Mapping[str, Any]]) -> None:
    """Raises a ``ValueError`` if files of a finished run are missing or damaged."""
    last: dict[int, float | None] = {}
    for row in rundir.read_metrics(directory):
        last.update(zip(row["seeds"], row.get("test_error", ())))
    for network in networks:
        seed, remedy = network["seed"], f"remove '{directory}' to start again"
        if last.get(seed, "none") != network["test_error_last"]:
            reason = f"without the last errors of seed {seed}"
            raise rundir.damaged(directory / rundir.METRICS, reason)
        params, mask = (
            directory / f"seed-{seed}" / name for name in (rundir.PARAMS, rundir.MASK)
        )
        try:
            io.arrays.read_named(params, remedy)
            leaves = io.arrays.read_named(mask, remedy).values()
        except OSError as error:
            raise ValueError(f"{error}; {remedy}") from None
        found = sum(
            int(leaf.sum()) for leaf in leaves if leaf.ndim and leaf.dtype == bool
        )
        if found != network["kept"]:
            reason = f"{found:,} connections kept, not {network['kept']:,}"
            raise rundir.damaged(mask, reason, remedy)


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
