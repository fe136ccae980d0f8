"""Random transformations of images, all outcomes of them."""

from typing import Any

import jax
import numpy as np

from snipjax import training


class TestFlipAndTranslate:
    images = np.random.default_rng(0).normal(size=(200, 6, 5, 2)).astype(np.float32)

    def augmented(self, seed: int = 0, **options: Any) -> np.ndarray:
        return np.asarray(
            training.flip_and_translate(jax.random.key(seed), self.images, **options)
        )

    @staticmethod
    def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
        out = np.zeros_like(image)
        height, width = image.shape[:2]
        out[max(down, 0) : height + down, max(right, 0) : width + right] = image[
            max(-down, 0) : height - down, max(-right, 0) : width - right
        ]
        return out

    def test_every_image_is_one_of_its_flips_and_shifts(self) -> None:
        shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        seen = dict.fromkeys([(f, *s) for f in (False, True) for s in shifts], 0)
        augmented = self.augmented(flip=True, translate=1)
        for image, result in zip(self.images, augmented):
            matches = [
                (flip, *shift)
                for flip, source in ((False, image), (True, image[:, ::-1]))
                for shift in shifts
                if np.array_equal(self.shifted(source, *shift), result)
            ]
            assert len(matches) == 1
            seen[matches[0]] += 1
        # 200 draws of 18 equally likely outcomes; 0 or 30 would be 4 deviations off.
        assert all(0 < count < 30 for count in seen.values())

    def test_flips_half_of_the_images(self) -> None:
        augmented = self.augmented(flip=True, translate=0)
        flipped = [
            np.array_equal(result, image[:, ::-1])
            for image, result in zip(self.images, augmented)
        ]
        assert all(
            is_flipped or np.array_equal(result, image)
            for is_flipped, image, result in zip(flipped, self.images, augmented)
        )
        assert 70 < sum(flipped) < 130

    def test_shifts_reach_the_limit_in_each_direction_and_no_further(self) -> None:
        column = np.zeros((1, 9, 9, 1), np.float32)
        column[0, 4, 4, 0] = 1.0
        places = set()
        for seed in range(300):
            result = training.flip_and_translate(
                jax.random.key(seed), column, flip=False, translate=2
            )
            places |= set(zip(*np.nonzero(np.asarray(result)[0, ..., 0])))
        assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}

    def test_depends_on_the_key_only(self) -> None:
        options = {"flip": True, "translate": 4}
        np.testing.assert_array_equal(
            self.augmented(seed=1, **options), self.augmented(seed=1, **options)
        )
        assert np.any(
            self.augmented(seed=1, **options) != self.augmented(seed=2, **options)
        )

    def test_does_nothing_where_nothing_is_asked(self) -> None:
        np.testing.assert_array_equal(
            self.augmented(flip=False, translate=0), self.images
        )
