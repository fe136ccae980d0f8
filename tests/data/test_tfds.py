"""Datasets of TFDS in ArrayRecord files, in memory and record by record."""

import pickle
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from snipjax import data
from tests.data import builders
from tests.data.builders import assert_same, in_written_order, joined
from tests.data.conftest import TEST, TRAIN

SIZES = {"batch_size": 4, "image_size": 8}
PHOTOS = [
    np.random.default_rng(i).integers(0, 256, (5 + i % 3, 4 + i % 5, 3), np.uint8)
    for i in range(30)
]


def assert_is_tiny(dataset: data.Dataset) -> None:
    assert_same(in_written_order(joined(dataset.train, dataset.validation)), TRAIN)
    assert_same(in_written_order(dataset.test), TEST)


def photo_records(total: int = 30, label: int | None = None) -> list[dict]:
    """Records of images of many sizes."""
    labels = [i % 3 if label is None else label for i in range(total)]
    return [
        {"image": builders.encoded(image), "label": label}
        for image, label in zip(PHOTOS, labels)
    ]


def photo_dataset(directory: Path, **splits: list[dict]) -> data.Dataset:
    features = builders.image_and_label((None, None, 3))
    builders.prepare(directory, splits, features=features)
    return data.load("tiny", directory, stream=True)


def lengths(dataset: data.Dataset) -> list[int]:
    return [len(part) for part in dataset[1:4]]


def pictures(source: data.Source) -> list[tuple[bytes, int]]:
    return sorted(source[i] for i in range(len(source)))


def as_pictures(records: list[dict]) -> list[tuple[bytes, int]]:
    return sorted((record["image"], record["label"]) for record in records)


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

    def test_the_newest_version_is_taken_unless_one_is_named(
        self, tmp_path: Path
    ) -> None:
        for version, size in (("1.9.0", 9), ("1.10.0", 10), ("1.2.0", 12)):
            splits = {"train": builders.records(builders.examples(size))}
            builders.prepare(tmp_path, splits, version=version)
        for name, size in (("tiny", 10), ("tiny:1.9.0", 9), ("tiny:1.2.0", 12)):
            assert sum(lengths(data.load(name, tmp_path))) == size

    def test_the_default_config_is_taken_unless_one_is_named(
        self, tmp_path: Path
    ) -> None:
        for config, size in (("red", 20), ("blue", 30)):
            splits = {"train": builders.records(builders.examples(size))}
            configs = ["red", "blue"]
            builders.prepare(tmp_path, splits, configs=configs, config=config)
        for name, size in (
            ("tiny", 4),
            ("tiny/blue", 6),
            ("tiny/blue:1.0.0", 6),
            ("tiny/red", 4),
        ):
            assert len(data.load(name, tmp_path).test) == size

    def test_neither_start_imports_tensorflow_and_the_second_not_even_tfds(
        self, data_dir: Path, tmp_path: Path
    ) -> None:
        poison = tmp_path / "path" / "tensorflow" / "__init__.py"
        poison.parent.mkdir(parents=True)
        poison.write_text("raise AssertionError('TensorFlow was imported')")
        code = (
            f"import sys; sys.path.insert(0, {str(tmp_path / 'path')!r})\n"
            "from snipjax import data\n"
            "dataset = data.load('tiny', sys.argv[1], stream=len(sys.argv) > 2)\n"
            "source = dataset.test\n"
            "if len(sys.argv) > 2: next(data.evaluation_batches(\n"
            "    source, batch_size=7, image_size=8))\n"
            "print('tensorflow_datasets' in sys.modules, 'tensorflow' in sys.modules)"
        )
        outputs = [
            builders.run_python(code, str(data_dir), *stream)
            for stream in ([], [], ["stream"])
        ]
        printed = [output.stdout for output in outputs]
        assert printed == ["True False\n", "False False\n", "True False\n"]
        assert [output.stderr for output in outputs] == ["", "", ""]


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
        dataset = photo_dataset(
            tmp_path,
            train=photo_records(),
            validation=photo_records(7),
            test=photo_records(5, label=-1),
        )
        assert lengths(dataset) == [27, 3, 7]

    @pytest.mark.parametrize("stream", [False, True])
    def test_must_have_one_to_train_on(self, tmp_path: Path, stream: bool) -> None:
        builders.prepare(tmp_path, {"test": builders.records(TEST)})
        message = r"tiny/1\.0\.0 has no split named 'train'"
        with pytest.raises(data.DatasetError, match=message):
            data.load("tiny", tmp_path, stream=stream)


class TestInMemory:
    def test_has_the_arrays_that_were_written(self, data_dir: Path) -> None:
        loaded = data.load("tiny", data_dir)
        assert (loaded.name, loaded.num_classes) == ("tiny", builders.NUM_CLASSES)
        assert loaded.train.images.dtype == np.uint8
        assert loaded.train.labels.dtype == np.int32
        assert_is_tiny(loaded)

    def test_gray_palette_and_jpeg_files_get_the_channels_of_the_feature(
        self, tmp_path: Path
    ) -> None:
        gray = builders.examples(1, shape=(5, 4, 1)).images[0]
        palette = Image.fromarray(TRAIN.images[0]).quantize(8)
        flat = np.full(builders.SHAPE, 200, np.uint8)
        images = [builders.encoded(gray), palette, builders.encoded(flat, "jpeg")] * 3
        splits = {"train": [{"image": image, "label": 0} for image in images]}
        builders.prepare(tmp_path, splits)
        loaded = data.load("tiny", tmp_path)
        expected = [gray.repeat(3, -1), np.asarray(palette.convert("RGB")), flat]
        found = {image.tobytes() for image in loaded.train.images}
        assert found == {image.tobytes() for image in expected}

    def test_supervised_keys_choose_among_several_labels(self, tmp_path: Path) -> None:
        features = builders.image_and_label() | {
            "coarse": tfds.features.ClassLabel(num_classes=2),
            "id": tfds.features.Text(),
        }
        splits = {
            name: [record | {"coarse": 1, "id": "x"} for record in records]
            for name, records in (
                ("train", builders.records(TRAIN)),
                ("test", builders.records(TEST)),
            )
        }
        builders.prepare(tmp_path / "told", splits, features=features)
        assert_is_tiny(data.load("tiny", tmp_path / "told"))
        untold = {"features": features, "supervised_keys": None}
        builders.prepare(tmp_path / "untold", splits, **untold)
        with pytest.raises(data.DatasetError, match="one class as the target"):
            data.load("tiny", tmp_path / "untold")

    def test_one_image_and_one_label_need_no_supervised_keys(
        self, tmp_path: Path
    ) -> None:
        splits = {"train": builders.records(TRAIN), "test": builders.records(TEST)}
        builders.prepare(tmp_path, splits, supervised_keys=None)
        assert_is_tiny(data.load("tiny", tmp_path))


class TestRecords:
    @pytest.fixture
    def dataset(self, tmp_path: Path) -> data.Dataset:
        return photo_dataset(tmp_path, train=photo_records(), test=photo_records(7))

    def test_are_those_that_were_written(self, dataset: data.Dataset) -> None:
        assert lengths(dataset) == [27, 3, 7]
        assert pictures(dataset.test) == as_pictures(photo_records(7))
        both = pictures(dataset.train) + pictures(dataset.validation)
        assert sorted(both) == as_pictures(photo_records())

    def test_come_in_batches_of_one_size(self, dataset: data.Dataset) -> None:
        batch, last = data.evaluation_batches(dataset.test, **SIZES)
        assert batch.images.shape == last.images.shape == (4, 8, 8, 3)
        labels = np.concatenate([batch.labels, last.labels[:3]])
        np.testing.assert_array_equal(labels, [dataset.test[i][1] for i in range(7)])

    def test_can_be_sent_to_another_process(self, dataset: data.Dataset) -> None:
        first = dataset.train[0]
        assert pickle.loads(pickle.dumps(dataset.train))[0] == first

    @pytest.mark.parametrize("size", [0, 1000, 100_000])
    def test_of_a_file_cut_short_are_named(
        self, dataset: data.Dataset, tmp_path: Path, size: int
    ) -> None:
        (file,) = (tmp_path / "tiny" / "1.0.0").glob("tiny-train*")
        file.write_bytes(file.read_bytes()[:size])
        stream = data.batches(dataset.train, seed=0, **SIZES)
        message = rf"record \d+ of {file} cannot be read"
        with pytest.raises(data.DatasetError, match=message):
            next(stream)
        stream.close()


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
                r"the shape \(None, None, 3\), not one fixed shape; .*stream=True",
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
    def test_other_tasks_are_refused_with_their_features(
        self, tmp_path: Path, features: dict, example: dict, reason: str
    ) -> None:
        splits = {"train": [example] * 5}
        builders.prepare(tmp_path, splits, features=features, supervised_keys=None)
        with pytest.raises(data.DatasetError, match=reason) as refusal:
            data.load("tiny", tmp_path)
        assert "tiny/1.0.0 is not an image-classification dataset" in str(refusal.value)
        assert all(repr(feature) in str(refusal.value) for feature in features.values())

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ({"image": b"no image"}, "cannot identify image"),
            ({"image": builders.encoded(TRAIN.images[0])[:70]}, "cannot be read"),
            ({"label": -1}, r"its label is -1, not in \[0, 3\)"),
        ],
        ids=["no image", "truncated", "no class"],
    )
    def test_a_bad_example_is_named_by_its_file_and_place_in_it(
        self, tmp_path: Path, bad: dict, reason: str, stream: bool
    ) -> None:
        train = builders.records(builders.examples(9))
        test = [record | bad if i == 4 else record for i, record in enumerate(train)]
        directory = builders.prepare(tmp_path, {"train": train, "test": test})
        with pytest.raises(data.DatasetError, match=reason) as refusal:
            source = data.load("tiny", tmp_path, stream=stream).test
            list(data.evaluation_batches(source, **SIZES))
        named = re.match(r"record (\d+) of (\S+) cannot be read", str(refusal.value))
        assert Path(named[2]).parent == directory
        source = tfds.builder_from_directory(directory).as_data_source(
            "test", decoders={"image": tfds.decode.SkipDecoding()}
        )
        record = source[int(named[1])]
        assert {key: record[key] for key in bad} == bad

    def test_an_image_of_another_shape_is_named(self, tmp_path: Path) -> None:
        written = builders.records(builders.examples(9))
        written[4]["image"] = builders.encoded(TRAIN.images[0, :3])
        builders.prepare(tmp_path, {"train": written})
        message = r"record \d of \S+ has the shape \(\d, 4, 3\), but the first"
        with pytest.raises(data.DatasetError, match=message):
            data.load("tiny", tmp_path)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ("half a shard", "record .* cannot be read"),
            ("noise", "record .* cannot be read"),
            ("no shard", "incomplete: .* is missing.*prepare the dataset again"),
            ("no words", "cannot be read: .*Delete that directory"),
        ],
    )
    def test_a_damaged_dataset_is_named(
        self, data_dir: Path, damage: str, message: str
    ) -> None:
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
        with pytest.raises(data.DatasetError, match=message) as refusal:
            data.load("tiny", data_dir)
        assert str(directory) in str(refusal.value)

    def test_tfrecord_files_are_refused_with_the_command_that_converts_them(
        self, data_dir: Path
    ) -> None:
        directory = data_dir / "tiny" / "1.0.0"
        info = directory / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        with pytest.raises(data.DatasetError, match="is in tfrecord format") as refusal:
            data.load("tiny", data_dir)
        command = shlex.split(str(refusal.value).splitlines()[-1])
        script = "tensorflow_datasets.scripts.convert_format"
        assert command[:3] == ["python", "-m", script]
        assert f"--dataset_version_dir={directory}" in command
        assert "--out_file_format=array_record" in command
        text = (Path(tfds.__file__).parent / "scripts/convert_format.py").read_text()
        flags = [flag.removeprefix("--").split("=")[0] for flag in command[3:]]
        assert all(f"'{flag}'" in text for flag in flags)


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
