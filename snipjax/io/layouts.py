"""Layouts: which parameters a tensor of a file is, and in which order of axes."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from typing import Any, NamedTuple

import chex
import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from snipjax.io import files
from snipjax.io.safetensors import Tensors

_REMEDY = "check that these weights are of this kind of model"


class Layout(NamedTuple):
    """A tensor of a file, and the parameters that it holds.

    ``axes`` names the sizes of the tensor, such as ``"width 4*width"``; sizes of one
    name are equal. ``read`` turns it into the parameters side by side along their last
    axis, ``write`` turns them into the tensor.
    """

    axes: str
    paths: tuple[str, ...]
    read: Callable[[np.ndarray], np.ndarray] = lambda x: x
    write: Callable[[np.ndarray], np.ndarray] = lambda x: x


Layouts = dict[str, Layout]


class Params(dict[str, chex.Array]):
    """Parameters by their paths, as ``block_0/query/kernel``."""


def norm(name: str, path: str) -> Layouts:
    return {
        f"{name}.weight": Layout("width", (f"{path}/scale",)),
        f"{name}.bias": Layout("width", (f"{path}/bias",)),
    }


def columns(
    name: str, paths: Iterable[str], inputs: str = "width", outputs: str = "width"
) -> Layouts:
    """Returns the layouts of dense layers side by side, with a weight [in, out]."""
    kernels = tuple(f"{path}/kernel" for path in paths)
    biases = tuple(f"{path}/bias" for path in paths)
    return {
        f"{name}.weight": Layout(f"{inputs} {outputs}", kernels),
        f"{name}.bias": Layout(outputs, biases),
    }


def rows(
    name: str, path: str, inputs: str = "width", outputs: str = "width"
) -> Layouts:
    """Returns the layouts of a dense layer with a weight [out, in], its transpose."""
    kernel, bias = (f"{path}/kernel",), (f"{path}/bias",)
    return {
        f"{name}.weight": Layout(
            f"{outputs} {inputs}", kernel, np.transpose, np.transpose
        ),
        f"{name}.bias": Layout(outputs, bias),
    }


def make_params(
    tensors: Mapping[str, chex.Array],
    layouts: Layouts,
    ignored: Set[str] = frozenset(),
) -> chex.ArrayTree:
    """Returns the params that tensors hold, as a nested dict of arrays.

    ``ignored`` are names of tensors that are no parameters.
    """
    source = describe(tensors)
    _check_names(source, tensors, layouts, ignored)
    flat: dict[str, chex.Array] = {}
    sizes = {"1": 1}
    for name, layout in layouts.items():
        tensor = np.asarray(tensors[name])
        _check_shape(source, name, tensor.shape, layout.axes, sizes)
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(
                f"{source}: '{name}' has dtype {tensor.dtype}, not of floats; use "
                "weights that are not quantized"
            )
        parts = np.split(layout.read(tensor), len(layout.paths), axis=-1)
        flat |= {path: jnp.array(part) for path, part in zip(layout.paths, parts)}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def make_tensors(
    flat: Mapping[str, chex.Array],
    layouts: Layouts,
    like: Mapping[str, chex.Array] | None = None,
    ignored: Set[str] = frozenset(),
) -> dict[str, np.ndarray]:
    """Returns the tensors that hold params by their paths, on the host.

    Tensors have the dtypes of ``like``; by default, of the params.
    """
    paths = [path for layout in layouts.values() for path in layout.paths]
    _check_names(describe(flat), flat, paths)
    if like is not None:
        _check_names(describe(like), like, layouts, ignored)
    tensors, sizes = {}, {"1": 1}
    for name, layout in layouts.items():
        parts = [np.asarray(flat[path]) for path in layout.paths]
        tensor = layout.write(
            parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
        )
        path = layout.paths[0]
        _check_shape(describe(flat), path, tensor.shape, layout.axes, sizes)
        if like is not None:
            shape = like[name].shape
            _check_shape(describe(like), name, shape, layout.axes, sizes)
            tensor = tensor.astype(like[name].dtype, copy=False)
        tensors[name] = tensor
    return tensors


def flatten(params: chex.ArrayTree) -> Params:
    return Params(flax.traverse_util.flatten_dict(params, sep="/"))


def count_layers(names: Iterable[str], pattern: str) -> int:
    """Returns the number of different matches of the pattern's group.

    Names are checked later, so the layers need not be 0, 1, 2, ... here.
    """
    matches = (re.match(pattern, name) for name in names)
    return len({match[1] for match in matches if match})


def _check_names(
    source: str,
    tensors: Mapping[str, Any],
    expected: Collection[str],
    ignored: Set[str] = frozenset(),
) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ValueError(
            f"{source}: {files.listed(missing)} missing; {_REMEDY}, and if they are in "
            "several files, load their model.safetensors.index.json"
        )
    unknown = sorted(tensors.keys() - set(expected) - ignored)
    if unknown:
        raise ValueError(
            f"{source}: {files.listed(unknown)} unknown, without a place in the model; "
            f"{_REMEDY}, or pass a mapping without them"
        )


def _check_shape(
    source: str, name: str, shape: tuple[int, ...], axes: str, sizes: dict[str, int]
) -> None:
    """Checks a shape, and notes the sizes that are seen for the first time."""
    expected = []
    for axis, size in zip(axes.split(), (*shape, 0, 0, 0, 0)):
        factor, _, base = axis.rpartition("*")
        times = int(factor or 1)
        expected.append(times * sizes.setdefault(base, size // times))
    if shape != tuple(expected):
        raise ValueError(
            f"{source}: '{name}' has shape {shape}, but beside the others it should "
            f"have {tuple(expected)}; {_REMEDY}"
        )


def describe(tensors: Mapping[str, Any]) -> str:
    """Returns words for the place that tensors come from, for a message."""
    if isinstance(tensors, Tensors):
        return f"'{tensors.path}'"
    return "the params" if isinstance(tensors, Params) else "the mapping of tensors"
