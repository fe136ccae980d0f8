"""Datasets of TensorFlow Datasets (TFDS), read record by record without TensorFlow."""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import os
import re
import shlex
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from snipjax.data import images
from snipjax.data.sources import (
    STREAM_INSTEAD,
    DatasetError,
    Example,
    Splits,
    digest,
    in_words,
    unreadable,
)

# A start from the cache does not import it.
if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_opening = threading.Lock()


class Name(NamedTuple):
    """The name of a dataset of TFDS, its config (variant) and its version."""

    name: str
    config: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"{self.name}{config}" + (f":{self.version}" if self.version else "")


class Layout(NamedTuple):
    """The keys of the image and the label in a record, and their kinds."""

    image: str
    label: str
    channels: int
    class_names: tuple[str, ...]


def parse(name: str) -> Name:
    """Returns the parts of ``name``, ``name/config`` or ``name/config:version``."""
    pattern = r"(\w+)(?:/([\w.\-]+))?(?::(\d+\.\d+\.\d+))?"
    match = re.fullmatch(pattern, str(name), re.ASCII)
    if not match:
        raise DatasetError(
            f"{name!r} is not the name of a dataset. Give 'digits', a dataset of "
            "TFDS as 'mnist', 'mnist:3.0.1', 'emnist/balanced' or "
            "'emnist/balanced:3.1.0', 'folder:/path' or 'synthetic:50000x32x32x3/10'."
        )
    return Name(*match.groups())


def find(name: Name, data_dir: Path) -> Path | None:
    """Returns the directory of the newest prepared version of a dataset, or None."""
    config = name.config or _default_config(data_dir / name.name)
    found = [
        directory
        for variant, directory in variants(name.name, data_dir)
        if variant.config == config and name.version in (None, variant.version)
    ]

    def version(directory: Path) -> list[int]:
        return [int(part) for part in directory.name.split(".")]

    return max(found, key=version, default=None)


def variants(name: str, data_dir: Path) -> Iterator[tuple[Name, Path]]:
    """Yields the name and the directory of every prepared variant of a dataset."""
    root = data_dir / name
    for features in (*root.glob("*/features.json"), *root.glob("*/*/features.json")):
        directory = features.parent
        config = None if directory.parent == root else directory.parent.name
        if re.fullmatch(r"\d+\.\d+\.\d+", directory.name, re.ASCII):
            yield Name(name, config, directory.name), directory


def _default_config(root: Path) -> str | None:
    """Returns the config that TFDS takes by default, as it noted when preparing one."""
    try:
        noted = json.loads((root / ".config" / "metadata.json").read_text())
        return noted["default_config_name"]
    except (OSError, ValueError, KeyError):
        return None


def splits(directory: Path, *, any_shape: bool) -> Splits:
    """Returns the labeled splits ``train``, ``validation`` and ``test`` of a dataset.

    With ``any_shape``, its images may have different sizes.
    """
    info = _open(directory).info
    layout = find_layout(info, any_shape=any_shape)
    if "train" not in info.splits:
        raise DatasetError(
            f"{info.full_name} has no split named 'train', only {sorted(info.splits)}. "
            "snipjax needs one to prune and train on."
        )
    parts = {
        split: Records(directory, info.splits[split], layout)
        for split in ("train", "validation", "test")
        if split in info.splits
    }
    # The images of ImageNet's test split are labeled with -1.
    if len(parts) == 3 and parts["test"].first_label() == -1:
        del parts["test"]
    names = layout.class_names
    return Splits(parts, len(names), names)


def find_layout(info: tfds.core.DatasetInfo, *, any_shape: bool) -> Layout:
    """Returns where the one image and the one class are in a dataset's records."""
    import tensorflow_datasets as tfds

    features = info.features or {}
    refuse = functools.partial(_not_images, info)

    def only(feature_type: type, position: int) -> str:
        keys = [k for k in features if isinstance(features[k], feature_type)]
        if info.supervised_keys and len(info.supervised_keys) == 2:
            keys = [key for key in keys if key == info.supervised_keys[position]]
        if len(keys) != 1:
            raise refuse("it takes one image as the input and one class as the target")
        return keys[0]

    image_key = only(tfds.features.Image, 0)
    label_key = only(tfds.features.ClassLabel, 1)
    image, label = features[image_key], features[label_key]
    if image.np_dtype != np.uint8 or image.shape[-1] not in images.MODES:
        raise refuse("its images are not uint8 with 1, 3 or 4 channels")
    if None in image.shape and not any_shape:
        raise refuse(
            f"its images have the shape {image.shape}, not one fixed shape; "
            f"{STREAM_INSTEAD}"
        )
    return Layout(image_key, label_key, image.shape[-1], tuple(label.names))


class Records:
    """One split as a source. Its files are opened when the first record is read."""

    def __init__(
        self, directory: Path, split: tfds.core.SplitInfo, layout: Layout
    ) -> None:
        self.channels = layout.channels
        self._directory, self._split, self._layout = directory, split.name, layout
        self._files = [os.fspath(file) for file in split.filepaths]
        self._ends = list(itertools.accumulate(split.shard_lengths))
        self._sizes = [*map(str, split.shard_lengths), str(split.num_bytes)]
        self._reader: Any = None
        for file in self._files:
            if not Path(file).exists():
                raise DatasetError(
                    f"The dataset in {directory} is incomplete: {file} is missing. "
                    "Copy it there, or delete that directory and prepare the dataset "
                    "again."
                )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        return self._example(self._records()[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        # Several times faster than one by one.
        records = self._records().__getitems__(list(indices))
        return [self._example(record) for record in records]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def where(self, index: int) -> str:
        shard = bisect.bisect_right(self._ends, index)
        first = self._ends[shard - 1] if shard else 0
        return f"record {index - first} of {self._files[shard]}"

    def digest(self) -> str:
        # Names of files are the same wherever the dataset lies.
        names = [Path(file).name for file in self._files]
        return digest(self._directory.name, *names, *self._sizes)

    def first_label(self) -> int:
        """Returns the label of the first record, which may be no class."""
        try:
            return int(self._records()[0][self._layout.label])
        except Exception as error:  # the reader raises many kinds
            raise unreadable(self, 0, error) from error

    def _example(self, record: dict[str, Any]) -> Example:
        label, total = int(record[self._layout.label]), len(self._layout.class_names)
        if not 0 <= label < total:
            raise ValueError(f"its label is {label}, not in [0, {total})")
        return record[self._layout.image], label

    def _records(self) -> Any:
        with _opening:  # the threads of a stream come here at the same time
            if self._reader is None:
                import tensorflow_datasets as tfds

                self._reader = _open(self._directory).as_data_source(
                    self._split,
                    decoders={self._layout.image: tfds.decode.SkipDecoding()},
                    file_format="array_record",
                )
            return self._reader


def _open(directory: Path) -> tfds.core.DatasetBuilder:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
    except Exception as error:  # whatever reading damaged JSON ends in
        raise DatasetError(
            f"The dataset in {directory} cannot be read: {in_words(error)}. "
            "Delete that directory and prepare the dataset again."
        ) from error
    formats = [known.value for known in builder.info.available_file_formats()]
    if "array_record" not in formats:
        raise DatasetError(
            f"{directory} is in {' and '.join(formats)} format, but snipjax reads "
            "array_record, which needs no TensorFlow. The converter does need it, so "
            "convert in an environment of its own:\n"
            "  pip install tensorflow apache-beam tensorflow-datasets "
            "importlib_resources\n"
            "  python -m tensorflow_datasets.scripts.convert_format "
            f"--dataset_version_dir={shlex.quote(str(directory))} "
            "--out_file_format=array_record"
        )
    return builder


def _not_images(info: tfds.core.DatasetInfo, reason: str) -> DatasetError:
    return DatasetError(
        f"{info.full_name} is not an image-classification dataset that snipjax "
        f"can load: {reason}. It has the features {dict(info.features or {})} and "
        f"the supervised keys {info.supervised_keys}."
    )
