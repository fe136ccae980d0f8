"""All images of a dataset as arrays, decoded by as many processes as pay off."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from snipjax.data import images
from snipjax.data.sources import (
    STREAM_INSTEAD,
    Arrays,
    DatasetError,
    Source,
    Splits,
    read,
    unreadable,
)

# Of one core, roughly. A worker takes a second to start.
_SECONDS_PER_IMAGE = 1e-4
_SECONDS_PER_BYTE = 1e-8
_BYTES_PER_CHUNK = 2**22


def in_memory(splits: Splits) -> Splits:
    """Returns the splits of a dataset with all images decoded into arrays.

    The arrays have the order of the sources. A DatasetError names an image that cannot
    be read or differs in size from the first, or says that the memory is too small.
    """
    shape = _decode(splits.parts["train"], range(1), None)[0].shape[1:]
    total = sum(map(len, splits.parts.values()))
    size = total * math.prod(shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise DatasetError(
            f"{total:,} images of shape {shape} are {size / 1e9:,.0f} GB, but this "
            f"machine has {memory / 1e9:,.0f} GB of memory; {STREAM_INSTEAD}"
        )
    seconds = total * _SECONDS_PER_IMAGE + size * _SECONDS_PER_BYTE
    with _parallel_map(int(seconds)) as parallel_map:
        parts = {
            name: _arrays(source, shape, parallel_map)
            for name, source in splits.parts.items()
        }
    return splits._replace(parts=parts)


def _arrays(
    source: Source,
    shape: tuple[int, int, int],
    parallel_map: Callable[..., Iterable[Any]],
) -> Arrays:
    total = len(source)
    pixels, labels = np.empty((total, *shape), np.uint8), np.empty(total, np.int32)
    step = min(2000, _BYTES_PER_CHUNK // math.prod(shape) + 1)
    chunks = [range(i, min(i + step, total)) for i in range(0, total, step)]
    decoded = parallel_map(functools.partial(_decode, source, shape=shape), chunks)
    for chunk, examples in zip(chunks, decoded, strict=True):
        part = slice(chunk.start, chunk.stop)
        pixels[part], labels[part] = examples
    return Arrays(pixels, labels)


def _decode(
    source: Source, indices: range, shape: tuple[int, int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = [], []
    for index, (encoded, label) in zip(indices, read(source, indices), strict=True):
        try:
            image = images.decode(encoded, source.channels)
        except Exception as error:  # PIL raises many kinds
            raise unreadable(source, index, error) from error
        if image.shape != (shape or image.shape):
            raise DatasetError(
                f"{source.where(index)} has the shape {image.shape}, but the first "
                f"image has {shape}. Images in memory have one size; {STREAM_INSTEAD}"
            )
        pixels.append(image)
        labels.append(label)
    return np.stack(pixels), np.array(labels, np.int32)


@contextlib.contextmanager
def _parallel_map(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yields a ``map`` over so many processes, at most one for each core.

    Threads do not help: for small images most of the time goes to Python code under
    its lock. The processes of loky, unlike those of ``multiprocessing``, neither run
    the user's main module again nor inherit JAX's threads.
    """
    import loky

    workers = min(loky.cpu_count(), workers)
    if workers < 2:
        yield map
        return
    with loky.ProcessPoolExecutor(
        workers, initializer=exit_with_parent, initargs=(os.getpid(),)
    ) as pool:
        yield pool.map


def exit_with_parent(parent: int) -> None:
    """Ends this process as soon as its parent is gone, even if the parent was killed.

    ``parent`` is its process id, from the parent itself: a worker that starts after its
    death would take the process that adopted it for the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
