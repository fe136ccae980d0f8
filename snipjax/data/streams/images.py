"""From an encoded image to the pixels of a batch."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from snipjax.data import datasets
from snipjax.data.streams.views import Crop, View


def seen(
    image: bytes | np.ndarray,
    view: View,
    rng: np.random.Generator,
    *,
    image_size: int,
    channels: int,
) -> np.ndarray:
    """Returns what a view shows of an image.

    Args:
      image: the content of an image file, or a uint8 array ``[h, w, c]``.
      view: chooses the part of the image.
      rng: what the view draws from.
      image_size: height and width of the result.
      channels: 1, 3 or 4. Grey images, images with a palette, CMYK, and so on, are
        converted; transparency is dropped where there are less than 4.

    Returns:
      A uint8 array of shape ``[image_size, image_size, channels]``.

    Raises:
      Exception: of many kinds, where the image is damaged.

    Example:
      >>> from snipjax.data.streams import views
      >>> image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
      >>> seen(image, views.whole, None, image_size=2, channels=1)[..., 0]
      array([[0, 1],
             [2, 3]], dtype=uint8)
    """
    if isinstance(image, np.ndarray):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    else:
        picture = Image.open(io.BytesIO(image))
    with picture:
        crop = view(rng, picture.size)
        crop = _coarsely_decoded(picture, crop, image_size)
        picture = _converted(picture, datasets.PIL_MODES[channels])
        pixels = np.asarray(_resized(picture, crop, image_size))
    pixels = pixels.reshape(image_size, image_size, channels)
    return pixels[:, ::-1] if crop.flip else pixels


def _coarsely_decoded(picture: Image.Image, crop: Crop, image_size: int) -> Crop:
    """Has a JPEG decoded at 1/2, 1/4 or 1/8 where that is fine enough, for speed.

    Returns the crop in the pixels that it is decoded to.
    """
    if picture.format != "JPEG":
        return crop
    width, height = picture.size
    fine_enough = (
        math.ceil(width * image_size / crop.width),
        math.ceil(height * image_size / crop.height),
    )
    picture.draft(None, fine_enough)
    x, y = picture.width / width, picture.height / height
    left, top = crop.left * x, crop.top * y
    return Crop(left, top, crop.width * x, crop.height * y, crop.flip)


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I"):
        # PIL would clip 16 bits at 255.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture if picture.mode == mode else picture.convert(mode)


def _resized(picture: Image.Image, crop: Crop, image_size: int) -> Image.Image:
    width, height = picture.size
    left, top, right, bottom = (
        crop.left,
        crop.top,
        crop.left + crop.width,
        crop.top + crop.height,
    )
    if min(left, top) < 0 or right > width or bottom > height:
        picture = picture.crop(tuple(map(round, (left, top, right, bottom))))
        left, top, right, bottom = 0, 0, *picture.size
    if (
        (left, top, right, bottom)
        == (0, 0, image_size, image_size)
        == (
            0,
            0,
            *picture.size,
        )
    ):
        return picture
    return picture.resize(
        (image_size, image_size),
        Image.Resampling.BILINEAR,
        (left, top, min(right, picture.width), min(bottom, picture.height)),
    )
