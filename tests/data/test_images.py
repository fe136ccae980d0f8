"""Pixels of known pictures: crops, sizes, channels, orientation and formats."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from snipjax import data
from snipjax.data import images, views
from snipjax.data.views import Crop
from tests.data.builders import encoded


def ramp(width: int, height: int) -> np.ndarray:
    """A picture whose red is the column and whose green is the row, up to 255."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), np.uint8)


def seen(content: bytes | np.ndarray, view: data.View, size: int) -> np.ndarray:
    """The same from a file and, where it is no file, from the array itself."""
    if isinstance(content, bytes):
        return images.render(content, view, None, image_size=size, channels=3)
    array, file = (
        images.render(image, view, None, image_size=size, channels=3)
        for image in (content, encoded(content))
    )
    np.testing.assert_array_equal(array, file)
    return array


def content(image: Image.Image, encoding: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, encoding, **options)
    return buffer.getvalue()


class TestCrops:
    def test_a_whole_image_of_the_right_size_is_itself(self) -> None:
        np.testing.assert_array_equal(seen(noise(9, 9), views.whole, 9), noise(9, 9))

    @pytest.mark.parametrize("size", [6, 40, 300])
    def test_a_crop_of_a_ramp_is_a_steeper_or_a_flatter_ramp(self, size: int) -> None:
        image = seen(ramp(200, 180), lambda *_: Crop(20, 40, 120, 60), size).astype(int)
        centers = (np.arange(size) + 0.5) / size
        inner = slice(size // 10 + 1, -(size // 10) - 1)  # else the box's edge is seen
        columns = 20 + centers * 120 - 0.5
        rows = 40 + centers * 60 - 0.5
        assert np.abs(image[inner, inner, 0] - columns[inner]).max() <= 1
        assert np.abs(image[inner, inner, 1] - rows[inner, None]).max() <= 1

    def test_a_mirrored_image_is_mirrored(self) -> None:
        flipped = seen(ramp(9, 9), lambda *_: Crop(0, 0, 9, 9, True), 9)
        np.testing.assert_array_equal(flipped, ramp(9, 9)[:, ::-1])

    def test_the_part_outside_of_the_image_is_black(self) -> None:
        shifted = seen(noise(8, 8), lambda *_: Crop(-2, 3, 8, 8), 8)
        expected = np.zeros((8, 8, 3))
        expected[:5, 2:] = noise(8, 8)[3:, :6]
        np.testing.assert_array_equal(shifted, expected)

    @pytest.mark.parametrize(
        ("view", "low", "side"), [(views.whole, 0, 256), (views.center_crop, 16, 224)]
    )
    def test_a_large_photograph_is_decoded_coarsely_and_looks_the_same(
        self, view: data.View, low: int, side: int
    ) -> None:
        photo = Image.fromarray(ramp(256, 256).repeat(4, 0).repeat(4, 1))
        image = seen(content(photo, "JPEG", quality=95), view, 32).astype(int)
        expected = low + (np.arange(32) + 0.5) / 32 * side - 0.5
        assert np.abs(image[2:-2, 2:-2, 0] - expected[2:-2]).max() <= 4
        assert np.abs(image[2:-2, 2:-2, 1] - expected[2:-2, None]).max() <= 4


class TestOrientation:
    @pytest.mark.parametrize(
        ("encoding", "orientation"),
        [*(("JPEG", i) for i in range(1, 9)), ("PNG", 6), ("TIFF", 6), ("WEBP", 6)],
    )
    def test_a_photograph_is_seen_upright(
        self, encoding: str, orientation: int
    ) -> None:
        """By the oracle ``PIL.ImageOps.exif_transpose``; large, so decoded coarsely."""
        exif = Image.Exif()
        exif[274] = orientation
        photo = Image.fromarray(ramp(120, 60).repeat(4, 0).repeat(4, 1))
        stored = content(photo, encoding, exif=exif, quality=95)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(stored)))
        np.testing.assert_array_equal(images.decode(stored, 3), np.asarray(upright))
        for view in (views.whole, views.center_crop):
            expected = seen(np.asarray(upright), view, 24).astype(int)
            assert np.abs(seen(stored, view, 24) - expected).max() <= 4

    @pytest.mark.parametrize("encoding", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"II*\0"])
    def test_a_damaged_one_is_no_damaged_image(
        self, encoding: str, exif: bytes
    ) -> None:
        image = Image.new("RGB", (8, 8), (90, 80, 70))
        stored = content(image, encoding, exif=exif)
        assert np.abs(images.decode(stored, 3) - [90, 80, 70.0]).max() <= 2


class TestFormats:
    @pytest.mark.parametrize(
        ("mode", "value", "encoding", "expected"),
        [
            ("L", 100, "PNG", (100, 100, 100)),
            ("LA", (100, 9), "PNG", (100, 100, 100)),
            ("1", 1, "PNG", (255, 255, 255)),
            ("RGBA", (10, 20, 30, 40), "PNG", (10, 20, 30)),
            ("P", (90, 80, 70), "GIF", (90, 80, 70)),
            ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
            ("CMYK", (0, 255, 255, 0), "JPEG", (255, 0, 0)),
            ("I;16", 100 * 256, "PNG", (100, 100, 100)),
            ("RGB", (90, 80, 70), "BMP", (90, 80, 70)),
            ("RGB", (90, 80, 70), "PPM", (90, 80, 70)),
            ("RGB", (90, 80, 70), "WEBP", (90, 80, 70)),
            ("RGB", (90, 80, 70), "MPO", (90, 80, 70)),
        ],
    )
    def test_all_of_them_are_converted(
        self, mode: str, value: object, encoding: str, expected: tuple[int, int, int]
    ) -> None:
        if mode == "P":
            image = Image.new("RGB", (5, 4), value).quantize(2)
        else:
            image = Image.new(mode, (5, 4), value)
        stored = content(image, encoding)
        whole = images.decode(stored, 3)
        assert whole.shape == (4, 5, 3)
        assert np.abs(whole.astype(int) - expected).max() <= 2
        np.testing.assert_array_equal(seen(stored, views.whole, 3), whole[:3, :3])

    @pytest.mark.parametrize(("channels", "value"), [(1, 91), (4, [90, 91, 92, 255])])
    def test_channels_are_those_asked_for(self, channels: int, value: object) -> None:
        stored = content(Image.new("RGB", (5, 4), (90, 91, 92)), "PNG")
        pixels = images.decode(stored, channels)
        assert pixels.shape == (4, 5, channels)
        np.testing.assert_array_equal(pixels[0, 0], value)

    def test_no_other_program_is_run_for_a_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """PIL has PostScript drawn by Ghostscript, whatever the name of the file."""
        monkeypatch.setattr("subprocess.check_call", pytest.fail)
        stored = content(Image.new("RGB", (8, 8)), "EPS")
        assert Image.open(io.BytesIO(stored)).format == "EPS"
        with pytest.raises(Exception, match="none of BMP"):
            images.decode(stored, 3)
