"""Random flips and shifts of images, all outcomes of them."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest

from snipjax import training

IMAGES = np.random.default_rng(0).normal(size=(400, 6, 5, 2)).astype(np.float32)


def augmented(flip: bool, translate: int, seed: int = 0) -> np.ndarray:
    key = jax.random.key(seed)
    return np.asarray(
        training.flip_and_translate(key, IMAGES, flip=flip, translate=translate)
    )


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """An image moved by so many pixels, with zeros from outside."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((height, height), (width, width), (0, 0)))
    return padded[height - down :, width - right :][:height, :width]


@pytest.mark.parametrize(("flip", "translate"), [(True, 0), (False, 2), (True, 1)])
def test_every_image_is_one_of_its_flips_and_shifts_all_alike(
    flip: bool, translate: int
) -> None:
    reach = range(-translate, translate + 1)
    outcomes = [*itertools.product([False, True][: 1 + flip], reach, reach)]
    seen: Counter = Counter()
    for image, result in zip(IMAGES, augmented(flip, translate)):
        (outcome,) = (
            (is_flipped, *shift)
            for is_flipped, *shift in outcomes
            if np.array_equal(
                shifted(image[:, ::-1] if is_flipped else image, *shift), result
            )
        )
        seen[outcome] += 1
    # Counts are binomial; none is five deviations off.
    mean = len(IMAGES) / len(outcomes)
    assert all(abs(seen[outcome] - mean) < 5 * mean**0.5 for outcome in outcomes)


def test_depends_on_the_key_only_and_does_nothing_unless_asked() -> None:
    first, again, other = (augmented(True, 2, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    np.testing.assert_array_equal(augmented(False, 0), IMAGES)
