"""The networks have the published sizes, and are what the paper describes."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks, models
from snipjax.models import recurrent, wide_resnet

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


def recurrent_size(products: int, biases: int, units: int) -> int:
    """Of a cell of so many matrices and biases, between two dense layers."""
    dense = weights_and_biases((1, 28, units), (1, units, 10))
    return dense + products * units**2 + biases * units


# The LeNets' are in Lee et al., ICLR 2019, table 1.
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
    "alexnet_s": (CIFAR, alexnet_size(1024)),
    "alexnet_b": (CIFAR, alexnet_size(2048)),
    "wrn_16_8": (CIFAR, wide_resnet_size(2, 8)),
    "wrn_16_10": (CIFAR, wide_resnet_size(2, 10)),
    "wrn_22_8": (CIFAR, wide_resnet_size(3, 8)),
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
NORMALIZED = [name for name in PARAMETERS if name.startswith(("vgg", "alex", "wrn"))]


@functools.cache  # tracing is most of the time that these tests take
def shapes(name: str, image: tuple[int, ...]) -> chex.ArrayTree:
    model = models.create(name, num_classes=10)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(image))


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
    is_large = {name for name in models.MODELS if name.startswith(("resnet_", "vit_"))}
    assert models.MODELS.keys() - is_large == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_weights_and_biases_are_as_many_as_published(name: str) -> None:
    image, parameters = PARAMETERS[name]
    assert prunable(shapes(name, image)["params"]) == parameters


@pytest.mark.parametrize("name", KEPT)
def test_kept_counts_round_to_the_published_ones(name: str) -> None:
    sparsity, parameters, kept = KEPT[name]
    total = prunable(shapes(name, PARAMETERS[name][0])["params"])
    assert is_printed(total, parameters)
    assert is_printed(masks.kept_count(total, sparsity), kept)


@pytest.mark.parametrize("name", PARAMETERS)
def test_all_but_batch_norm_is_prunable(name: str) -> None:
    params = shapes(name, PARAMETERS[name][0])["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        is_norm = names[-2].startswith("BatchNorm")
        assert masks.weights_and_biases(path, leaf) != is_norm
        assert is_norm or names[-1] in ("kernel", "bias")


@pytest.mark.parametrize(
    ("name", "batch_norms", "convolutions"),
    [
        ("lenet_300_100", 0, 0),
        ("lenet_5_caffe", 0, 2),
        ("vgg_c", 15, 13),
        ("vgg_d", 15, 13),
        ("vgg_like", 14, 13),
        ("alexnet_s", 7, 5),
        ("alexnet_b", 7, 5),
        ("wrn_16_8", 13, 1 + 12 + 3),
        ("wrn_16_10", 13, 1 + 12 + 3),
        ("wrn_22_8", 19, 1 + 18 + 3),
        ("lstm_s", 0, 0),
        ("gru_s", 0, 0),
    ],
)
def test_layers(name: str, batch_norms: int, convolutions: int) -> None:
    variables = shapes(name, PARAMETERS[name][0])
    assert len(jax.tree.leaves(variables.get("batch_stats", {}))) == 2 * batch_norms
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    assert len(kernels) == convolutions


def test_vgg_c_has_1x1_kernels_in_the_third_place_of_the_last_blocks() -> None:
    params = shapes("vgg_c", CIFAR)["params"]
    sizes = [params[f"Conv_{i}"]["kernel"].shape[0] for i in range(13)]
    assert sizes == [3, 3, 3, 3, 3, 3, 1, 3, 3, 1, 3, 3, 1]


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits(name: str, dtype: chex.ArrayDType) -> None:
    model = models.create(name, num_classes=7, dtype=dtype)
    images = jnp.zeros((2, *PARAMETERS[name][0][1:]))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    logits = jax.eval_shape(lambda v: model.apply(v, images, train=False), variables)
    assert (logits.shape, logits.dtype) == ((2, 7), dtype)


def test_lenet_300_100_is_two_relus_between_three_products() -> None:
    model = models.create("lenet_300_100", num_classes=10)
    images = np.random.default_rng(0).normal(size=(5, 28, 28, 1)).astype(np.float32)
    params = model.init(jax.random.key(0), images)["params"]
    x = images.reshape(5, 784)
    for i in range(3):
        layer = jax.device_get(params[f"Dense_{i}"])
        x = x @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, 0.0) if i < 2 else x
    logits = model.apply({"params": params}, images)
    np.testing.assert_allclose(logits, x, rtol=1e-4, atol=1e-5)


def test_lenet_5_caffe_is_linear_up_to_its_dense_layers() -> None:
    """Convolution, max-pool, no ReLU; checked pixel by pixel in NumPy."""

    def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(1, 2))
        return np.einsum("nhwcij,ijco->nhwo", windows, kernel)

    def pool(x: np.ndarray) -> np.ndarray:
        n, height, width, channels = x.shape
        return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))

    model = models.create("lenet_5_caffe", num_classes=10)
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    params = jax.device_get(model.init(jax.random.key(0), images)["params"])
    params = jax.tree.map(lambda x: x + 0.01, params)
    x = images
    for name in ("Conv_0", "Conv_1"):
        x = pool(convolve(x, params[name]["kernel"]) + params[name]["bias"])
    x = x.reshape(2, 800) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    x = np.maximum(x, 0) @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    logits = model.apply({"params": params}, images)
    np.testing.assert_allclose(logits, x, rtol=1e-3, atol=1e-4)


def test_weights_have_variance_1_over_fan_in_and_biases_are_zero() -> None:
    model = models.create("lenet_300_100", num_classes=10)
    params = model.init(jax.random.key(0), jnp.zeros(MNIST))["params"]
    for layer, fan_in in zip(params.values(), (784, 300, 100)):
        kernel = np.asarray(layer["kernel"])
        deviation = kernel.std() * math.sqrt(fan_in)
        assert deviation == pytest.approx(1.0, abs=3 / math.sqrt(2 * kernel.size))
        # A normal truncated at two of its standard deviations has 0.8796 of one.
        assert np.abs(kernel).max() * math.sqrt(fan_in) <= 2 / 0.8796 + 1e-3
        assert not np.any(layer["bias"])


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_kernel_is_sampled_by_kernel_init(name: str) -> None:
    threes = nn.initializers.constant(3.0)
    model = models.create(name, num_classes=10, kernel_init=threes)
    image = jnp.zeros(PARAMETERS[name][0])
    params = jax.jit(model.init)(jax.random.key(0), image)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        is_kernel = path[-1].key == "kernel"
        assert is_kernel == (leaf.ndim >= 2)
        assert bool(jnp.all(leaf == 3.0)) == is_kernel


@pytest.mark.parametrize("name", NORMALIZED)
def test_batch_norm_is_the_identity_at_initialization(name: str) -> None:
    model = models.create(name, num_classes=10, kernel_init=nn.initializers.zeros)
    image = jnp.zeros(PARAMETERS[name][0])
    variables = jax.jit(model.init)(jax.random.key(0), image)
    expected = {"mean": 0.0, "var": 1.0, "scale": 1.0, "bias": 0.0, "kernel": 0.0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        assert bool(jnp.all(leaf == expected[path[-1].key]))


@pytest.mark.parametrize("name", ["alexnet_s", "wrn_16_8"])
def test_training_normalizes_by_the_batch_and_inference_does_not(name: str) -> None:
    model = models.create(name, num_classes=10)
    images = jnp.zeros((2, *CIFAR[1:]))
    variables = shapes(name, CIFAR)

    def are_updated(train: bool) -> list[bool]:
        def apply(variables: chex.ArrayTree) -> chex.ArrayTree:
            return model.apply(variables, images, train, mutable=["batch_stats"])[1]

        jaxpr = jax.make_jaxpr(apply)(variables).jaxpr
        inputs = set(map(id, jaxpr.invars))
        return [id(variable) not in inputs for variable in jaxpr.outvars]

    assert all(are_updated(train=True))
    assert not any(are_updated(train=False))


def test_wide_resnet_is_of_pre_activation_blocks() -> None:
    """WRN-10-1 at initialization, where batch norm divides by sqrt(1 + epsilon)."""

    rng = np.random.default_rng(0)

    def sampled(key: chex.PRNGKey, shape: tuple[int, ...], dtype: str) -> chex.Array:
        del key  # NumPy's samples take no compilation for each shape
        return jnp.asarray(0.1 * rng.standard_normal(shape), dtype)

    def activated(x: chex.Array) -> chex.Array:
        return nn.relu(x / math.sqrt(1 + 1e-5))

    def convolved(x: chex.Array, layer: chex.ArrayTree, stride: int = 1) -> chex.Array:
        product = jax.lax.conv_general_dilated(
            x,
            layer["kernel"],
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return product + layer["bias"]

    model = wide_resnet.WideResNet(3, blocks=1, width=1, kernel_init=sampled)
    images = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    params = variables["params"]
    x = convolved(images, params["Conv_0"])
    for i in range(3):
        block, stride = params[f"Block_{i}"], min(i + 1, 2)
        y = activated(x)
        # The first has 16 channels, as many as before.
        shortcut = x if i == 0 else convolved(y, block["shortcut"], stride)
        y = activated(convolved(y, block["Conv_0"], stride))
        x = shortcut + convolved(y, block["Conv_1"])
    means = activated(x).mean((1, 2))
    expected = means @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    logits = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_lstm_reads_row_by_row() -> None:
    """Against the equations, with NumPy."""
    model = recurrent.Recurrent(num_classes=3, units=4)
    images = np.random.default_rng(0).normal(size=(2, 6, 5, 1)).astype(np.float32)
    params = jax.device_get(model.init(jax.random.key(0), images)["params"])
    params = jax.tree.map(lambda x: x + 0.1, params)
    first, gates, last = params["Dense_0"], params["cell"]["gates"], params["Dense_1"]
    c = h = np.zeros((2, 4))
    for t in range(6):
        x = images[:, t, :, 0] @ first["kernel"] + first["bias"]
        z = x @ gates["kernel"][:4] + h @ gates["kernel"][4:] + gates["bias"]
        i, j, f, o = z[:, :4], z[:, 4:8], z[:, 8:12], z[:, 12:]
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(j)
        h = sigmoid(o) * np.tanh(c)
    expected = h @ last["kernel"] + last["bias"]
    logits = model.apply({"params": params}, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_gru_reads_row_by_row() -> None:
    """Against the equations, with NumPy."""
    model = recurrent.Recurrent(num_classes=3, units=4, cell=recurrent.GRUCell)
    images = np.random.default_rng(0).normal(size=(2, 6, 5, 1)).astype(np.float32)
    params = jax.device_get(model.init(jax.random.key(0), images)["params"])
    params = jax.tree.map(lambda x: x + 0.1, params)
    first, last = params["Dense_0"], params["Dense_1"]
    gates, candidate = params["cell"]["gates"], params["cell"]["candidate"]
    h = np.zeros((2, 4))
    for t in range(6):
        x = images[:, t, :, 0] @ first["kernel"] + first["bias"]
        z = x @ gates["kernel"][:4] + h @ gates["kernel"][4:] + gates["bias"]
        reset, update = sigmoid(z[:, :4]), sigmoid(z[:, 4:])
        new = x @ candidate["kernel"][:4] + (reset * h) @ candidate["kernel"][4:]
        h = update * h + (1 - update) * np.tanh(new + candidate["bias"])
    expected = h @ last["kernel"] + last["bias"]
    logits = model.apply({"params": params}, images)
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


@pytest.mark.parametrize("name", ["lstm_s", "gru_s"])
def test_recurrent_networks_mind_the_order_of_rows(name: str) -> None:
    model = models.create(name, num_classes=10)
    images = jax.random.normal(jax.random.key(0), (2, 28, 28, 1))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    apply = jax.jit(model.apply)
    logits, upside_down = apply(variables, images), apply(variables, images[:, ::-1])
    assert np.all(np.max(np.abs(logits - upside_down), axis=1) > 0.1)


@pytest.mark.parametrize("name", ["lstm_s", "gru_s"])
def test_every_kernel_of_a_recurrent_network_has_a_gradient(name: str) -> None:
    model = models.create(name, num_classes=10)
    images = jax.random.normal(jax.random.key(0), (2, 28, 28, 1))
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]

    def loss_fn(params: chex.ArrayTree) -> chex.Array:
        return -nn.log_softmax(model.apply({"params": params}, images))[:, 0].mean()

    for gradient in jax.tree.leaves(jax.jit(jax.grad(loss_fn))(params)):
        assert gradient.ndim < 2 or np.mean(gradient != 0) > 0.99


@pytest.mark.parametrize("name", ["lenet_5_caffe", "vgg_d"])
def test_images_that_are_too_small_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="images are too small for this network"):
        shapes(name, (1, 8, 8, 1))


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
