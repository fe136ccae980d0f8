"""Weights of GPT-2 in Hugging Face's layout."""

import re
from collections.abc import Mapping
from typing import Any

import chex
import numpy as np

from snipjax.io.layouts import (
    Layout,
    Layouts,
    columns,
    count_layers,
    describe,
    flatten,
    make_params,
    make_tensors,
    norm,
)


def from_tensors(tensors: Mapping[str, chex.Array]) -> chex.ArrayTree:
    """Returns the params of a :class:`snipjax.models.transformer.Transformer`.

    Buffers (``attn.bias``, ``attn.masked_bias``) are ignored, and so is an
    ``lm_head.weight`` that is the embedding of the tokens. The tensors tell all sizes
    but the number of heads: GPT-2's heads have 64 units.

    Args:
      tensors: arrays of a ``GPT2LMHeadModel`` or ``GPT2Model``, by names such as
        ``h.0.attn.c_attn.weight``, with or without ``transformer.`` before them.

    Returns:
      A pytree of arrays in the dtypes of the tensors; kernels are
      ``[inputs, outputs]``.

    Raises:
      ValueError: if a tensor is missing, unknown or of a wrong shape.

    Example:
      >>> from snipjax.models import transformer
      >>> config = transformer.Config(vocab_size=7, length=4, width=6, depth=1, heads=2)
      >>> model = transformer.Transformer(config)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), int))
      >>> params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes["params"])
      >>> tensors = to_tensors(params)
      >>> tensors["transformer.h.0.attn.c_attn.weight"].shape
      (6, 18)
      >>> chex.assert_trees_all_equal(from_tensors(tensors), params)

    Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """
    prefix = _prefix(tensors)
    layouts = _layouts(prefix, count_layers(tensors, rf"{prefix}h\.(\d+)\."))
    return make_params(tensors, layouts, ignored=_copies(tensors, prefix))


def to_tensors(
    params: chex.ArrayTree, like: Mapping[str, chex.Array] | None = None
) -> dict[str, np.ndarray]:
    """Returns the tensors of a GPT-2 in Hugging Face's layout, of these params.

    Args:
      params: pytree of a :class:`snipjax.models.transformer.Transformer`.
      like: tensors that give names and dtypes, e.g. the tensors that the params came
        from. Their buffers are copied; ``lm_head.weight``, if they have it, is the
        embedding of the tokens. By default the names are a ``GPT2LMHeadModel``'s, and
        the dtypes the params' own.

    Returns:
      NumPy arrays by their names; weights of attention and dense layers are
      ``[inputs, outputs]``.

    Raises:
      ValueError: if the params are another model's.

    Example:
      >>> from snipjax.models import transformer
      >>> config = transformer.Config(vocab_size=7, length=4, width=6, depth=1, heads=2)
      >>> model = transformer.Transformer(config)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), int))
      >>> params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes["params"])
      >>> to_tensors(params)["transformer.wte.weight"].shape
      (7, 6)
    """
    prefix = "transformer." if like is None else _prefix(like)
    flat = flatten(params)
    layouts = _layouts(prefix, count_layers(flat, r"block_(\d+)/"))
    if like is None:
        return make_tensors(flat, layouts)
    copies = _copies(like, prefix)
    tensors = make_tensors(flat, layouts, like, ignored=copies)
    for name in copies:
        is_head = name == "lm_head.weight"
        tensors[name] = tensors[f"{prefix}wte.weight"] if is_head else like[name]
    return tensors


def _layouts(prefix: str, depth: int) -> Layouts:
    layouts = {
        f"{prefix}wte.weight": Layout("vocabulary width", ("tokens/embedding",)),
        f"{prefix}wpe.weight": Layout("length width", ("positions",)),
        **norm(f"{prefix}ln_f", "final_norm"),
    }
    for i in range(depth):
        layer, block = f"{prefix}h.{i}", f"block_{i}"
        attention = [f"{block}/{name}" for name in ("query", "key", "value")]
        layouts |= {
            **norm(f"{layer}.ln_1", f"{block}/attention_norm"),
            **columns(f"{layer}.attn.c_attn", attention, outputs="3*width"),
            **columns(f"{layer}.attn.c_proj", [f"{block}/attention_out"]),
            **norm(f"{layer}.ln_2", f"{block}/mlp_norm"),
            **columns(f"{layer}.mlp.c_fc", [f"{block}/mlp_in"], outputs="4*width"),
            **columns(f"{layer}.mlp.c_proj", [f"{block}/mlp_out"], inputs="4*width"),
        }
    return layouts


def _prefix(tensors: Mapping[str, Any]) -> str:
    is_prefixed = any(name.startswith("transformer.") for name in tensors)
    return "transformer." if is_prefixed else ""


def _copies(tensors: Mapping[str, chex.Array], prefix: str) -> set[str]:
    """Returns names of buffers, and of the embedding as an output layer."""
    buffer = re.compile(rf"{prefix}h\.\d+\.attn\.(masked_)?bias")
    names = {name for name in tensors if buffer.fullmatch(name)}
    if not {"lm_head.weight", f"{prefix}wte.weight"} <= tensors.keys():
        return names
    head, embedding = tensors["lm_head.weight"], tensors[f"{prefix}wte.weight"]
    # A NaN, e.g. of a training that diverged, equals nothing, itself included.
    if not np.array_equal(head, embedding, equal_nan=True):
        raise ValueError(
            f"{describe(tensors)}: 'lm_head.weight' is not '{prefix}wte.weight', but "
            "the model has one embedding for both; use weights that are tied"
        )
    return names | {"lm_head.weight"}
