"""Views: which part of an image a batch shows, and whether mirrored."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Crop(NamedTuple):
    """A box in pixels of the image, that becomes the whole of what is seen."""

    left: float
    top: float
    width: float
    height: float
    flip: bool = False


View = Callable[[np.random.Generator, tuple[int, int], int], Crop]


class Views(NamedTuple):
    """How images are seen in training and in evaluation."""

    train: View
    evaluation: View


def whole(rng: np.random.Generator, size: tuple[int, int], image_size: int) -> Crop:
    """Returns the whole image, squeezed to a square if it is none."""
    raise NotImplementedError


def center_crop(
    rng: np.random.Generator, size: tuple[int, int], image_size: int
) -> Crop:
    """Returns the central square of 224/256 of the shorter side."""
    raise NotImplementedError


def random_resized_crop(
    rng: np.random.Generator, size: tuple[int, int], image_size: int
) -> Crop:
    """Returns a random part of 8% to 100% of the image, or its mirror image."""
    raise NotImplementedError


def flip_and_translate(*, flip: bool, translate: int) -> View:
    """Returns a view: the image flipped or not, and shifted, each at random."""
    raise NotImplementedError


VIEWS = {
    "imagenet": Views(random_resized_crop, center_crop),
    # "small": flipped and translated by an eighth, and whole
    "none": Views(whole, whole),
}
