"""Decoded arrays on disk, so that the next start does not decode them again."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from snipjax.data.sources import Arrays, Splits

_LAYOUT = 2


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
