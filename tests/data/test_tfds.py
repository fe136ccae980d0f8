"""Datasets of TFDS in ArrayRecord files, in memory and record by record."""

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from snipjax import data
from tests.data import builders
from tests.data.builders import joined, refused
from tests.data.conftest import TEST, TRAIN, assert_is_tiny

SIZES = {"batch_size": 4, "image_size": 8}
TEXT, CLASS = tfds.features.Text(), tfds.features.ClassLabel(num_classes=3)


def photo_dataset(directory: Path, **splits: list[int]) -> data.Dataset:
    """Streams images of many sizes, which have these labels."""
    rng = np.random.default_rng(0)
    written = {
        name: [
            {
                "image": builders.encoded(
                    rng.integers(0, 256, (5 + i % 3, 4 + i % 5, 3), np.uint8)
                ),
                "label": label,
            }
            for i, label in enumerate(labels)
        ]
        for name, labels in splits.items()
    }
    features = builders.image_and_label((None, None, 3))
    builders.prepare(directory, written, features=features)
    return data.load("tiny", directory, stream=True)


def lengths(dataset: data.Dataset) -> list[int]:
    return [len(part) for part in dataset[1:4]]


class TestFinding:
    def test_the_default_directory_is_the_one_of_tfds(
        self, data_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
        assert_is_tiny(data.load("tiny"))
        monkeypatch.delenv("TFDS_DATA_DIR")
        shutil.copytree(data_dir, home / "tensorflow_datasets")
        assert_is_tiny(data.load("tiny"))
        assert_is_tiny(data.load("tiny", "~/tensorflow_datasets"))

    def test_the_newest_version_and_the_default_config_are_taken_unless_named(
        self, tmp_path: Path
    ) -> None:
        configs = ["red", "blue"]
        written = [("1.9.0", "red", 10), ("1.10.0", "red", 20), ("1.9.0", "blue", 30)]
        for version, config, size in written:
            splits = {"train": builders.records(builders.examples(size))}
            builders.prepare(
                tmp_path, splits, version=version, configs=configs, config=config
            )
        for name, size in {
            "tiny": 20, "tiny:1.9.0": 10, "tiny/red": 20, "tiny/red:1.9.0": 10,
            "tiny/blue": 30, "tiny/blue:1.9.0": 30,
        }.items():  # fmt: skip
            assert sum(lengths(data.load(name, tmp_path))) == size

    def test_no_start_imports_tensorflow_and_a_second_one_not_even_tfds(
        self, data_dir: Path, tmp_path: Path
    ) -> None:
        poison = tmp_path / "path" / "tensorflow" / "__init__.py"
        poison.parent.mkdir(parents=True)
        poison.write_text("raise AssertionError('TensorFlow was imported')")
        code = (
            f"import sys; sys.path.insert(0, {str(tmp_path / 'path')!r})\n"
            "from snipjax import data\n"
            "data.load('tiny', sys.argv[1])\n"
            "print('tensorflow_datasets' in sys.modules)\n"
            "source = data.load('tiny', sys.argv[1], stream=True).test\n"
            "next(data.evaluation_batches(source, batch_size=7, image_size=8))\n"
            "print('tensorflow_datasets' in sys.modules)\n"
            "print('tensorflow' in sys.modules)"
        )
        data.load("tiny", data_dir)  # a first start
        output = builders.run_python(code, str(data_dir))
        assert (output.stdout, output.stderr) == ("False\nTrue\nFalse\n", "")


class TestSplits:
    """The same whether in memory or from a stream."""

    @pytest.mark.parametrize(
        ("splits", "expected"),
        [
            ({"train": 50, "test": 20}, [45, 5, 20]),
            ({"train": 50, "validation": 20}, [45, 5, 20]),
            ({"train": 50}, [36, 4, 10]),
            ({"train": 30, "validation": 7, "test": 5}, [30, 7, 5]),
        ],
        ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
    )
    def test_are_held_out_of_train_where_they_are_missing(
        self, tmp_path: Path, splits: dict[str, int], expected: list[int]
    ) -> None:
        written = {
            name: builders.records(builders.examples(size, seed=size))
            for name, size in splits.items()
        }
        builders.prepare(tmp_path, written)
        loaded, streamed = (
            data.load("tiny", tmp_path, stream=stream) for stream in (False, True)
        )
        assert lengths(loaded) == lengths(streamed) == expected
        for part, source in zip(loaded[1:4], streamed[1:4]):
            for i in range(len(part)):
                image, label = part[i]
                assert source[i] == (builders.encoded(image), label)
        assert loaded.class_names == streamed.class_names == ("0", "1", "2")

    def test_without_labels_are_no_test_split(self, tmp_path: Path) -> None:
        labels = {"train": [0] * 30, "validation": [1] * 7, "test": [-1] * 5}
        dataset = photo_dataset(tmp_path, **labels)
        assert lengths(dataset) == [27, 3, 7]

    def test_must_have_one_to_train_on(self, tmp_path: Path) -> None:
        builders.prepare(tmp_path, {"test": builders.records(TEST)})
        with refused(r"tiny/1\.0\.0 has no split named 'train'"):
            data.load("tiny", tmp_path)


class TestInMemory:
    @pytest.mark.parametrize(
        ("labels", "keys"), [(1, None), (2, ("image", "label")), (2, None)]
    )
    def test_supervised_keys_are_needed_among_several_labels(
        self, tmp_path: Path, labels: int, keys: tuple[str, str] | None
    ) -> None:
        features = builders.image_and_label() | {"id": tfds.features.Text()}
        more = {"id": "x"}
        if labels == 2:
            features["coarse"] = tfds.features.ClassLabel(num_classes=2)
            more["coarse"] = 1
        splits = {
            name: [record | more for record in builders.records(written)]
            for name, written in (("train", TRAIN), ("test", TEST))
        }
        builders.prepare(tmp_path, splits, features=features, supervised_keys=keys)
        if labels == 2 and keys is None:
            with refused("one class as the target"):
                data.load("tiny", tmp_path)
        else:
            assert_is_tiny(data.load("tiny", tmp_path))


class TestRecords:
    def test_of_many_sizes_come_in_batches_of_one(self, tmp_path: Path) -> None:
        dataset = photo_dataset(tmp_path, train=[0, 1, 2] * 10, test=[0, 1, 2, 0, 1])
        source = pickle.loads(pickle.dumps(dataset.test))
        batch, last = data.evaluation_batches(source, **SIZES)
        assert batch.images.shape == last.images.shape == (4, 8, 8, 3)
        labels = np.concatenate([batch.labels, last.labels[:1]])
        np.testing.assert_array_equal(labels, [dataset.test[i][1] for i in range(5)])
        assert pickle.loads(pickle.dumps(source))[0] == dataset.test[0]


class TestRefusing:
    @pytest.mark.parametrize(
        ("features", "example", "reason"),
        [
            ({"x": TEXT, "y": CLASS}, {"x": "words", "y": 0}, "one image as the input"),
            (
                {"image": tfds.features.Image(shape=(5, 4, 3)), "x": TEXT},
                {"image": builders.encoded(TRAIN.images[0]), "x": "words"},
                "one class as the target",
            ),
            (
                {"image": tfds.features.Image(shape=(None, None, 3)), "label": CLASS},
                {"image": builders.encoded(TRAIN.images[0]), "label": 0},
                r"the shape \(None, None, 3\), not one fixed shape; .*stream=True",
            ),
            (
                {
                    "image": tfds.features.Image(shape=(5, 4, 1), dtype=np.uint16),
                    "label": CLASS,
                },
                {"image": Image.fromarray(np.zeros((5, 4), np.uint16)), "label": 0},
                "its images are not uint8",
            ),
        ],
        ids=["no image", "no class", "many shapes", "uint16"],
    )
    def test_other_tasks_are_refused_with_their_features(
        self, tmp_path: Path, features: dict, example: dict, reason: str
    ) -> None:
        splits = {"train": [example] * 5}
        builders.prepare(tmp_path, splits, features=features, supervised_keys=None)
        with refused(reason) as refusal:
            data.load("tiny", tmp_path)
        assert "tiny/1.0.0 is not an image-classification dataset" in str(refusal.value)
        assert all(repr(feature) in str(refusal.value) for feature in features.values())

    @pytest.mark.parametrize(
        ("bad", "reason", "stream"),
        [
            ({"image": b"no image"}, "it is none of .*JPEG, PNG", True),
            ({"image": builders.encoded(TRAIN.images[0])[:70]}, "cannot be read", True),
            ({"label": -1}, r"its label is -1, not in \[0, 3\)", True),
            ({"label": -1}, r"its label is -1, not in \[0, 3\)", False),
        ],
        ids=["no image", "truncated", "no class", "in memory"],
    )
    def test_a_bad_example_is_named_by_its_file_and_place_in_it(
        self, tmp_path: Path, bad: dict, reason: str, stream: bool
    ) -> None:
        train = builders.records(builders.examples(9))
        test = [record | bad if i == 4 else record for i, record in enumerate(train)]
        directory = builders.prepare(tmp_path, {"train": train, "test": test})
        with refused(reason) as refusal:
            source = data.load("tiny", tmp_path, stream=stream).test
            list(data.evaluation_batches(source, **SIZES))
        named = re.match(r"record (\d+) of (\S+) cannot be read", str(refusal.value))
        builder = tfds.builder_from_directory(directory)
        assert named[2] == str(builder.info.splits["test"].filepaths[0])
        raw = {"image": tfds.decode.SkipDecoding()}
        record = builder.as_data_source("test", decoders=raw)[int(named[1])]
        assert {key: record[key] for key in bad} == bad

    def test_an_image_of_another_shape_is_named(self, tmp_path: Path) -> None:
        written = builders.records(builders.examples(9))
        written[4]["image"] = builders.encoded(TRAIN.images[0, :3])
        builders.prepare(tmp_path, {"train": written})
        with refused(r"record \d of \S+ has the shape \(\d, 4, 3\), but the first"):
            data.load("tiny", tmp_path)

    @pytest.mark.parametrize(
        ("damage", "stream"),
        [
            (lambda whole: whole[: len(whole) // 2], False),
            (lambda whole: b"", True),
            (np.zeros_like, True),
        ],
    )
    def test_a_damaged_file_is_named(
        self, data_dir: Path, damage: Callable, stream: bool
    ) -> None:
        (file,) = (data_dir / "tiny" / "1.0.0").glob("tiny-train*")
        whole = np.frombuffer(file.read_bytes(), np.uint8)
        file.write_bytes(bytes(damage(whole)))
        with refused(rf"record \d+ of {file} cannot be read: .*intact copy"):
            source = data.load("tiny", data_dir, stream=stream).train
            next(data.batches(source, seed=0, **SIZES))

    def test_an_incomplete_dataset_is_named(self, data_dir: Path) -> None:
        directory = data_dir / "tiny" / "1.0.0"
        (directory / "dataset_info.json").rename(data_dir / "info")
        (directory / "dataset_info.json").write_text("{")
        with refused(f"dataset in {directory} cannot be read.*Delete that directory"):
            data.load("tiny", data_dir)
        (data_dir / "info").rename(directory / "dataset_info.json")
        (file,) = directory.glob("tiny-train*")
        file.unlink()
        with refused(f"incomplete: {file} is missing.*prepare the dataset again"):
            data.load("tiny", data_dir)

    def test_tfrecord_files_are_refused_with_the_command_that_converts_them(
        self, data_dir: Path
    ) -> None:
        directory = data_dir / "tiny" / "1.0.0"
        info = directory / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        with refused("is in tfrecord format") as refusal:
            data.load("tiny", data_dir)
        command = str(refusal.value).splitlines()[-1]
        script = "python -m tensorflow_datasets.scripts.convert_format"
        options = f"--dataset_version_dir={directory} --out_file_format=array_record"
        assert command.strip() == f"{script} {options}"


@pytest.mark.slow
class TestOnDisk:
    """The real datasets, where the user's TFDS data directory has them."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    @pytest.mark.parametrize(
        ("name", "shape", "sizes", "mean", "std"),
        [
            ("mnist", (28, 28, 1), [54000, 6000, 10000], [0.1307], [0.3081]),
            (
                "cifar10",
                (32, 32, 3),
                [45000, 5000, 10000],
                [0.4914, 0.4822, 0.4465],
                [0.2470, 0.2435, 0.2616],
            ),
        ],
    )
    def test_have_the_published_sizes_and_moments(
        self, name: str, shape: tuple, sizes: list, mean: list, std: list
    ) -> None:
        loaded = data.load(name)
        assert lengths(loaded) == sizes
        assert loaded.train.images.shape[1:] == shape
        moments = data.mean_and_std(joined(loaded.train, loaded.validation))
        np.testing.assert_allclose(moments[0] / 255, mean, atol=2e-3)
        np.testing.assert_allclose(moments[1] / 255, std, atol=3e-3)
        source = tfds.data_source(name, split="test")
        for index in (0, 1, 4999, 9999):
            image, label = loaded.test[index]
            np.testing.assert_array_equal(image, source[index]["image"])
            assert label == source[index]["label"]
