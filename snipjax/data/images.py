"""From an encoded image to pixels: formats, orientation, channels, crop and size."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from snipjax.data.views import Crop, View

# Others are not tried, whatever the name of a file: PIL would hand some to programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def decode(image: bytes | np.ndarray, channels: int) -> np.ndarray:
    """Returns all pixels ``[h, w, channels]`` of an image, upright as its EXIF says.

    Gray images, images with a palette, CMYK, and so on, are converted; transparency is
    dropped where there are fewer than 4 channels. A damaged image raises exceptions of
    many kinds.
    """
    if isinstance(image, np.ndarray):
        return image
    with _open(image) as picture:
        _turn(picture, _orientation(picture))
        pixels = np.asarray(_convert(picture, channels))
    return pixels.reshape(*pixels.shape[:2], channels)


def render(
    image: bytes | np.ndarray,
    view: View,
    rng: np.random.Generator,
    *,
    image_size: int,
    channels: int,
) -> np.ndarray:
    """Returns the part of an image that a view chooses, scaled to a square.

    ``image`` is the content of an image file, or a uint8 array ``[h, w, c]``. A damaged
    image raises exceptions of many kinds.
    """
    with _open(image) as picture:
        orientation = _orientation(picture)
        lying = orientation > 4  # height and width change places
        size = picture.size[::-1] if lying else picture.size
        crop = view(rng, size)
        if picture.format == "JPEG":
            needed = (
                math.ceil(size[0] * image_size / crop.width),
                math.ceil(size[1] * image_size / crop.height),
            )
            # Decoded at 1/2, 1/4 or 1/8 where that is fine enough, for speed.
            picture.draft(None, needed[::-1] if lying else needed)
        _turn(picture, orientation)
        crop = _scale(crop, picture.width / size[0], picture.height / size[1])
        upright = _convert(picture, channels)
        pixels = np.asarray(_resize(upright, crop, image_size))
    pixels = pixels.reshape(image_size, image_size, channels)
    return pixels[:, ::-1] if crop.flip else pixels


def _open(image: bytes | np.ndarray) -> Image.Image:
    if isinstance(image, np.ndarray):
        return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    try:
        return Image.open(io.BytesIO(image), formats=FORMATS)
    except UnidentifiedImageError:  # whose message names the buffer
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None


def _orientation(picture: Image.Image) -> int:
    if picture.format is None:  # an array
        return 1
    if picture.format != "JPEG":
        picture.load()  # a PNG file may have its EXIF behind its pixels
    try:
        orientation: Any = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF of an intact image
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def _turn(picture: Image.Image, orientation: int) -> None:
    if orientation > 1:
        ImageOps.exif_transpose(picture, in_place=True)


def _convert(picture: Image.Image, channels: int) -> Image.Image:
    if picture.mode.startswith("I"):
        # PIL would clip 16 bits at 255.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    mode = MODES[channels]
    return picture if picture.mode == mode else picture.convert(mode)


def _scale(crop: Crop, x: float, y: float) -> Crop:
    return Crop(crop.left * x, crop.top * y, crop.width * x, crop.height * y, crop.flip)


def _resize(picture: Image.Image, crop: Crop, image_size: int) -> Image.Image:
    width, height = picture.size
    left, top = crop.left, crop.top
    right, bottom = left + crop.width, top + crop.height
    if min(left, top) < 0 or right > width or bottom > height:
        picture = picture.crop((round(left), round(top), round(right), round(bottom)))
        left, top, right, bottom = 0, 0, *picture.size
    square = (image_size, image_size)
    if (left, top, right, bottom) == (0, 0, *square) == (0, 0, *picture.size):
        return picture
    return picture.resize(
        square,
        Image.Resampling.BILINEAR,
        (left, top, min(right, picture.width), min(bottom, picture.height)),
    )
