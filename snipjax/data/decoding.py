"""All images of a dataset as arrays."""

from __future__ import annotations

import concurrent.futures
import math
import os

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

_CHUNK = 500  # images that a thread decodes at a time


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
    parts = {name: _arrays(source, shape) for name, source in splits.parts.items()}
    return splits._replace(parts=parts)


def _arrays(source: Source, shape: tuple[int, int, int]) -> Arrays:
    total = len(source)
    pixels, labels = np.empty((total, *shape), np.uint8), np.empty(total, np.int32)

    def fill(start: int) -> None:
        part = range(start, min(start + _CHUNK, total))
        some = slice(part.start, part.stop)
        pixels[some], labels[some] = _decode(source, part, shape)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, total, _CHUNK)))  # raises the first error
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
