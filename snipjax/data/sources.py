"""Labeled images that are read one by one, in memory or from wherever they lie."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Example = tuple[bytes | np.ndarray, int]

# The remedy where images do not fit in one array.
STREAM_INSTEAD = (
    "read them from a stream instead, with data.load(..., stream=True) or "
    "--config.dataset.stream=True --config.dataset.image_size=64"
)


class DatasetError(ValueError):
    """Says why a dataset cannot be loaded or read, and names the remedy.

    It is a ``ValueError``.

    Example:
      >>> try:
      ...     snipjax.data.load("folder:/no/such/folder")
      ... except DatasetError as error:
      ...     print("not loaded")
      not loaded
    """


class Source(Protocol):
    """Describes labeled images with random access, cheap to send to another process.

    Two more methods are optional: ``__getitems__(indices)`` returns a list of examples
    faster than one by one, and ``digest()`` returns a text that changes with the
    examples.

    Attributes:
      channels: channels that every image is converted to: 1 (gray), 3 (RGB), 4 (RGBA).

    Example:
      >>> class Gray:
      ...     channels = 1
      ...     def __len__(self):
      ...         return 256
      ...     def __getitem__(self, index):
      ...         return np.full((8, 8, 1), index, np.uint8), index % 2
      ...     def where(self, index):
      ...         return f"gray {index}"
      >>> stream = snipjax.data.evaluation_batches(Gray(), batch_size=2, image_size=8)
      >>> next(stream).labels
      array([0, 1], dtype=int32)
    """

    @property
    def channels(self) -> int: ...

    def __len__(self) -> int:
        """Returns the number of examples."""

    def __getitem__(self, index: int) -> Example:
        """Returns an image and its label, for an index in ``[0, len)``.

        The image is the content of an image file, or a uint8 array ``[h, w, c]``.
        """

    def where(self, index: int) -> str:
        """Returns a name of the example for messages: its file, or its record."""


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Holds labeled images of one size in host memory; a source too.

    Attributes:
      images: uint8 array of shape ``[n, h, w, c]``.
      labels: int32 array of shape ``[n]``, with values in ``[0, num_classes)``.

    Raises:
      ValueError: the images are no uint8 array, or there is not one for each label.

    Example:
      >>> examples = Arrays(np.zeros((5, 8, 8, 1), np.uint8), np.arange(5))
      >>> len(examples), examples.channels, examples[3][1]
      (5, 1, 3)
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        shape, dtype, total = self.images.shape, self.images.dtype, len(self.labels)
        if len(shape) != 4 or dtype != np.uint8 or not shape[0] == total > 0:
            raise ValueError(
                f"images have shape {shape} and type {dtype}, with {total} labels, but "
                "uint8 images of shape [n, h, w, c] with n labels are needed, n > 0."
            )

    @property
    def channels(self) -> int:
        return self.images.shape[-1]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return self.images[index], int(self.labels[index])

    def where(self, index: int) -> str:
        return f"example {index}"

    def digest(self) -> str:
        images, labels = map(np.ascontiguousarray, (self.images, self.labels))
        return digest(str(images.shape), images, labels)


class Subset:
    """Some examples of a source, by their indices, as a source."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.channels = source.channels
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        return _read(self._source, self._indices[list(indices)].tolist())

    def where(self, index: int) -> str:
        return self._source.where(int(self._indices[index]))

    def digest(self) -> str | None:
        whole = source_digest(self._source)
        return whole and digest(whole, np.asarray(self._indices, np.int64))


class Splits(NamedTuple):
    """The sources ``train`` and perhaps ``validation`` and ``test`` of a dataset."""

    parts: dict[str, Any]
    num_classes: int
    class_names: tuple[str, ...] = ()


def hold_out(total: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    r"""Returns the sorted indices of the examples that stay and of the ones held out.

    .. math:: \{\pi(0), \dots, \pi(h - 1)\}, \; h = \mathrm{round}(total \cdot fraction)

    are held out, with the permutation :math:`\pi` of
    ``np.random.RandomState(0).permutation(total)``, a stream that NumPy has frozen.

    Args:
      total: number of examples.
      fraction: share of them to hold out, in (0, 1).

    Returns:
      ``(rest, held)``, integer arrays.

    Raises:
      ValueError: if either part would have no example.

    Example:
      >>> rest, held = hold_out(5, 0.4)
      >>> rest.tolist(), held.tolist()
      ([1, 3, 4], [0, 2])
    """
    if not (0 < fraction < 1 and 0 < round(total * fraction) < total):
        raise ValueError(
            f"A share of {fraction} of {total} examples cannot be held out: it must "
            "leave some on both sides. Choose a validation_fraction between 0 and 1, "
            "for example 0.1, or add examples."
        )
    order = np.random.RandomState(0).permutation(total)
    held = round(total * fraction)
    return np.sort(order[held:]), np.sort(order[:held])


def read(source: Source, indices: Sequence[int]) -> list[Example]:
    """Returns examples of a source, or raises a DatasetError that names a bad one."""
    try:
        return _read(source, indices)
    except Exception:  # one by one, it turns out which of them it is
        return [_read_one(source, index) for index in indices]


def _read(source: Source, indices: Sequence[int]) -> list[Example]:
    if hasattr(source, "__getitems__"):
        return source.__getitems__(indices)
    return [source[index] for index in indices]


def unreadable(source: Source, index: int, error: Exception) -> DatasetError:
    """Returns the error for an example that cannot be read or decoded."""
    return DatasetError(
        f"{source.where(index)} cannot be read: {in_words(error)}. Put an "
        "intact copy in its place, or prepare the dataset without it."
    )


def in_words(error: BaseException) -> str:
    """Returns the type and the message of an error, for a longer message."""
    return f"{type(error).__name__}: {str(error).strip()}".rstrip(" .:")


def digest(*parts: Any) -> str:
    """Returns 16 hexadecimal digits that differ for different parts.

    The parts are texts, bytes or contiguous arrays.
    """
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else part)
        sha.update(b"\0")
    return sha.hexdigest()[:16]


def source_digest(source: Source) -> str | None:
    """Returns the digest of a source's examples, or None where it has none."""
    return source.digest() if hasattr(source, "digest") else None


def _read_one(source: Source, index: int) -> Example:
    try:
        return source[index]
    except Exception as error:  # readers raise many kinds
        raise unreadable(source, index, error) from error
