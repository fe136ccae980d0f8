"""Small TFDS datasets for the tests, prepared in ArrayRecord format by TFDS itself."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from snipjax.data.datasets import Examples

SHAPE = (5, 4, 3)
NUM_CLASSES = 3


def examples(total: int, seed: int = 0, shape: Sequence[int] = SHAPE) -> Examples:
    """Random images whose first pixel counts them, as TFDS shuffles what it writes."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (total, *shape), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(total), 256)
    return Examples(images, rng.integers(0, NUM_CLASSES, total).astype(np.int32))


def in_written_order(loaded: Examples) -> Examples:
    counts = loaded.images[:, 0, :2, 0].astype(int) @ [256, 1]
    order = np.argsort(counts)
    return Examples(loaded.images[order], loaded.labels[order])


def encoded(pixels: np.ndarray, encoding: str = "png") -> bytes:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, encoding)
    return buffer.getvalue()


def records(written: Examples) -> list[dict[str, Any]]:
    return [
        {"image": encoded(image), "label": int(label)}
        for image, label in zip(written.images, written.labels, strict=True)
    ]


def image_and_label(shape: Sequence[int | None] = SHAPE) -> dict[str, Any]:
    return {
        "image": tfds.features.Image(shape=tuple(shape)),
        "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
    }


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
    """Has TFDS prepare the dataset `tiny` in `data_dir`; returns its directory."""

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
