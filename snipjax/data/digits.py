"""The digits that are embedded in scikit-learn."""

import importlib.metadata

import numpy as np

from snipjax.data import cache
from snipjax.data.sources import Arrays, Splits


def splits() -> Splits:
    """Returns 1,797 digits of 8x8 pixels with values from 0 to 16, as one split."""
    # Importing scikit-learn takes seconds, so that they are cached too.
    return cache.fetch("digits", importlib.metadata.version("scikit-learn"), _read)


def _read() -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., np.newaxis]
    train = Arrays(images, digits.target.astype(np.int32))
    return Splits({"train": train}, num_classes=10)
