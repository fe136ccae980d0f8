"""All images of a dataset as arrays, decoded once and cached on disk."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import math
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from snipjax.data import images
from snipjax.data.sources import (
    STREAM_INSTEAD,
    Arrays,
    DatasetError,
    Source,
    Splits,
    read,
    unreadable,
)

_LAYOUT = 2
_CHUNK = 500  # images that a thread decodes at a time


def in_memory(splits: Splits) -> Splits:
    """Returns the splits of a dataset with all images decoded into arrays.

    The arrays have the order of the sources. A DatasetError names an image that cannot
    be read or differs in size from the first, or says that the memory is too small.
    """
    shape = _decode(splits.parts["train"], range(1), None)[0].shape[1:]
    total = sum(map(len, splits.parts.values()))
    size = total * math.prod(shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise DatasetError(
            f"{total:,} images of shape {shape} are {size / 1e9:,.0f} GB, but this "
            f"machine has {memory / 1e9:,.0f} GB of memory; {STREAM_INSTEAD}"
        )
    parts = {name: _arrays(source, shape) for name, source in splits.parts.items()}
    return splits._replace(parts=parts)


def _arrays(source: Source, shape: tuple[int, int, int]) -> Arrays:
    total = len(source)
    pixels, labels = np.empty((total, *shape), np.uint8), np.empty(total, np.int32)

    def fill(start: int) -> None:
        part = range(start, min(start + _CHUNK, total))
        some = slice(part.start, part.stop)
        pixels[some], labels[some] = _decode(source, part, shape)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, total, _CHUNK)))  # raises the first error
    return Arrays(pixels, labels)


def _decode(
    source: Source, indices: range, shape: tuple[int, int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = [], []
    for index, (encoded, label) in zip(indices, read(source, indices), strict=True):
        try:
            image = images.decode(encoded, source.channels)
        except Exception as error:  # PIL raises many kinds
            raise unreadable(source, index, error) from error
        if image.shape != (shape or image.shape):
            raise DatasetError(
                f"{source.where(index)} has the shape {image.shape}, but the first "
                f"image has {shape}. Images in memory have one size; {STREAM_INSTEAD}"
            )
        pixels.append(image)
        labels.append(label)
    return np.stack(pixels), np.array(labels, np.int32)


def fetch(name: str, version: str, decode: Callable[[], Splits]) -> Splits:
    """Returns splits from the cache, or decodes and stores them.

    ``version`` is a text that changes with the decoded arrays.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    file = (root / "snipjax" / f"{name}.npz").absolute()
    fingerprint = f"{_LAYOUT} {version}"
    splits = _read(file, fingerprint)
    if splits is None:
        splits = decode()
        try:
            _write(file, fingerprint, splits)
        except OSError as error:
            warnings.warn(
                f"The decoded dataset cannot be cached in {file.parent} ({error}), so "
                "every start will decode it again. Set XDG_CACHE_HOME to a directory "
                "that can be written.",
                stacklevel=4,
            )
    return splits


def fetch_directory(directory: Path, decode: Callable[[], Splits]) -> Splits:
    """Returns splits from the cache, or decodes a directory whose files have changed.

    A file has changed if its name, its size or its time of modification has.
    """
    place = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:16]
    files = sorted(
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in directory.iterdir()
    )
    version = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    name = f"{directory.parent.name}-{directory.name}-{place}"
    return fetch(name, version, decode)


def _write(file: Path, fingerprint: str, splits: Splits) -> None:
    """Writes beside the final name and renames, so that no reader sees half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name, part in splits.parts.items():
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = part.images, part.labels
    with tempfile.NamedTemporaryFile(
        dir=file.parent, prefix=file.stem, suffix=".unfinished", delete=False
    ) as unfinished:
        try:
            np.savez(
                unfinished,
                fingerprint=fingerprint,
                parts=np.array(list(splits.parts)),
                num_classes=splits.num_classes,
                class_names=np.array(splits.class_names, str),
                **arrays,
            )
            unfinished.close()
            Path(unfinished.name).replace(file)
        except BaseException:
            Path(unfinished.name).unlink()
            raise


def _read(file: Path, fingerprint: str) -> Splits | None:
    """Returns the arrays of an intact and current file, None for any other."""
    try:
        with zipfile.ZipFile(file) as archive:
            read = functools.partial(_read_array, archive)
            if read("fingerprint") != fingerprint:
                return None
            parts = {
                name: Arrays(read(f"{name}_images"), read(f"{name}_labels"))
                for name in read("parts").tolist()
            }
            class_names = tuple(read("class_names").tolist())
            return Splits(parts, int(read("num_classes")), class_names)
    except Exception:  # damage to a file shows up as almost any exception
        return None


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read()  # to the end, where the checksum is compared
    return array
