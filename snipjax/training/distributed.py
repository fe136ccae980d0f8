"""Several hosts: processes that train one network together, by ``jax.distributed``."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import chex
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

T = TypeVar("T")

# Words in the errors of an exchange: Gloo's on CPUs, NCCL's on GPUs, the coordinator's.
_LOST = re.compile("gloo|nccl|coordination|unavailable|deadline|heartbeat", re.I)

_HEARTBEAT_SECONDS, _CONNECT_SECONDS = 20, 120
_AGREEING_MS = 10_000  # for a thread that has met the others to meet them again

# Variables of launchers of several processes; jax.distributed knows the rest.
_LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_KUBERNETES = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the processes that run the same command, before any other use of JAX.

    The address is ``<host>:<port>`` of process 0, by default
    ``$JAX_COORDINATOR_ADDRESS``. Without arguments, the processes of Slurm, Open MPI or
    a Kubernetes job are joined, and a process alone does nothing. When one dies the
    others end too: at their next exchange, or once its heartbeats are missed.
    """
    coordinator_address = coordinator_address or os.environ.get(_ADDRESS)
    given: dict[str, Any] = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if not _is_launched():
            return
    elif missing:
        raise ValueError(
            f"--{' and --'.join(missing)} must be given too: several processes need "
            "--coordinator_address=<host>:<port>, --num_processes and --process_id"
        )
    else:
        _check(*given.values())
    # On CPUs with several devices in a process, steps under way at once would wait for
    # each other's threads forever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=_CONNECT_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            # A process that fails does not wait for the others, nor they for it.
            shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the processes did not meet ({_first_line(error)}); each needs the same "
            "--coordinator_address, a free port on the host of process 0, the same "
            "--num_processes, and a --process_id of its own"
        ) from error


def is_first() -> bool:
    """Returns whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def on_host(array: chex.Array) -> np.ndarray:
    """Returns an array, gathered from all processes, as a NumPy array.

    All processes must call it. The array does not cache the copy, as it would with
    ``np.asarray``.
    """
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    if not array.is_fully_addressable:
        if not array.is_fully_replicated:
            everywhere = NamedSharding(
                cast(NamedSharding, array.sharding).mesh, PartitionSpec()
            )
            array = jax.jit(lambda x: x, out_shardings=everywhere)(array)
        return np.asarray(array.addressable_data(0))
    parts = [shard.data for shard in array.addressable_shards]
    return np.asarray(
        jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)
    )


def any_of(value: bool) -> bool:
    return bool(np.any(_of_all(np.array(value))))


def by_first(function: Callable[[], T]) -> T | None:
    """Calls a function in the first process, while the others wait and return None.

    If it raises in the first, the others raise a ``ValueError`` that points there.
    """
    return by_all(function if is_first() else lambda: None)


def by_all(function: Callable[[], T]) -> T:
    """Calls a function in every process, and fails in all if it fails in one."""
    value, error = None, None
    try:
        value = function()
    except Exception as raised:  # raised again below
        error = raised
    failed = _of_all(np.array(error is not None))
    if failed.any():
        raise error or ValueError(f"process {failed.argmax()} failed; see its output")
    return cast(T, value)


def check_same(facts: Mapping[str, Any]) -> None:
    """Raises a ``ValueError`` in all processes that names the facts which differ."""
    text = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8)
    digest = np.frombuffer(hashlib.sha256(text.tobytes()).digest(), np.uint8)
    digests = _of_all(digest)
    if (digests == digests[0]).all():
        return
    # Unlike texts, arrays have one length in all processes.
    length = np.max(_of_all(np.array(text.size)))
    padded = np.pad(text, (0, length - text.size), constant_values=ord(" "))
    found = different([json.loads(text.tobytes()) for text in _of_all(padded)])
    raise ValueError(
        f"the processes of a run were given different things ({'; '.join(found)}); "
        "start all of them with the same command, code and data"
    )


def different(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a line for each fact that is not the same for all processes.

    Example:
      >>> different([{"seed": 0, "steps": 9}, {"seed": 1, "steps": 9}])
      ['seed is 0 in process 0, 1 in process 1']
    """
    lines = []
    for name in dict.fromkeys(name for of_one in facts for name in of_one):
        values = [of_one.get(name, "absent") for of_one in facts]
        firsts = [values.index(value) for value in values]
        if any(firsts):
            of_each = (f"{values[i]} in process {i}" for i in sorted(set(firsts)))
            lines.append(f"{name} is {', '.join(of_each)}")
    return lines


def meeting(name: str) -> Callable[..., None]:
    """Returns a barrier that tells a slow process from one that has failed.

    The barrier is ``(key=<the step>, timeout_ms=<to wait>)``, as Orbax takes it. It
    returns at once where there is one process. Each work has a name of its own, the
    same in all processes.

    All processes pass the steps of a work in one order, and wait for each other at
    each; a process that fails skips steps. So all meet at the n-th step that they come
    to, however long it takes, and then compare its name: those at the same step meet
    again. A process that waits ten seconds for that raises an ``OSError``, since
    another has failed, or continues with an error that it is already handling.
    """
    from orbax.checkpoint import multihost  # seconds to import, for few to need

    barrier, numbers = multihost.get_barrier_sync_fn(), itertools.count()
    parted: list[str] = []

    def meet(*, key: str, timeout_ms: int) -> None:
        if not parted:
            step = f"snipjax/{name}/{next(numbers)}"
            barrier(key=step, timeout_ms=timeout_ms)
            try:  # All are here; those who came to the same step meet at once.
                barrier(key=f"{step}/{key}", timeout_ms=_AGREEING_MS)
                return
            except Exception as error:  # JAX has no class of its own for these
                if "DEADLINE" not in str(error):
                    raise
                parted.append(step)
        if sys.exc_info()[1] is None:
            raise OSError(
                "another process could not do its part, or has died; see its output"
            )

    return meet


def let_others_end() -> None:
    """Waits a moment before the first process ends because of an error.

    Without it the others are aborted, even while they are about to tell their error.
    """
    if jax.distributed.is_initialized() and is_first():
        time.sleep(3.0)


@contextlib.contextmanager
def one_voice(workdir: Path) -> Iterator[Path]:
    """Lets only the first process print, warn and write while the block runs.

    It yields the directory to write to: ``workdir`` in the first process, in the others
    one that is removed at the end.
    """
    if is_first():
        yield workdir
        return
    with (
        tempfile.TemporaryDirectory() as scratch,
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield Path(scratch)


@contextlib.contextmanager
def lost_peers() -> Iterator[None]:
    """Raises one clear ``OSError`` for any error of an exchange with a dead process."""
    try:
        yield
    except Exception as error:  # JAX and Orbax have no class of their own for it
        if jax.process_count() == 1 or not _LOST.search(str(error)):
            raise
        raise OSError(
            f"process {jax.process_index()} of {jax.process_count()} has lost another "
            f"({_first_line(error)}); the same command goes on from the last checkpoint"
        ) from error


def _of_all(array: np.ndarray) -> np.ndarray:
    """Returns the arrays of all processes, along a new first axis."""
    if jax.process_count() == 1:
        return array[None]
    return multihost_utils.process_allgather(array)


def _is_launched() -> bool:
    if any(int(os.environ.get(name) or 1) > 1 for name in _LAUNCHERS):
        return True
    return all(name in os.environ for name in _KUBERNETES)


def _check(coordinator_address: str, num_processes: int, process_id: int) -> None:
    _, _, port = coordinator_address.rpartition(":")
    if not port.isdigit():
        raise ValueError(
            f"--coordinator_address is '{coordinator_address}'; it must be "
            "<host>:<port>, e.g. 10.0.0.1:1234"
        )
    if num_processes < 1:
        raise ValueError(f"--num_processes is {num_processes}; it must be >= 1")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id is {process_id}; with --num_processes={num_processes} it "
            f"must be from 0 to {num_processes - 1}"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
