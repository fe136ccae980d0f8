"""Safetensors files come back as they were, or an error says why not."""

import json
import os
import resource
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from snipjax.io import safetensors as files
from tests.io.tensors import assert_same_bytes, saved, shard

TENSORS = {
    f"layer.{i}.{name}": np.random.default_rng(i).normal(size=shape).astype("f4")
    for i in range(3)
    for name, shape in (("weight", (6, 8)), ("bias", (8,)))
}


def test_metadata_comes_back(tmp_path: Path) -> None:
    metadata = {"format": "pt", "sparsity": "0.5"}
    assert saved(tmp_path / "a", {"w": np.ones(2)}, metadata).metadata == metadata
    assert saved(tmp_path / "b", {"w": np.ones(2)}).metadata == {"format": "pt"}


def test_arrays_of_any_layout_in_memory_are_written_in_rows(tmp_path: Path) -> None:
    x = np.arange(6.0).reshape(2, 3)
    tensors = {"transposed": x.T, "reversed": x[::-1], "scalar": np.array(3.0)}
    found = safetensors.numpy.load((saved(tmp_path / "x", tensors).path).read_bytes())
    assert_same_bytes(found, tensors)


@pytest.mark.parametrize(
    ("dtype", "code", "largest"),
    # The bits of 1.5 and of the largest number, by Micikevicius et al., "FP8 Formats
    # for Deep Learning", 2022, table 1.
    [("F8_E4M3", 0b0_0111_100, 448.0), ("F8_E5M2", 0b0_01111_10, 57344.0)],
)
def test_eight_bits_are_read_as_their_standard_says(
    tmp_path: Path, dtype: str, code: int, largest: float
) -> None:
    at_largest = 0b0_1111_110 if dtype == "F8_E4M3" else 0b0_11110_11
    header = {"w": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3]}}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes([code, at_largest, 0x80])
    (tmp_path / "eight").write_bytes(content)
    tensor = files.load(tmp_path / "eight")["w"]
    assert tensor.astype(np.float32).tolist() == [1.5, largest, -0.0]
    again = saved(tmp_path / "again", {"w": tensor})
    assert_same_bytes(again, {"w": tensor})


# ------------------------------------------------------------------ files that fail


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    files.save(path, TENSORS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written .* untouched"):
            files.save(path, {"w": np.zeros(100_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_same_bytes(files.load(path), TENSORS)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_file_is_replaced_at_once_and_may_be_read_as_others(tmp_path: Path) -> None:
    path, other = tmp_path / "model.safetensors", tmp_path / "other"
    before = saved(path, TENSORS)
    files.save(path, {"w": np.ones(3)})
    assert_same_bytes(before, TENSORS)  # what was opened stays what it was
    assert files.load(path).keys() == {"w"}
    other.touch()
    modes = [stat.S_IMODE(file.stat().st_mode) for file in (path, other)]
    assert modes[0] == modes[1]


def test_a_file_that_becomes_shorter_is_named(tmp_path: Path) -> None:
    tensors = saved(tmp_path / "model.safetensors", {"w": np.ones(100_000)})
    os.truncate(tensors.path, 10_000)  # of a mapping, the rest would be a crash
    with pytest.raises(ValueError, match=r"model\.safetensors' has become shorter"):
        tensors["w"]


def test_a_dtype_that_is_not_known_is_named(tmp_path: Path) -> None:
    # A scale of 8 bits, without a sign or a zero, is no weight.
    saved(tmp_path / "scales", {"w": np.ones(4, ml_dtypes.float8_e8m0fnu)})
    with pytest.raises(ValueError, match=r"'w' is stored as F8_E8M0.*convert it"):
        files.load(tmp_path / "scales")["w"]


@pytest.mark.parametrize("metadata", [{"steps": 3}, {"note": None}, {1: "a"}])
def test_metadata_that_is_not_text_is_named(tmp_path: Path, metadata: dict) -> None:
    (key,) = metadata
    with pytest.raises(ValueError, match=rf"metadata has {key!r}: .*str"):
        files.save(tmp_path / "x", {"w": np.ones(2)}, metadata)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: b"",
        lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        lambda whole: b"PK\x03\x04 the archive that is a pytorch_model.bin",
        lambda whole: b"\x10\x00\x00\x00\x00\x00\x00\x00{'not': json}   ",
        lambda whole: whole[:-10],
    ],
)
def test_a_damaged_file_or_one_of_another_format_is_named(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "model.safetensors"
    files.save(path, TENSORS)
    path.write_bytes(change(path.read_bytes()))
    message = r"damaged or not a safetensors file .* fetch it again.* Git LFS"
    with pytest.raises(ValueError, match=message):
        files.load(path)


def test_a_path_without_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a directory; pass the model"):
        files.load(tmp_path)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        with pytest.raises(FileNotFoundError, match=name):
            files.load(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, r"is not the index of a model .* fetch it") for text in (
            "", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"w": 3}}',
        )),
        ('{"weight_map": {"w": "../x.safetensors"}}', "not beside it .*'../x"),
        ('{"weight_map": {"w": "/etc/x.safetensors"}}', "not beside it .*'/etc/x"),
    ],
)  # fmt: skip
def test_a_wrong_index_is_named(tmp_path: Path, text: str, message: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ValueError, match=message):
        files.load(index)


def test_a_missing_file_of_several_is_named(tmp_path: Path) -> None:
    index = shard(tmp_path, TENSORS)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"'model-00002-of-00002.* not to be found"):
        files.load(index)


def test_a_tensor_that_is_not_in_the_file_of_the_index_is_named(tmp_path: Path) -> None:
    index = shard(tmp_path, TENSORS)
    missing = sorted(TENSORS)[0]
    first = tmp_path / "model-00001-of-00002.safetensors"
    rest = {n: x for n, x in safetensors.numpy.load_file(first).items() if n != missing}
    safetensors.numpy.save_file(rest, first)
    with pytest.raises(ValueError, match=f"says that '{missing}' is in 'model-00001"):
        files.load(index)
