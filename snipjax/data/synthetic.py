"""Images of any number and size that are computed instead of read."""

from __future__ import annotations

import math
import re

import numpy as np

from snipjax.data.sources import DatasetError, Example, Splits, digest

_TEST_EXAMPLES = 0.1


def splits(spec: str) -> Splits:
    """Returns computed training images, and a tenth as many to validate and to test.

    ``spec`` is ``<examples>x<height>x<width>x<channels>/<classes>``. No two of all the
    images have the same noise.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x([134])/(\d+)", spec)
    numbers = [int(number) for number in match.groups()] if match else [0]
    if 0 in numbers:
        raise DatasetError(
            f"'synthetic:{spec}' is not the name of a synthetic dataset. Give "
            "synthetic:<examples>x<height>x<width>x<channels>/<classes> with 1, 3 or 4 "
            "channels, for example synthetic:50000x32x32x3/10."
        )
    total, height, width, channels, num_classes = numbers
    held = max(1, round(total * _TEST_EXAMPLES))
    shape = (height, width, channels)
    parts = {
        "train": Synthetic(0, total, shape, num_classes),
        "validation": Synthetic(total, held, shape, num_classes),
        "test": Synthetic(total + held, held, shape, num_classes),
    }
    return Splits(parts, num_classes)


class Synthetic:
    """Noise around the color of a class; example ``i`` has class ``i % classes``."""

    def __init__(
        self, start: int, size: int, shape: tuple[int, int, int], num_classes: int
    ) -> None:
        self.channels = shape[-1]
        self._start, self._size = start, size
        self._shape, self._num_classes = shape, num_classes

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        label = index % self._num_classes
        drawn = _rng(0, self._start + index).bytes(math.prod(self._shape))
        noise = np.frombuffer(drawn, np.uint8).reshape(self._shape) >> 1
        return noise + _rng(1, label).integers(0, 128, self.channels, np.uint8), label

    def where(self, index: int) -> str:
        return f"synthetic example {self._start + index}"

    def digest(self) -> str:
        return digest(str((self._start, self._size, self._shape, self._num_classes)))


def _rng(stream: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=(stream, index)))
