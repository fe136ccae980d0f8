"""Weights of ViT in Hugging Face's layout."""

from collections.abc import Mapping

import chex
import numpy as np

from snipjax.io.layouts import (
    Layout,
    Layouts,
    count_layers,
    flatten,
    make_params,
    make_tensors,
    norm,
    rows,
)


def from_tensors(tensors: Mapping[str, chex.Array]) -> chex.ArrayTree:
    """Returns the params of a :class:`snipjax.models.vit.ViT`.

    The tensors tell all sizes but the number of heads: the heads of ViT-Ti, S and B
    have 64 units. Set the model's ``epsilon`` to the ``layer_norm_eps`` of the weights'
    ``config.json``, which is 1e-12.

    Args:
      tensors: arrays of a ``ViTForImageClassification``, by names such as
        ``vit.encoder.layer.0.attention.attention.query.weight``.

    Returns:
      A pytree of arrays in the dtypes of the tensors; kernels are ``[..., inputs,
      outputs]``.

    Raises:
      ValueError: if a tensor is missing, unknown or of a wrong shape.

    Example:
      >>> from snipjax.models import vit
      >>> model = vit.ViT(num_classes=3, width=6, depth=1, heads=2, patch=4)
      >>> images = jnp.zeros((1, 8, 8, 3))
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes["params"])
      >>> tensors = to_tensors(params)
      >>> tensors["vit.embeddings.patch_embeddings.projection.weight"].shape
      (6, 3, 4, 4)
      >>> chex.assert_trees_all_equal(from_tensors(tensors), params)

    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
    """
    depth = count_layers(tensors, r"vit\.encoder\.layer\.(\d+)\.")
    return make_params(tensors, _layouts(depth))


def to_tensors(
    params: chex.ArrayTree, like: Mapping[str, chex.Array] | None = None
) -> dict[str, np.ndarray]:
    """Returns the tensors of a ViT in Hugging Face's layout, of these params.

    Args:
      params: pytree of a :class:`snipjax.models.vit.ViT`.
      like: tensors that give dtypes, e.g. the tensors that the params came from; by
        default, the params give them.

    Returns:
      NumPy arrays by their names; weights of dense layers are ``[outputs, inputs]``.

    Raises:
      ValueError: if the params are another model's.

    Example:
      >>> from snipjax.models import vit
      >>> model = vit.ViT(num_classes=3, width=6, depth=1, heads=2, patch=4)
      >>> images = jnp.zeros((1, 8, 8, 3))
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes["params"])
      >>> to_tensors(params)["classifier.weight"].shape
      (3, 6)
    """
    flat = flatten(params)
    return make_tensors(flat, _layouts(count_layers(flat, r"block_(\d+)/")), like)


def _layouts(depth: int) -> Layouts:
    embeddings = "vit.embeddings"
    patches = f"{embeddings}.patch_embeddings.projection"
    layouts = {
        # [out, in, height, width] in the file, [height, width, in, out] here.
        f"{patches}.weight": Layout(
            "width channels patch patch",
            ("patches/kernel",),
            lambda x: x.transpose(2, 3, 1, 0),
            lambda x: x.transpose(3, 2, 0, 1),
        ),
        f"{patches}.bias": Layout("width", ("patches/bias",)),
        f"{embeddings}.cls_token": Layout(
            "1 1 width", ("class_token",), lambda x: x[0, 0], lambda x: x[None, None]
        ),
        f"{embeddings}.position_embeddings": Layout(
            "1 length width", ("positions",), lambda x: x[0], lambda x: x[None]
        ),
        **norm("vit.layernorm", "final_norm"),
        **rows("classifier", "classifier", outputs="classes"),
    }
    for i in range(depth):
        layer, block = f"vit.encoder.layer.{i}", f"block_{i}"
        layouts |= {
            **norm(f"{layer}.layernorm_before", f"{block}/attention_norm"),
            **rows(f"{layer}.attention.output.dense", f"{block}/attention_out"),
            **norm(f"{layer}.layernorm_after", f"{block}/mlp_norm"),
            **rows(f"{layer}.intermediate.dense", f"{block}/mlp_in", outputs="4*width"),
            **rows(f"{layer}.output.dense", f"{block}/mlp_out", inputs="4*width"),
        }
        for name in ("query", "key", "value"):
            layouts |= rows(f"{layer}.attention.attention.{name}", f"{block}/{name}")
    return layouts
