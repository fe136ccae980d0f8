"""Batches of a source, in an order that depends on a seed and the step alone."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from snipjax import datasets
from snipjax.streams import views
from snipjax.streams.sources import Source


class Counted(NamedTuple):
    """Examples of an evaluation, and which of them count: the others are padding."""

    images: np.ndarray  # uint8 [n, image_size, image_size, channels]
    labels: np.ndarray  # int32 [n]
    counted: np.ndarray  # float32 [n], 1 or 0


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
) -> Iterator[datasets.Examples]:
    """Returns this process's part of every batch from a step on.

    Args:
      source: the examples.
      batch_size: of the global batch, a multiple of ``process_count``.
      seed: of the order and of the views.
      image_size: height and width of the images in a batch.
      view: what is seen of an image, e.g. :func:`snipjax.streams.whole`.
      start_step: the global step of the first batch.
      num_steps: the global step to end before; without it, there is no end.
      process_index: this process has the ``process_index``-th contiguous part.
      process_count: the number of processes that share a batch.
      workers: processes that read and decode; 0 does it in this process.
      threads: in each process that reads and decodes.
      buffer: batches that each of them has ready.

    Returns:
      A Grain iterator, with ``close()``, ``get_state()`` and ``set_state(state)``. It
      yields uint8 images ``[batch_size / process_count, image_size, image_size,
      channels]`` and int32 labels.

    Raises:
      ValueError: ``batch_size`` is not a multiple of ``process_count``, or there are
        fewer examples than a batch takes.
      DatasetError: from the iterator: an image cannot be read; its file or its record
        is named.
    """
    raise NotImplementedError


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
) -> Iterator[Counted]:
    """Returns this process's part of batches that hold every example exactly once.

    Every process gets ``ceil(len(source) / batch_size)`` batches of one shape; the
    last are filled up with zeros, which do not count.
    """
    raise NotImplementedError


def num_evaluation_batches(source: Source, batch_size: int) -> int:
    """Returns how many batches :func:`evaluation_batches` yields."""
    raise NotImplementedError


def mean_and_std(
    source: Source,
    *,
    image_size: int,
    view: views.View = views.whole,
    num_examples: int = 2000,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each channel over a fixed sample."""
    raise NotImplementedError
