"""Checkpoints of a training run, by Orbax: written whole or not at all."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from snipjax.training import contents, distributed

State = TypeVar("State")

_SECONDS_TO_WRITE = 24 * 60 * 60
_opened = itertools.count()  # directories, by all processes alike


@contextmanager
def open_directory(directory: Path) -> Iterator[ocp.CheckpointManager]:
    """Yields the manager of a directory of checkpoints, made if it is missing.

    The remains of an interrupted write are removed. The end of the block waits for
    writes that are under way. It raises an ``OSError`` if one failed, in this process
    or another; the checkpoint before is intact.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2,
        cleanup_tmp_directories=True,
        async_options=_async_options(),
    )
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with _read_errors(f"the checkpoints in '{directory}'", "begin again"):
        manager = ocp.CheckpointManager(directory, options=options)
    try:
        yield manager
    finally:
        with _write_errors(manager):
            manager.close()


def save(
    manager: ocp.CheckpointManager, step: int, state: Any, progress: dict[str, Any]
) -> None:
    """Starts to write a checkpoint; later saves and :func:`wait` wait for it.

    The state may be donated as soon as this returns. Nothing is written if there is a
    checkpoint of that step. The plain values of ``progress`` are kept as JSON.
    """
    if step in manager.all_steps():
        return
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(_with_key_data(state)),
        # Written later, when the caller may have changed it.
        progress=ocp.args.JsonSave(copy.deepcopy(progress)),
    )
    with _write_errors(manager):
        manager.save(step, args=args)


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits until the last checkpoint is written, or raises an ``OSError``."""
    with _write_errors(manager):
        manager.wait_until_finished()


def restore_latest(
    manager: ocp.CheckpointManager, like: State, kind: Any = dict
) -> tuple[State, dict[str, Any]] | None:
    """Returns the state and progress of the last checkpoint, or None without one.

    The leaves of ``like`` have shapes, dtypes, and perhaps shardings, which need not be
    those the checkpoint was saved with. The progress must be of a ``kind``.
    """
    step = manager.latest_step()
    if step is None:
        return None
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(jax.tree.map(_abstract, like)),
        progress=ocp.args.JsonRestore(),
    )
    name = f"checkpoint {step} in '{manager.directory}'"
    with _read_errors(name, "go on from the one before"):
        restored = manager.restore(step, args=args)
        contents.check(restored.progress, kind)
    return _with_keys_like(like, restored.state), restored.progress


def _async_options() -> ocp.AsyncOptions:
    """Returns the limits of writing a checkpoint in the background.

    Orbax has one limit for a process's own writing and for its waiting for the others,
    which cannot tell a process with much to write from one with a full disk. So the
    limit is longer than any write takes. The waiting ends when the other process comes,
    with its part or with an error (:func:`distributed.meeting`), or when it is dead and
    its heartbeats are missed (:func:`distributed.initialize`).
    """
    if jax.process_count() == 1:
        return ocp.AsyncOptions(timeout_secs=_SECONDS_TO_WRITE)
    return ocp.AsyncOptions(
        timeout_secs=_SECONDS_TO_WRITE,
        barrier_sync_fn=distributed.meeting(f"checkpoints/{next(_opened)}"),
        # Or the others wait five minutes for a directory that cannot be made.
        create_directories_asynchronously=False,
    )


@contextmanager
def _write_errors(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Raises an ``OSError`` for any error of a failing write."""
    try:
        yield
    except Exception as error:  # Orbax has none of its own
        raise OSError(
            f"a checkpoint cannot be written in '{manager.directory}' "
            f"({_reason(error)}); once there is room, the same command goes on from "
            "the one before"
        ) from error


@contextmanager
def _read_errors(name: str, purpose: str) -> Iterator[None]:
    """Raises a ``ValueError`` for any error of a failing read."""
    try:
        yield
    except Exception as error:  # Orbax has none of its own
        raise ValueError(
            f"{name} cannot be read ({_reason(error)}); remove it to {purpose}"
        ) from error


def _reason(error: Exception) -> str:
    # TensorStore puts its specifications behind the reason, and Orbax whole trees.
    text = " ".join(str(error).split()).partition(" [tensorstore_spec")[0]
    return text if len(text) < 600 else f"{text[:200]} ... {text[-200:]}"


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
    return jax.ShapeDtypeStruct(data.shape, data.dtype)


def _with_key_data(state: State) -> State:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _with_keys_like(like: State, state: State) -> State:
    return jax.tree.map(
        lambda old, x: jax.random.wrap_key_data(x) if _is_key(old) else x, like, state
    )
