"""The one door: names, splits, arrays or streams, and the facts of a dataset."""

import importlib.metadata
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

from snipjax import data
from tests.data import builders
from tests.data.builders import assert_same, color, refused, save


class TestDigits:
    @pytest.mark.parametrize("stream", [False, True])
    def test_splits_are_the_documented_permutations_in_original_order(
        self, stream: bool
    ) -> None:
        loaded = data.load("digits", stream=stream, validation_fraction=0.25)
        assert (loaded.name, loaded.num_classes) == ("digits", 10)
        digits = sklearn.datasets.load_digits()
        order = np.random.RandomState(0).permutation(1797)
        test, rest = np.sort(order[:359]), np.sort(order[359:])
        held = np.sort(np.random.RandomState(0).permutation(1438)[:360])
        indices = {
            "train": np.delete(rest, held),
            "validation": rest[held],
            "test": test,
        }
        for name, index in indices.items():
            images = digits.images[index, ..., None].astype(np.uint8)
            labels = digits.target[index].astype(np.int32)
            part = getattr(loaded, name)
            assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int32)
            assert_same(part, data.Arrays(images, labels))

    def test_needs_no_data_directory_and_no_scikit_learn_a_second_time(
        self, home: Path
    ) -> None:
        first = data.load("digits", home / "missing")
        code = (
            "import sys; from snipjax import data\n"
            "images = data.load('digits').train.images\n"
            "print(images.sum(), 'sklearn' in sys.modules, 'grain' in sys.modules)"
        )
        output = builders.run_python(code)
        assert output.stdout == f"{first.train.images.sum()} False False\n"

    def test_of_another_scikit_learn_are_read_again(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = data.load("digits")
        (file,) = (home / ".cache" / "snipjax").iterdir()
        before = file.read_bytes()
        monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.0.1")
        assert_same(data.load("digits").train, first.train)
        assert file.read_bytes() != before


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan"), 1e-4])
def test_a_fraction_that_leaves_a_part_empty_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"validation_fraction between 0 and 1"):
        data.load("digits", validation_fraction=fraction)


class TestInMemory:
    def test_a_folder_of_images_of_one_size_is_read_in_order(
        self, tmp_path: Path
    ) -> None:
        for i in range(30):
            save(color(i, 2 * i, 0), tmp_path / "ab"[i % 2] / f"{i:02}.png")
        loaded = data.load(f"folder:{tmp_path}")
        streamed = data.load(f"folder:{tmp_path}", stream=True)
        assert loaded.class_names == ("a", "b")
        for part, source in zip(loaded[1:4], streamed[1:4]):
            assert isinstance(part, data.Arrays)
            files = [Path(source.where(i)) for i in range(len(source))]
            values = [int(file.stem) for file in files]
            np.testing.assert_array_equal(part.images[:, 0, 0, 0], values)
            np.testing.assert_array_equal(part.labels, [value % 2 for value in values])
            assert part.images.shape[1:] == (5, 4, 3)

    def test_images_of_several_sizes_are_named_with_the_remedy(
        self, photos: Path
    ) -> None:
        with refused(
            rf"{photos}/cat/1.png has the shape \(9, 9, 3\).*\(8, 9, 3\).*stream"
        ):
            data.load(f"folder:{photos}")

    def test_more_than_the_memory_is_refused_before_reading(self) -> None:
        with refused(r"1,200,000,000 images .* GB of memory; read them from a stream"):
            data.load("synthetic:1000000000x2000x2000x3/10")

    def test_many_images_have_the_order_of_their_source(self) -> None:
        name = "synthetic:2600x2x3x1/4"
        loaded, streamed = data.load(name), data.load(name, stream=True)
        for part, source in zip(loaded[1:4], streamed[1:4]):
            assert all(
                (image == source[i][0]).all() for i, (image, _) in enumerate(part)
            )


class TestSynthetic:
    def test_has_the_examples_that_its_name_says(self) -> None:
        dataset = data.load("synthetic:1281167x224x224x3/1000", stream=True)
        assert (dataset.num_classes, len(dataset.train)) == (1000, 1_281_167)
        image, label = dataset.train[1_281_166]
        assert (image.shape, image.dtype, label) == ((224, 224, 3), np.uint8, 166)

    def test_a_class_has_a_color_that_tells_it_from_others(self) -> None:
        dataset = data.load("synthetic:50x32x32x3/5")
        means = dataset.train.images[:5].mean((1, 2))
        for image, label in dataset.test:
            assert np.abs(image.mean((0, 1)) - means).sum(1).argmin() == label

    @pytest.mark.parametrize("spec", ["", "10", "10x8x8x3", "10x8x8x2/3", "0x8x8x3/3"])
    def test_other_names_are_refused(self, spec: str) -> None:
        with refused("example synthetic:50000x32x32x3"):
            data.load(f"synthetic:{spec}")


class TestFacts:
    """They differ if the data do, and are the same if nothing changed."""

    def facts(self, folder: Path) -> dict:
        return data.facts(data.load(f"folder:{folder}", stream=True))

    def test_of_a_folder_follow_its_names_and_not_its_place(
        self, photos: Path, tmp_path: Path
    ) -> None:
        facts = self.facts(photos)
        # A fifth is held out to test, and of the other 16 a tenth to validate.
        assert facts["examples"] == {"train": 14, "validation": 2, "test": 4}
        assert (facts["num_classes"], facts["channels"]) == (2, 3)
        assert facts["class"] == {"0": "cat", "1": "dog"}
        photos = photos.rename(tmp_path / "elsewhere")
        assert self.facts(photos) == facts
        (photos / "dog").rename(photos / "wolf")
        assert self.facts(photos)["class"] == {"0": "cat", "1": "wolf"}
        (photos / "wolf").rename(photos / "dog")
        for file in sorted((photos / "cat").iterdir()):
            file.rename(file.with_name(f"x{file.name}"))
        renamed = self.facts(photos)
        assert renamed.pop("digest") != facts.pop("digest")
        assert renamed == facts

    def test_of_records(self, tmp_path: Path, data_dir: Path) -> None:
        shutil.copytree(data_dir, tmp_path / "copy")
        fewer = builders.records(builders.examples(31))
        builders.prepare(tmp_path / "fewer", {"train": fewer})
        facts, same, other = (
            data.facts(data.load("tiny", place, stream=True))
            for place in (data_dir, tmp_path / "copy", tmp_path / "fewer")
        )
        assert facts == same
        assert facts["digest"]["train"] != other["digest"]["train"]
        assert facts["class"] == {"0": "0", "1": "1", "2": "2"}

    def test_of_arrays_are_of_their_contents(self) -> None:
        digits = data.load("digits")
        facts = data.facts(digits)
        assert data.facts(data.load("digits")) == facts
        images = digits.train.images.copy()
        images[0, 0, 0] ^= 1
        for train in (
            data.Arrays(images, digits.train.labels),
            data.Arrays(digits.train.images, digits.train.labels[::-1]),
        ):
            digest = data.facts(digits._replace(train=train))["digest"]
            assert digest["train"] != facts["digest"]["train"]
            assert digest["test"] == facts["digest"]["test"]

    def test_of_sources_without_a_digest_are_their_numbers(self) -> None:
        parts = map(builders.Numbers, (3, 2, 1))
        dataset = data.Dataset("numbers", *parts, num_classes=3)
        facts = data.facts(dataset)
        assert facts["examples"] == {"train": 3, "validation": 2, "test": 1}
        assert facts["digest"] == {"train": None, "validation": None, "test": None}

    def test_do_not_change_between_versions(self) -> None:
        """Runs that go on compare them with those they began with."""
        digest = data.facts(data.load("digits"))["digest"]
        assert re.fullmatch("[0-9a-f]{16}", digest["train"])
        assert digest["train"] == "66ba5debb3c50247"
        synthetic = data.load("synthetic:100x40x30x3/7", stream=True)
        assert data.facts(synthetic)["digest"]["train"] == "f6a147834ba301bb"


class TestRandomLabels:
    def test_are_uniform_the_same_every_time_and_of_training_alone(self) -> None:
        digits = data.load("digits")
        random = data.with_random_labels(digits)
        expected = np.random.RandomState(0).randint(10, size=1294)
        np.testing.assert_array_equal(random.train.labels, expected)
        assert random.train.labels.dtype == np.int32
        assert random.train.images is digits.train.images
        assert random[2:] == digits[2:]

    def test_of_a_stream_are_refused(self) -> None:
        stream = data.load("synthetic:100x8x8x3/5", stream=True)
        with pytest.raises(ValueError, match="without stream"):
            data.with_random_labels(stream)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((0, 8, 8, 1), np.uint8), 0),
        (np.zeros((2, 8, 8), np.uint8), 2),
        (np.zeros((2, 8, 8, 1), np.float32), 2),
        (np.zeros((2, 8, 8, 1), np.uint8), 3),
    ],
    ids=["none", "no channels", "float32", "too few"],
)
def test_arrays_of_another_form_are_refused(images: np.ndarray, labels: int) -> None:
    with pytest.raises(ValueError, match=r"uint8 images of shape \[n, h, w, c\]"):
        data.Arrays(images, np.zeros(labels, np.int32))
