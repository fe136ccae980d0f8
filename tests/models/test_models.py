"""The networks have the published sizes, and are what the papers describe."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks, models
from snipjax.models import alexnet, recurrent, vgg, wide_resnet
from tests.models.equations import (
    batch_normed,
    convolved,
    dense,
    relu,
    sampled,
    shapes,
)
from tests.ops.agreement import quickly_compiled

MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)


# The LeNets' weights and biases are in Lee et al., ICLR 2019, table 1; the others' are
# sums over the layers that the paper describes, and round to its counts below.
WEIGHTS_AND_BIASES = {
    "lenet_300_100": 266_610,
    "lenet_5_caffe": 431_080,
    "vgg_c": 10_526_538,
    "vgg_d": 15_245_130,
    "vgg_like": 14_982_474,
    "alexnet_s": 5_070_218,
    "alexnet_b": 8_490_378,
    "wrn_16_8": 10_958_666,
    "wrn_16_10": 17_113_258,
    "wrn_22_2": 1_078_506,
    "wrn_22_8": 17_153_610,
    "lstm_s": 136_586,
    "lstm_b": 535_306,
    "gru_s": 103_690,
    "gru_b": 403_978,
}
# In table 2: sparsity, parameters and connections kept, as printed. WRN-16-8's
# 11.0m are printed as 10.0m, of which 548k would be more than 5%.
KEPT = {
    "vgg_c": (0.95, "10.5m", "526k"),
    "vgg_d": (0.95, "15.2m", "762k"),
    "vgg_like": (0.97, "15.0m", "449k"),
    "alexnet_s": (0.9, "5.1m", "507k"),
    "alexnet_b": (0.9, "8.5m", "849k"),
    "wrn_16_8": (0.95, "11.0m", "548k"),
    "wrn_16_10": (0.95, "17.1m", "856k"),
    "wrn_22_8": (0.95, "17.2m", "858k"),
    "lstm_s": (0.95, "137k", "6.8k"),
    "lstm_b": (0.95, "535k", "26.8k"),
    "gru_s": (0.95, "104k", "5.2k"),
    "gru_b": (0.95, "404k", "20.2k"),
}
# The number of batch norms; there are none in the LeNets and the recurrent networks.
NORMS = {
    **{"vgg_c": 15, "vgg_d": 15, "vgg_like": 14, "alexnet_s": 7, "alexnet_b": 7},
    **{"wrn_16_8": 13, "wrn_16_10": 13, "wrn_22_2": 19, "wrn_22_8": 19},
}
# With the parameters of norms: of pytorch-cifar, of pytorch-cifar-models (ResNet-20, 32
# and 56), and with 1000 classes of torchvision and of DeiT (and timm).
PARAMETERS = {
    "vgg_11_bn": 9_231_114,
    "vgg_16_bn": 14_728_266,
    "vgg_19_bn": 20_040_522,
    "resnet_18_cifar": 11_173_962,
    "resnet_20": 272_474,
    "resnet_32": 466_906,
    "resnet_56": 855_770,
    "resnet_18": 11_689_512,
    "resnet_50": 25_557_032,
    "vit_ti_16": 5_717_416,
    "vit_s_16": 22_050_664,
    "vit_b_16": 86_567_656,
}
FOR_IMAGENET = {"resnet_18", "resnet_50", "vit_ti_16", "vit_s_16", "vit_b_16"}
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", models.MODELS)
def test_a_network_has_the_published_size_and_the_arguments_it_is_given(
    name: str,
) -> None:
    image, classes = CIFAR, 10
    if name in FOR_IMAGENET:
        image, classes = IMAGENET, 1000
    elif name.startswith(("lenet", "lstm", "gru")):
        image = MNIST
    asked = set()

    def kernel_init(key: chex.PRNGKey, shape: chex.Shape, dtype: Any) -> chex.Array:
        asked.add(shape)
        return jnp.zeros(shape, dtype)

    model = models.create(name, classes, dtype=jnp.bfloat16, kernel_init=kernel_init)
    images = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    logits, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    assert (logits.shape, logits.dtype) == ((2, classes), jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    stats = jax.tree.leaves(variables.get("batch_stats", {}))
    params = jax.tree_util.tree_leaves_with_path(variables["params"])
    kernels = {leaf.shape for path, leaf in params if path[-1].key == "kernel"}
    assert kernels == asked

    size = prunable = 0
    for path, leaf in params:
        is_norm = "norm" in jax.tree_util.keystr(path).lower()
        assert masks.weights_and_biases(path, leaf) != is_norm
        size += leaf.size
        prunable += 0 if is_norm else leaf.size
    if name in PARAMETERS:
        assert size == PARAMETERS[name]
    else:
        assert prunable == WEIGHTS_AND_BIASES[name]
        assert len(stats) // 2 == NORMS.get(name, 0)


def is_printed(count: int, printed: str) -> bool:
    """Whether the count, rounded to the digits printed, is the one printed."""
    unit = {"k": 1e3, "m": 1e6}[printed[-1]]
    digits = len(printed.rstrip("km").partition(".")[2])
    return f"{count / unit:.{digits}f}" == printed[:-1]


@pytest.mark.parametrize("name", KEPT)
def test_counts_round_to_those_of_the_paper(name: str) -> None:
    sparsity, total, kept = KEPT[name]
    assert is_printed(WEIGHTS_AND_BIASES[name], total)
    assert is_printed(masks.kept_count(WEIGHTS_AND_BIASES[name], sparsity), kept)


def test_vgg_c_has_1x1_kernels_in_the_third_place_of_the_last_blocks() -> None:
    sizes = [[size for size, _ in block] for block in models.MODELS["vgg_c"](10).blocks]
    assert sizes == [[3, 3], [3, 3], [3, 3, 1], [3, 3, 1], [3, 3, 1]]


@pytest.mark.parametrize(
    "model",
    [
        alexnet.AlexNet(3, channels=(4, 4, 4, 4, 4), dense_units=(4,)),
        vgg.VGG(3, blocks=(((3, 4),),), dense_units=(4,)),
        wide_resnet.WideResNet(3, blocks=1, width=1),
    ],
)
def test_training_normalizes_by_the_batch_and_inference_does_not(
    model: nn.Module,
) -> None:
    images = jnp.zeros((2, 8, 8, 3))

    def are_updated(train: bool) -> list[bool]:
        def apply(variables: chex.ArrayTree) -> chex.ArrayTree:
            return model.apply(variables, images, train, mutable=["batch_stats"])[1]

        jaxpr = jax.make_jaxpr(apply)(shapes(model, images)).jaxpr
        inputs = set(map(id, jaxpr.invars))
        return [id(variable) not in inputs for variable in jaxpr.outvars]

    assert all(are_updated(train=True))
    assert not any(are_updated(train=False))


# ------------------------------------------------------------ equations, in NumPy


def test_lenet_300_100_is_two_relus_between_three_products() -> None:
    model = models.create("lenet_300_100", num_classes=10)
    x = RNG.normal(size=(5, 28, 28, 1)).astype(np.float32)
    variables = sampled(model, x)
    logits, params = quickly_compiled(model.apply)(variables, x), variables["params"]
    hidden = relu(dense(x.reshape(5, 784), params["Dense_0"]))
    expected = dense(relu(dense(hidden, params["Dense_1"])), params["Dense_2"])
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_lenet_5_caffe_is_linear_up_to_its_dense_layers() -> None:
    """Convolution, max-pool, no ReLU."""
    model = models.create("lenet_5_caffe", num_classes=10)
    x = RNG.normal(size=(2, 28, 28, 1)).astype(np.float32)
    variables = sampled(model, x)
    logits, params = quickly_compiled(model.apply)(variables, x), variables["params"]
    for layer in (params["Conv_0"], params["Conv_1"]):
        x = convolved(x, layer["kernel"], padding=(0, 0)) + layer["bias"]
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
    hidden = relu(dense(x.reshape(2, 800), params["Dense_0"]))
    expected = dense(hidden, params["Dense_1"])
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_wide_resnet_is_of_pre_activation_blocks() -> None:
    """WRN-10-1. Padding is unequal where a kernel of three strides by two."""
    model = wide_resnet.WideResNet(3, blocks=1, width=1)
    x = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    variables = sampled(model, x)
    logits = quickly_compiled(model.apply)(variables, x)
    params, stats = variables["params"], variables["batch_stats"]

    def activated(x: np.ndarray, name: str, *block: str) -> np.ndarray:
        layer, statistics = params, stats
        for part in (*block, name):
            layer, statistics = layer[part], statistics[part]
        return relu(batch_normed(x, layer, statistics))

    x = convolved(x, params["Conv_0"]["kernel"]) + params["Conv_0"]["bias"]
    for i in range(3):
        block, stride = params[f"Block_{i}"], min(i + 1, 2)
        first, second = block["Conv_0"], block["Conv_1"]
        activation = activated(x, "BatchNorm_0", f"Block_{i}")
        padding = (1, 1) if stride == 1 else (0, 1)
        y = convolved(activation, first["kernel"], stride, padding) + first["bias"]
        y = activated(y, "BatchNorm_1", f"Block_{i}")
        if i:  # the first has 16 channels, as many as before
            shortcut = block["shortcut"]
            x = convolved(activation, shortcut["kernel"], stride) + shortcut["bias"]
        x = x + convolved(y, second["kernel"]) + second["bias"]
    expected = dense(activated(x, "BatchNorm_0").mean((1, 2)), params["Dense_0"])
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm(cell: Any, state: np.ndarray, x: np.ndarray) -> np.ndarray:
    c, h = state
    i, j, f, o = np.split(dense(np.concatenate([x, h], 1), cell["gates"]), 4, 1)
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(j)
    return np.stack([c, sigmoid(o) * np.tanh(c)])


def gru(cell: Any, state: np.ndarray, x: np.ndarray) -> np.ndarray:
    (h,) = state
    gates = sigmoid(dense(np.concatenate([x, h], 1), cell["gates"]))
    reset, update = np.split(gates, 2, 1)
    new = np.tanh(dense(np.concatenate([x, reset * h], 1), cell["candidate"]))
    return (update * h + (1 - update) * new)[None]


@pytest.mark.parametrize(
    ("cell", "step", "state"),
    [(recurrent.LSTMCell, lstm, (2, 2, 4)), (recurrent.GRUCell, gru, (1, 2, 4))],
)
def test_recurrent_networks_read_row_by_row(cell: Any, step: Any, state: tuple) -> None:
    model = recurrent.Recurrent(num_classes=3, units=4, cell=cell)
    images = RNG.normal(size=(2, 6, 5, 1)).astype(np.float32)
    variables = jax.tree.map(lambda x: 5 * x, sampled(model, images))
    params, hidden = variables["params"], np.zeros(state)
    for t in range(6):
        row = dense(images[:, t, :, 0], params["Dense_0"])
        hidden = step(params["cell"], hidden, row)
    expected = dense(hidden[-1], params["Dense_1"])
    logits = quickly_compiled(model.apply)(variables, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", [recurrent.LSTMCell, recurrent.GRUCell])
def test_new_cells_keep_the_logistic_of_one_of_their_state(
    cell: type[nn.RNNCellBase],
) -> None:
    """Where nothing comes in: 0.73 a row, so that the first rows reach the loss."""
    state = 0.5 * jnp.ones((1, 4))
    carry = (state, state) if cell is recurrent.LSTMCell else state
    cell = cell(4, kernel_init=nn.initializers.zeros)
    params = cell.init(jax.random.key(0), carry, jnp.zeros((1, 4)))
    carry, _ = cell.apply(params, carry, jnp.zeros((1, 4)))
    kept = jax.tree.leaves(carry)[0]
    np.testing.assert_allclose(kept, 0.5 / (1 + np.exp(-1)), rtol=1e-6)


# ------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "model",
    [
        vgg.VGG(3, blocks=(((3, 4),), ((3, 4),))),
        vgg.VGG(3, blocks=(((3, 4),), ((3, 4),)), ends_in_mean=True),
    ],
)
def test_images_that_are_too_small_are_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="images are too small for this network"):
        shapes(model, jnp.zeros((1, 1, 1, 1)))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    for misspelled, meant in {"lenet": "lenet_300_100", "vgg-d": "vgg_d"}.items():
        with pytest.raises(ValueError, match=rf"'{misspelled}'; .* '{meant}'\?"):
            models.create(misspelled, num_classes=2)
