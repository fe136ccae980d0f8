"""The signal of an initialization, against networks written by hand."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from snipjax import initializers, masks, saliency
from snipjax.initializers import signals

Batch = tuple[chex.Array, chex.Array]


class Net(nn.Module):
    """Dense layers of the given widths."""

    widths: tuple[int, ...]
    activation: Callable[[chex.Array], chex.Array] = nn.relu
    kernel_init: initializers.Initializer = initializers.fan_in
    bias_init: initializers.Initializer = nn.initializers.zeros
    dtype: chex.ArrayDType = jnp.float32

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = x.reshape(x.shape[0], -1)
        for number, width in enumerate(self.widths):
            x = self.activation(x) if number else x
            x = nn.Dense(
                width,
                kernel_init=self.kernel_init,
                bias_init=self.bias_init,
                dtype=self.dtype,
            )(x)
        return x


def random_batch(shape: tuple[int, ...], classes: int) -> Batch:
    images = jax.random.normal(jax.random.key(100), shape)
    return images, jnp.arange(shape[0]) % classes


def keys(seeds: int) -> chex.PRNGKey:
    return jax.random.split(jax.random.key(7), seeds)


def params_of(model: nn.Module, key: chex.PRNGKey, batch: Batch) -> Any:
    return model.init(key, batch[0], train=False)["params"]


def cross_entropy(logits: chex.Array, labels: chex.Array) -> chex.Array:
    rows = jnp.arange(labels.size)
    return -jnp.mean(jax.nn.log_softmax(logits)[rows, labels])


# Pixels that are always black tie saliencies at zero, for every seed.
SMALL = Net((6, 3), nn.tanh, bias_init=nn.initializers.normal())
IMAGES, LABELS = random_batch((10, 6), 3)
BATCH = IMAGES.at[:, :2].set(0.0), LABELS


@pytest.fixture(scope="module")
def small() -> initializers.Signal:
    return initializers.signal(SMALL, keys(3), BATCH, 0.7)


@pytest.fixture(scope="module")
def small_scores() -> list[chex.ArrayTree]:
    def loss_fn(params: chex.ArrayTree, batch: Batch) -> chex.Array:
        return cross_entropy(SMALL.apply({"params": params}, batch[0]), batch[1])

    return [
        saliency.snip(loss_fn, params_of(SMALL, key, BATCH), BATCH) for key in keys(3)
    ]


def test_variances_are_by_the_equations(small: initializers.Signal) -> None:
    assert small.layers == ("Dense_0", "Dense_1")
    x, one_hot = np.asarray(BATCH[0]), np.eye(3)[np.asarray(LABELS)]
    for seed, key in enumerate(keys(3)):
        params = jax.device_get(params_of(SMALL, key, BATCH))
        (w1, b1), (w2, b2) = (
            (params[name]["kernel"], params[name]["bias"]) for name in small.layers
        )
        z1 = x @ w1 + b1
        z2 = np.tanh(z1) @ w2 + b2
        dz2 = (scipy.special.softmax(z2, axis=1) - one_hot) / 10
        dz1 = dz2 @ w2.T / np.cosh(z1) ** 2
        np.testing.assert_allclose(
            small.activation_variance[seed], [z1.var(), z2.var()], rtol=1e-5
        )
        np.testing.assert_allclose(
            small.gradient_variance[seed], [dz1.var(), dz2.var()], rtol=1e-4
        )


def test_density_is_by_snip(
    small: initializers.Signal, small_scores: list[chex.ArrayTree]
) -> None:
    for seed, scores in enumerate(small_scores):
        rows = masks.summary(masks.global_topk(scores, 0.7, masks.weights_and_biases))
        for number, layer in enumerate(small.layers):
            of_layer = [row for row in rows if row.path.startswith(layer)]
            density = sum(r.kept for r in of_layer) / sum(r.total for r in of_layer)
            np.testing.assert_allclose(small.density[seed, number], density, rtol=1e-6)


def test_rank_correlation_is_the_mean_of_spearman_over_pairs(
    small: initializers.Signal, small_scores: list[chex.ArrayTree]
) -> None:
    for number, layer in enumerate(small.layers):
        kernels = [np.ravel(scores[layer]["kernel"]) for scores in small_scores]
        pairs = itertools.combinations(kernels, 2)
        expected = np.mean([scipy.stats.spearmanr(a, b).statistic for a, b in pairs])
        np.testing.assert_allclose(small.rank_correlation[number], expected, atol=1e-5)


def test_another_loss_and_old_keys() -> None:
    def squares(logits: chex.Array, labels: chex.Array) -> chex.Array:
        return 0.5 * jnp.sum((logits - labels[:, None]) ** 2)

    model, batch = Net((3,)), random_batch((5, 4), 3)
    old = jax.random.key_data(keys(1))
    signal = initializers.signal(model, old, batch, 0.5, loss=squares)
    z = batch[0] @ params_of(model, keys(1)[0], batch)["Dense_0"]["kernel"]
    np.testing.assert_allclose(
        signal.gradient_variance, [[jnp.var(z - batch[1][:, None])]], rtol=1e-5
    )


class ConvNet(nn.Module):
    """Convolutions with batch norm, a residual, and a dense layer that is shared."""

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.Conv(4, (3, 3))(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = x + nn.remat(nn.Conv)(4, (3, 3), name="inside")(y)
        shared = nn.Dense(4, name="a_shared")
        x = shared(nn.relu(shared(x)))
        return nn.Dense(3)(x.mean(axis=(1, 2)))


@pytest.mark.slow
def test_convolutions_and_shared_layers() -> None:
    model, batch = ConvNet(), random_batch((6, 5, 5, 2), 3)
    signal = initializers.signal(model, keys(1), batch, 0.5)
    assert signal.layers == ("Conv_0", "inside", "a_shared", "Dense_0")
    (key,) = keys(1)
    variables = model.init(key, batch[0])
    _, state = model.apply(variables, batch[0], capture_intermediates=True)
    outputs = [state["intermediates"][name]["__call__"] for name in signal.layers]
    assert [len(calls) for calls in outputs] == [1, 1, 2, 1]
    expected = [np.var(np.stack(calls)) for calls in outputs]
    np.testing.assert_allclose(signal.activation_variance[0], expected, rtol=1e-5)

    def loss_of_tail(first: chex.Array, second: chex.Array) -> chex.Array:
        """From the first call of the shared layer on, with a zero added to both."""
        params = variables["params"]
        shared = params["a_shared"]
        x = outputs[2][0] + first
        x = nn.relu(x) @ shared["kernel"] + shared["bias"] + second
        x = x.mean(axis=(1, 2))
        logits = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
        return cross_entropy(logits, batch[1])

    zeros = jnp.zeros_like(outputs[2][0])
    gradients = jax.grad(loss_of_tail, argnums=(0, 1))(zeros, zeros)
    np.testing.assert_allclose(
        signal.gradient_variance[0, 2], np.var(np.stack(gradients)), rtol=1e-4
    )


def test_cells_inside_a_scan_have_no_variance_but_a_density() -> None:
    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
            x = nn.RNN(nn.SimpleCell(4))(nn.Dense(4)(x))
            return nn.Dense(3)(x[:, -1])

    batch = random_batch((6, 5, 2), 3)
    signal = initializers.signal(Recurrent(), keys(2), batch, 0.5)
    assert signal.layers == ("Dense_0", "SimpleCell_0/i", "SimpleCell_0/h", "Dense_1")
    unseen = [[False, True, True, False]] * 2
    np.testing.assert_array_equal(np.isnan(signal.activation_variance), unseen)
    np.testing.assert_array_equal(np.isnan(signal.gradient_variance), unseen)
    assert np.all((signal.density >= 0) & (signal.density <= 1))
    assert np.all(np.abs(signal.rank_correlation) <= 1)


def test_a_layer_may_have_no_density_and_no_correlation() -> None:
    """Nothing prunable in the second, and no saliency of the first on black images."""

    def hidden(path: Any, leaf: chex.Array) -> bool:
        return "Dense_0" in jax.tree_util.keystr(path)

    model, labels = Net((8, 3), bias_init=nn.initializers.normal()), jnp.arange(10) % 3
    black = jnp.zeros((10, 5)), labels
    signal = initializers.signal(model, keys(2), black, 0.5, prunable=hidden)
    np.testing.assert_allclose(signal.density, [[0.5, np.nan]] * 2)
    np.testing.assert_array_equal(np.isnan(signal.rank_correlation), [True, False])


def change_per_layer(variances: np.ndarray) -> float:
    """The geometric mean, over layers and seeds, of variance over the one before."""
    ratios = variances[:, 1:] / variances[:, :-1]
    return float(np.exp(np.mean(np.log(ratios))))


@pytest.mark.parametrize(
    ("name", "change"), [("heuristic_uniform", 1 / 3), ("glorot_uniform", 1.0)]
)
def test_gradients_shrink_under_the_heuristic_only(name: str, change: float) -> None:
    """Of equal widths n, Var[W] is 1/(3n) against 1/n."""
    model = Net((128,) * 4, nn.tanh, initializers.INITIALIZERS[name])
    # Small inputs keep tanh where its slope is 1, as Glorot and Bengio assume.
    images, labels = random_batch((32, 128), 10)
    signal = initializers.signal(model, keys(4), (0.1 * images, labels), 0.9)
    backward = change_per_layer(signal.gradient_variance[:, ::-1])
    np.testing.assert_allclose(backward, change, rtol=0.1)
    forward = change_per_layer(signal.activation_variance)
    np.testing.assert_allclose(forward, change, rtol=0.1)
    first = signal.activation_variance[:, 0].mean()
    np.testing.assert_allclose(first, change * 0.1**2, rtol=0.1)


def test_low_precision_is_measured_in_float32(small: initializers.Signal) -> None:
    low = initializers.signal(SMALL.clone(dtype=jnp.bfloat16), keys(3), BATCH, 0.7)
    assert {array.dtype for array in low[1:]} == {np.dtype(np.float32)}
    for found, expected in zip(low[1:3], small[1:3]):
        np.testing.assert_allclose(found, expected, rtol=0.05)


def test_overflow_is_shown_and_does_not_fail() -> None:
    model = Net((8, 8, 3), kernel_init=nn.initializers.normal(1e25))
    signal = initializers.signal(model, keys(2), random_batch((5, 4), 3), 0.5)
    assert not np.isfinite(signal.activation_variance).all()
    assert np.isnan(signal.density).all()
    assert np.isnan(signal.rank_correlation).any()


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        return Net((3,))(x)


class Owner(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        return x @ self.param("w", initializers.he, (4, 3))


class Training(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array, training: bool) -> chex.Array:
        return nn.Dense(3)(nn.Dropout(0.9, deterministic=not training)(x))


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array, deterministic: bool) -> chex.Array:
        return nn.Dense(3)(nn.Dropout(0.9, deterministic=deterministic)(x))


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (Plain(), "Net_0/Dense_0"),
        (Owner(), "Owner"),
        (Training(), "Dense_0"),
        (Deterministic(), "Dense_0"),
    ],
)
def test_a_model_need_not_know_of_training_nor_call_it_train(
    model: nn.Module, layer: str
) -> None:
    """Where dropout was on, Flax would ask for a key."""
    signal = initializers.signal(model, keys(1), random_batch((5, 4), 3), 0.5)
    assert signal.layers == (layer,)
    assert np.isfinite(signal.gradient_variance).all()
    assert np.isnan(signal.rank_correlation).all()
    assert "nan" not in str(signal)


def test_table() -> None:
    signal = initializers.Signal(
        ("Dense_0", "cell/i"),
        activation_variance=np.array([[0.5, np.nan], [1.5, np.nan]], np.float32),
        gradient_variance=np.array([[1e-6, np.nan], [3e-6, np.nan]], np.float32),
        density=np.array([[0.25, 0.5], [0.25, 0.7]], np.float32),
        rank_correlation=np.array([0.125, -0.5], np.float32),
    )
    header, dense, cell = str(signal).splitlines()
    assert header.split("  ")[0] == "layer"
    assert dense.startswith("Dense_0  1.00e+00 ± 5.00e-01  2.00e-06 ± 1.00e-06")
    assert dense.endswith(" 25.00 ± 0.00             0.125")
    assert cell.split() == ["cell/i", "-", "-", "60.00", "±", "10.00", "-0.500"]
    assert len(header) == len(dense) == len(cell)


def test_a_signal_comes_back_from_json(tmp_path: Path) -> None:
    ones = np.ones((2, 1), np.float32)
    signal = initializers.Signal(("Dense_0",), np.nan * ones, ones, ones, ones[0])
    path = tmp_path / "signal.json"
    path.write_text(json.dumps(initializers.to_json(signal), allow_nan=False))
    found = signals.read(path)
    assert found.layers == signal.layers
    chex.assert_trees_all_equal(found[1:], signal[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": "x"}, "not a signal"),
        ({"layers": ["a", "b"]}, "do not fit"),
        ({"density": [[0.5], [0.5]]}, "do not fit"),
        ({"density": [], "activation_variance": [], "gradient_variance": []}, "fit"),
    ],
)
def test_a_damaged_signal_costs_itself_only(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    values = {"layers": ["a"], "rank_correlation": [None], "density": [[0.5]]}
    values |= {"activation_variance": [[1.0]], "gradient_variance": [[1e60]]}
    assert initializers.from_json(values).layers == ("a",)
    path = tmp_path / "signal.json"
    assert signals.read(path) is None
    path.write_text(json.dumps(values | change))
    with pytest.warns(UserWarning, match=rf"left out: '.*signal\.json'.*{message}"):
        assert signals.read(path) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": Net}, "no Flax Linen module; pass an instance"),
        ({"model": lambda images: images}, "no Flax Linen module"),
        ({"sparsity": 1.0}, r"outside \[0, 1\)"),
        ({"model": Net(())}, "Net has no layer"),
        ({"prunable": lambda path, leaf: False}, "nothing is prunable"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    valid = {
        "model": Net((3,)),
        "keys": keys(2),
        "batch": random_batch((5, 4), 3),
        "sparsity": 0.5,
    }
    with pytest.raises(ValueError, match=message):
        initializers.signal(**(valid | arguments))
