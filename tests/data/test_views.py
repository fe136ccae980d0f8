"""The parts of images that are seen."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from snipjax import data
from snipjax.data import views


@hypothesis.given(
    width=st.integers(1, 600), height=st.integers(1, 600), seed=st.integers(0, 999)
)
def test_random_resized_crops_are_those_of_the_paper(
    width: int, height: int, seed: int
) -> None:
    crop = views.random_resized_crop(np.random.default_rng(seed), (width, height))
    assert crop.left >= 0 and crop.left + crop.width <= width + 1e-6
    assert crop.top >= 0 and crop.top + crop.height <= height + 1e-6
    assert 3 / 4 - 1e-6 <= crop.width / crop.height <= 4 / 3 + 1e-6
    share = crop.width * crop.height / (width * height)
    assert share <= 1 + 1e-6
    if 1 / 2 <= width / height <= 2:  # else the box may have to be smaller
        assert share >= 0.08 - 1e-6


def test_random_resized_crops_are_spread_as_in_the_paper() -> None:
    """On an image so large that the aspect ratio never matters for small areas."""
    rng = np.random.default_rng(0)
    crops = [views.random_resized_crop(rng, (400, 400)) for _ in range(4000)]
    shares = np.array([crop.width * crop.height / 400**2 for crop in crops])
    ratios = np.log([crop.width / crop.height for crop in crops])
    small = shares < 0.5  # these fit with any aspect ratio: uniform in [0.08, 0.5]
    assert abs(shares[small].mean() - 0.29) < 0.01
    assert abs(ratios[small].mean()) < 0.02
    assert abs(ratios[small].std() - np.log(16 / 9) / 12**0.5) < 0.01
    assert abs(np.mean([crop.flip for crop in crops]) - 0.5) < 0.04


def test_an_image_too_long_for_any_box_gives_its_middle() -> None:
    crop = views.random_resized_crop(np.random.default_rng(0), (1000, 30))
    assert crop[:4] == (480, 0, 40, 30)


def test_shifts_are_all_of_up_to_an_eighth() -> None:
    rng = np.random.default_rng(0)
    view = data.VIEWS["translate_flip"].train
    crops = [view(rng, (32, 16)) for _ in range(500)]
    assert {crop.left for crop in crops} == set(range(-4, 5))
    assert {crop.top for crop in crops} == set(range(-2, 3))
    assert {crop[2:4] for crop in crops} == {(32, 16)}
    assert 200 < sum(crop.flip for crop in crops) < 300


def test_the_middle_is_that_of_256_pixels_cropped_to_224() -> None:
    view = data.VIEWS["imagenet"].evaluation
    assert view(None, (256, 256)) == data.Crop(16, 16, 224, 224)
    assert view(None, (512, 1024)) == data.Crop(32, 288, 448, 448)
