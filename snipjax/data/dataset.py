"""The one door to image-classification data."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any, NamedTuple

import numpy as np

from snipjax.data import download, folders, memory, synthetic, tfds
from snipjax.data.sources import (
    Arrays,
    Source,
    Splits,
    Subset,
    hold_out,
    source_digest,
)

# Held out of the training split where there is nothing else to test on.
_TEST_FRACTION = 0.2


class Dataset(NamedTuple):
    """Holds images to train on, to choose a checkpoint with, and to report an error on.

    Attributes:
      name: the name the dataset was loaded by.
      train: the examples of the training split that are not held out.
      validation: the examples of the validation split, or those held out.
      test: the examples of the test split.
      num_classes: the number of classes.
      class_names: their names in the order of the labels, where they have any.

    Example:
      >>> dataset = load("synthetic:10x8x8x3/5")
      >>> len(dataset.train), len(dataset.test), dataset.num_classes
      (10, 1, 5)
    """

    name: str
    train: Any
    validation: Any
    test: Any
    num_classes: int
    class_names: tuple[str, ...] = ()


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    stream: bool = False,
    validation_fraction: float = 0.1,
) -> Dataset:
    """Returns the training, validation and test images of a dataset.

    ``name`` is one of

    - ``digits``: scikit-learn's embedded set of 1,797 images of 8x8 pixels with values
      from 0 to 16. It is in memory with ``stream`` too.
    - A dataset of TFDS, as ``name``, ``name/config``, ``name:version`` or
      ``name/config:version``. It is looked up in ``data_dir``, read from ArrayRecord
      files without TensorFlow, and downloaded and prepared by TFDS if it is missing.
      Without a version in the name, the newest version in ``data_dir`` is taken.
    - ``folder:/path``: ``train/<class>/*.jpg``, perhaps ``validation/`` (or ``val/``)
      and ``test/`` like it; or the ``<class>/`` folders themselves. Classes are the
      sorted names of the folders.
    - ``synthetic:<examples>x<height>x<width>x<channels>/<classes>``: noise around the
      color of a class, computed from the index of the example.

    In memory, all images must have one size. Decoded arrays of TFDS are cached in
    ``$XDG_CACHE_HOME/snipjax``, or ``~/.cache/snipjax`` if that is not set, and decoded
    again if a file of the dataset changes its size or its time of modification. With
    ``stream``, images of any size stay where they are until a batch needs them.

    A dataset without a test split, or with one without labels, gives its validation
    split as the test split; without either, a fixed fifth of its training split.
    A missing validation split is held out of the training split. The examples held
    out depend on the number of examples only, by :func:`hold_out`, so that in memory
    and from a stream the splits are the same.

    Args:
      name: see above.
      data_dir: the TFDS data directory. By default ``$TFDS_DATA_DIR``, or
        ``~/tensorflow_datasets`` if that is not set.
      stream: whether images are read when they are needed instead of now.
      validation_fraction: the share of the training split to hold out, in (0, 1).

    Returns:
      The dataset; without ``stream``, its parts are :class:`Arrays`.

    Raises:
      DatasetError: a ValueError. The dataset is unknown, cannot be downloaded, is
        incomplete, damaged, or not image classification, or does not fit in memory as
        arrays of one shape; the message names the file or the folder, and the remedy.
      ValueError: ``validation_fraction`` leaves a part without examples.

    Example:
      >>> digits = load("digits")
      >>> digits.train.images.shape, digits.train.images.dtype
      ((1294, 8, 8, 1), dtype('uint8'))
      >>> imagenet_like = load("synthetic:1281167x224x224x3/1000", stream=True)
      >>> image, label = imagenet_like.train[5]
      >>> image.shape, image.dtype, label
      ((224, 224, 3), dtype('uint8'), 5)
    """
    kind, colon, rest = str(name).partition(":")
    if name == "digits":
        # Importing scikit-learn takes seconds, so that they are cached too.
        version = importlib.metadata.version("scikit-learn")
        splits = memory.fetch("digits", version, _digits)
    elif colon and kind in ("folder", "synthetic"):
        splits = (folders if kind == "folder" else synthetic).splits(rest)
        splits = splits if stream else memory.in_memory(splits)
    else:
        directory = download.find_or_prepare(name, data_dir, any_shape=stream)
        if stream:
            splits = tfds.splits(directory, any_shape=True)
        else:
            splits = memory.fetch_directory(
                directory,
                lambda: memory.in_memory(tfds.splits(directory, any_shape=False)),
            )
    parts = dict(splits.parts)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    if "test" not in parts:
        parts["train"], parts["test"] = _hold_out(parts["train"], _TEST_FRACTION)
    if "validation" not in parts:
        held = _hold_out(parts["train"], validation_fraction)
        parts["train"], parts["validation"] = held
    return Dataset(
        name=str(name),
        **parts,
        num_classes=splits.num_classes,
        class_names=splits.class_names,
    )


def facts(dataset: Dataset) -> dict[str, Any]:
    """Returns values for JSON by which a dataset is known again, if it has not changed.

    Images of files and records are not read: an image exchanged for another of the same
    name goes unseen.

    Args:
      dataset: a dataset, in memory or as a stream.

    Returns:
      A dictionary of numbers, texts, and dictionaries of them.

    Example:
      >>> facts(load("synthetic:10x8x8x3/5"))["examples"]
      {'train': 10, 'validation': 1, 'test': 1}
    """
    parts = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    return {
        "examples": {name: len(part) for name, part in parts.items()},
        "channels": dataset.train.channels,
        "num_classes": dataset.num_classes,
        "class": {str(i): name for i, name in enumerate(dataset.class_names)},
        "digest": {name: source_digest(part) for name, part in parts.items()},
    }


def with_random_labels(dataset: Dataset) -> Dataset:
    r"""Returns a dataset whose training labels have nothing to do with the images.

    .. math:: y_i \sim \mathrm{Uniform}\{0, \dots, K - 1\}

    for :math:`K` classes.

    The labels are uniform over the classes and the same in every call.

    Args:
      dataset: a dataset whose training examples are in memory.

    Returns:
      The dataset with other labels for the training examples.

    Raises:
      ValueError: the training examples are a stream.

    Example:
      >>> digits = load("digits")
      >>> agreement = with_random_labels(digits).train.labels == digits.train.labels
      >>> bool(agreement.mean() < 0.2)
      True

    Zhang et al., "Understanding Deep Learning Requires Rethinking Generalization",
    ICLR 2017.
    """
    if not isinstance(dataset.train, Arrays):
        raise ValueError(
            f"Random labels need the examples of {dataset.name} in memory; load it "
            "without stream."
        )
    labels = np.random.RandomState(0).randint(
        dataset.num_classes, size=len(dataset.train)
    )
    train = Arrays(dataset.train.images, labels.astype(np.int32))
    return dataset._replace(train=train)


def _digits() -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., np.newaxis]
    train = Arrays(images, digits.target.astype(np.int32))
    return Splits({"train": train}, num_classes=10)


def _hold_out(source: Source, fraction: float) -> tuple[Source, Source]:
    rest, held = hold_out(len(source), fraction)
    if isinstance(source, Arrays):
        return (
            Arrays(source.images[rest], source.labels[rest]),
            Arrays(source.images[held], source.labels[held]),
        )
    return Subset(source, rest), Subset(source, held)
