"""Decoded arrays on disk: read when nothing has changed, else made again."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import loky
import numpy as np
import pytest

from snipjax import data
from snipjax.data import cache, decoding
from snipjax.data.sources import Splits
from tests.data import builders
from tests.data.builders import assert_same, in_written_order
from tests.data.conftest import TEST, TRAIN

SMALL = Splits({"train": builders.examples(3), "test": builders.examples(2)}, 3, ("a",))


def load(data_dir: Path) -> data.Dataset:
    return data.load("tiny", data_dir)


def assert_is_tiny(dataset: data.Dataset) -> None:
    assert_same(
        in_written_order(builders.joined(dataset.train, dataset.validation)), TRAIN
    )
    assert_same(in_written_order(dataset.test), TEST)
    assert (dataset.num_classes, dataset.class_names) == (3, ("0", "1", "2"))


def files(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "snipjax").iterdir())


def store() -> tuple[Path, Splits]:
    """Stores ``SMALL`` and returns its file."""
    cache.fetch("small", "version", lambda: SMALL)
    (file,) = files(Path.home())
    return file, SMALL


def test_the_second_start_reads_the_file_of_the_first(
    data_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(data_dir)
    assert [file.name[:11] for file in files(home)] == ["tiny-1.0.0-"]
    monkeypatch.setattr(decoding, "in_memory", pytest.fail)
    assert_is_tiny(load(data_dir))
    assert_is_tiny(data.load("tiny:1.0.0", data_dir))


def test_a_dataset_that_has_changed_is_decoded_again(
    data_dir: Path, home: Path
) -> None:
    load(data_dir)
    shutil.rmtree(data_dir)
    swapped = {"train": builders.records(TEST), "test": builders.records(TRAIN)}
    builders.prepare(data_dir, swapped)
    assert_same(in_written_order(load(data_dir).test), TRAIN)
    assert len(files(home)) == 1


def test_two_data_directories_do_not_share_a_file(
    data_dir: Path, tmp_path: Path, home: Path
) -> None:
    load(data_dir)
    other = builders.examples(10, seed=3)
    builders.prepare(tmp_path / "other", {"train": builders.records(other)})
    assert len(load(tmp_path / "other").test) == 2
    assert_is_tiny(load(data_dir))
    assert len(files(home)) == 2


@pytest.mark.parametrize(
    "damage", [lambda whole: b"", lambda whole: whole[:-1], lambda whole: whole[:100]]
)
def test_a_truncated_file_is_made_again(
    data_dir: Path, home: Path, damage: Callable[[bytes], bytes]
) -> None:
    load(data_dir)
    (file,) = files(home)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert_is_tiny(load(data_dir))
    assert len(file.read_bytes()) == len(whole)
    assert files(home) == [file]


def test_no_flipped_bit_goes_unnoticed() -> None:
    file, splits = store()
    whole = file.read_bytes()

    @hypothesis.settings(max_examples=500)
    @hypothesis.given(st.integers(0, 8 * len(whole) - 1))
    def check(bit: int) -> None:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        read = cache.fetch("small", "version", lambda: splits)
        # Damaged, or flipped in a name or a date of the archive.
        for name, part in splits.parts.items():
            assert_same(read.parts[name], part)
        assert read[1:] == splits[1:]

    check()


def test_halves_of_killed_processes_are_removed_later(home: Path) -> None:
    directory = home / ".cache" / "snipjax"
    directory.mkdir(parents=True)
    new, old = (directory / f"small{name}.unfinished" for name in ("new", "old"))
    new.touch()
    old.touch()
    os.utime(old, (0, 0))
    cache.fetch("small", "version", lambda: SMALL)
    assert files(home) == [directory / "small.npz", new]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_nothing(
    data_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch, stop: type
) -> None:
    def write_some_and_stop(file, **arrays: np.ndarray) -> None:
        file.write(b"half a file")
        raise stop

    with monkeypatch.context() as patched, pytest.raises(stop):
        patched.setattr(np, "savez", write_some_and_stop)
        load(data_dir)
    assert files(home) == []
    assert_is_tiny(load(data_dir))


def test_a_directory_that_cannot_be_written_is_no_error(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="cannot be cached in .*XDG_CACHE_HOME"):
            assert_is_tiny(load(data_dir))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(data_dir)
    assert len(list((tmp_path / "xdg" / "snipjax").iterdir())) == 1


def test_processes_at_the_same_time_all_load(data_dir: Path, home: Path) -> None:
    with loky.ProcessPoolExecutor(2) as pool:
        futures = [pool.submit(data.load, "tiny", data_dir) for _ in range(6)]
        for future in futures:
            assert_is_tiny(future.result())
    assert len(files(home)) == 1
