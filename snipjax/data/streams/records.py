"""Images in the ArrayRecord files of TFDS, read record by record."""

from __future__ import annotations

import bisect
import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snipjax.data import datasets
from snipjax.data.streams.sources import Example, Splits, digest_of, unreadable

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_opening = threading.Lock()


def splits(name: str, data_dir: str | os.PathLike[str] | None) -> Splits:
    """Returns the splits of a dataset of TFDS that can be trained and tested on.

    Args:
      name: ``name``, ``name/config``, ``name:version`` or ``name/config:version``.
      data_dir: as for :func:`snipjax.data.datasets.load`.

    Returns:
      Its splits ``train``, ``validation`` and ``test``, as far as it has them with
      labels.

    Raises:
      DatasetError: the dataset is unknown or cannot be prepared, is not image
        classification, has no training split, or one of its files is missing.
    """
    directory, info, layout = datasets.images_of_tfds(name, data_dir)
    if "train" not in info.splits:
        raise datasets.DatasetError(
            f"{info.full_name} has no split named 'train', only {sorted(info.splits)}. "
            "snipjax needs one to prune and train on."
        )
    train, validation, test = (
        Records(directory, info.splits[split], layout) if split in info.splits else None
        for split in ("train", "validation", "test")
    )
    # The images of ImageNet's test split are labelled with -1.
    if validation and test and test.first_label() == -1:
        test = None
    names = tuple(info.features[layout.label].names)
    return Splits(train, validation, test, layout.num_classes, names)


class Records:
    """One split as a source. Its files are opened when the first record is read."""

    def __init__(
        self, directory: Path, split: tfds.core.SplitInfo, layout: datasets.Layout
    ) -> None:
        self.channels = layout.shape[-1]
        self._directory, self._split, self._layout = directory, split.name, layout
        self._version = directory.name  # e.g. 5.1.0
        self._files = [os.fspath(file) for file in split.filepaths]
        self._ends = list(itertools.accumulate(split.shard_lengths))
        self._sizes = [*map(str, split.shard_lengths), str(split.num_bytes)]
        self._opened = None
        for file in self._files:
            if not Path(file).exists():
                raise datasets.DatasetError(
                    f"The dataset in {directory} is incomplete: {file} is missing. "
                    "Copy it there, or delete that directory and prepare the dataset "
                    "again."
                )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        return self._example(self._records()[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        records = self._records().__getitems__(list(indices))
        return [self._example(record) for record in records]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def where(self, index: int) -> str:
        shard = bisect.bisect_right(self._ends, index)
        first = self._ends[shard - 1] if shard else 0
        return f"record {index - first} of {self._files[shard]}"

    def digest(self) -> str:
        # Of the names that files have wherever the dataset lies.
        names = [Path(file).name for file in self._files]
        return digest_of(self._version, *names, *self._sizes)

    def first_label(self) -> int:
        """Returns the label of the first record, which may be no class."""
        try:
            return int(self._records()[0][self._layout.label])
        except Exception as error:  # the reader raises many kinds
            raise unreadable(self, 0, error) from error

    def _example(self, record: dict[str, Any]) -> Example:
        label, num_classes = int(record[self._layout.label]), self._layout.num_classes
        if not 0 <= label < num_classes:
            raise ValueError(f"its label is {label}, not in [0, {num_classes})")
        return record[self._layout.image], label

    def _records(self) -> Sequence[dict[str, Any]]:
        with _opening:  # the threads of a stream come here at the same time
            if self._opened is None:
                import tensorflow_datasets as tfds

                self._opened = datasets.open_tfds(self._directory).as_data_source(
                    self._split,
                    decoders={self._layout.image: tfds.decode.SkipDecoding()},
                    file_format="array_record",
                )
        return self._opened
