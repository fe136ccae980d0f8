"""Safetensors files, in which pretrained weights are published.

::

    from snipjax.io import gpt2, safetensors

    tensors = safetensors.load("gpt2/model.safetensors")
    params = gpt2.from_tensors(tensors)
    params, mask = pruning.prune(loss_fn, params, batch, sparsity=0.5)
    pruned = gpt2.to_tensors(params, like=tensors)
    safetensors.save("pruned/model.safetensors", pruned, tensors.metadata)

A tensor is read when it is asked for, so that memory holds the params and one tensor.
The written file has the names, layouts and dtypes of the original, and ``transformers``
loads it again.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import chex
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from snipjax.io import files

__all__ = ["Tensors", "load", "save"]

# Dtypes of the format that NumPy has, by itself or by ml_dtypes.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}


class Stored(NamedTuple):
    """The place of a tensor: an open file, and the entry of its header."""

    file: BinaryIO
    dtype: str
    shape: tuple[int, ...]
    start: int  # in the file
    end: int


class Tensors(Mapping[str, np.ndarray]):
    """Maps names to a model's tensors, read from their files when they are asked for.

    Attributes:
      metadata: the text of the header, a dictionary.
      path: the argument of :func:`load`.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
      >>> save(path, {"w": jnp.ones((2, 3))})
      >>> tensors = load(path)
      >>> list(tensors), tensors["w"].shape, tensors.metadata
      (['w'], (2, 3), {'format': 'pt'})
    """

    def __init__(
        self, path: Path, stored: Mapping[str, Stored], metadata: Mapping[str, str]
    ) -> None:
        self.path = path
        self.metadata = dict(metadata)
        self._stored = dict(stored)

    def __getitem__(self, name: str) -> np.ndarray:
        return _read(name, self._stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def load(path: str | os.PathLike) -> Tensors:
    """Opens a safetensors file, or a model in several, without reading its tensors.

    Args:
      path: ``model.safetensors``, or the ``model.safetensors.index.json`` of a model
        whose tensors are in several files beside it.

    Returns:
      A mapping from names to NumPy arrays, in the shapes and dtypes of the file. It
      raises a ``ValueError`` if a file has become shorter since, or a tensor has a
      dtype that NumPy and JAX do not have.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a file is damaged or of another format.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
      >>> save(path, {"w": jnp.arange(3.0)})
      >>> load(path)["w"]
      array([0., 1., 2.], dtype=float32)
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"'{path}' is a directory; pass the model.safetensors in it, or the "
            "model.safetensors.index.json if the tensors are in several files"
        )
    if path.suffix == ".json":
        return _load_index(path)
    return Tensors(path, *_open(path))


def save(
    path: str | os.PathLike,
    tensors: Mapping[str, chex.Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file, whole or not at all.

    Args:
      path: path of the file; an earlier one is replaced at once.
      tensors: arrays by their names.
      metadata: text for the header, e.g. ``load(path).metadata``. By default it is
        ``{"format": "pt"}``, by which ``transformers`` knows the layout.

    Raises:
      ValueError: if ``metadata`` holds something else than text.
      OSError: if the file cannot be written.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
      >>> save(path, {"w": jnp.ones(2, jnp.bfloat16)}, {"format": "pt", "by": "me"})
      >>> load(path).metadata["by"]
      'me'
    """
    # The format has rows one after the other, which arrays in memory need not have.
    arrays = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    metadata = {"format": "pt"} if metadata is None else dict(metadata)
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise ValueError(
                f"metadata has {key!r}: {value!r}, but a safetensors file holds text "
                "only; convert both to str, e.g. with json.dumps"
            )
    with files.replacing(Path(path)) as partial:
        try:
            safetensors.numpy.save_file(arrays, partial, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


# The library's own reading maps a file into memory, where a file that becomes shorter
# ends the program. So it checks the header, and tensors are read here.


def _open(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Returns the tensors of a file, and the text of its header."""
    file = path.open("rb")
    try:
        # Checks everything that a header can have wrong, the file's size included.
        with safe_open(path, framework="numpy"):
            pass
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    except (SafetensorError, struct.error, ValueError) as error:
        file.close()
        raise ValueError(
            f"'{path}' is damaged or not a safetensors file ({error}); fetch it again: "
            "a small file may be Git LFS's pointer to it, and a pytorch_model.bin is "
            "to be converted with save_pretrained"
        ) from error
    metadata = header.pop("__metadata__", None) or {}
    stored = {
        name: Stored(
            file,
            entry["dtype"],
            tuple(entry["shape"]),
            *(8 + length + offset for offset in entry["data_offsets"]),
        )
        for name, entry in header.items()
    }
    return stored, metadata


def _read(name: str, stored: Stored) -> np.ndarray:
    path = stored.file.name
    if stored.dtype not in _DTYPES:
        raise ValueError(
            f"'{path}': '{name}' is stored as {stored.dtype}, which NumPy and JAX do "
            f"not have; convert it to one of {', '.join(_DTYPES)}"
        )
    # Not mapped into memory: there, a file that has become shorter ends the program.
    content = np.empty(stored.end - stored.start, np.uint8)
    position = 0
    while position < content.size:
        count = os.preadv(
            stored.file.fileno(), [content[position:].data], stored.start + position
        )
        if not count:
            raise ValueError(
                f"'{path}' has become shorter since it was opened, and '{name}' cannot "
                "be read; fetch it again, and do not write to it meanwhile"
            )
        position += count
    return content.view(_DTYPES[stored.dtype]).reshape(stored.shape)


def _load_index(path: Path) -> Tensors:
    try:
        file_of = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(file_of.values()))
        are_beside = all(Path(name).name == name for name in names)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"'{path}' is not the index of a model in several files ({error!r}), which "
            "has a 'weight_map' from tensors to files; fetch it again"
        ) from error
    if not are_beside:
        raise ValueError(
            f"'{path}' names files that are not beside it ({files.listed(names)}); its "
            "'weight_map' should have names without directories"
        )
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise ValueError(
            f"'{path}' names {files.listed(missing)}, not to be found beside it; fetch "
            "all its files into the same directory"
        )
    opened = {name: _open(path.with_name(name)) for name in names}
    for tensor, name in file_of.items():
        if tensor not in opened[name][0]:
            raise ValueError(
                f"'{path}' says that '{tensor}' is in '{name}', but it is not; fetch "
                "them again, all of the same version"
            )
    stored = {tensor: opened[name][0][tensor] for tensor, name in file_of.items()}
    return Tensors(path, stored, opened[names[0]][1] if names else {})
