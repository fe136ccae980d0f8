"""`snipjax.data.datasets` on the embedded digits and on small datasets that TFDS writes."""

from __future__ import annotations

import ast
import functools
import gzip
import hashlib
import http.server
import importlib.metadata
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import datasets_builders as builders
import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import loky
import numpy as np
import pytest
import requests
import sklearn.datasets
import tensorflow_datasets as tfds
from PIL import Image

from snipjax.data import datasets
from snipjax.data.datasets import Dataset, DatasetError, Examples

TRAIN, TEST = builders.examples(50, seed=1), builders.examples(20, seed=2)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory for each test, so that none reads or writes the user's."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("TFDS_DATA_DIR", "XDG_CACHE_HOME", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A TFDS data directory with the dataset `tiny`: `TRAIN` and `TEST`."""
    splits = {"train": builders.records(TRAIN), "test": builders.records(TEST)}
    builders.prepare(tmp_path / "data", splits)
    return tmp_path / "data"


def assert_same(actual: Examples, expected: Examples) -> None:
    np.testing.assert_array_equal(actual.images, expected.images)
    np.testing.assert_array_equal(actual.labels, expected.labels)


def joined(*parts: Examples) -> Examples:
    return Examples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def assert_is_tiny(dataset: Dataset) -> None:
    everything = joined(dataset.train, dataset.validation)
    assert_same(builders.in_written_order(everything), TRAIN)
    assert_same(builders.in_written_order(dataset.test), TEST)


def cache_files(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "snipjax").iterdir())


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(datasets.__file__).parents[1])
    path = os.pathsep.join([environment.pop("PYTHONPATH", root), root])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class TestDigits:
    def test_has_the_documented_sizes_and_types(self) -> None:
        digits = datasets.load("digits")
        assert digits.name == "digits"
        assert digits.num_classes == 10
        assert digits.image_shape == (8, 8, 1)
        for split, size in (("train", 1294), ("validation", 144), ("test", 359)):
            images, labels = getattr(digits, split)
            assert images.shape == (size, 8, 8, 1)
            assert images.dtype == np.uint8
            assert labels.shape == (size,)
            assert labels.dtype == np.int32
            assert (images.min(), images.max()) == (0, 16)

    def test_is_what_scikit_learn_embeds_every_image_once(self) -> None:
        digits = datasets.load("digits")
        ours = joined(digits.train, digits.validation, digits.test)
        theirs = sklearn.datasets.load_digits()
        rows = np.column_stack([ours.images.reshape(-1, 64), ours.labels])
        expected = np.column_stack([theirs.data, theirs.target]).astype(int)
        np.testing.assert_array_equal(
            rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)]
        )

    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    def test_has_all_classes_in_every_split(self, split: str) -> None:
        labels = getattr(datasets.load("digits"), split).labels
        counts = np.bincount(labels, minlength=10)
        assert counts.min() > 0.4 * labels.size / 10
        assert counts.max() < 1.7 * labels.size / 10

    def test_needs_no_data_directory_and_no_scikit_learn_a_second_time(
        self, home: Path
    ) -> None:
        first = datasets.load("digits", home / "missing")
        assert [file.name for file in cache_files(home)] == ["digits.npz"]
        code = (
            "import sys; from snipjax import datasets\n"
            "images = datasets.load('digits').train.images\n"
            "print(images.sum(), 'sklearn' in sys.modules)"
        )
        output = run_python(code)
        assert output.stdout == f"{first.train.images.sum()} False\n"

    def test_of_another_scikit_learn_are_read_again(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = datasets.load("digits")
        monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.0.1")
        before = cache_files(home)[0].read_bytes()
        assert_same(datasets.load("digits").train, first.train)
        assert cache_files(home)[0].read_bytes() != before


class TestSplits:
    def test_validation_is_the_documented_permutation_in_original_order(self) -> None:
        loaded = datasets.load("digits", validation_fraction=0.25)
        digits = sklearn.datasets.load_digits()
        order = np.random.RandomState(0).permutation(1797)
        rest = np.sort(order[359:])
        held = np.sort(np.random.RandomState(0).permutation(1438)[:360])
        np.testing.assert_array_equal(
            loaded.test.labels, digits.target[np.sort(order[:359])]
        )
        np.testing.assert_array_equal(
            loaded.validation.labels, digits.target[rest[held]]
        )
        np.testing.assert_array_equal(
            loaded.train.labels, np.delete(digits.target[rest], held)
        )

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
    def test_a_fraction_outside_0_and_1_is_refused(self, fraction: float) -> None:
        with pytest.raises(ValueError, match=r"must be between 0 and 1.*example 0\.1"):
            datasets.load("digits", validation_fraction=fraction)

    def test_a_fraction_that_leaves_a_part_empty_is_refused(self) -> None:
        with pytest.raises(
            ValueError, match="takes 0 of them, which leaves a part empty"
        ):
            datasets.load("digits", validation_fraction=1e-4)

    def test_a_validation_split_stands_in_for_a_test_split(
        self, tmp_path: Path
    ) -> None:
        splits = {
            "train": builders.records(TRAIN),
            "validation": builders.records(TEST),
        }
        builders.prepare(tmp_path, splits)
        assert_is_tiny(datasets.load("tiny", tmp_path))

    def test_a_fifth_is_held_out_where_there_is_only_train(
        self, tmp_path: Path
    ) -> None:
        builders.prepare(tmp_path, {"train": builders.records(TRAIN)})
        loaded = datasets.load("tiny", tmp_path)
        sizes = [
            len(part.labels) for part in (loaded.train, loaded.validation, loaded.test)
        ]
        assert sizes == [36, 4, 10]
        everything = joined(loaded.train, loaded.validation, loaded.test)
        assert_same(builders.in_written_order(everything), TRAIN)

    def test_a_dataset_without_train_is_refused(self, tmp_path: Path) -> None:
        builders.prepare(tmp_path, {"test": builders.records(TEST)})
        with pytest.raises(
            DatasetError, match=r"tiny/1\.0\.0 has no split named 'train'"
        ):
            datasets.load("tiny", tmp_path)


class TestStandardization:
    @hypothesis.given(
        hypothesis.extra.numpy.arrays(
            np.uint8,
            hypothesis.extra.numpy.array_shapes(min_dims=4, max_dims=4, max_side=6),
        )
    )
    def test_mean_and_std_are_those_of_a_float64_copy(self, images: np.ndarray) -> None:
        mean, std = datasets.mean_and_std(images)
        assert mean.dtype == std.dtype == np.float32
        copy = images.astype(np.float64)
        np.testing.assert_allclose(mean, copy.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(std, copy.std((0, 1, 2)), rtol=1e-6, atol=1e-6)

    def test_many_chunks_add_up(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (3000, 40, 40, 3), np.uint8)
        assert images.nbytes > 3 * datasets._BYTES_PER_CHUNK
        mean, std = datasets.mean_and_std(images)
        np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(std, images.std((0, 1, 2)), rtol=1e-6)

    @pytest.mark.parametrize(
        "images",
        [
            np.zeros((0, 8, 8, 1), np.uint8),
            np.zeros((8, 8, 1), np.uint8),
            np.zeros((2, 8, 8, 1), np.float32),
        ],
        ids=["none", "one", "float32"],
    )
    def test_other_images_are_refused(self, images: np.ndarray) -> None:
        with pytest.raises(ValueError, match="needs uint8 images of shape"):
            datasets.mean_and_std(images)

    def test_standardized_images_have_mean_0_and_std_1(self) -> None:
        images = TRAIN.images
        batch = jax.jit(datasets.standardize)(images, *datasets.mean_and_std(images))
        assert isinstance(batch, jax.Array)
        assert batch.dtype == np.float32
        np.testing.assert_allclose(batch.mean((0, 1, 2)), np.zeros(3), atol=1e-5)
        np.testing.assert_allclose(batch.std((0, 1, 2)), np.ones(3), rtol=1e-5)

    def test_a_constant_channel_becomes_0(self) -> None:
        images = np.full((3, 2, 2, 1), 7, np.uint8)
        batch = datasets.standardize(images, *datasets.mean_and_std(images))
        assert batch.dtype == np.float32
        np.testing.assert_array_equal(batch, np.zeros((3, 2, 2, 1)))


class TestReading:
    def test_gives_the_arrays_that_were_written(self, data_dir: Path) -> None:
        loaded = datasets.load("tiny", data_dir)
        assert loaded.name == "tiny"
        assert loaded.num_classes == builders.NUM_CLASSES
        assert loaded.image_shape == builders.SHAPE
        assert len(loaded.validation.labels) == 5
        assert loaded.train.images.dtype == np.uint8
        assert loaded.train.labels.dtype == np.int32
        assert_is_tiny(loaded)

    def test_several_processes_give_what_one_gives(
        self, data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alone = datasets._decode(data_dir / "tiny" / "1.0.0")
        monkeypatch.setattr(datasets, "_IMAGES_PER_WORKER", 20)
        monkeypatch.setattr(datasets, "_BYTES_PER_CHUNK", 600)
        monkeypatch.setattr(loky, "cpu_count", lambda: 2)
        together = datasets._decode(data_dir / "tiny" / "1.0.0")
        assert_same(together.train, alone.train)
        assert_same(together.test, alone.test)

    def test_an_error_of_another_process_is_told(
        self, data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        next((data_dir / "tiny" / "1.0.0").glob("tiny-test*")).write_bytes(
            b"no records"
        )
        monkeypatch.setattr(datasets, "_IMAGES_PER_WORKER", 20)
        monkeypatch.setattr(loky, "cpu_count", lambda: 2)
        with pytest.raises(
            DatasetError, match=r"Example 0 of 'test' in .* cannot be read"
        ):
            datasets.load("tiny", data_dir)

    def test_no_other_process_outlives_one_that_is_killed(self) -> None:
        code = (
            "import os, signal, loky; from snipjax import datasets\n"
            "loky.cpu_count = lambda: 2\n"
            "with datasets._parallel_map(20_000) as mapped:\n"
            "    print(list(mapped(abs, [-1, -2])), flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)"
        )
        # Workers hold the pipe of the output open as long as they live.
        output = run_python(code)
        assert output.returncode == -9
        assert output.stdout == "[1, 2]\n"

    def test_the_default_directory_is_that_of_tfds(
        self, data_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
        assert_is_tiny(datasets.load("tiny"))
        monkeypatch.delenv("TFDS_DATA_DIR")
        shutil.copytree(data_dir, home / "tensorflow_datasets")
        assert_is_tiny(datasets.load("tiny"))
        assert_is_tiny(datasets.load("tiny", "~/tensorflow_datasets"))

    def test_the_newest_version_is_taken_unless_one_is_named(
        self, tmp_path: Path
    ) -> None:
        for version, size in (("1.9.0", 9), ("1.10.0", 10), ("1.2.0", 12)):
            splits = {"train": builders.records(builders.examples(size))}
            builders.prepare(tmp_path, splits, version=version)

        def size(name: str) -> int:
            loaded = datasets.load(name, tmp_path)
            return sum(
                len(part.labels)
                for part in (loaded.train, loaded.validation, loaded.test)
            )

        assert size("tiny") == 10
        assert size("tiny:1.9.0") == 9
        assert size("tiny:1.2.0") == 12

    def test_the_default_config_is_taken_unless_one_is_named(
        self, tmp_path: Path
    ) -> None:
        for config, size in (("red", 20), ("blue", 30)):
            builders.prepare(
                tmp_path,
                {"train": builders.records(builders.examples(size))},
                configs=["red", "blue"],
                config=config,
            )
        assert len(datasets.load("tiny", tmp_path).test.labels) == 4
        assert len(datasets.load("tiny/blue", tmp_path).test.labels) == 6
        assert len(datasets.load("tiny/blue:1.0.0", tmp_path).test.labels) == 6
        assert len(datasets.load("tiny/red", tmp_path).test.labels) == 4

    def test_grey_palette_and_jpeg_files_get_the_channels_of_the_feature(
        self, tmp_path: Path
    ) -> None:
        grey = builders.examples(1, shape=(5, 4, 1)).images[0]
        palette = Image.fromarray(TRAIN.images[0]).quantize(8)
        flat = np.full(builders.SHAPE, 200, np.uint8)
        images = [builders.encoded(grey), palette, builders.encoded(flat, "jpeg")] * 3
        splits = {"train": [{"image": image, "label": 0} for image in images]}
        builders.prepare(tmp_path, splits)
        loaded = datasets.load("tiny", tmp_path)
        found = {image.tobytes() for image in loaded.train.images}
        expected = (
            np.repeat(grey, 3, axis=-1),
            np.asarray(palette.convert("RGB")),
            flat,
        )
        assert found == {image.tobytes() for image in expected}

    def test_one_image_and_one_label_need_no_supervised_keys(
        self, tmp_path: Path
    ) -> None:
        splits = {"train": builders.records(TRAIN), "test": builders.records(TEST)}
        builders.prepare(tmp_path, splits, supervised_keys=None)
        assert_is_tiny(datasets.load("tiny", tmp_path))

    def test_supervised_keys_choose_among_several_labels(self, tmp_path: Path) -> None:
        coarse = tfds.features.ClassLabel(num_classes=2)
        features = {
            **builders.image_and_label(),
            "coarse": coarse,
            "id": tfds.features.Text(),
        }
        splits = {
            name: [
                {**record, "coarse": 1, "id": "x"}
                for record in builders.records(written)
            ]
            for name, written in (("train", TRAIN), ("test", TEST))
        }
        builders.prepare(tmp_path / "told", splits, features=features)
        assert_is_tiny(datasets.load("tiny", tmp_path / "told"))
        builders.prepare(
            tmp_path / "left", splits, features=features, supervised_keys=None
        )
        with pytest.raises(DatasetError, match="one class as the target"):
            datasets.load("tiny", tmp_path / "left")

    def test_neither_start_imports_tensorflow_and_the_second_not_even_tfds(
        self, data_dir: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "path" / "tensorflow").mkdir(parents=True)
        poison = tmp_path / "path" / "tensorflow" / "__init__.py"
        poison.write_text("raise AssertionError('TensorFlow was imported')")
        code = (
            "import sys; from snipjax import datasets\n"
            f"datasets.load('tiny', {str(data_dir)!r})\n"
            "print('tensorflow_datasets' in sys.modules, 'tensorflow' in sys.modules)"
        )
        outputs = [
            run_python(code, PYTHONPATH=str(tmp_path / "path")) for _ in range(2)
        ]
        assert [output.stdout for output in outputs] == [
            "True False\n",
            "False False\n",
        ]
        assert [output.stderr for output in outputs] == ["", ""]


class TestRefusing:
    @pytest.mark.parametrize(
        ("features", "example", "reason"),
        [
            (
                {
                    "x": tfds.features.Text(),
                    "y": tfds.features.ClassLabel(num_classes=2),
                },
                {"x": "words", "y": 0},
                "one image as the input",
            ),
            (
                {
                    "image": tfds.features.Image(shape=(5, 4, 3)),
                    "x": tfds.features.Text(),
                },
                {"image": builders.encoded(TRAIN.images[0]), "x": "words"},
                "one class as the target",
            ),
            (
                builders.image_and_label((None, None, 3)),
                {"image": builders.encoded(TRAIN.images[0]), "label": 0},
                r"the shape \(None, None, 3\), not one fixed shape",
            ),
            (
                {
                    "image": tfds.features.Image(shape=(5, 4, 1), dtype=np.uint16),
                    "label": tfds.features.ClassLabel(num_classes=3),
                },
                {"image": Image.fromarray(np.zeros((5, 4), np.uint16)), "label": 0},
                "its images are not uint8",
            ),
        ],
        ids=["no image", "no class", "many shapes", "uint16"],
    )
    def test_what_is_not_image_classification_is_refused_with_its_features(
        self, tmp_path: Path, features: dict, example: dict, reason: str
    ) -> None:
        splits = {"train": [example] * 5}
        builders.prepare(tmp_path, splits, features=features, supervised_keys=None)
        with pytest.raises(DatasetError, match=reason) as refusal:
            datasets.load("tiny", tmp_path)
        assert "tiny/1.0.0 is not an image-classification dataset" in str(refusal.value)
        assert all(repr(feature) in str(refusal.value) for feature in features.values())

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ({"image": b"no image"}, "cannot identify image"),
            ({"image": builders.encoded(TRAIN.images[0])[:70]}, "cannot be read"),
            (
                {"image": builders.encoded(TRAIN.images[0, :3])},
                r"it is 3 by 4, not \(5, 4, 3\)",
            ),
            ({"label": -1}, r"its label is -1, not in \[0, 3\)"),
        ],
        ids=["no image", "truncated", "other shape", "no class"],
    )
    def test_a_bad_example_is_named_by_dataset_split_and_index(
        self, tmp_path: Path, bad: dict, reason: str
    ) -> None:
        written = builders.records(builders.examples(9))
        written[4] = {"image": written[4]["image"], "label": 0, **bad}
        directory = builders.prepare(tmp_path, {"train": written, "test": written[:2]})
        with pytest.raises(DatasetError, match=reason) as refusal:
            datasets.load("tiny", tmp_path)
        named = re.match(
            r"Example (\d+) of 'train' in (\S+) cannot be", str(refusal.value)
        )
        assert named is not None
        assert named[2] == str(directory)
        source = tfds.builder_from_directory(directory).as_data_source(
            "train", decoders={"image": tfds.decode.SkipDecoding()}
        )
        record = source[int(named[1])]
        assert {key: record[key] for key in bad} == bad

    @pytest.mark.parametrize(
        "damage", ["half a shard", "no shard", "no words", "noise"]
    )
    def test_a_damaged_dataset_is_named(self, data_dir: Path, damage: str) -> None:
        directory = data_dir / "tiny" / "1.0.0"
        shard = next(directory.glob("tiny-train*"))
        if damage == "half a shard":
            shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
        elif damage == "no shard":
            shard.unlink()
        elif damage == "no words":
            (directory / "dataset_info.json").write_text("{")
        else:
            shard.write_bytes(np.random.default_rng(0).bytes(shard.stat().st_size))
        with pytest.raises(DatasetError, match="cannot be read") as refusal:
            datasets.load("tiny", data_dir)
        assert str(directory) in str(refusal.value)

    def test_tfrecord_files_are_refused_with_the_command_that_converts_them(
        self, data_dir: Path
    ) -> None:
        directory = data_dir / "tiny" / "1.0.0"
        info = directory / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        with pytest.raises(DatasetError, match="is in tfrecord format") as refusal:
            datasets.load("tiny", data_dir)
        command = shlex.split(str(refusal.value).splitlines()[-1])
        assert command[:3] == [
            "python",
            "-m",
            "tensorflow_datasets.scripts.convert_format",
        ]
        assert f"--dataset_version_dir={directory}" in command
        assert "--out_file_format=array_record" in command
        script = Path(tfds.__file__).parent / "scripts" / "convert_format.py"
        flags = [flag.removeprefix("--").split("=")[0] for flag in command[3:]]
        assert all(f"'{flag}'" in script.read_text() for flag in flags)


class TestCache:
    def test_the_second_start_reads_what_the_first_wrote(
        self, data_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        datasets.load("tiny", data_dir)
        assert [file.name[:11] for file in cache_files(home)] == ["tiny-1.0.0-"]
        monkeypatch.setattr(datasets, "_decode", pytest.fail)
        assert_is_tiny(datasets.load("tiny", data_dir))
        assert_is_tiny(datasets.load("tiny:1.0.0", data_dir))

    def test_it_lies_where_it_is_told_to(
        self, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        datasets.load("tiny", data_dir)
        assert len(list((tmp_path / "xdg" / "snipjax").iterdir())) == 1
        datasets.load("tiny", data_dir, cache_dir="~/mine")
        assert len(list((tmp_path / "home" / "mine").iterdir())) == 1

    def test_a_dataset_that_has_changed_is_decoded_again(
        self, data_dir: Path, home: Path
    ) -> None:
        datasets.load("tiny", data_dir)
        shutil.rmtree(data_dir)
        swapped = {"train": builders.records(TEST), "test": builders.records(TRAIN)}
        builders.prepare(data_dir, swapped)
        loaded = datasets.load("tiny", data_dir)
        assert_same(builders.in_written_order(loaded.test), TRAIN)
        assert len(cache_files(home)) == 1

    def test_two_data_directories_do_not_share_an_entry(
        self, data_dir: Path, tmp_path: Path, home: Path
    ) -> None:
        datasets.load("tiny", data_dir)
        other = builders.examples(10, seed=3)
        builders.prepare(tmp_path / "other", {"train": builders.records(other)})
        assert len(datasets.load("tiny", tmp_path / "other").test.labels) == 2
        assert_is_tiny(datasets.load("tiny", data_dir))
        assert len(cache_files(home)) == 2

    @pytest.mark.parametrize(
        "damage",
        [lambda whole: b"", lambda whole: whole[:-1], lambda whole: whole[:100]],
    )
    def test_a_truncated_file_is_made_again(
        self, data_dir: Path, home: Path, damage
    ) -> None:
        datasets.load("tiny", data_dir)
        (file,) = cache_files(home)
        whole = file.read_bytes()
        file.write_bytes(damage(whole))
        assert_is_tiny(datasets.load("tiny", data_dir))
        assert len(file.read_bytes()) == len(whole)
        assert cache_files(home) == [file]

    def test_what_killed_processes_left_is_removed_later(self, tmp_path: Path) -> None:
        splits = datasets._Splits(builders.examples(3), builders.examples(2), 3)
        file = tmp_path / "cache.npz"
        being_written, abandoned = (
            tmp_path / f"cache{name}.unfinished" for name in ("new", "old")
        )
        being_written.touch()
        abandoned.touch()
        os.utime(abandoned, (0, 0))
        datasets._write_cache(file, "fingerprint", splits)
        assert sorted(tmp_path.iterdir()) == [file, being_written]

    def test_no_flipped_bit_goes_unnoticed(self, tmp_path: Path) -> None:
        splits = datasets._Splits(builders.examples(3), builders.examples(2), 3)
        file = tmp_path / "cache.npz"
        datasets._write_cache(file, "fingerprint", splits)
        whole = file.read_bytes()

        @hypothesis.settings(max_examples=500, deadline=None)
        @hypothesis.given(st.integers(0, 8 * len(whole) - 1))
        def check(bit: int) -> None:
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            read = datasets._read_cache(file, "fingerprint")
            if read is not None:  # the flip was in a name or a date of the archive
                assert_same(read.train, splits.train)
                assert_same(read.test, splits.test)
                assert read.num_classes == 3

        check()

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
    def test_an_interrupted_write_leaves_nothing(
        self, data_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch, stop: type
    ) -> None:
        def write_some_and_stop(file, **arrays) -> None:
            file.write(b"half a file")
            raise stop

        with monkeypatch.context() as patched, pytest.raises(stop):
            patched.setattr(np, "savez", write_some_and_stop)
            datasets.load("tiny", data_dir)
        assert cache_files(home) == []
        assert_is_tiny(datasets.load("tiny", data_dir))

    def test_a_directory_that_cannot_be_written_is_no_error(
        self, data_dir: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        for _ in range(2):
            with pytest.warns(
                UserWarning, match="cannot be cached in .*Choose a cache_dir"
            ):
                loaded = datasets.load(
                    "tiny", data_dir, cache_dir=tmp_path / "file" / "in"
                )
            assert_is_tiny(loaded)

    def test_two_processes_at_once_both_load(self, data_dir: Path, home: Path) -> None:
        with loky.ProcessPoolExecutor(2) as pool:
            futures = [pool.submit(datasets.load, "tiny", data_dir) for _ in range(6)]
            for future in futures:
                assert_is_tiny(future.result())
        assert len(cache_files(home)) == 1


class Downloaded(tfds.core.GeneratorBasedBuilder):
    """Downloads, unpacks and encodes like the MNIST of TFDS, from a test server."""

    name = "snipjax_downloaded"
    VERSION = tfds.core.Version("1.0.0")
    URL = ""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(builders.image_and_label((5, 4, 1)))
        keys = ("image", "label")
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=keys
        )

    def _split_generators(self, dl_manager) -> dict:
        path = dl_manager.download_and_extract(self.URL)
        return {"train": self._generate_examples(path)}

    def _generate_examples(self, path) -> Iterator[tuple[int, dict]]:
        from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

        with tf.io.gfile.GFile(path, "rb") as file:
            pixels = np.frombuffer(file.read(), np.uint8).reshape(-1, 5, 4, 1)
        for i, image in enumerate(pixels):
            yield i, {"image": image, "label": i % 3}


def offer(monkeypatch: pytest.MonkeyPatch, url: str, content: bytes = b"") -> None:
    checksum = hashlib.sha256(content).hexdigest()
    info = tfds.core.download.checksums.UrlInfo(
        size=len(content), checksum=checksum, filename=Path(url).name
    )
    monkeypatch.setattr(Downloaded, "URL", url)
    monkeypatch.setattr(Downloaded, "url_infos", {url: info})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server for the directory `web`; its URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """The output of the tests is no place for its log."""

    (tmp_path / "web").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


class TestDownloading:
    def test_a_missing_dataset_is_downloaded_and_prepared_without_tensorflow(
        self, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capfd
    ) -> None:
        images = builders.examples(30, shape=(5, 4, 1)).images
        content = gzip.compress(images.tobytes())
        (tmp_path / "web" / "images.gz").write_bytes(content)
        offer(monkeypatch, f"{server}/images.gz", content)
        loaded = datasets.load("snipjax_downloaded", tmp_path / "new" / "data")
        everything = joined(loaded.train, loaded.validation, loaded.test)
        found = {
            (image.tobytes(), int(label))
            for image, label in zip(*everything, strict=True)
        }
        assert found == {(image.tobytes(), i % 3) for i, image in enumerate(images)}
        assert "tensorflow" not in sys.modules
        assert "it/s" not in capfd.readouterr().err

        monkeypatch.setattr(Downloaded, "URL", "http://127.0.0.1:1/gone")
        monkeypatch.setattr(datasets, "_decode", pytest.fail)
        datasets.load("snipjax_downloaded", tmp_path / "new" / "data")

    @pytest.mark.parametrize("network", ["refuses", "swallows", "has no names"])
    def test_without_a_network_one_message_says_all_within_10_seconds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
    ) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            if network == "swallows":
                silent.listen()
            host = f"127.0.0.1:{silent.getsockname()[1]}"
            if network == "has no names":
                host = "data.invalid"
            offer(monkeypatch, f"http://{host}/images.gz")
            start = time.monotonic()
            with pytest.raises(DatasetError) as missing:
                datasets.load("snipjax_downloaded", tmp_path / "nowhere")
            assert time.monotonic() - start < 10
        message = str(missing.value)
        assert "'snipjax_downloaded' is not prepared in" in message
        assert f"{tmp_path / 'nowhere'} (which does not exist)" in message
        assert f"{host} cannot be reached" in message
        assert "embedded dataset 'digits'" in message
        commands = [
            shlex.split(line) for line in message.splitlines() if line[0] == " "
        ]
        assert [command[:2] for command in commands] == [["python", "-c"]] * 2
        for command in commands:
            assert str(tmp_path / "nowhere") in command[2]
            ast.parse(command[2])
        assert not (tmp_path / "nowhere").exists()

    @pytest.mark.parametrize(("status", "reachable"), [(503, False), (404, True)])
    def test_a_proxy_that_answers_for_a_dead_host_is_no_network(
        self, monkeypatch: pytest.MonkeyPatch, status: int, reachable: bool
    ) -> None:
        response = types.SimpleNamespace(status_code=status)
        monkeypatch.setattr(requests, "head", lambda url, timeout: response)
        host = datasets._unreachable_host(["http://somewhere/data.gz"])
        assert host == (None if reachable else "somewhere")

    def test_a_real_dataset_that_is_missing_is_reported_within_10_seconds(
        self, tmp_path: Path
    ) -> None:
        unreachable = {
            f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")
        }
        code = (
            "from snipjax import datasets\n"
            f"try: datasets.load('fashion_mnist', {str(tmp_path)!r})\n"
            "except datasets.DatasetError as error: print(error)"
        )
        start = time.monotonic()
        output = run_python(code, **unreachable, no_proxy="")
        assert time.monotonic() - start < 10
        assert "'fashion_mnist' is not prepared" in output.stdout
        assert output.stderr == ""

    def test_a_failed_download_says_why_and_how_to_do_it_elsewhere(
        self, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        offer(monkeypatch, f"{server}/missing.gz")
        with pytest.raises(DatasetError, match="HTTP code: 404") as failed:
            datasets.load("snipjax_downloaded", tmp_path)
        assert "python -c" in str(failed.value)
        assert "'digits'" in str(failed.value)

    def test_a_directory_without_a_dataset_in_it_is_named(self, tmp_path: Path) -> None:
        directory = tmp_path / "snipjax_downloaded" / "1.0.0"
        directory.mkdir(parents=True)
        with pytest.raises(DatasetError, match="Delete that directory") as refusal:
            datasets.load("snipjax_downloaded", tmp_path)
        assert str(directory) in str(refusal.value)

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("mnst", "'mnist'"),
            ("MNIST", "'mnist'"),
            ("cifar_10", "'cifar10'"),
            ("digit", "'digits'"),
            ("tinny", "'tiny'"),
        ],
    )
    def test_an_unknown_name_gets_the_nearest(
        self, data_dir: Path, name: str, nearest: str
    ) -> None:
        with pytest.raises(
            DatasetError, match=f"no dataset '{name}'.*mean .*{nearest}"
        ):
            datasets.load(name, data_dir)

    def test_an_unknown_name_near_to_none_gets_digits(self, tmp_path: Path) -> None:
        with pytest.raises(
            DatasetError, match=r"no dataset 'qqqq'.*'digits' always works"
        ):
            datasets.load("qqqq", tmp_path)

    @pytest.mark.parametrize(
        "name", ["", "a b", "kaggle:x", "../tiny", "tiny:1", "a/b/c"]
    )
    def test_what_is_no_name_is_refused(self, data_dir: Path, name: str) -> None:
        with pytest.raises(DatasetError, match="is not the name of a dataset"):
            datasets.load(name, data_dir)

    def test_an_unknown_config_gets_those_there_are(self, tmp_path: Path) -> None:
        with pytest.raises(
            DatasetError, match=r"emnist has no config 'ballanced'.*balanced"
        ):
            datasets.load("emnist/ballanced", tmp_path)
        with pytest.raises(
            DatasetError, match=r"mnist has no config 'x'.*has no configs"
        ):
            datasets.load("mnist/x", tmp_path)

    def test_an_unknown_version_gets_those_there_are(self, tmp_path: Path) -> None:
        (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
        (tmp_path / "mnist" / "3.0.1" / "features.json").touch()
        with pytest.raises(
            DatasetError, match=r"at version 1\.0\.0.*Prepared in .*mnist:3\.0\.1"
        ):
            datasets.load("mnist:1.0.0", tmp_path)

    def test_a_builder_that_needs_tensorflow_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"cannot set up 'coco'.*tensorflow"):
            datasets.load("coco", tmp_path)

    def test_what_cannot_be_used_is_not_downloaded(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="not one fixed shape"):
            datasets.load("imagenet2012", tmp_path)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
class TestOnDisk:
    """The real datasets, where the user's TFDS data directory has them."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path) -> Path:
        return tmp_path

    def test_mnist(self, tmp_path: Path) -> None:
        mnist = datasets.load("mnist", cache_dir=tmp_path)
        assert mnist.train.images.shape == (54000, 28, 28, 1)
        assert mnist.validation.images.shape == (6000, 28, 28, 1)
        assert mnist.test.images.shape == (10000, 28, 28, 1)
        whole = joined(mnist.train, mnist.validation)
        mean, std = datasets.mean_and_std(whole.images)
        np.testing.assert_allclose(
            [mean[0] / 255, std[0] / 255], [0.1307, 0.3081], atol=1e-4
        )
        counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        np.testing.assert_array_equal(np.bincount(whole.labels), counts)
        counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        np.testing.assert_array_equal(np.bincount(mnist.test.labels), counts)
        self.assert_equal_to_tfds(mnist.test, "mnist")

    def test_cifar10(self, tmp_path: Path) -> None:
        cifar = datasets.load("cifar10", cache_dir=tmp_path)
        assert cifar.train.images.shape == (45000, 32, 32, 3)
        assert cifar.test.images.shape == (10000, 32, 32, 3)
        whole = joined(cifar.train, cifar.validation)
        np.testing.assert_array_equal(np.bincount(whole.labels), [5000] * 10)
        np.testing.assert_array_equal(np.bincount(cifar.test.labels), [1000] * 10)
        mean, std = datasets.mean_and_std(whole.images)
        np.testing.assert_allclose(mean / 255, [0.4914, 0.4822, 0.4465], atol=2e-3)
        np.testing.assert_allclose(std / 255, [0.2470, 0.2435, 0.2616], atol=3e-3)
        self.assert_equal_to_tfds(cifar.test, "cifar10")

    def assert_equal_to_tfds(self, ours: Examples, name: str) -> None:
        source = tfds.data_source(name, split="test")
        for index in (0, 1, 4999, 9999):
            theirs = source[index]
            np.testing.assert_array_equal(ours.images[index], theirs["image"])
            assert ours.labels[index] == theirs["label"]
