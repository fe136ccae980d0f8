"""Decoded arrays on disk: read when nothing has changed, else made again."""

import concurrent.futures
import shutil
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from snipjax import data
from snipjax.data import memory
from snipjax.data.sources import Splits
from tests.data import builders
from tests.data.builders import assert_same, in_written_order
from tests.data.conftest import TEST, TRAIN, assert_is_tiny

SMALL = Splits({"train": builders.examples(3), "test": builders.examples(2)}, 3, ("a",))


def load(data_dir: Path) -> data.Dataset:
    return data.load("tiny", data_dir)


def files(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "snipjax").iterdir())


def fetch() -> Splits:
    return memory.fetch("small", "version", lambda: SMALL)


def test_the_second_start_reads_the_file_of_the_first(
    data_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(data_dir)
    assert [file.name[:11] for file in files(home)] == ["tiny-1.0.0-"]
    monkeypatch.setattr(memory, "in_memory", pytest.fail)
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


def test_no_flipped_bit_and_no_missing_byte_goes_unnoticed(home: Path) -> None:
    fetch()
    (file,) = files(home)
    whole = file.read_bytes()

    @hypothesis.settings(max_examples=150)
    @hypothesis.given(st.integers(0, 8 * len(whole) - 1), st.booleans())
    def check(bit: int, is_truncated: bool) -> None:
        damaged = bytearray(whole[: bit // 8] if is_truncated else whole)
        if not is_truncated:
            damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        read = fetch()
        # Damaged, or flipped in a name or a date of the archive.
        for name, part in SMALL.parts.items():
            assert_same(read.parts[name], part)
        assert read[1:] == SMALL[1:]
        assert len(file.read_bytes()) == len(whole)

    check()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, stop: type
) -> None:
    def write_some_and_stop(file, **arrays: np.ndarray) -> None:
        file.write(b"half a file")
        raise stop

    with monkeypatch.context() as patched, pytest.raises(stop):
        patched.setattr(np, "savez", write_some_and_stop)
        fetch()
    assert files(home) == []


def test_a_directory_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="cannot be cached in .*XDG_CACHE_HOME"):
            assert fetch() is SMALL
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    fetch()
    assert len(list((tmp_path / "xdg" / "snipjax").iterdir())) == 1


def test_several_at_the_same_time_all_load(home: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for splits in pool.map(lambda _: fetch(), range(40)):
            assert_same(splits.parts["test"], SMALL.parts["test"])
    assert len(files(home)) == 1
