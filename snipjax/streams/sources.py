"""Sources: labelled images that are read one by one, from wherever they lie."""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

import numpy as np

from snipjax import datasets


class Source(Protocol):
    """Labelled images with random access, cheap to send to another process.

    Attributes:
      channels: that every image is converted to: 1, 3 or 4.
    """

    channels: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int]:
        """Returns an image and its label.

        The image is the content of an image file, or a uint8 array ``[h, w, c]``.
        """

    def where(self, index: int) -> str:
        """Returns what to call an example in a message: its file, or its record."""


class Sources(NamedTuple):
    """Images to train on, to choose a checkpoint with, and to report an error on."""

    name: str
    train: Source
    validation: Source
    test: Source
    num_classes: int


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
    - ``synthetic:<examples>x<height>x<width>x<channels>/<classes>``: noise around a
      colour for each class, computed from the index of the example.
    - ``memory:<name>`` or ``digits``: what :func:`snipjax.datasets.load` holds in
      memory.

    Splits are made as :func:`snipjax.datasets.load` makes them: a missing test split
    is the validation split, or a fixed fifth of the training split; a missing
    validation split is ``validation_fraction`` of the training split.

    Args:
      name: see above.
      data_dir: the TFDS data directory, as for :func:`snipjax.datasets.load`.
      validation_fraction: the share of the training split to hold out, in (0, 1).

    Returns:
      The sources.

    Raises:
      DatasetError: a ValueError. The dataset is unknown, incomplete, damaged, or not
        image classification; the message names the file or the folder.
    """
    raise NotImplementedError


def in_memory(dataset: datasets.Dataset) -> Sources:
    """Returns the arrays of a dataset as sources."""
    raise NotImplementedError
