"""Images in folders: classes, splits, and what is wrong with them."""

from pathlib import Path

import numpy as np
import pytest

from snipjax import data
from tests.data.builders import color, refused, save


def load(folder: Path, **settings: float) -> data.Dataset:
    return data.load(f"folder:{folder}", stream=True, **settings)


def files(source: data.Source) -> list[str]:
    return [source.where(i) for i in range(len(source))]


def labels(source: data.Source) -> list[int]:
    return [source[i][1] for i in range(len(source))]


class TestReading:
    def test_classes_are_sorted_and_parts_are_held_out_as_documented(
        self, photos: Path
    ) -> None:
        dataset = load(photos, validation_fraction=0.25)
        assert (dataset.num_classes, dataset.class_names) == (2, ("cat", "dog"))
        paths = [
            photos / name / f"{i}.png" for name in ("cat", "dog") for i in range(10)
        ]
        order = np.random.RandomState(0).permutation(20)
        test, rest = np.sort(order[:4]), np.sort(order[4:])
        held = np.sort(np.random.RandomState(0).permutation(16)[:4])
        for part, indices in (
            (dataset.test, test),
            (dataset.validation, rest[held]),
            (dataset.train, np.delete(rest, held)),
        ):
            assert files(part) == [str(paths[i]) for i in indices]
            assert [part[i] for i in range(len(part))] == [
                (paths[i].read_bytes(), int(i >= 10)) for i in indices
            ]

    @pytest.mark.parametrize("name", ["validation", "val", "valid"])
    def test_splits_are_those_there_are(self, tmp_path: Path, name: str) -> None:
        for split, total in (("train", 5), (name, 2), ("test", 3)):
            for i in range(total):
                save(color(i, 0, 0), tmp_path / split / "b" / f"{i}.JPEG")
        save(color(9, 9, 9), tmp_path / "train" / "a" / "0.png")
        dataset = load(tmp_path)
        assert [len(part) for part in dataset[1:4]] == [6, 2, 3]
        assert labels(dataset.train) == [0, 1, 1, 1, 1, 1]
        assert labels(dataset.test) == [1, 1, 1]

    def test_other_files_and_hidden_ones_are_ignored(self, photos: Path) -> None:
        (photos / "cat" / "notes.txt").write_text("taken in June")
        (photos / "cat" / ".hidden.png").write_bytes(b"")
        (photos / "cat" / "inner.png").mkdir()
        (photos / "cat" / ".trash").mkdir()
        (photos / "cat" / ".trash" / "old.png").write_bytes(b"")
        (photos / ".cache").mkdir()
        (photos / "README.md").write_text("photos")
        dataset = load(photos)
        assert dataset.num_classes == 2
        assert sum(map(len, dataset[1:4])) == 20

    def test_images_may_lie_in_folders_of_their_class(self, tmp_path: Path) -> None:
        """As in Tiny ImageNet: ``train/<class>/images/``; links are followed."""
        names = ("a/2.png", "a/images/0.png", "a/images/1.png", "b/3.png")
        for name in names:
            save(color(1, 2, 3), tmp_path / "train" / name)
        save(color(1, 2, 3), tmp_path / "elsewhere" / "4.png")
        (tmp_path / "train" / "b" / "linked").symlink_to(tmp_path / "elsewhere")
        for split in ("val", "test"):
            (tmp_path / split).symlink_to(tmp_path / "train")
        with pytest.warns(UserWarning, match="elsewhere"):
            source = load(tmp_path).train
        expected = (*names, "b/linked/4.png")
        assert files(source) == [str(tmp_path / "train" / name) for name in expected]
        assert labels(source) == [0, 0, 0, 1, 1]

    def test_other_folders_and_a_single_class_are_warned_of(
        self, tmp_path: Path
    ) -> None:
        for i in range(10):
            for name in ("train/cat", "holdout/cat"):
                save(color(1, 2, 3), tmp_path / name / f"{i}.png")
        with pytest.warns(UserWarning) as said:
            load(tmp_path)
        single, other = (str(one.message) for one in said)
        assert "has a single class, 'cat'" in single
        assert "ignoring folder 'holdout'" in other
        assert {one.filename for one in said} == {__file__}


class TestRefusing:
    @pytest.mark.parametrize(
        ("files", "folder", "message"),
        [
            ([], "x", "no folder .*/x.*each class"),
            (["0.png"], "", "has no folders in it"),
            (["a/0.png", "emu/"], "", r"emu has no images: \.bmp, .*\.png"),
            (["a/0.png", "emu/emu.txt"], "", "none of its 1 files"),
            (
                ["train/ape/0.png", "train/cat/0.png", "val/dog/0.png"],
                "",
                r"val/dog is a class that .*are ape, cat\.",
            ),
        ],
    )
    def test_folders_that_are_no_dataset_are_named(
        self, tmp_path: Path, files: list[str], folder: str, message: str
    ) -> None:
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            if file.endswith("/"):
                (tmp_path / file).mkdir()
            else:
                (tmp_path / file).touch()
        with refused(message):
            load(tmp_path / folder)

    @pytest.mark.parametrize("content", [b"", b"not an image", b"%!PS", "half", None])
    def test_a_damaged_image_is_named(
        self, tmp_path: Path, content: bytes | str | None
    ) -> None:
        for i in range(10):
            save(color(1, 2, 3), tmp_path / "ab"[i % 2] / f"{i}.png")
        source = load(tmp_path).test
        file = Path(source.where(1))
        if content is None:
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-30] if content == "half" else content)
        message = f"{file} cannot be read: .*intact copy"
        with refused(message):
            list(data.evaluation_batches(source, batch_size=4, image_size=8))
        if content is not None:  # a file that is not there is not in the folder
            with refused(message):
                data.load(f"folder:{tmp_path}")
