"""A home directory for each test, and small datasets in it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from snipjax import data
from tests.data import builders

TRAIN, TEST = builders.examples(50, seed=1), builders.examples(20, seed=2)


def assert_is_tiny(dataset: data.Dataset) -> None:
    whole = builders.joined(dataset.train, dataset.validation)
    builders.assert_same(builders.in_written_order(whole), TRAIN)
    builders.assert_same(builders.in_written_order(dataset.test), TEST)
    assert (dataset.num_classes, dataset.class_names) == (3, ("0", "1", "2"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of its own, so that no test reads or writes the user's."""
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", root)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("TFDS_DATA_DIR", "XDG_CACHE_HOME", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS data directory with the dataset ``tiny``: ``TRAIN`` and ``TEST``."""
    root = tmp_path_factory.mktemp("prepared")
    splits = {"train": builders.records(TRAIN), "test": builders.records(TEST)}
    builders.prepare(root, splits)
    return root


@pytest.fixture
def data_dir(tmp_path: Path, prepared: Path) -> Path:
    """A copy of ``prepared``, which a test may change."""
    return Path(shutil.copytree(prepared, tmp_path / "data"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images of cats and ten of dogs, all different, of different sizes."""
    rng = np.random.default_rng(0)
    for name in ("dog", "cat"):
        for i in range(10):
            pixels = rng.integers(0, 256, (8 + i, 9, 3), np.uint8)
            builders.save(pixels, tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"
