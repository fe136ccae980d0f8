"""Mean and standard deviation of the channels, and images standardized by them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from snipjax.data import views
from snipjax.data.batching import evaluation_batches
from snipjax.data.sources import Arrays, Source, Subset

if TYPE_CHECKING:
    import chex

_SAMPLE = 1000
_BYTES_PER_CHUNK = 2**22


def mean_and_std(
    source: Source, *, image_size: int | None = None, view: views.View | None = None
) -> tuple[np.ndarray, np.ndarray]:
    r"""Returns the mean and the standard deviation of each channel, over pixels.

    .. math:: \mu_c = \frac{1}{N} \sum_{i, p} x_{ipc}, \qquad
              \sigma_c = \sqrt{\frac{1}{N} \sum_{i, p} (x_{ipc} - \mu_c)^2}

    over the images :math:`i` and pixels :math:`p`, :math:`N` values in all.

    Both are in the units of the pixels and computed from exact integer sums, a few
    images at a time. Without ``image_size`` they are over all images. With it, they are
    over a sample as a stream shows it, the same in every process: the first 1,000 of
    ``np.random.RandomState(0).permutation(len(source))``.

    Args:
      source: the training images; :class:`Arrays` where there is no ``image_size``.
      image_size: height and width of the images in a batch.
      view: the part that is seen of an image, by default
        ``snipjax.data.views.center_crop``. Without ``image_size`` it is all.

    Returns:
      Two float32 arrays of shape ``[channels]``.

    Raises:
      ValueError: the images are not in memory, and ``image_size`` is not given.
      DatasetError: an image cannot be read.

    Example:
      >>> from snipjax import data
      >>> mean, std = mean_and_std(data.load("digits").train)
      >>> mean.shape, mean.dtype
      ((1,), dtype('float32'))
    """
    if image_size is None:
        if not isinstance(source, Arrays):
            raise ValueError(
                "The mean of images that are not in memory needs an image_size, to "
                "which they are scaled."
            )
        images = source.images
        chunks = np.array_split(images, -(-images.nbytes // _BYTES_PER_CHUNK))
        return _moments(chunks, pixels=images[..., 0].size)
    order = np.random.RandomState(0).permutation(len(source))[:_SAMPLE]
    batches = evaluation_batches(
        Subset(source, order),
        batch_size=50,
        image_size=image_size,
        view=view or views.center_crop,
    )
    # Padding is black and adds nothing.
    seen = (batch.images for batch in batches)
    return _moments(seen, pixels=len(order) * image_size**2)


def standardize(images: chex.Array, mean: chex.Array, std: chex.Array) -> chex.Array:
    r"""Returns images with every channel shifted by its mean and divided by its std.

    .. math:: y_{pc} = \frac{x_{pc} - \mu_c}{\sigma_c}

    A pure function of arrays of NumPy or JAX, to be called on a batch under ``jit``. A
    channel that is constant (std 0) is only shifted.

    Args:
      images: array of shape ``[..., h, w, c]``, of any numeric type.
      mean: float32 array of shape ``[c]``.
      std: float32 array of shape ``[c]``.

    Returns:
      A float32 array of the shape of ``images``.

    Example:
      >>> from snipjax import data
      >>> train = data.load("digits").train
      >>> images = standardize(train.images, *mean_and_std(train))
      >>> abs(float(images.mean())) < 1e-5
      True
    """
    return (images.astype(np.float32) - mean) / (std + (std == 0))


def _moments(
    chunks: Iterable[np.ndarray], pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    total, squares = np.zeros((2, 1), np.int64)
    for chunk in chunks:
        # Over the images first: NumPy is slow to sum around a short last axis.
        total = total + chunk.sum(0, np.int64).sum((0, 1))
        squared = np.square(chunk, dtype=np.uint16)
        squares = squares + squared.sum(0, np.int64).sum((0, 1))
    mean = total / pixels
    variance = (squares - total * mean) / pixels
    return mean.astype(np.float32), np.sqrt(variance.clip(0)).astype(np.float32)
