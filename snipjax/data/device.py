"""The next batches on the device while the current one is computed."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # processes that decode images do without it
    import jax

# A thread that waits longer than this for its batch has to be left behind.
_SECONDS_TO_END = 30.0
_WORKER_DIED = (
    "a process that reads images was killed, perhaps for lack of memory; with fewer "
    "config.dataset.workers, the same command goes on from the last checkpoint"
)


def to_device(
    batches: Iterator[Any],
    sharding: jax.sharding.Sharding | None = None,
    *,
    buffer: int = 2,
) -> OnDevice:
    """Returns an iterator of the same batches, put on the device ahead of time.

    A thread takes batches, pytrees of NumPy arrays, and puts them on the device until
    ``buffer`` of them wait there. With a sharding, each leaf is this process's part of
    a global array; without one, it goes to the default device.

    Args:
      batches: an iterator like the result of :func:`snipjax.data.batches`. From now on
        it belongs to the thread, which closes it.
      sharding: the sharding of every leaf, e.g.
        ``NamedSharding(mesh, PartitionSpec("data"))``, which splits the leading axis.
      buffer: the number of batches that may be on the device beside the one in use.

    Returns:
      An iterator of batches of ``jax.Array``. It raises the errors of ``batches``. Its
      ``close()`` ends the thread and closes ``batches``, with their workers; so does
      leaving a ``with`` statement, dropping the iterator, or ending the program.

    Raises:
      ValueError: ``buffer`` is less than 1.
      OSError: from the iterator. A worker of ``batches`` was killed.

    Example:
      >>> import numpy as np
      >>> with to_device(iter([np.zeros(2), np.ones(2)])) as batches:
      ...     [float(batch.sum()) for batch in batches]
      [0.0, 2.0]
    """
    if buffer < 1:
        raise ValueError(f"buffer is {buffer}; it must hold at least 1 batch")
    return OnDevice(batches, sharding, buffer)


class OnDevice:
    """Iterates over batches on the device, with a ``close()`` that ends its thread.

    :func:`to_device` makes it. Leaving a ``with`` statement closes it.

    Example:
      >>> import numpy as np
      >>> batches = to_device(iter([np.zeros(2), np.ones(2)]))
      >>> next(batches)
      Array([0., 0.], dtype=float32)
      >>> batches.close()
    """

    def __init__(
        self,
        batches: Iterator[Any],
        sharding: jax.sharding.Sharding | None,
        buffer: int,
    ) -> None:
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._places = threading.Semaphore(buffer)
        self._ended = False
        stop = threading.Event()
        thread = threading.Thread(
            target=_fill,
            args=(batches, sharding, self._ready, self._places, stop),
            name="snipjax-to-device",
            daemon=True,
        )
        # The thread does not know this object, so that dropping it ends the thread.
        self.close = weakref.finalize(
            self, _end, thread, stop, self._places, self._ready
        )
        thread.start()

    def __iter__(self) -> OnDevice:
        return self

    def __next__(self) -> Any:
        if self._ended or not self.close.alive:
            raise StopIteration
        batch, error = self._ready.get()
        if error is not None:
            self._ended = True
            if isinstance(error, RuntimeError) and "terminated" in str(error):
                raise OSError(_WORKER_DIED) from error  # Grain's of its workers
            raise error
        self._places.release()
        return batch

    def __enter__(self) -> OnDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fill(
    batches: Iterator[Any],
    sharding: jax.sharding.Sharding | None,
    ready: queue.SimpleQueue,
    places: threading.Semaphore,
    stop: threading.Event,
) -> None:
    end: BaseException = StopIteration()
    try:
        while places.acquire() and not stop.is_set():
            ready.put((_put(next(batches), sharding), None))
    except BaseException as error:  # whatever it is, the consumer is to know
        end = error
    finally:
        if hasattr(batches, "close"):
            batches.close()
        ready.put((None, end))


def _put(batch: Any, sharding: jax.sharding.Sharding | None) -> Any:
    import jax

    batch = jax.tree.map(_own, batch)
    if sharding is None:
        return jax.device_put(batch)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch
    )


def _own(leaf: np.ndarray) -> np.ndarray:
    """Returns a copy of an array in the memory of a worker, to free that memory.

    JAX would hold on to it, on a CPU for as long as the batch is used.
    """
    return leaf if type(leaf) is np.ndarray else np.array(leaf)


def _end(
    thread: threading.Thread,
    stop: threading.Event,
    places: threading.Semaphore,
    ready: queue.SimpleQueue,
) -> None:
    stop.set()
    places.release()
    if thread is not threading.current_thread():  # where garbage is collected
        thread.join(_SECONDS_TO_END)
    # The memory that batches may share with workers is freed before Python ends.
    with contextlib.suppress(queue.Empty):
        while True:
            ready.get_nowait()
