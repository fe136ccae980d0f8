"""Prunable leaves, by names and shapes as every framework gives them."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from snipjax import masks
from snipjax._src import trees


def prunable_names(params: chex.ArrayTree, prunable: masks.Prunable) -> list[str]:
    return [
        name
        for (name, _), chosen in zip(
            trees.named_leaves(params), masks.are_prunable(params, prunable)
        )
        if chosen
    ]


def nested(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    tree: Any = np.ones(shape, np.float32)
    for part in reversed(name.split("/")):
        tree = {part: tree}
    return tree


KERNELS = {
    "Dense_0/kernel": (16, 1),
    "Dense_0/kernel ": (1, 1),
    "Conv_0/kernel": (1, 1, 1, 8),
    "MultiHeadDotProductAttention_0/query/kernel": (16, 2, 8),
    "AdaGroupNorm_0/Dense_0/kernel": (4, 8),
    "conv2_d/w": (3, 3, 1, 1),
    "layers/0/weight": (4, 3),
    "blocks/linear/weight": (6, 4, 3),
    "adaLN_modulation/kernel": (4, 8),
    "adaLN_modulation/weight": (4, 8),
    "lora_B": (1, 8),
    "0": (4, 1),
    "embedding": (10, 4),
    # matrices of one row or column
    "embedding ": (10, 1),
    "w": (4, 1),
    "Wx": (1, 4),
    "W_h": (1, 1),
    "A": (1, 4),
    "u1": (1, 4),
    "cell/w_i": (1, 12),  # Haiku's GRU
    "cell/weight_ih": (12, 1),  # Equinox's
    "weight_hh_l0_reverse": (12, 1),
    "lora_a": (4, 1),
    "out": (64, 1),
    "theta": (64, 1),
    "first": (3, 4),
    "b": (3, 4),
    # modules inside of modules named after a norm
    "pre_norm/linear/w": (3, 4),
    "prenorm/fn/to_qkv/weight": (3, 4),
    "spectral_norm/layer/weight": (3, 4),
    "bn_block/conv/w": (3, 3, 4, 4),
    "layer1.0.conv1.weight": (4, 3, 1, 1),  # keys of files
}
OTHERS = {
    "attention/bq": (2, 8),
    "attention/b_q": (2, 8),
    "layer1.0.bn1.weight": (4, 16),
    "layer1.0.bn1.bias": (4, 16),
    "norms/0/weight": (4, 16),
    "Dense_0/bias": (8,),
    "query/bias": (2, 8),  # attention, [heads, width]
    "blocks/attention/query/bias": (3, 2, 8),
    "blocks/ln/scale": (4, 16),  # stacked by nn.scan
    "blocks/fc/bias": (4, 16),
    "blocks/norm/weight": (4, 16),
    "res_net/batch_norm/scale": (1, 1, 1, 16),  # Haiku
    "res_net/batch_norm/offset": (1, 1, 1, 16),
    "my_normalizer/offset": (1, 16),
    "layer_stack/linear/b": (3, 16),
    "conv/bias": (8, 1, 1),  # Equinox
    "gn1/weight": (2, 8),
    "layers_0/b": (1, 8),
    "relative_position_bias_table": (169, 4),
    "mean": (1, 1, 1, 3),
    # magnitudes of weight norms, and scales
    "layers/0/g": (8, 1),  # Equinox
    "conv/weight_g": (8, 1),  # PyTorch
    "conv/weight_g ": (8, 1, 1, 1),
    "parametrizations.weight.original0": (8, 1),
    "gamma1": (1, 8),
    "gamma_1": (1, 8),
    "lambda1": (1, 8),
    "weight_scale": (8, 1),
    "cls_token": (1, 8),
}


def test_kernels() -> None:
    for name, shape in KERNELS.items():
        tree = nested(name.strip(), shape)
        assert prunable_names(tree, masks.kernels) == [name.strip()]


def test_what_is_no_kernel() -> None:
    for name, shape in OTHERS.items():
        assert prunable_names(nested(name.strip(), shape), masks.kernels) == [], name


def test_scales_of_a_weight_norm_are_no_weights() -> None:
    for name in ("layers/0/g", "gamma1", "lambda1"):
        assert prunable_names(nested(name, (8, 1)), masks.weights_and_biases) == []


NORMS = (
    *("BatchNorm_0", "LayerNorm_12", "RMSNorm_0", "GroupNorm_0", "InstanceNorm_0"),
    *("SyncBatchNorm2d", "norm", "norm1", "norm_2"),
    *("norm_f", "batch_norm", "batch_normalization_3", "conv_norm", "gn1"),
    *("post_attention_layernorm", "final_layer_norm", "input_layernorm", "gn_root"),
    *("bn", "bn2", "bn_conv1", "conv1_bn", "BN_0", "ln_1", "ln_f", "ln_post"),
    *("gn_proj", "layernorm_before", "layer_norm_after"),
)
NO_NORMS = (
    *("normal", "enormous", "Dense_0", "PreNormBlock_0", "norm_free_conv", "abn"),
    *("blnk", "adaLN_modulation"),
)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array, _: None) -> tuple[chex.Array, None]:
        y = nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm()(x))
        return x + nn.Dense(4, name="mlp")(nn.RMSNorm()(y)), None


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        axes, rngs = {"params": 0}, {"params": True}
        blocks = nn.scan(Block, variable_axes=axes, split_rngs=rngs, length=3)
        return nn.Dense(1)(blocks(name="blocks")(x, None)[0])


def test_kernels_of_layers_stacked_by_scan() -> None:
    params = Stacked().init(jax.random.key(0), jnp.ones((2, 4)))["params"]
    names = prunable_names(params, masks.kernels)
    assert names == [n for n, _ in trees.named_leaves(params) if n.endswith("kernel")]
    biases = set(prunable_names(params, masks.weights_and_biases)) - set(names)
    assert all(n.endswith("bias") and "Norm" not in n for n in biases)
    assert len(biases) == 6


class EveryLinenNorm(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        x = nn.Conv(4, (3,))(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.LayerNorm()(x)
        x = nn.GroupNorm(2)(x)
        x = nn.RMSNorm()(x)
        x = nn.InstanceNorm()(x)
        return nn.Dense(2)(x)


def test_weights_and_biases_of_a_linen_network() -> None:
    params = EveryLinenNorm().init(jax.random.key(0), jnp.ones((1, 5, 3)))["params"]
    assert prunable_names(params, masks.weights_and_biases) == [
        "Conv_0/bias",
        "Conv_0/kernel",
        "Dense_0/bias",
        "Dense_0/kernel",
    ]


class EveryNnxNorm(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.bn1 = nnx.BatchNorm(4, rngs=rngs)
        self.ln_f = nnx.LayerNorm(4, rngs=rngs)
        self.group_norm = nnx.GroupNorm(4, 2, rngs=rngs)
        self.norms = nnx.List([nnx.RMSNorm(4, rngs=rngs)])


def test_weights_and_biases_of_an_nnx_network() -> None:
    params = nnx.state(EveryNnxNorm(nnx.Rngs(0)), nnx.Param)
    names = prunable_names(params, masks.weights_and_biases)
    assert names == ["linear/bias", "linear/kernel"]


def test_names_of_normalization() -> None:
    for name in NORMS:
        params = {name: {"bias": np.ones(2), "weight": np.ones((2, 2))}}
        assert prunable_names(params, masks.weights_and_biases) == [], name
        assert prunable_names(params, masks.kernels) == [], name
    for name in NO_NORMS:
        params = {name: {"bias": np.ones(2)}}
        assert prunable_names(params, masks.weights_and_biases) == [f"{name}/bias"]


def test_a_leaf_called_scale_is_normalization_and_a_scalar_is_no_weight() -> None:
    params = {"x": {"scale": np.ones(2), "temperature": np.ones(()), "w": np.ones(2)}}
    assert prunable_names(params, masks.weights_and_biases) == ["x/w"]


# A pytree of bools.


def test_a_pytree_of_bools_says_what_is_prunable() -> None:
    params = {"a": np.ones((2, 2)), "b": np.ones(3), "c": np.ones(()), "d": None}
    chosen = {"a": False, "b": np.bool(True), "c": True, "d": None}
    assert prunable_names(params, chosen) == ["b"]
    mask = masks.global_topk(params, 0.4, chosen)
    assert mask["b"].tolist() == [True, True, False]
    assert mask["a"].shape == masks.ones(params, chosen)["a"].shape == ()


@pytest.mark.parametrize(
    ("prunable", "problem"),
    [
        ({"a": True}, "prunable does not have the structure of params .missing.*b"),
        ({"a": 1, "b": 0}, "prunable is a dict, which is neither a predicate"),
        ("kernels", "prunable is a str, which is neither.*masks.kernels"),
    ],
)
def test_what_says_nothing_about_prunable(prunable: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        masks.are_prunable({"a": np.ones(2), "b": np.ones(2)}, prunable)


# Leaves excluded by their names.

LAYERS = {
    "embedding": np.ones((4, 2)),
    "head": {"bias": np.ones(3), "kernel": np.ones((2, 3))},
    "layers_0": {"embedding": np.ones((2, 2)), "mlp": {"kernel": np.ones((2, 2))}},
    "layers_10": {"mlp": {"kernel": np.ones((2, 2))}},
}


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ((), ["embedding", "head/kernel", "layers_0/embedding", "0", "10"]),
        (("embedding",), ["head/kernel", "layers_0/embedding", "0", "10"]),
        (("*embedding", "head/*"), ["0", "10"]),
        (("layers_?/*", "*embedding"), ["head/kernel", "10"]),
        (("[he]*", "layers_0/e*"), ["0", "10"]),
    ],
)
def test_patterns_exclude(patterns: tuple[str, ...], left: list[str]) -> None:
    expected = [f"layers_{n}/mlp/kernel" if n.isdigit() else n for n in left]
    prunable = masks.excluding(masks.kernels, *patterns)
    assert prunable_names(LAYERS, prunable) == expected
    assert [r.path for r in masks.summary(masks.ones(LAYERS, prunable))] == expected


@pytest.mark.parametrize("pattern", ["*/embeding", "Head/*", "layers", ""])
def test_a_pattern_that_matches_nothing(pattern: str) -> None:
    inner = masks.excluding(masks.kernels, pattern)
    problem = rf"pattern '{re.escape(pattern)}' excludes nothing.*names most like it"
    for prunable in (inner, masks.excluding(inner, "head/*")):
        with pytest.raises(ValueError, match=problem):
            masks.global_topk(LAYERS, 0.5, prunable)
        with pytest.raises(ValueError, match=problem):
            jax.eval_shape(lambda p=prunable: masks.ones(LAYERS, p))


def test_a_pattern_that_is_no_string() -> None:
    with pytest.raises(ValueError, match=r"\['a'\] is a list, not a string"):
        masks.excluding(masks.kernels, ["a"])
