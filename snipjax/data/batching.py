"""Batches of a source, in an order that depends on a seed and the step alone."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from snipjax.data import images, views
from snipjax.data.sources import Source, read, unreadable

if TYPE_CHECKING:  # it takes a second to import, and arrays do without
    import grain

# Steps; Grain counts examples in floats, which are exact up to 2**53.
_NO_END = 2**31


class Examples(NamedTuple):
    """Holds a batch of images and labels.

    Attributes:
      images: uint8 array of shape ``[n, image_size, image_size, channels]``.
      labels: int32 array of shape ``[n]``.

    Example:
      >>> zeros = np.zeros((4, 8, 8, 1), np.uint8)
      >>> images, labels = Examples(zeros, np.arange(4, dtype=np.int32))
      >>> images.shape, labels.tolist()
      ((4, 8, 8, 1), [0, 1, 2, 3])
    """

    images: np.ndarray
    labels: np.ndarray


class WeightedExamples(NamedTuple):
    """Holds a batch of an evaluation, of which some may be padding.

    Attributes:
      images: uint8 array of shape ``[n, image_size, image_size, channels]``.
      labels: int32 array of shape ``[n]``.
      weights: float32 array of shape ``[n]``, 1 for an example and 0 for padding.

    Example:
      >>> images, labels = np.zeros((2, 8, 8, 1), np.uint8), np.array([3, 0], np.int32)
      >>> batch = WeightedExamples(images, labels, np.array([1, 0], np.float32))
      >>> int(batch.weights.sum())  # examples that count
      1
    """

    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    image_size: int,
    view: views.View = views.random_resized_crop,
    start_step: int = 0,
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
    buffer: int = 2,
) -> grain.DatasetIterator:
    r"""Returns this process's part of every global batch, from a step on.

    The order is one permutation of all examples after the other, each drawn from the
    seed, without a gap between them. Batch :math:`i` is

    .. math:: B_i = (x_{\pi(i b)}, \dots, x_{\pi((i + 1) b - 1)})

    for the batch size :math:`b` and that order :math:`\pi`, and process :math:`p` has
    the :math:`p`-th of ``process_count`` contiguous parts of it. The view of an example
    is drawn from the seed and its position. The step is thus all that has to be stored
    to go on with a stream, on any number of processes and workers.

    Args:
      source: the examples.
      batch_size: examples in a global batch, a multiple of ``process_count``.
      seed: a seed for the order and the views, not negative.
      image_size: height and width of the images in a batch.
      view: the part that is seen of an image, e.g.
        ``snipjax.data.views.whole``.
      start_step: the global step of the first batch.
      num_steps: the global step to end before; without it, there is no end.
      process_index: the index of this process among those that share a batch.
      process_count: the number of processes that share a batch.
      workers: processes that read and decode; 0 has threads of this process do it.
        They import the main module, which must not start the run again: it needs
        ``if __name__ == "__main__":``. Their batches come through shared memory, and
        a worker is killed where that (``/dev/shm``) is too small.
      threads: threads in each process that reads and decodes.
      buffer: batches that each of these processes has ready.

    Returns:
      An iterator of :class:`Examples`, ``batch_size / process_count`` in each. It is an
      iterator of Grain, with ``get_state()`` and ``set_state(state)``. Its ``close()``
      ends the workers.

    Raises:
      ValueError: ``batch_size`` is not a multiple of ``process_count``, or there are
        fewer examples than a batch takes.
      DatasetError: from the iterator. An image cannot be read; the message has its
        file or record.
      RuntimeError: from the iterator. A worker was killed.

    Example:
      >>> from snipjax import data
      >>> source = data.load("synthetic:1000x40x40x3/10", stream=True).train
      >>> stream = batches(source, batch_size=64, seed=0, image_size=32)
      >>> images, labels = next(stream)
      >>> images.shape, images.dtype, labels.shape
      ((64, 32, 32, 3), dtype('uint8'), (64,))
      >>> later = batches(source, batch_size=64, seed=0, image_size=32, start_step=1)
      >>> bool((next(stream).images == next(later).images).all())
      True
    """
    import grain

    if len(source) < batch_size:
        raise ValueError(
            f"batch_size is {batch_size}, but there are only {len(source)} examples; "
            "make it smaller"
        )
    steps = slice(start_step, _NO_END if num_steps is None else num_steps)
    epochs = max(1, -(-steps.stop * batch_size // len(source)))
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(epochs)
    order = order.map_with_index(_at_position)
    parts = _parts(order, batch_size, process_index, process_count, steps)
    load = functools.partial(_load, source, view, image_size, seed)
    return _iterator(parts.map(load), workers, threads, buffer)


def evaluation_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    view: views.View = views.center_crop,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
    buffer: int = 2,
) -> grain.DatasetIterator:
    """Returns this process's part of batches that hold every example exactly once.

    Every process gets ``ceil(len(source) / batch_size)`` of them, all of one shape, as
    programs across processes need it. The last is filled up with black images of
    class 0 and weight 0.

    Args:
      source: the examples, in whose order the batches are.
      batch_size: examples in a global batch, a multiple of ``process_count``.
      image_size: height and width of the images in a batch.
      view: the part that is seen of an image. A random one draws the same every time.
      process_index: the index of this process among those that share a batch.
      process_count: the number of processes that share a batch.
      workers: as for :func:`batches`.
      threads: as for :func:`batches`.
      buffer: as for :func:`batches`.

    Returns:
      An iterator of :class:`WeightedExamples`, else like the result of
      :func:`batches`.

    Raises:
      ValueError: ``batch_size`` is not a multiple of ``process_count``.
      DatasetError: as for :func:`batches`.
      RuntimeError: as for :func:`batches`.

    Example:
      >>> from snipjax import data
      >>> source = data.load("synthetic:10x8x8x3/5").train
      >>> for batch in evaluation_batches(source, batch_size=8, image_size=8):
      ...     print(batch.labels, batch.weights)
      [0 1 2 3 4 0 1 2] [1. 1. 1. 1. 1. 1. 1. 1.]
      [3 4 0 0 0 0 0 0] [1. 1. 0. 0. 0. 0. 0. 0.]
    """
    import grain

    steps = slice(0, -(-len(source) // max(batch_size, 1)))
    order = grain.MapDataset.range(steps.stop * batch_size)
    parts = _parts(order, batch_size, process_index, process_count, steps)
    load = functools.partial(_load_padded, source, view, image_size)
    return _iterator(parts.map(load), workers, threads, buffer)


def _parts(
    order: grain.MapDataset,
    batch_size: int,
    process_index: int,
    process_count: int,
    steps: slice,
) -> grain.MapDataset:
    """Returns this process's parts of the batches of some steps, as index arrays."""
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}, but it must be a positive multiple of the "
            f"{process_count} processes that share a batch"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index is {process_index}, but it must be in [0, {process_count}),"
            " process_count"
        )
    start, stop = (
        step * process_count + process_index for step in (steps.start, steps.stop)
    )
    parts = order.batch(batch_size // process_count, batch_fn=np.asarray)
    return parts[start:stop:process_count]


def _at_position(position: int, index: int) -> tuple[int, int]:
    return position, index


def _load(
    source: Source, view: views.View, image_size: int, seed: int, order: np.ndarray
) -> Examples:
    """Returns the examples at rows ``(position, index)`` of the order."""
    labels = np.empty(len(order), np.int32)
    pixels = np.empty((len(order), image_size, image_size, source.channels), np.uint8)
    examples = read(source, order[:, 1].tolist())
    for i, (position, index) in enumerate(order.tolist()):
        image, labels[i] = examples[i]
        rng = np.random.Generator(np.random.Philox(key=(seed, position)))
        try:
            pixels[i] = images.render(
                image, view, rng, image_size=image_size, channels=source.channels
            )
        except Exception as error:  # PIL raises many kinds
            raise unreadable(source, index, error) from error
    return Examples(pixels, labels)


def _load_padded(
    source: Source, view: views.View, image_size: int, indices: np.ndarray
) -> WeightedExamples:
    real = indices[indices < len(source)]
    pixels, labels = _load(source, view, image_size, 0, np.stack([real, real], 1))
    missing = len(indices) - len(real)
    return WeightedExamples(
        np.pad(pixels, [(0, missing), (0, 0), (0, 0), (0, 0)]),
        np.pad(labels, (0, missing)),
        (indices < len(source)).astype(np.float32),
    )


def _iterator(
    parts: grain.MapDataset, workers: int, threads: int, buffer: int
) -> grain.DatasetIterator:
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    stream = parts.to_iter_dataset(options)
    if workers:
        _let_grain_start_workers()
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(workers, buffer),
            functools.partial(_begin_worker, os.getpid()),
        )
    return iter(stream)


def _let_grain_start_workers() -> None:
    """Has Grain take the default of a flag where a program has not parsed flags.

    Grain 0.2.18 raises otherwise; later ones do this themselves.
    """
    from absl import flags

    name = "grain_enable_multiprocess_worker_profiling"
    if name in flags.FLAGS and not flags.FLAGS.is_parsed():
        flags.FLAGS[name].present = True


def _begin_worker(parent: int, index: int, count: int) -> None:
    """Leaves it to the parent when a worker ends, even if the parent is killed.

    ``parent`` is its process id, from the parent itself: a worker that starts after its
    death would take the process that adopted it for the parent.
    """
    for to_a_whole_job in (signal.SIGINT, signal.SIGTERM):
        signal.signal(to_a_whole_job, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
