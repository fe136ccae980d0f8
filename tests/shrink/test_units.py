"""Units of networks, against what one sees in the network's definition."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snipjax import models, shrink
from snipjax.models import transformer, vit
from tests.shrink.networks import noise


def of_module(module: nn.Module, *shape: int, dtype: Any = jnp.float32) -> Any:
    x = jnp.zeros(shape, dtype)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    return shrink.units(module.apply, params, x)


def sizes(units: shrink.Units) -> dict[str, int]:
    return {layer.name.removeprefix("params/"): layer.size for layer in units.layers}


def test_a_channel_has_all_rows_behind_a_flattened_image() -> None:
    units = of_module(models.create("lenet_5_caffe", 10), 1, 28, 28, 1)
    assert list(sizes(units).values()) == [20, 50, 500]
    (dense,) = [m for m in units.layers[1].members if m.feeds]
    # 4 x 4 pixels of 50 channels each, the channel last.
    assert dense.positions[3].tolist() == [50 * pixel + 3 for pixel in range(16)]


def test_a_unit_of_an_lstm_is_in_its_four_gates_and_its_state() -> None:
    units = of_module(models.recurrent.Recurrent(10, units=8), 1, 3, 5, 1)
    assert sizes(units) == {"Dense_0/kernel": 8, "cell/gates/kernel": 8}
    gates = [m for m in units.layers[1].members if m.name.endswith("gates/kernel")]
    # The rows of the state come after those of the input.
    assert [(m.axis, m.positions[2].tolist(), m.feeds) for m in gates] == [
        (0, [10], True),
        (1, [2, 10, 18, 26], False),
    ]


def test_units_of_a_transformer_are_heads_and_features_of_the_mlp() -> None:
    units = of_module(vit.ViT(3, width=8, depth=1, heads=2, patch=2), 1, 4, 4, 1)
    assert sizes(units) == {"block_0/key/kernel": 2, "block_0/mlp_in/kernel": 32}
    config = transformer.Config(vocab_size=11, length=4, width=8, depth=1, heads=2)
    units = of_module(transformer.Transformer(config), 1, 4, dtype=jnp.int32)
    assert sizes(units) == {"block_0/key/kernel": 2, "block_0/mlp_in/kernel": 32}


def test_channels_of_a_residual_stream_go_together() -> None:
    network = models.resnet.ResNet(10, (2, 1), width=4, is_for_small_images=True)
    units = of_module(network, 1, 8, 8, 3)
    assert sorted(layer.size for layer in units.layers) == [4, 4, 4, 8, 8]
    (stream,) = [
        layer for layer in units.layers if layer.name == "params/Conv_0/kernel"
    ]
    kernels = {
        m.name.split("/")[1]: m.axis for m in stream.members if "kernel" in m.name
    }
    assert set(kernels) == {
        *("Conv_0", "group_0_block_0", "group_0_block_1", "group_1_block_0")
    }


def test_what_a_softmax_normalizes_stays() -> None:
    def apply_fn(params: Any, x: Any) -> Any:
        return jax.nn.softmax(x @ params["v"]) @ params["w"]

    params = {"v": jnp.ones((2, 3)), "w": jnp.ones((3, 1))}
    assert not shrink.units(apply_fn, params, jnp.ones((1, 2))).layers


def test_an_operation_that_is_not_understood_is_named_and_nothing_near_it_goes() -> (
    None
):
    def apply_fn(params: Any, x: Any) -> Any:
        y = jnp.tanh(jnp.tanh(x @ params["u"]) @ params["v"])
        return jnp.abs(jnp.fft.rfft(y)) @ params["w"]

    params = {"u": jnp.ones((2, 5)), "v": jnp.ones((5, 4)), "w": jnp.ones((3, 1))}
    units = shrink.units(apply_fn, params, jnp.ones((1, 2)))
    assert units.unknown == ("fft",)
    assert sizes(units) == {"u": 5}


def test_a_mean_over_units_is_left_alone_unless_asked_for() -> None:
    def apply_fn(params: Any, x: Any) -> Any:
        y = x @ params["v"]
        return (y - jnp.mean(y, -1, keepdims=True)) @ params["w"]

    params = {"v": noise((2, 4)), "w": noise((4, 1))}
    x = noise((3, 2))
    assert not shrink.units(apply_fn, params, x).layers
    units = shrink.units(apply_fn, params, x, over_means=True)
    assert units.means == ("v",) and sizes(units) == {"v": 4}
    mask = shrink.keep({"v": jnp.array([1.0, 9.0, 1.0, 9.0])}, units, 0.5)
    removed = shrink.removed(units, mask)
    found = jax.jit(removed.function(apply_fn))(removed.params(params), x)
    kept = {"v": params["v"][:, 1::2], "w": params["w"][1::2]}
    np.testing.assert_allclose(found, jax.jit(apply_fn)(kept, x), atol=1e-6)
