"""Sources: labelled images that are read one by one, from wherever they lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from snipjax.data import datasets

Example = tuple[bytes | np.ndarray, int]


class Source(Protocol):
    """Labelled images with random access, cheap to send to another process.

    One that is faster at many examples than at each of them has a method
    ``__getitems__(indices)`` as well, that returns a list of them. One that knows
    which examples it has, by their names or by what they are, has a method
    ``digest()``, that returns a text which is another for others.

    Attributes:
      channels: that every image is converted to: 1 (grey), 3 (RGB) or 4 (RGBA).
    """

    channels: int

    def __len__(self) -> int:
        """Returns how many examples there are."""

    def __getitem__(self, index: int) -> Example:
        """Returns an image and its label, of an index in ``[0, len)``.

        The image is the content of an image file, or a uint8 array ``[h, w, c]``.
        """

    def where(self, index: int) -> str:
        """Returns what to call an example in a message: its file, or its record."""


class Sources(NamedTuple):
    """Images to train on, to choose a checkpoint with, and to report an error on.

    Attributes:
      name: the name the sources were opened by.
      train: the examples of the training split that are not held out.
      validation: the examples of the validation split, or those held out.
      test: the examples of the test split.
      num_classes: the number of classes.
      class_names: their names in the order of the labels, where they have any.
    """

    name: str
    train: Source
    validation: Source
    test: Source
    num_classes: int
    class_names: tuple[str, ...] = ()


class Splits(NamedTuple):
    """What a dataset has, before anything is held out; None for what it lacks."""

    train: Source
    validation: Source | None
    test: Source | None
    num_classes: int
    class_names: tuple[str, ...] = ()


def open(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    validation_fraction: float = 0.1,
) -> Sources:
    """Returns the training, validation and test images of a dataset, unread.

    ``name`` is one of

    - a dataset of TFDS prepared in ArrayRecord files, as ``imagenet2012`` or
      ``name/config:version``: read record by record, without TensorFlow. Its images
      may have different sizes.
    - ``folder:/path``: ``train/<class>/*.jpg``, perhaps ``validation/`` (or ``val/``)
      and ``test/`` like it; or the ``<class>/`` folders themselves. Classes are the
      sorted names of the folders.
    - ``synthetic:<examples>x<height>x<width>x<channels>/<classes>``: noise around the
      colour of a class, computed from the index of the example.
    - ``memory:<name>``, or ``digits``: what :func:`snipjax.data.datasets.load` holds in
      memory.

    A dataset without a test split, or with one without labels, gives its validation
    split as the test split; without either, a fixed fifth of its training split.
    A missing validation split is held out of the training split. What is held out
    depends on the number of examples only, by :func:`snipjax.data.datasets.hold_out`, so
    that ``mnist`` and ``memory:mnist`` have the same splits.

    Args:
      name: see above.
      data_dir: the TFDS data directory, as for :func:`snipjax.data.datasets.load`.
      validation_fraction: the share of the training split to hold out, in (0, 1).

    Returns:
      The sources.

    Raises:
      DatasetError: a ValueError. The dataset is unknown, incomplete, damaged, or not
        image classification; the message names the file or the folder.
      ValueError: ``validation_fraction`` leaves a part without examples.

    Example:
      >>> sources = open("synthetic:1281167x224x224x3/1000")
      >>> len(sources.train), sources.num_classes
      (1281167, 1000)
      >>> image, label = sources.train[5]
      >>> image.shape, image.dtype, label
      ((224, 224, 3), dtype('uint8'), 5)
    """
    # Each imports Source from here, and is imported where it is wanted only.
    from snipjax.data.streams import folders, records, synthetic

    if name == "digits":
        name = "memory:digits"
    kind, colon, rest = str(name).partition(":")
    if colon and kind == "memory":
        dataset = datasets.load(rest, data_dir, validation_fraction=validation_fraction)
        return in_memory(dataset)._replace(name=name)
    if colon and kind == "folder":
        splits = folders.splits(rest)
    elif colon and kind == "synthetic":
        splits = synthetic.splits(rest)
    else:
        splits = records.splits(name, data_dir)
    return _sources(name, splits, validation_fraction)


def in_memory(dataset: datasets.Dataset) -> Sources:
    """Returns the arrays of a dataset as sources.

    Args:
      dataset: as :func:`snipjax.data.datasets.load` returns it.

    Returns:
      The sources, which share its arrays.

    Example:
      >>> dataset = datasets.load("digits")
      >>> image, label = in_memory(dataset).train[0]
      >>> bool((image == dataset.train.images[0]).all())
      True
    """
    return Sources(
        dataset.name,
        Arrays(dataset.train, "training"),
        Arrays(dataset.validation, "validation"),
        Arrays(dataset.test, "test"),
        dataset.num_classes,
    )


def facts(sources: Sources) -> dict[str, Any]:
    """Returns what tells a dataset from another, or from itself before it changed.

    Images of files and records are not read: one that was exchanged for another of the
    same name is not seen.

    Args:
      sources: as :func:`open` returns them.

    Returns:
      Plain values, nested: the numbers of examples and of classes, the names of these,
      and a digest for each part of which examples it has, as far as it knows.

    Example:
      >>> facts(open("synthetic:10x8x8x3/5"))["examples"]
      {'train': 10, 'validation': 1, 'test': 1}
    """
    parts = {name: getattr(sources, name) for name in ("train", "validation", "test")}
    return {
        "examples": {name: len(part) for name, part in parts.items()},
        "channels": sources.train.channels,
        "num_classes": sources.num_classes,
        "class": {str(i): name for i, name in enumerate(sources.class_names)},
        "digest": {name: _digest(part) for name, part in parts.items()},
    }


class Arrays:
    """Examples in memory as a source."""

    def __init__(self, examples: datasets.Examples, part: str) -> None:
        self.channels = examples.images.shape[-1]
        self._examples, self._part = examples, part

    def __len__(self) -> int:
        return len(self._examples.labels)

    def __getitem__(self, index: int) -> Example:
        return self._examples.images[index], int(self._examples.labels[index])

    def where(self, index: int) -> str:
        return f"{self._part} example {index}"

    def digest(self) -> str:
        images, labels = map(np.ascontiguousarray, self._examples)
        return digest_of(str(images.shape), images, labels)


class Subset:
    """Some examples of a source, as a source."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.channels = source.channels
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        return _read_together(self._source, self._indices[list(indices)].tolist())

    def where(self, index: int) -> str:
        return self._source.where(int(self._indices[index]))

    def digest(self) -> str | None:
        whole = _digest(self._source)
        return whole and digest_of(whole, np.asarray(self._indices, np.int64))


def read(source: Source, indices: Sequence[int]) -> list[Example]:
    """Returns examples of a source, in the order of their indices.

    Args:
      source: the examples.
      indices: each in ``[0, len(source))``.

    Returns:
      A list of images and labels.

    Raises:
      DatasetError: an example cannot be read; its file or record is named.

    Example:
      >>> source = open("synthetic:10x8x8x3/5").train
      >>> [label for _, label in read(source, [9, 3])]
      [4, 3]
    """
    try:
        return _read_together(source, indices)
    except Exception:  # one by one, we learn which of them it is
        return [_read_one(source, index) for index in indices]


def _read_together(source: Source, indices: Sequence[int]) -> list[Example]:
    if hasattr(source, "__getitems__"):
        return source.__getitems__(indices)
    return [source[index] for index in indices]


def _read_one(source: Source, index: int) -> Example:
    try:
        return source[index]
    except Exception as error:  # readers raise many kinds
        raise unreadable(source, index, error) from error


def unreadable(source: Source, index: int, error: Exception) -> datasets.DatasetError:
    """Returns the error for an example that cannot be read or decoded."""
    return datasets.DatasetError(
        f"{source.where(index)} cannot be read: {datasets.in_words(error)}. Put an "
        "intact copy in its place, or prepare the dataset without it."
    )


def digest_of(*parts: str | bytes | np.ndarray) -> str:
    """Returns a short text that is another for other parts.

    Example:
      >>> digest_of("cat/1.jpg") == digest_of("cat/2.jpg")
      False
    """
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else part)
        sha.update(b"\0")
    return sha.hexdigest()[:16]


def _digest(source: Source) -> str | None:
    return source.digest() if hasattr(source, "digest") else None


def _sources(name: str, splits: Splits, validation_fraction: float) -> Sources:
    train, validation, test, num_classes, class_names = splits
    if test is None:
        test, validation = validation, None
    if test is None:
        train, test = _hold_out(train, datasets.TEST_FRACTION)
    if validation is None:
        train, validation = _hold_out(train, validation_fraction)
    return Sources(name, train, validation, test, num_classes, class_names)


def _hold_out(source: Source, fraction: float) -> tuple[Subset, Subset]:
    kept, held = datasets.hold_out(len(source), fraction)
    return Subset(source, kept), Subset(source, held)
