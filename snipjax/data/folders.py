"""Images in folders, one folder for each class."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from snipjax.data.sources import DatasetError, Example, Splits, digest

_SPLITS = {"validation": ("validation", "val", "valid"), "test": ("test",)}
_SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png"),
    *(".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)


def splits(path: str | os.PathLike[str]) -> Splits:
    """Returns the images in ``<path>/train/<class>/`` or in ``<path>/<class>/``.

    Beside a folder ``train``, ``validation`` (or ``val``, ``valid``) and ``test`` are
    the other splits. Classes are the sorted names of the folders in the training split.
    Images of a class may lie in folders of its folder, and come in the order of their
    names. Files that are not images by their name, and names that start with a dot, are
    ignored. Images are listed, not opened.
    """
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise DatasetError(
            f"There is no folder {root}. Give folder:/path with the path of a folder "
            "that holds a folder of images for each class."
        )
    has_splits = (root / "train").is_dir()
    train = root / "train" if has_splits else root
    classes = _classes(train)
    if len(classes) == 1:
        warnings.warn(
            f"{train} has a single class, {classes[0]!r}: there is nothing to tell it "
            "from",
            stacklevel=3,
        )
    parts = {"train": _folder(train, classes)}
    others = _folders(root) - {"train"} if has_splits else set()
    for split, names in _SPLITS.items():
        for name in [name for name in names if name in others][:1]:
            parts[split] = _folder(root / name, classes)
            others.remove(name)
    for other in sorted(others):
        warnings.warn(
            f"ignoring folder {other!r} in {root}: splits are train, validation (or "
            "val, or valid) and test",
            stacklevel=3,
        )
    return Splits(parts, len(classes), tuple(classes))


class Folder:
    """One split as a source: its images are files."""

    channels = 3

    def __init__(self, root: Path, files: list[bytes], labels: list[int]) -> None:
        self._root = os.fsencode(root)
        # A million names are sent to another process faster as one array.
        self._files = np.array(files)
        self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        with Path(self.where(index)).open("rb") as file:
            return file.read(), int(self._labels[index])

    def where(self, index: int) -> str:
        return os.fsdecode(os.path.join(self._root, self._files[index]))  # noqa: PTH118

    def digest(self) -> str:
        return digest(b"\0".join(self._files.tolist()))


def _folder(root: Path, classes: list[str]) -> Folder:
    unknown = sorted(set(_classes(root)) - set(classes))
    if unknown:
        raise DatasetError(
            f"{root / unknown[0]} is a class that the training split does not have. "
            f"Its classes are {', '.join(classes[:10])}{', ...' * (len(classes) > 10)}."
        )
    files, labels = [], []
    for label, name in enumerate(classes):
        if (root / name).is_dir():
            images = _images(root, name)
            files += images
            labels += [label] * len(images)
    return Folder(root, files, labels)


def _classes(root: Path) -> list[str]:
    classes = sorted(_folders(root))
    if not classes:
        raise DatasetError(
            f"{root} has no folders in it. Put the images of each class in a folder of "
            f"its own, as {root / 'cat' / '1.jpg'}."
        )
    return classes


def _folders(root: Path) -> set[str]:
    return {
        path.name for path in root.iterdir() if path.is_dir() and _is_seen(path.name)
    }


def _images(root: Path, name: str) -> list[bytes]:
    """Returns the sorted paths of the images of a class, relative to the root."""
    files: list[str] = []
    for folder, inner, names in os.walk(root / name, followlinks=True):
        inner[:] = filter(_is_seen, inner)
        files += (f"{folder}{os.sep}{name}" for name in filter(_is_seen, names))
    images = sorted(file for file in files if file.lower().endswith(_SUFFIXES))
    if not images:
        counted = (
            f"none of its {len(files)} files is one by its name, " if files else ""
        )
        raise DatasetError(
            f"The class folder {root / name} has no images: {counted}"
            f"{', '.join(_SUFFIXES)} are looked for. Remove the folder, or put images "
            "in it."
        )
    start = len(f"{root}{os.sep}")
    return [os.fsencode(image[start:]) for image in images]


def _is_seen(name: str) -> bool:
    return not name.startswith(".")
