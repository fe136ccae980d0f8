"""The next batches on the device while the current one is computed."""

from collections.abc import Iterator
from typing import Any

import jax


def to_device(
    batches: Iterator[Any],
    sharding: jax.sharding.Sharding | None = None,
    *,
    buffer: int = 2,
) -> Iterator[Any]:
    """Returns an iterator of the same batches, put on the device ahead of time.

    A thread takes batches, pytrees of NumPy arrays, and puts them on the device until
    ``buffer`` of them wait. With a sharding each leaf is this process's part of a
    global array (``jax.make_array_from_process_local_data``); without one it goes to
    the default device.

    Args:
      batches: an iterator, as that of :func:`snipjax.streams.batches`.
      sharding: e.g. ``NamedSharding(mesh, PartitionSpec("data"))``, of every leaf.
      buffer: batches on the device beside the one in use.

    Returns:
      An iterator that raises what ``batches`` raises. Close it, or use it in a
      ``with`` statement, to end its thread and ``batches``.
    """
    raise NotImplementedError
