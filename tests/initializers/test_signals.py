"""The signal of an initialization, against networks written by hand."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from snipjax import initializers, saliency
from snipjax.initializers import signals
from tests.conftest import largest_by_sorting

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


def cross_entropy(logits: chex.Array, labels: chex.Array) -> chex.Array:
    rows = jnp.arange(labels.size)
    return -jnp.mean(jax.nn.log_softmax(logits)[rows, labels])


# Pixels that are always black tie saliencies at zero, for every seed.
SMALL = Net((6, 3), nn.tanh, bias_init=nn.initializers.normal())
IMAGES, LABELS = random_batch((10, 6), 3)
BATCH = IMAGES.at[:, :2].set(0.0), LABELS


class Small(NamedTuple):
    """The signal of three seeds, with the parameters and saliencies of each."""

    signal: initializers.Signal
    params: list[Any]
    scores: list[Any]


@pytest.fixture(scope="module")
def small() -> Small:
    def loss_fn(params: chex.ArrayTree, batch: Batch) -> chex.Array:
        return cross_entropy(SMALL.apply({"params": params}, batch[0]), batch[1])

    @jax.jit
    def params_and_scores(key: chex.PRNGKey) -> tuple[Any, Any]:
        params = SMALL.init(key, BATCH[0])["params"]
        return params, saliency.snip(loss_fn, params, BATCH)

    pairs = [jax.device_get(params_and_scores(key)) for key in keys(3)]
    return Small(initializers.signal(SMALL, keys(3), BATCH, 0.7), *zip(*pairs))


def test_variances_are_by_the_equations(small: Small) -> None:
    signal = small.signal
    assert signal.layers == ("Dense_0", "Dense_1")
    x, one_hot = np.asarray(BATCH[0]), np.eye(3)[np.asarray(LABELS)]
    for seed, params in enumerate(small.params):
        (w1, b1), (w2, b2) = (
            (params[name]["kernel"], params[name]["bias"]) for name in signal.layers
        )
        z1 = x @ w1 + b1
        z2 = np.tanh(z1) @ w2 + b2
        dz2 = (scipy.special.softmax(z2, axis=1) - one_hot) / 10
        dz1 = dz2 @ w2.T / np.cosh(z1) ** 2
        np.testing.assert_allclose(
            signal.activation_variance[seed], [z1.var(), z2.var()], rtol=1e-5
        )
        np.testing.assert_allclose(
            signal.gradient_variance[seed], [dz1.var(), dz2.var()], rtol=1e-4
        )


def test_density_is_by_snip(small: Small) -> None:
    for seed, scores in enumerate(small.scores):
        leaves = jax.tree.leaves(scores)  # biases and kernels of two layers
        keep = largest_by_sorting(leaves, round(0.3 * sum(x.size for x in leaves)))
        density = [np.mean([*b, *w.ravel()]) for b, w in (keep[:2], keep[2:])]
        np.testing.assert_allclose(small.signal.density[seed], density, rtol=1e-6)


def test_rank_correlation_is_the_mean_of_spearman_over_pairs(small: Small) -> None:
    for number, layer in enumerate(small.signal.layers):
        kernels = [np.ravel(scores[layer]["kernel"]) for scores in small.scores]
        pairs = itertools.combinations(kernels, 2)
        expected = np.mean([scipy.stats.spearmanr(a, b).statistic for a, b in pairs])
        found = small.signal.rank_correlation[number]
        np.testing.assert_allclose(found, expected, atol=1e-5)


class Shared(nn.Module):
    """A layer that is called twice, and one inside of a transform of Flax."""

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        layer = nn.Dense(4, name="shared")
        return nn.remat(nn.Dense)(3, name="inside")(layer(nn.relu(layer(x))))


def test_a_shared_layer_has_the_variance_over_its_calls() -> None:
    model, (x, labels) = Shared(), random_batch((6, 4), 3)
    signal = initializers.signal(model, keys(1), (x, labels), 0.5)
    assert signal.layers == ("shared", "inside")
    params = model.init(keys(1)[0], x)["params"]
    w, v = (np.asarray(params[name]["kernel"]) for name in signal.layers)
    z1 = np.asarray(x) @ w
    z2 = np.maximum(z1, 0) @ w
    dz2 = (scipy.special.softmax(z2 @ v, axis=1) - np.eye(3)[labels]) / 6 @ v.T
    dz1 = dz2 @ w.T * (z1 > 0)
    for found, expected in (
        (signal.activation_variance, [np.var([z1, z2]), np.var(z2 @ v)]),
        (signal.gradient_variance[:, :1], [np.var([dz1, dz2])]),
    ):
        np.testing.assert_allclose(found[0], expected, rtol=1e-4)


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


def test_low_precision_is_measured_in_float32(small: Small) -> None:
    low = initializers.signal(SMALL.clone(dtype=jnp.bfloat16), keys(3), BATCH, 0.7)
    assert {array.dtype for array in low[1:]} == {np.dtype(np.float32)}
    for found, expected in zip(low[1:3], small.signal[1:3]):
        np.testing.assert_allclose(found, expected, rtol=0.05)


def test_overflow_is_shown_and_does_not_fail() -> None:
    model = Net((8, 3), kernel_init=nn.initializers.normal(1e25))
    signal = initializers.signal(model, keys(2), random_batch((5, 4), 3), 0.5)
    assert not np.isfinite(signal.activation_variance).all()
    assert np.isnan(signal.density).all()
    assert np.isnan(signal.rank_correlation).any()


class Owner(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        return x @ self.param("w", initializers.he, (4, 3))


def test_a_model_may_be_its_only_layer_and_not_know_of_training() -> None:
    signal = initializers.signal(Owner(), keys(1), random_batch((5, 4), 3), 0.5)
    assert signal.layers == ("Owner",)
    assert np.isfinite(signal.gradient_variance).all()
    assert np.isnan(signal.rank_correlation).all()
    assert "nan" not in str(signal)


class Dropping(nn.Module):
    @nn.compact
    def __call__(
        self, x: chex.Array, training: bool, deterministic: bool
    ) -> chex.Array:
        is_off = deterministic and not training
        x = nn.Dropout(0.9, deterministic=is_off)(x)
        return Net((3,))(x)


def test_other_flags_another_loss_and_old_keys() -> None:
    def squares(logits: chex.Array, labels: chex.Array) -> chex.Array:
        return 0.5 * jnp.sum((logits - labels[:, None]) ** 2)

    # Where dropout was on, Flax would ask for a key.
    model, (images, labels) = Dropping(), random_batch((5, 4), 3)
    old = jax.random.key_data(keys(1))
    signal = initializers.signal(model, old, (images, labels), 0.5, loss=squares)
    assert signal.layers == ("Net_0/Dense_0",)
    params = model.init(keys(1)[0], images, training=False, deterministic=True)
    z = images @ params["params"]["Net_0"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(
        signal.gradient_variance, [[np.var(z - labels[:, None])]], rtol=1e-5
    )


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
