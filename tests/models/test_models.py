"""The paper's networks have the published sizes, and are what it describes."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks, models
from snipjax.models import recurrent, wide_resnet
from tests.models.equations import (
    batch_normed,
    convolved,
    dense,
    relu,
    sampled,
    shapes,
)
from tests.ops.agreement import quickly_compiled

MNIST, CIFAR = (1, 28, 28, 1), (1, 32, 32, 3)


def weights_and_biases(*layers: tuple[int, int, int]) -> int:
    """Sums layers of (kernel size, channels or units in, out)."""
    return sum(size**2 * inputs * outputs + outputs for size, inputs, outputs in layers)


FIRST_BLOCKS = [(3, 3, 64), (3, 64, 64), (3, 64, 128), (3, 128, 128)]
DENSE = [(1, 512, 512), (1, 512, 10)]


def last_blocks(size: int) -> list[tuple[int, int, int]]:
    """Three blocks of three, the third convolution of each with another kernel."""
    widths = [(128, 256), (256, 512), (512, 512)]
    blocks = [[(3, i, o), (3, o, o), (size, o, o)] for i, o in widths]
    return [layer for block in blocks for layer in block]


def alexnet_size(units: int) -> int:
    """Of the five convolutions, and dense layers of so many units on 1x1 images."""
    widths = [(11, 3, 96), (5, 96, 256), (3, 256, 384), (3, 384, 384), (3, 384, 256)]
    return weights_and_biases(
        *widths, (1, 256, units), (1, units, units), (1, units, 10)
    )


def wide_resnet_size(blocks: int, width: int) -> int:
    """Of three groups of blocks, the first of each with a 1x1 shortcut."""
    layers, inputs = [(3, 3, 16)], 16
    for channels in (16 * width, 32 * width, 64 * width):
        layers += [(3, inputs, channels), (1, inputs, channels)]
        layers += (2 * blocks - 1) * [(3, channels, channels)]
        inputs = channels
    return weights_and_biases(*layers, (1, inputs, 10))


def resnet_size(blocks: int) -> int:
    """Of three groups of blocks of 16, 32 and 64 channels, without any bias but one."""
    kernels = 9 * 3 * 16 + 64 * 10 + 16 * 32 + 32 * 64  # the last two are shortcuts
    for inputs, channels in ((16, 16), (16, 32), (32, 64)):
        kernels += 9 * channels * (inputs + (2 * blocks - 1) * channels)
    return kernels + 10


def recurrent_size(products: int, biases: int, units: int) -> int:
    """Of a cell of so many matrices and biases, between two dense layers."""
    dense = weights_and_biases((1, 28, units), (1, units, 10))
    return dense + products * units**2 + biases * units


# The LeNets' are in Lee et al., ICLR 2019, table 1; the VGGs' of one dense layer and
# ResNet-18's are the counts of pytorch-cifar, less the parameters of batch norm.
PARAMETERS = {
    "lenet_300_100": (MNIST, 266_610),
    "lenet_5_caffe": (MNIST, 431_080),
    "vgg_c": (
        CIFAR,
        weights_and_biases(*FIRST_BLOCKS, *last_blocks(1), DENSE[0], *DENSE),
    ),
    "vgg_d": (
        CIFAR,
        weights_and_biases(*FIRST_BLOCKS, *last_blocks(3), DENSE[0], *DENSE),
    ),
    "vgg_like": (CIFAR, weights_and_biases(*FIRST_BLOCKS, *last_blocks(3), *DENSE)),
    "vgg_11_bn": (CIFAR, 9_231_114 - 2 * 2752),
    "vgg_16_bn": (CIFAR, 14_728_266 - 2 * 4224),
    "vgg_19_bn": (CIFAR, 20_040_522 - 2 * 5504),
    "alexnet_s": (CIFAR, alexnet_size(1024)),
    "alexnet_b": (CIFAR, alexnet_size(2048)),
    "wrn_16_8": (CIFAR, wide_resnet_size(2, 8)),
    "wrn_16_10": (CIFAR, wide_resnet_size(2, 10)),
    "wrn_22_2": (CIFAR, wide_resnet_size(3, 2)),
    "wrn_22_8": (CIFAR, wide_resnet_size(3, 8)),
    "resnet_18_cifar": (CIFAR, 11_173_962 - 2 * 4800),
    "resnet_20": (CIFAR, resnet_size(3)),
    "resnet_32": (CIFAR, resnet_size(5)),
    "resnet_56": (CIFAR, resnet_size(9)),
    "lstm_s": (MNIST, recurrent_size(8, 4, 128)),
    "lstm_b": (MNIST, recurrent_size(8, 4, 256)),
    "gru_s": (MNIST, recurrent_size(6, 3, 128)),
    "gru_b": (MNIST, recurrent_size(6, 3, 256)),
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
# The number of batch norms and of convolutions.
LAYERS = {
    "lenet_300_100": (0, 0),
    "lenet_5_caffe": (0, 2),
    "vgg_c": (15, 13),
    "vgg_d": (15, 13),
    "vgg_like": (14, 13),
    "vgg_11_bn": (8, 8),
    "vgg_16_bn": (13, 13),
    "vgg_19_bn": (16, 16),
    "alexnet_s": (7, 5),
    "alexnet_b": (7, 5),
    "wrn_16_8": (13, 1 + 12 + 3),
    "wrn_16_10": (13, 1 + 12 + 3),
    "wrn_22_2": (19, 1 + 18 + 3),
    "wrn_22_8": (19, 1 + 18 + 3),
    "resnet_18_cifar": (20, 1 + 16 + 3),
    "resnet_20": (21, 1 + 18 + 2),
    "resnet_32": (33, 1 + 30 + 2),
    "resnet_56": (57, 1 + 54 + 2),
}
RNG = np.random.default_rng(0)


@functools.cache  # tracing is most of the time that these tests take
def created(name: str) -> chex.ArrayTree:
    """The shapes of a network's variables."""
    image, _ = PARAMETERS.get(name, (CIFAR, 0))
    return shapes(models.create(name, num_classes=10), jnp.zeros(image))


def is_printed(count: int, printed: str) -> bool:
    """Whether the count, rounded to the digits printed, is the one printed."""
    unit = {"k": 1e3, "m": 1e6}[printed[-1]]
    digits = len(printed.rstrip("km").partition(".")[2])
    return f"{count / unit:.{digits}f}" == printed[:-1]


def prunable(params: chex.ArrayTree) -> int:
    return sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if masks.weights_and_biases(path, leaf)
    )


def test_these_are_all() -> None:
    """But for those for ImageNet, in test_models_large.py."""
    large = {"resnet_18", "resnet_50", "vit_ti_16", "vit_s_16", "vit_b_16"}
    assert models.MODELS.keys() - large == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_weights_and_biases_are_as_many_as_published(name: str) -> None:
    parameters = PARAMETERS[name][1]
    assert prunable(created(name)["params"]) == parameters
    if name in KEPT:
        sparsity, total, kept = KEPT[name]
        assert is_printed(parameters, total)
        assert is_printed(masks.kept_count(parameters, sparsity), kept)


@pytest.mark.parametrize(
    ("name", "with_projections", "without"),
    [
        ("resnet_20", 272_474, "0.27m"),
        ("resnet_32", 466_906, "0.46m"),
        ("resnet_56", 855_770, "0.85m"),
    ],
)
def test_small_resnets_without_projections_are_those_of_he_et_al(
    name: str, with_projections: int, without: str
) -> None:
    """CVPR 2016, table 6; with projections, as in pytorch-cifar-models."""
    paths = jax.tree_util.tree_leaves_with_path(created(name)["params"])
    total = sum(leaf.size for _, leaf in paths)
    projections = [leaf.size for path, leaf in paths if "shortcut" in str(path)]
    assert total == with_projections
    assert is_printed(total - sum(projections), without)


@pytest.mark.parametrize(
    ("name", "printed"),
    [("vgg_16_bn", "14.7m"), ("wrn_22_2", "1.08m"), ("resnet_18_cifar", "11.17m")],
)
def test_parameters_round_to_the_sizes_in_the_literature(
    name: str, printed: str
) -> None:
    leaves = jax.tree.leaves(created(name)["params"])
    assert is_printed(sum(leaf.size for leaf in leaves), printed)


@pytest.mark.parametrize("name", [*PARAMETERS, "resnet_50", "vit_ti_16"])
def test_all_but_norms_is_prunable(name: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(created(name)["params"]):
        is_norm = "norm" in jax.tree_util.keystr(path).lower()
        assert masks.weights_and_biases(path, leaf) != is_norm


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    variables = created(name)
    norms = len(jax.tree.leaves(variables.get("batch_stats", {}))) // 2
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    assert (norms, len(kernels)) == LAYERS[name]


def test_vgg_c_has_1x1_kernels_in_the_third_place_of_the_last_blocks() -> None:
    params = created("vgg_c")["params"]
    sizes = [params[f"Conv_{i}"]["kernel"].shape[0] for i in range(13)]
    assert sizes == [3, 3, 3, 3, 3, 3, 1, 3, 3, 1, 3, 3, 1]


@pytest.mark.parametrize("name", [*PARAMETERS, "resnet_18", "resnet_50", "vit_ti_16"])
def test_logits_have_the_dtype_asked_for_and_kernels_the_initializer(name: str) -> None:
    asked = []

    def kernel_init(key: chex.PRNGKey, shape: chex.Shape, dtype: Any) -> chex.Array:
        asked.append(shape)
        return jnp.zeros(shape, dtype)

    model = models.create(name, 7, dtype=jnp.bfloat16, kernel_init=kernel_init)
    image, _ = PARAMETERS.get(name, (CIFAR, 0))
    images = jnp.zeros((2, *image[1:]))
    logits, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.bfloat16)
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    assert all(leaf.dtype == jnp.float32 for _, leaf in leaves)
    kernels = [leaf.shape for path, leaf in leaves if path[-1].key == "kernel"]
    assert {*asked} == {*kernels}  # a scan asks more than once
    positions = name.startswith("vit")
    assert len(kernels) + positions == sum(leaf.ndim >= 2 for _, leaf in leaves)


@pytest.mark.parametrize("name", ["alexnet_s", "wrn_16_8"])
def test_training_normalizes_by_the_batch_and_inference_does_not(name: str) -> None:
    model = models.create(name, num_classes=10)
    images = jnp.zeros((2, *CIFAR[1:]))

    def are_updated(train: bool) -> list[bool]:
        def apply(variables: chex.ArrayTree) -> chex.ArrayTree:
            return model.apply(variables, images, train, mutable=["batch_stats"])[1]

        jaxpr = jax.make_jaxpr(apply)(created(name)).jaxpr
        inputs = set(map(id, jaxpr.invars))
        return [id(variable) not in inputs for variable in jaxpr.outvars]

    assert all(are_updated(train=True))
    assert not any(are_updated(train=False))


# ------------------------------------------------------------ equations, in NumPy


def test_lenet_300_100_is_two_relus_between_three_products() -> None:
    model = models.create("lenet_300_100", num_classes=10)
    x = RNG.normal(size=(5, 28, 28, 1)).astype(np.float32)
    variables = sampled(model, x)
    logits, params = model.apply(variables, x), variables["params"]
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
    logits = model.apply(variables, images)
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


@pytest.mark.parametrize("name", ["lenet_5_caffe", "vgg_d", "vgg_16_bn"])
def test_images_that_are_too_small_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="images are too small for this network"):
        shapes(models.create(name, num_classes=10), jnp.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("lenet", "lenet_300_100"), ("vgg", "vgg_c"), ("vgg-d", "vgg_d")],
)
def test_an_unknown_name_is_answered_with_the_nearest(
    misspelt: str, meant: str
) -> None:
    with pytest.raises(
        ValueError, match=rf"unknown model '{misspelt}'; .* '{meant}'\?"
    ):
        models.create(misspelt, num_classes=2)
