"""Mean and standard deviation, and images standardized by them."""

import hypothesis
import hypothesis.extra.numpy
import jax
import numpy as np
import pytest

from snipjax import data
from snipjax.data import preprocessing, views


def arrays(images: np.ndarray) -> data.Arrays:
    return data.Arrays(images, np.zeros(len(images), np.int32))


def assert_moments(moments: tuple, images: np.ndarray) -> None:
    """By the oracle of a float64 copy."""
    copy = images.astype(np.float64)
    assert all(values.dtype == np.float32 for values in moments)
    np.testing.assert_allclose(moments[0], copy.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(moments[1], copy.std((0, 1, 2)), rtol=1e-6, atol=1e-6)


class TestMeanAndStd:
    @hypothesis.given(
        hypothesis.extra.numpy.arrays(
            np.uint8,
            hypothesis.extra.numpy.array_shapes(min_dims=4, max_dims=4, max_side=6),
        )
    )
    def test_are_those_of_all_pixels(self, images: np.ndarray) -> None:
        assert_moments(data.mean_and_std(arrays(images)), images)

    def test_of_many_chunks_add_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(preprocessing, "_BYTES_PER_CHUNK", 10_000)
        images = np.random.default_rng(0).integers(0, 256, (300, 10, 10, 3), np.uint8)
        assert_moments(data.mean_and_std(arrays(images)), images)

    def test_of_a_stream_are_those_of_a_sample(self) -> None:
        train = data.load("digits").train
        sample = np.random.RandomState(0).permutation(len(train))[:1000]
        moments = data.mean_and_std(train, image_size=8, view=views.whole)
        assert_moments(moments, train.images[sample])

    def test_of_a_stream_need_a_size(self) -> None:
        source = data.load("synthetic:200x32x32x3/5", stream=True).train
        with pytest.raises(ValueError, match="image_size"):
            data.mean_and_std(source)


class TestStandardize:
    def test_gives_mean_0_and_std_1_under_jit(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (50, 5, 4, 3), np.uint8)
        moments = data.mean_and_std(arrays(images))
        batch = jax.jit(data.standardize)(images, *moments)
        assert isinstance(batch, jax.Array)
        assert batch.dtype == np.float32
        np.testing.assert_allclose(batch.mean((0, 1, 2)), np.zeros(3), atol=1e-5)
        np.testing.assert_allclose(batch.std((0, 1, 2)), np.ones(3), rtol=1e-5)

    def test_makes_a_constant_channel_0(self) -> None:
        images = np.full((3, 2, 2, 1), 7, np.uint8)
        batch = data.standardize(images, *data.mean_and_std(arrays(images)))
        assert batch.dtype == np.float32
        np.testing.assert_array_equal(batch, np.zeros((3, 2, 2, 1)))
