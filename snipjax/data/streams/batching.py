"""Batches of a source, in an order that depends on a seed and the step alone."""

from __future__ import annotations

import functools
import os
import signal
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from snipjax.data import datasets
from snipjax.data.streams import images, sources, views
from snipjax.data.streams.sources import Source

# Steps; Grain counts examples in floats, which are exact up to 2**53.
_NO_END = 2**31


class Counted(NamedTuple):
    """Examples of an evaluation, and which of them count: the others are padding.

    Attributes:
      images: uint8 array of shape ``[n, image_size, image_size, channels]``.
      labels: int32 array of shape ``[n]``.
      counted: float32 array of shape ``[n]``, 1 for an example and 0 for padding.
    """

    images: np.ndarray
    labels: np.ndarray
    counted: np.ndarray


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
    """Returns this process's part of every global batch, from a step on.

    The order is one permutation of all examples after the other, each drawn from the
    seed, without a gap between them. Batch ``i`` is the examples at the positions
    ``i * batch_size`` to ``(i + 1) * batch_size - 1`` of that order, and process ``p``
    has the ``p``-th of ``process_count`` contiguous parts of it. What an example looks
    like is drawn from the seed and its position. So all that has to be stored to go on
    with a stream, on any number of processes and workers, is the step.

    Args:
      source: the examples.
      batch_size: of the global batch, a multiple of ``process_count``.
      seed: of the order and of the views, not negative.
      image_size: height and width of the images in a batch.
      view: what is seen of an image, e.g. :func:`snipjax.data.streams.whole`.
      start_step: the global step of the first batch.
      num_steps: the global step to end before; without it, there is no end.
      process_index: which part of a batch is this process's.
      process_count: the number of processes that share a batch.
      workers: processes that read and decode; 0 has threads of this process do it.
        They import the main module, which must not start the run again: it needs
        ``if __name__ == "__main__":``. Their batches come through shared memory, and
        a worker is killed where that (``/dev/shm``) is too small.
      threads: in each process that reads and decodes.
      buffer: batches that each of these processes has ready.

    Returns:
      An iterator of :class:`snipjax.data.datasets.Examples`: uint8 images ``[batch_size /
      process_count, image_size, image_size, channels]`` and int32 labels. It is one of
      Grain's, with ``get_state()`` and ``set_state(state)``. Its ``close()`` ends the
      workers.

    Raises:
      ValueError: ``batch_size`` is not a multiple of ``process_count``, or there are
        fewer examples than a batch takes.
      DatasetError: from the iterator. An image cannot be read; the message has its
        file or record.
      RuntimeError: from the iterator. A worker was killed.

    Example:
      >>> source = sources.open("synthetic:1000x40x40x3/10").train
      >>> stream = batches(source, batch_size=64, seed=0, image_size=32)
      >>> images, labels = next(stream)
      >>> images.shape, images.dtype, labels.shape
      ((64, 32, 32, 3), dtype('uint8'), (64,))
      >>> later = batches(source, batch_size=64, seed=0, image_size=32, start_step=1)
      >>> bool((next(stream).images == next(later).images).all())
      True
    """
    _check_parts(batch_size, process_index, process_count)
    if len(source) < batch_size:
        raise ValueError(
            f"batch_size is {batch_size}, but there are only {len(source)} examples; "
            "make it smaller"
        )
    steps = slice(start_step, _NO_END if num_steps is None else num_steps)
    epochs = max(1, -(-steps.stop * batch_size // len(source)))
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(epochs)
    parts = _parts(
        order.map_with_index(_at_position),
        batch_size // process_count,
        process_index,
        process_count,
        steps,
    )
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

    Every process gets :func:`num_evaluation_batches` of them, all of one shape, as
    programs across processes need it. The last is filled up with black images of
    class 0, which do not count.

    Args:
      source: the examples, in whose order the batches are.
      batch_size: of the global batch, a multiple of ``process_count``.
      image_size: height and width of the images in a batch.
      view: what is seen of an image. If it is a random one, always the same.
      process_index: this process has the ``process_index``-th part of a batch.
      process_count: the number of processes that share a batch.
      workers: as for :func:`batches`.
      threads: as for :func:`batches`.
      buffer: as for :func:`batches`.

    Returns:
      An iterator of :class:`Counted`, one of Grain's as that of :func:`batches`.

    Raises:
      ValueError: ``batch_size`` is not a multiple of ``process_count``.
      DatasetError: as for :func:`batches`.
      RuntimeError: as for :func:`batches`.

    Example:
      >>> source = sources.open("synthetic:10x8x8x3/5").train
      >>> for batch in evaluation_batches(source, batch_size=8, image_size=8):
      ...     print(batch.labels, batch.counted)
      [0 1 2 3 4 0 1 2] [1. 1. 1. 1. 1. 1. 1. 1.]
      [3 4 0 0 0 0 0 0] [1. 1. 0. 0. 0. 0. 0. 0.]
    """
    _check_parts(batch_size, process_index, process_count)
    steps = num_evaluation_batches(source, batch_size)
    parts = _parts(
        grain.MapDataset.range(steps * batch_size),
        batch_size // process_count,
        process_index,
        process_count,
        slice(0, steps),
    )
    load = functools.partial(_load_counted, source, view, image_size)
    return _iterator(parts.map(load), workers, threads, buffer)


def num_evaluation_batches(source: Source, batch_size: int) -> int:
    """Returns how many batches hold every example once.

    Args:
      source: the examples.
      batch_size: of the global batch.

    Example:
      >>> num_evaluation_batches(sources.open("synthetic:10x8x8x3/5").train, 8)
      2
    """
    return -(-len(source) // batch_size)


def mean_and_std(
    source: Source,
    *,
    image_size: int,
    view: views.View = views.center_crop,
    num_examples: int = 1000,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each channel, over a sample of images.

    The sample is the same in every process: the first ``num_examples`` of
    ``np.random.RandomState(0).permutation(len(source))``.

    Args:
      source: the training images.
      image_size: height and width of the images in a batch.
      view: how an image is seen.
      num_examples: how many to read; all, if there are fewer.

    Returns:
      Two float32 arrays of shape ``[channels]``, in units of the pixels, as
      :func:`snipjax.data.datasets.mean_and_std` returns them.

    Raises:
      DatasetError: an image cannot be read.

    Example:
      >>> source = sources.open("synthetic:10x8x8x3/5").train
      >>> mean, std = mean_and_std(source, image_size=8)
      >>> mean.shape, mean.dtype
      ((3,), dtype('float32'))
    """
    order = np.random.RandomState(0).permutation(len(source))[:num_examples]
    total, squares = np.zeros((2, source.channels), np.int64)
    for batch in evaluation_batches(
        sources.Subset(source, order), batch_size=50, image_size=image_size, view=view
    ):
        # Padding is black and adds nothing.
        total += batch.images.sum((0, 1, 2), np.int64)
        squares += np.square(batch.images, dtype=np.int64).sum((0, 1, 2))
    mean = total / (len(order) * image_size**2)
    variance = squares / (len(order) * image_size**2) - mean**2
    return mean.astype(np.float32), np.sqrt(variance.clip(0)).astype(np.float32)


def _check_parts(batch_size: int, process_index: int, process_count: int) -> None:
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


def _parts(
    order: grain.MapDataset,
    size: int,
    process_index: int,
    process_count: int,
    steps: slice,
) -> grain.MapDataset:
    """This process's parts of the batches of some steps, as arrays of the order's."""
    start, end = (
        step * process_count + process_index for step in (steps.start, steps.stop)
    )
    return order.batch(size, batch_fn=np.asarray)[start:end:process_count]


def _at_position(position: int, index: int) -> tuple[int, int]:
    return position, index


def _load(
    source: Source, view: views.View, image_size: int, seed: int, order: np.ndarray
) -> datasets.Examples:
    """The examples at positions of the order; ``order`` has position and index."""
    labels = np.empty(len(order), np.int32)
    pixels = np.empty((len(order), image_size, image_size, source.channels), np.uint8)
    examples = sources.read(source, order[:, 1].tolist())
    for i, (position, index) in enumerate(order.tolist()):
        image, labels[i] = examples[i]
        rng = np.random.Generator(np.random.Philox(key=(seed, position)))
        try:
            pixels[i] = images.seen(
                image, view, rng, image_size=image_size, channels=source.channels
            )
        except Exception as error:  # PIL raises many kinds
            raise sources.unreadable(source, index, error) from error
    return datasets.Examples(pixels, labels)


def _load_counted(
    source: Source, view: views.View, image_size: int, indices: np.ndarray
) -> Counted:
    real = indices[indices < len(source)]
    loaded = _load(source, view, image_size, 0, np.stack([real, real], 1))
    missing = len(indices) - len(real)
    return Counted(
        *(
            np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
            for array in loaded
        ),
        (indices < len(source)).astype(np.float32),
    )


def _iterator(
    parts: grain.MapDataset, workers: int, threads: int, buffer: int
) -> grain.DatasetIterator:
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
    name = "grain_enable_multiprocess_worker_profiling"
    if name in flags.FLAGS and not flags.FLAGS.is_parsed():
        flags.FLAGS[name].present = True


def _begin_worker(parent: int, index: int, count: int) -> None:
    """Leaves it to the parent when a worker ends, even if that is killed."""
    for to_a_whole_job in (signal.SIGINT, signal.SIGTERM):
        signal.signal(to_a_whole_job, signal.SIG_IGN)
    datasets.exit_with_parent(parent)
