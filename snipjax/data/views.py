"""Views: the part of an image that is seen, mirrored or not.

Every crop becomes a square of the size that a stream was asked for.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Crop(NamedTuple):
    """Describes a box in pixels of the image, and whether it is mirrored.

    The part of the box outside of the image is black.

    Attributes:
      left: position of the left edge, perhaps negative.
      top: position of the upper edge, perhaps negative.
      width: width of the box.
      height: height of the box.
      flip: whether the image is mirrored left to right.

    Example:
      >>> Crop(16, 16, 224, 224)._replace(flip=True)
      Crop(left=16, top=16, width=224, height=224, flip=True)
    """

    left: float
    top: float
    width: float
    height: float
    flip: bool = False


View = Callable[[np.random.Generator, tuple[int, int]], Crop]
"""The type of a view, ``(rng, (width, height)) -> Crop``.

``rng`` is a :class:`numpy.random.Generator`, and the size is in pixels. The same state
of the generator gives the same crop.

Example:
  >>> def left_half(rng, size):
  ...     return Crop(0, 0, size[0] / 2, size[1])
  >>> left_half(np.random.default_rng(0), (512, 256))
  Crop(left=0, top=0, width=256.0, height=256, flip=False)
"""


class Views(NamedTuple):
    """Holds one view for training and one for evaluation.

    Attributes:
      train: ``(rng, (width, height)) -> Crop`` of training images, usually random.
      evaluation: ``(rng, (width, height)) -> Crop`` of other images.

    Example:
      >>> views = Views(random_resized_crop, whole)
      >>> views.evaluation(None, (40, 30))
      Crop(left=0, top=0, width=40, height=30, flip=False)
    """

    train: View
    evaluation: View


def whole(rng: np.random.Generator, size: tuple[int, int]) -> Crop:
    """Returns the whole image, squeezed to a square if it is none."""
    return Crop(0, 0, *size)


def center_crop(rng: np.random.Generator, size: tuple[int, int]) -> Crop:
    """Returns the central square, 224/256 of the shorter side wide.

    This is the usual evaluation on ImageNet: the shorter side becomes 256 pixels, and
    the central 224 of these are seen.

    >>> center_crop(None, (512, 256))
    Crop(left=144.0, top=16.0, width=224.0, height=224.0, flip=False)
    """
    side = min(size) * 224 / 256
    left, top = ((pixels - side) / 2 for pixels in size)
    return Crop(left, top, side, side)


def random_resized_crop(rng: np.random.Generator, size: tuple[int, int]) -> Crop:
    """Returns a box of 8% to 100% of the image's area, mirrored or not.

    Its aspect ratio is between 3/4 and 4/3, uniform in its logarithm. If ten
    draws do not fit into the image, it is the central box nearest to the image's own
    aspect ratio.

    Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.
    """
    width, height = size
    flip = bool(rng.random() < 0.5)
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            return Crop(
                rng.uniform(0, width - w), rng.uniform(0, height - h), w, h, flip
            )
    w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
    return Crop((width - w) / 2, (height - h) / 2, w, h, flip)


def random_translation(rng: np.random.Generator, size: tuple[int, int]) -> Crop:
    """Returns the image, shifted in both directions by up to an eighth of its size.

    For 32 pixels these are up to 4, the usual augmentation on CIFAR.
    """
    left, top = (
        int(rng.integers(-(pixels // 8), pixels // 8, endpoint=True)) for pixels in size
    )
    return Crop(left, top, *size)


def random_translation_and_flip(
    rng: np.random.Generator, size: tuple[int, int]
) -> Crop:
    """Returns the image, shifted by up to an eighth of its size, mirrored or not."""
    return random_translation(rng, size)._replace(flip=bool(rng.random() < 0.5))


VIEWS = {
    "imagenet": Views(random_resized_crop, center_crop),
    "translate_flip": Views(random_translation_and_flip, whole),
    "translate": Views(random_translation, whole),
    "none": Views(whole, whole),
}
"""The views of images by name, the choices of ``config.dataset.view``.

A value is a :class:`Views`. ``imagenet`` is a random box of 8% to 100% of the area in
training, and the central square in evaluation. ``translate_flip`` shifts by up to an
eighth of the size, mirrored or not, ``translate`` only shifts, and ``none`` shows the
whole image.

Example:
  >>> VIEWS["imagenet"].evaluation(None, (256, 256))
  Crop(left=16.0, top=16.0, width=224.0, height=224.0, flip=False)
"""
