"""Images in folders, one folder for each class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snipjax.data.sources import DatasetError, Example, Splits, digest

_SPLITS = {"validation": ("validation", "val", "valid"), "test": ("test",)}
_SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png"),
    *(".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)


def splits(path: str | os.PathLike[str]) -> Splits:
    """Returns the images of ``<path>/train/<class>/`` or of ``<path>/<class>/``.

    Where there is a folder ``train``, ``validation`` (or ``val``, ``valid``) and
    ``test`` beside it are the other splits; a warning names any other folder there.
    Classes are the sorted names of the folders in the training split; a single one is
    warned of. Images of a class may lie in folders of its folder. Files that are not
    images by their name, and names that start with a dot, are ignored.

    Args:
      path: the folder.

    Returns:
      The splits that there are, in the order of class and file names. Images are
      listed, not opened.

    Raises:
      DatasetError: the folder does not exist or has no folders in it, a class has no
        images, or a split has a class that is not in the training split.
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
    if has_splits:
        others = {entry.name for entry in _entries(root) if entry.is_dir()} - {"train"}
        for split, names in _SPLITS.items():
            name = next((name for name in names if name in others), None)
            if name is not None:
                parts[split] = _folder(root / name, classes)
                others.remove(name)
        for other in sorted(others):
            warnings.warn(
                f"ignoring folder {other!r} in {root}: splits are train, "
                "validation (or val, or valid) and test",
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


def _classes(root: Path) -> list[str]:
    classes = sorted(entry.name for entry in _entries(root) if entry.is_dir())
    if not classes:
        raise DatasetError(
            f"{root} has no folders in it. Put the images of each class in a folder of "
            f"its own, as {root / 'cat' / '1.jpg'}."
        )
    return classes


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
            found = _images(root / name)
            files += [os.fsencode(os.path.join(name, file)) for file in found]  # noqa: PTH118
            labels += [label] * len(found)
    return Folder(root, files, labels)


def _images(folder: Path) -> list[str]:
    names = sorted(_files_below(folder))
    images = [name for name in names if name.lower().endswith(_SUFFIXES)]
    if not images:
        files = f"none of its {len(names)} files is one by its name, " if names else ""
        raise DatasetError(
            f"The class folder {folder} has no images: {files}"
            f"{', '.join(_SUFFIXES)} are looked for. Remove the folder, or put images "
            "in it."
        )
    return images


def _files_below(folder: Path) -> Iterator[str]:
    """Yields the paths of the files below a folder, relative to it."""
    for entry in _entries(folder):
        if not entry.is_dir():
            yield entry.name
            continue
        for file in _files_below(Path(entry.path)):
            yield os.path.join(entry.name, file)  # noqa: PTH118


def _entries(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]
