"""Safetensors files as other programs write them, and their comparison."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from snipjax.io import safetensors as files

Arrays = dict[str, np.ndarray]


def saved(path: Path, tensors: Arrays, metadata: Any = None) -> files.Tensors:
    files.save(path, tensors, metadata)
    return files.load(path)


def assert_same_bytes(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert found[name].dtype == tensor.dtype, name
        assert found[name].tobytes() == tensor.tobytes(), name


def shard(directory: Path, tensors: Arrays) -> Path:
    """The tensors in two files and their index, as transformers writes them."""
    names = sorted(tensors)
    file_of = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{i:05}-of-00002.safetensors"
        metadata = {"format": "pt"}
        safetensors.numpy.save_file(
            {name: tensors[name] for name in part}, directory / file, metadata
        )
        file_of |= dict.fromkeys(part, file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    return index
