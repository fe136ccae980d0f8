"""Small datasets for the tests: of TFDS, prepared by TFDS itself, and in folders."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from snipjax.data import Arrays, DatasetError

SHAPE = (5, 4, 3)
NUM_CLASSES = 3


def examples(total: int, seed: int = 0, shape: Sequence[int] = SHAPE) -> Arrays:
    """Random images whose first pixel counts them, as TFDS shuffles what it writes."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (total, *shape), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(total), 256)
    return Arrays(images, rng.integers(0, NUM_CLASSES, total).astype(np.int32))


def refused(message: str) -> Any:
    return pytest.raises(DatasetError, match=message)


def joined(*parts: Arrays) -> Arrays:
    return Arrays(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def assert_same(actual: Arrays, expected: Arrays) -> None:
    np.testing.assert_array_equal(actual.images, expected.images)
    np.testing.assert_array_equal(actual.labels, expected.labels)


def in_written_order(loaded: Arrays) -> Arrays:
    counts = loaded.images[:, 0, :2, 0].astype(int) @ [256, 1]
    order = np.argsort(counts)
    return Arrays(loaded.images[order], loaded.labels[order])


def encoded(pixels: np.ndarray, encoding: str = "png") -> bytes:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, encoding)
    return buffer.getvalue()


def records(written: Arrays) -> list[dict[str, Any]]:
    return [
        {"image": encoded(image), "label": int(label)}
        for image, label in zip(written.images, written.labels, strict=True)
    ]


def image_and_label(shape: Sequence[int | None] = SHAPE) -> dict[str, Any]:
    return {
        "image": tfds.features.Image(shape=tuple(shape)),
        "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
    }


class Numbers:
    """Example ``i`` is a gray pixel, and its label says which it is."""

    channels = 1

    def __init__(self, total: int) -> None:
        self._total = total

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.full((1, 1, 1), index % 256, np.uint8), index

    def where(self, index: int) -> str:
        return f"number {index}"


def save(image: np.ndarray | Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file)


def color(*values: int) -> np.ndarray:
    return np.full((5, 4, 3), values, np.uint8)


def run_python(
    program: str | Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs code or a file, until all processes have closed the pipe of its output."""
    command = [str(program)] if isinstance(program, Path) else ["-c", program]
    return subprocess.run(
        [sys.executable, *command, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def prepare(
    data_dir: Path,
    splits: Mapping[str, Sequence[dict[str, Any]]],
    *,
    features: Mapping[str, Any] | None = None,
    supervised_keys: tuple[str, ...] | None = ("image", "label"),
    version: str = "1.0.0",
    configs: Sequence[str] = (),
    config: str | None = None,
) -> Path:
    """Has TFDS prepare the dataset ``tiny``; returns its directory."""

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "tiny"
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in configs]  # noqa: RUF012

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features or image_and_label()),
                supervised_keys=supervised_keys,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            return {name: enumerate(split) for name, split in splits.items()}

        def _generate_examples(self) -> None:
            """Required of a subclass; the splits above are generators already."""

    builder = Tiny(data_dir=data_dir, config=config)
    builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_dir)
