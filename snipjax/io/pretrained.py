"""Pretrained weights: files of safetensors in Hugging Face's layout, read and written.

    tensors = pretrained.load("gpt2/model.safetensors")
    params = pretrained.gpt2_params(tensors)
    params, mask = pruning.prune(loss_fn, params, batch, sparsity=0.5)
    pruned = pretrained.gpt2_tensors(params, like=tensors)
    pretrained.save("pruned/model.safetensors", pruned, tensors.metadata)

A tensor is read when it is asked for, so that what is in memory at once is the params
and a tensor. What is written has the names, layouts and dtypes of what was read, and
``transformers`` loads it again.
"""

import json
import os
import re
import struct
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import chex
import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

# The dense layers of a block that are side by side in one tensor of GPT-2.
_ATTENTION = ("query", "key", "value")
_EXAMPLES = 3  # names in an error
# Those of the format that NumPy has, of itself or by ml_dtypes.
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


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a model, read from its files when they are asked for.

    ``metadata`` is the text of the header, ``path`` what :func:`load` was given.
    """

    def __init__(
        self, path: Path, stored: Mapping[str, "_Stored"], metadata: Mapping[str, str]
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
      A mapping from names to arrays, each of them read when it is asked for.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a file is damaged, is not of safetensors, or is not beside the
        index that names it; from the mapping, if a file has become shorter since, or
        a tensor is of a dtype that NumPy and JAX do not have.

    Example:
      >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
      >>> save(path, {"w": jnp.array([1.0, 0.0])})
      >>> load(path)["w"]
      array([1., 0.], dtype=float32)
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

    It is written beside ``path`` and then takes its place; where that fails, what was
    there before is untouched.

    Args:
      path: of the file; one that is there is replaced.
      tensors: names and arrays.
      metadata: text for the header, e.g. ``load(path).metadata``. By default
        ``{"format": "pt"}``, by which ``transformers`` knows the layout.

    Raises:
      ValueError: if metadata is not text.
      OSError: if it cannot be written, as where the disk is full.

    Example:
      >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
      >>> save(path, {"w": jnp.ones(2, jnp.bfloat16)}, {"format": "pt", "by": "me"})
      >>> load(path).metadata["by"]
      'me'
    """
    path = Path(path)
    # The format is of rows one after the other, which arrays in memory need not be.
    arrays = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    metadata = {"format": "pt"} if metadata is None else dict(metadata)
    _check_text(metadata)
    with (
        _write_errors(path),
        tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}."
        ) as directory,
    ):
        written = Path(directory, path.name)
        written.touch()
        mode = written.stat().st_mode  # safetensors takes the others' rights away
        safetensors.numpy.save_file(arrays, written, metadata)
        written.chmod(mode)
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.replace(path)


def gpt2_params(tensors: Mapping[str, chex.Array]) -> chex.ArrayTree:
    """Returns the params of :class:`snipjax.models.transformer.Transformer`.

    Sizes are those of the tensors, but for the number of heads, which they do not
    tell: GPT-2's heads have 64 units.

    Args:
      tensors: of a ``GPT2LMHeadModel`` or ``GPT2Model``, e.g. of :func:`load`: names
        as ``h.0.attn.c_attn.weight`` with or without ``transformer.`` before them.
        Buffers (``attn.bias``, ``attn.masked_bias``) and an ``lm_head.weight`` that is
        the embedding of the tokens are passed over.

    Returns:
      A nested dict of arrays in the dtypes of the tensors.

    Raises:
      ValueError: if a tensor is missing, unknown, of another shape than the others
        make it, or not of floats; or if ``lm_head.weight`` is not tied.

    Example:
      >>> from snipjax.models import transformer
      >>> config = transformer.Config(vocab_size=7, length=4, width=6, depth=1, heads=2)
      >>> model = transformer.Transformer(config)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), int))
      >>> params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes["params"])
      >>> tensors = gpt2_tensors(params)
      >>> tensors["transformer.h.0.attn.c_attn.weight"].shape
      (6, 18)
      >>> chex.assert_trees_all_equal(gpt2_params(tensors), params)

    Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """
    prefix = _gpt2_prefix(tensors)
    vocab_size, width = _shape(tensors, f"{prefix}wte.weight", 2)
    length, _ = _shape(tensors, f"{prefix}wpe.weight", 2)
    depth = _depth(tensors, rf"{re.escape(prefix)}h\.(\d+)\.")
    layouts = _gpt2_layouts(prefix, vocab_size, length, width, depth)
    return _params(tensors, layouts, passed_over=_gpt2_copies(tensors, prefix))


def gpt2_tensors(
    params: chex.ArrayTree, like: Mapping[str, chex.Array] | None = None
) -> dict[str, np.ndarray]:
    """Returns the tensors of which :func:`gpt2_params` makes these params.

    Args:
      params: of a :class:`snipjax.models.transformer.Transformer`, e.g. pruned ones.
      like: tensors whose names and dtypes the result has, e.g. those that the params
        came from; buffers are theirs, and ``lm_head.weight``, where they have it, is
        the embedding of the tokens. By default the names are those of a
        ``GPT2LMHeadModel`` and the dtypes those of the params.

    Returns:
      Names and arrays on the host, for :func:`save`.

    Raises:
      ValueError: if the params are not a transformer's, or have other layers than
        ``like``.

    Example:
      >>> from snipjax.models import transformer
      >>> config = transformer.Config(vocab_size=7, length=4, width=6, depth=1, heads=2)
      >>> model = transformer.Transformer(config, param_dtype=jnp.bfloat16)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), int))
      >>> params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes["params"])
      >>> gpt2_tensors(params)["transformer.wte.weight"].dtype
      dtype(bfloat16)
    """
    prefix = "transformer." if like is None else _gpt2_prefix(like)
    flat = _flat(params)
    vocab_size, width = _shape(flat, "tokens/embedding", 2)
    length, _ = _shape(flat, "positions", 2)
    depth = _depth(flat, r"block_(\d+)/")
    layouts = _gpt2_layouts(prefix, vocab_size, length, width, depth)
    if like is None:
        return _tensors(flat, layouts)
    copies = _gpt2_copies(like, prefix)
    tensors = _tensors(flat, layouts, like, passed_over=copies)
    for name in copies:
        is_head = name == "lm_head.weight"
        tensors[name] = tensors[f"{prefix}wte.weight"] if is_head else like[name]
    return tensors


def vit_params(tensors: Mapping[str, chex.Array]) -> chex.ArrayTree:
    """Returns the params of :class:`snipjax.models.vit.ViT`.

    Sizes are those of the tensors, but for the number of heads, which they do not
    tell: those of ViT-Ti, S and B have 64 units. The model's ``epsilon`` is to be the
    ``layer_norm_eps`` of the weights' ``config.json``, which is 1e-12.

    Args:
      tensors: of a ``ViTForImageClassification``, e.g. of :func:`load`: names as
        ``vit.encoder.layer.0.attention.attention.query.weight``.

    Returns:
      A nested dict of arrays in the dtypes of the tensors.

    Raises:
      ValueError: if a tensor is missing, unknown, of another shape than the others
        make it, or not of floats.

    Example:
      >>> from snipjax.models import vit
      >>> model = vit.ViT(num_classes=3, width=6, depth=1, heads=2, patch=4)
      >>> images = jnp.zeros((1, 8, 8, 3))
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes["params"])
      >>> tensors = vit_tensors(params)
      >>> tensors["vit.embeddings.patch_embeddings.projection.weight"].shape
      (6, 3, 4, 4)
      >>> chex.assert_trees_all_equal(vit_params(tensors), params)

    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
    """
    embeddings = "vit.embeddings"
    _, length, _ = _shape(tensors, f"{embeddings}.position_embeddings", 3)
    width, channels, patch, _ = _shape(
        tensors, f"{embeddings}.patch_embeddings.projection.weight", 4
    )
    classes, _ = _shape(tensors, "classifier.weight", 2)
    depth = _depth(tensors, r"vit\.encoder\.layer\.(\d+)\.")
    return _params(
        tensors, _vit_layouts(length, channels, patch, width, depth, classes)
    )


def vit_tensors(
    params: chex.ArrayTree, like: Mapping[str, chex.Array] | None = None
) -> dict[str, np.ndarray]:
    """Returns the tensors of which :func:`vit_params` makes these params.

    Args:
      params: of a :class:`snipjax.models.vit.ViT`, e.g. pruned ones.
      like: tensors whose dtypes the result has, e.g. those that the params came from.
        By default the dtypes are those of the params.

    Returns:
      Names and arrays on the host, for :func:`save`.

    Raises:
      ValueError: if the params are not a ViT's, or have other layers than ``like``.

    Example:
      >>> from snipjax.models import vit
      >>> model = vit.ViT(num_classes=3, width=6, depth=1, heads=2, patch=4)
      >>> images = jnp.zeros((1, 8, 8, 3))
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes["params"])
      >>> vit_tensors(params)["classifier.weight"].shape
      (3, 6)
    """
    flat = _flat(params)
    length, _ = _shape(flat, "positions", 2)
    patch, _, channels, width = _shape(flat, "patches/kernel", 4)
    _, classes = _shape(flat, "classifier/kernel", 2)
    depth = _depth(flat, r"block_(\d+)/")
    layouts = _vit_layouts(length, channels, patch, width, depth, classes)
    return _tensors(flat, layouts, like)


# ------------------------------------------------------------------ the layouts


class _Layout(NamedTuple):
    """A tensor of a file, and the parameters that it is.

    ``read`` makes of it the parameters side by side along their last axis, ``write``
    the tensor of those.
    """

    shape: tuple[int, ...]
    paths: tuple[str, ...]
    read: Callable[[np.ndarray], np.ndarray] = lambda x: x
    write: Callable[[np.ndarray], np.ndarray] = lambda x: x


Layouts = dict[str, _Layout]


def _gpt2_layouts(
    prefix: str, vocab_size: int, length: int, width: int, depth: int
) -> Layouts:
    layouts = {
        f"{prefix}wte.weight": _Layout((vocab_size, width), ("tokens/embedding",)),
        f"{prefix}wpe.weight": _Layout((length, width), ("positions",)),
        **_norm(f"{prefix}ln_f", "final_norm", width),
    }
    for i in range(depth):
        layer, block = f"{prefix}h.{i}", f"block_{i}"
        attention = [f"{block}/{name}" for name in _ATTENTION]
        layouts |= {
            **_norm(f"{layer}.ln_1", f"{block}/attention_norm", width),
            **_columns(f"{layer}.attn.c_attn", attention, width, 3 * width),
            **_columns(
                f"{layer}.attn.c_proj", [f"{block}/attention_out"], width, width
            ),
            **_norm(f"{layer}.ln_2", f"{block}/mlp_norm", width),
            **_columns(f"{layer}.mlp.c_fc", [f"{block}/mlp_in"], width, 4 * width),
            **_columns(f"{layer}.mlp.c_proj", [f"{block}/mlp_out"], 4 * width, width),
        }
    return layouts


def _vit_layouts(
    length: int, channels: int, patch: int, width: int, depth: int, classes: int
) -> Layouts:
    embeddings = "vit.embeddings"
    patches = f"{embeddings}.patch_embeddings.projection"
    layouts = {
        f"{embeddings}.cls_token": _Layout(
            (1, 1, width), ("class_token",), lambda x: x[0, 0], lambda x: x[None, None]
        ),
        f"{embeddings}.position_embeddings": _Layout(
            (1, length, width), ("positions",), lambda x: x[0], lambda x: x[None]
        ),
        # [out, in, height, width] in the file, [height, width, in, out] here.
        f"{patches}.weight": _Layout(
            (width, channels, patch, patch),
            ("patches/kernel",),
            lambda x: x.transpose(2, 3, 1, 0),
            lambda x: x.transpose(3, 2, 0, 1),
        ),
        f"{patches}.bias": _Layout((width,), ("patches/bias",)),
        **_norm("vit.layernorm", "final_norm", width),
        **_rows("classifier", "classifier", width, classes),
    }
    for i in range(depth):
        layer, block = f"vit.encoder.layer.{i}", f"block_{i}"
        out = f"{layer}.attention.output.dense"
        layouts |= {
            **_norm(f"{layer}.layernorm_before", f"{block}/attention_norm", width),
            **_rows(out, f"{block}/attention_out", width, width),
            **_norm(f"{layer}.layernorm_after", f"{block}/mlp_norm", width),
            **_rows(f"{layer}.intermediate.dense", f"{block}/mlp_in", width, 4 * width),
            **_rows(f"{layer}.output.dense", f"{block}/mlp_out", 4 * width, width),
        }
        for name in _ATTENTION:
            layouts |= _rows(
                f"{layer}.attention.attention.{name}", f"{block}/{name}", width, width
            )
    return layouts


def _norm(name: str, path: str, width: int) -> Layouts:
    return {
        f"{name}.weight": _Layout((width,), (f"{path}/scale",)),
        f"{name}.bias": _Layout((width,), (f"{path}/bias",)),
    }


def _columns(name: str, paths: Iterable[str], inputs: int, outputs: int) -> Layouts:
    """Dense layers side by side, whose weight is [in, out] as their kernels are."""
    kernels = tuple(f"{path}/kernel" for path in paths)
    biases = tuple(f"{path}/bias" for path in paths)
    return {
        f"{name}.weight": _Layout((inputs, outputs), kernels),
        f"{name}.bias": _Layout((outputs,), biases),
    }


def _rows(name: str, path: str, inputs: int, outputs: int) -> Layouts:
    """A dense layer whose weight is [out, in], the transpose of its kernel."""
    return {
        f"{name}.weight": _Layout(
            (outputs, inputs), (f"{path}/kernel",), np.transpose, np.transpose
        ),
        f"{name}.bias": _Layout((outputs,), (f"{path}/bias",)),
    }


def _gpt2_prefix(tensors: Mapping[str, Any]) -> str:
    return "transformer." if "transformer.wte.weight" in tensors else ""


def _gpt2_copies(tensors: Mapping[str, chex.Array], prefix: str) -> set[str]:
    """Names of what is no parameter: buffers, and the embedding as an output layer."""
    buffer = re.compile(rf"{re.escape(prefix)}h\.\d+\.attn\.(masked_)?bias")
    names = {name for name in tensors if buffer.fullmatch(name)}
    if "lm_head.weight" not in tensors:
        return names
    head, embedding = tensors["lm_head.weight"], tensors[f"{prefix}wte.weight"]
    # A NaN, as of a training that diverged, is equal to nothing, itself included.
    if not np.array_equal(head, embedding, equal_nan=True):
        raise ValueError(
            f"{_source(tensors)}: 'lm_head.weight' is not '{prefix}wte.weight', but "
            "the model has one embedding for both; use weights that are tied"
        )
    return names | {"lm_head.weight"}


# ----------------------------------------------------- between tensors and params


def _params(
    tensors: Mapping[str, chex.Array],
    layouts: Layouts,
    passed_over: Set[str] = frozenset(),
) -> chex.ArrayTree:
    source = _source(tensors)
    _check_names(source, tensors, layouts, passed_over)
    flat = {}
    for name, layout in layouts.items():
        tensor = np.asarray(tensors[name])
        _check_shape(source, name, tensor.shape, layout.shape)
        _check_floating(source, name, tensor.dtype)
        parts = np.split(layout.read(tensor), len(layout.paths), axis=-1)
        flat |= {path: jnp.array(part) for path, part in zip(layout.paths, parts)}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _tensors(
    flat: Mapping[str, chex.Array],
    layouts: Layouts,
    like: Mapping[str, chex.Array] | None = None,
    passed_over: Set[str] = frozenset(),
) -> dict[str, np.ndarray]:
    paths = [path for layout in layouts.values() for path in layout.paths]
    _check_names(_source(flat), flat, paths)
    if like is not None:
        _check_names(_source(like), like, layouts, passed_over)
    tensors = {}
    for name, layout in layouts.items():
        parts = [np.asarray(flat[path]) for path in layout.paths]
        tensor = layout.write(
            parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
        )
        _check_shape(_source(flat), layout.paths[0], tensor.shape, layout.shape)
        if like is not None:
            _check_shape(_source(like), name, like[name].shape, layout.shape)
            tensor = tensor.astype(like[name].dtype, copy=False)
        tensors[name] = tensor
    return tensors


class _Params(dict[str, chex.Array]):
    """Params by their paths, as ``block_0/query/kernel``."""


def _flat(params: chex.ArrayTree) -> _Params:
    return _Params(flax.traverse_util.flatten_dict(params, sep="/"))


def _depth(names: Iterable[str], pattern: str) -> int:
    """The number of layers; that they are 0, 1, 2, ... the names are checked for."""
    matches = (re.match(pattern, name) for name in names)
    return len({match[1] for match in matches if match})


def _shape(tensors: Mapping[str, chex.Array], name: str, rank: int) -> tuple[int, ...]:
    _check_names(_source(tensors), tensors, [name], passed_over=tensors.keys())
    shape = np.shape(tensors[name])
    if len(shape) != rank:
        raise ValueError(
            f"{_source(tensors)}: '{name}' has shape {shape}, not {rank} dimensions; "
            f"{_REMEDY}"
        )
    return shape


# ------------------------------------------------------------------------- errors

_REMEDY = "check that these weights are of this kind of model"


def _check_names(
    source: str,
    tensors: Mapping[str, Any],
    expected: Collection[str],
    passed_over: Set[str] = frozenset(),
) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ValueError(
            f"{source}: {_listed(missing)} missing; {_REMEDY}, and if they are in "
            "several files, load their model.safetensors.index.json"
        )
    unknown = sorted(tensors.keys() - set(expected) - passed_over)
    if unknown:
        raise ValueError(
            f"{source}: {_listed(unknown)} unknown, without a place in the model; "
            f"{_REMEDY}, or pass a mapping without what is not of it"
        )


def _check_shape(
    source: str, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    if shape != expected:
        raise ValueError(
            f"{source}: '{name}' has shape {shape}, but beside the others it should "
            f"have {expected}; {_REMEDY}"
        )


def _check_floating(source: str, name: str, dtype: Any) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{source}: '{name}' has dtype {dtype}, not of floats; use weights that "
            "are not quantized"
        )


def _check_text(metadata: Mapping[Any, Any]) -> None:
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise ValueError(
                f"metadata has {key!r}: {value!r}, but a safetensors file holds text "
                "only; convert both to str, e.g. with json.dumps"
            )


def _source(tensors: Mapping[str, Any]) -> str:
    if isinstance(tensors, Tensors):
        return f"'{tensors.path}'"
    return "the params" if isinstance(tensors, _Params) else "the mapping of tensors"


def _listed(names: list[str]) -> str:
    text = ", ".join(f"'{name}'" for name in names[:_EXAMPLES])
    others = len(names) - _EXAMPLES
    return f"{text} and {others} more" if others > 0 else text


# -------------------------------------------------------------------------- files


class _Stored(NamedTuple):
    """Where a tensor lies: an open file, and what its header says."""

    file: BinaryIO
    dtype: str
    shape: tuple[int, ...]
    start: int  # in the file
    end: int


def _open(path: Path) -> tuple[dict[str, _Stored], dict[str, str]]:
    """The tensors of a file, and the text of its header."""
    file = path.open("rb")
    try:
        # Checks all that a header can have wrong, the size of the file included.
        with safe_open(path, framework="numpy"):
            pass
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    except (SafetensorError, struct.error, ValueError) as error:
        file.close()
        raise ValueError(
            f"'{path}' is damaged or not a safetensors file ({error}); fetch it again: "
            "what is small may be Git LFS's pointer to it, and a pytorch_model.bin is "
            "to be converted with save_pretrained"
        ) from error
    metadata = header.pop("__metadata__", None) or {}
    stored = {
        name: _Stored(
            file,
            entry["dtype"],
            tuple(entry["shape"]),
            *(8 + length + offset for offset in entry["data_offsets"]),
        )
        for name, entry in header.items()
    }
    return stored, metadata


def _read(name: str, stored: _Stored) -> np.ndarray:
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
            stored.file.fileno(), [content[position:]], stored.start + position
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
            f"'{path}' names files that are not beside it ({_listed(names)}); its "
            "'weight_map' should have names without directories"
        )
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise ValueError(
            f"'{path}' names {_listed(missing)}, not to be found beside it; fetch all "
            "its files into the same directory"
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


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"'{path}' cannot be written ({error}); what was there before is whole. "
            "Make room, or choose another place"
        ) from error
