"""Synaptic flow against all paths by brute force, and through deep networks."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks, pruning, saliency
from tests.conftest import ConvNet, flatten

pytestmark = pytest.mark.filterwarnings("error")

Params = list[np.ndarray]
both = pytest.mark.parametrize(
    ("criterion", "power"), [(saliency.synflow, 1), (saliency.synflow_l2, 2)]
)


def plain(params: Any, x: chex.Array) -> chex.Array:
    for w in params:
        x = jax.nn.relu(x @ w)
    return x


def residual(params: Any, x: chex.Array) -> chex.Array:
    for w in params:
        x = x + jax.nn.relu(x @ w)
    return x


def score(criterion: Any, params: Any, network: Any, inputs: Any) -> Any:
    compiled = functools.partial(criterion, apply_fn=network, inputs=inputs)
    return jax.jit(lambda params: compiled(None, params, None))(params)


def weights(layers: int, width: int, scale: float = 1.0) -> Params:
    rng = np.random.default_rng(layers)
    return [np.float32(scale * rng.normal(size=(width, width))) for _ in range(layers)]


def paths(layers: int, width: int, has_shortcuts: bool) -> Iterator[list[Any]]:
    """All paths as lists of edges ``(layer, from, to)``; a shortcut is no edge."""
    for units in itertools.product(range(width), repeat=layers + 1):
        steps = [*enumerate(itertools.pairwise(units))]
        choices = [
            [(layer, i, j), None] if has_shortcuts and i == j else [(layer, i, j)]
            for layer, (i, j) in steps
        ]
        for path in itertools.product(*choices):
            yield [edge for edge in path if edge is not None]


def shares(params: Params, power: int, has_shortcuts: bool) -> Params:
    """The share of paths that each weight is on, one path after the other."""
    sizes = [np.abs(np.float64(w)) ** power for w in params]
    flow, total = [np.zeros_like(w) for w in sizes], 0.0
    for path in paths(len(params), len(params[0]), has_shortcuts):
        product = np.prod([sizes[layer][i, j] for layer, i, j in path])
        total += product
        for layer, i, j in path:
            flow[layer][i, j] += product
    return [w / total for w in flow]


@both
@pytest.mark.parametrize("network", [plain, residual])
def test_a_score_is_the_share_of_the_paths_through_a_connection(
    criterion: saliency.Criterion, power: int, network: Any
) -> None:
    params = weights(layers=3, width=3)
    params[1][0, 1] = 0.0
    inputs = np.float32(np.random.default_rng(0).normal(size=(4, 3)))
    scores = score(criterion, params, network, inputs)
    expected = shares(params, power, has_shortcuts=network is residual)
    chex.assert_trees_all_close(scores, expected, rtol=1e-5)
    assert scores[1][0, 1] == 0


def flow_in_double(params: Params, power: int, has_shortcuts: bool) -> Params:
    """The shares by messages from both ends, each divided by its sum."""
    sizes = [np.abs(np.float64(w)) ** power for w in params]
    eye = np.eye(len(sizes[0])) * has_shortcuts
    ahead, behind = [np.ones(len(eye))], [np.ones(len(eye))]
    for w in sizes:
        a = ahead[-1] @ (w + eye)
        ahead.append(a / a.sum())
    for w in reversed(sizes):
        b = (w + eye) @ behind[-1]
        behind.append(b / b.sum())
    return [
        np.outer(a, b) * w / (a @ (w + eye) @ b)
        for a, b, w in zip(ahead, behind[-2::-1], sizes)
    ]


@pytest.mark.parametrize(
    ("criterion", "power", "network", "scale"),
    [
        (saliency.synflow, 1, plain, 1e-3),
        (saliency.synflow, 1, residual, 1e3),
        (saliency.synflow_l2, 2, residual, 1.0),
    ],
)
def test_deep_networks_in_float32(
    criterion: saliency.Criterion, power: int, network: Any, scale: float
) -> None:
    # Sums over all paths are 1e-54, 1e+135 and 1e+40.
    params = weights(layers=30, width=20, scale=scale)
    # Compiled operation by operation, because layers are alike.
    inputs = np.ones((1, 20), np.float32)
    scores = criterion(None, params, None, apply_fn=network, inputs=inputs)
    assert flatten(scores).min() > 0
    expected = flow_in_double(params, power, has_shortcuts=network is residual)
    chex.assert_trees_all_close(scores, expected, rtol=1e-3)
    if network is plain:
        np.testing.assert_allclose([w.sum() for w in scores], 1.0, rtol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        (np.ones((0, 20)), r"shape \(0, 20\); pass arrays"),
        (1.0, r"shape \(\); pass arrays"),
    ],
)
def test_inputs_without_an_example(inputs: Any, problem: str) -> None:
    params = weights(layers=1, width=20)
    with pytest.raises(ValueError, match=problem):
        saliency.synflow(None, params, None, apply_fn=plain, inputs=inputs)


def test_layers_of_a_scan_are_those_written_out() -> None:
    params = weights(layers=30, width=20, scale=1e3)
    inputs = np.ones((1, 20), np.float32)

    def scanned(params: Any, x: chex.Array) -> chex.Array:
        return jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, params)[0]

    scores = saliency.synflow(
        None, jnp.stack(params), None, apply_fn=scanned, inputs=inputs
    )
    expected = flow_in_double(params, 1, has_shortcuts=False)
    chex.assert_trees_all_close([*scores], expected, rtol=1e-3)


def test_convolutions_and_batch_norm_as_in_double_precision() -> None:
    model, x = ConvNet(), jnp.ones((1, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    params, stats = variables["params"], variables["batch_stats"]

    def apply_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        return model.apply({"params": params, "batch_stats": stats}, x, train=False)

    scores = score(saliency.synflow, params, apply_fn, x)
    with jax.enable_x64(True):
        double = ConvNet(jnp.float64)
        sizes = jax.tree.map(lambda w: jnp.abs(jnp.asarray(w, jnp.float64)), params)

        def log_total(sizes: chex.ArrayTree) -> chex.Array:
            wide = {"params": sizes, "batch_stats": stats}
            ones = jnp.ones(x.shape, jnp.float64)
            return jnp.log(jnp.sum(double.apply(wide, ones, train=False)))

        gradient = jax.jit(jax.grad(log_total))(sizes)
        expected = flatten(jax.tree.map(jnp.multiply, sizes, gradient))
    np.testing.assert_allclose(
        flatten(scores), expected, rtol=1e-3, atol=1e-6 * expected.max()
    )


def test_neither_data_nor_a_loss_nor_signs_matter() -> None:
    params, inputs = weights(layers=2, width=3), np.ones((4, 3), np.float32)
    scores = saliency.synflow(None, params, None, apply_fn=plain, inputs=inputs)
    flipped = [-w for w in params]
    again = saliency.synflow(
        lambda params, batch: 0.0, flipped, 1, apply_fn=plain, inputs=5 * inputs
    )
    chex.assert_trees_all_equal(again, scores)


@both
def test_where_no_path_is_left_all_is_zero(
    criterion: saliency.Criterion, power: int
) -> None:
    params = [np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)]
    scores = score(criterion, params, plain, np.ones((1, 2), np.float32))
    np.testing.assert_array_equal(flatten(scores), 0.0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_params_have_float32_scores(dtype: Any) -> None:
    params = [w.astype(dtype) for w in weights(layers=20, width=8)]

    def apply_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        assert params[0].dtype == dtype
        return plain(params, x.astype(dtype))

    inputs = np.ones((1, 8), np.float32)
    scores = saliency.synflow(None, params, None, apply_fn=apply_fn, inputs=inputs)
    assert scores[0].dtype == jnp.float32
    np.testing.assert_allclose([w.sum() for w in scores], 1.0, rtol=0.1)


def test_a_hundred_rounds_empty_no_layer_where_one_does() -> None:
    # The middle of a bottleneck has few connections, through which all paths go.
    rng = np.random.default_rng(0)
    sizes = [20, 20, 3, 3, 20, 20]
    params = {
        f"layer_{i}": np.float32(rng.normal(size=shape) / shape[0] ** 0.5)
        for i, shape in enumerate(itertools.pairwise(sizes))
    }

    def apply_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        return plain([params[name] for name in sorted(params)], x)

    criterion = functools.partial(
        saliency.synflow, apply_fn=apply_fn, inputs=np.ones((1, 20), np.float32)
    )
    sparsity = 1 - 5 / sum(w.size for w in params.values())
    _, mask = pruning.score_and_mask(
        None, params, None, sparsity, criterion=criterion, rounds=100
    )
    assert {name: int(keep.sum()) for name, keep in mask.items()} == dict.fromkeys(
        params, 1
    )
    magnitudes = functools.partial(saliency.magnitude, None, params)
    with pytest.warns(UserWarning, match="no connection of"):
        pruning.prune(
            None, params, None, sparsity, criterion=lambda *_, key: magnitudes(None)
        )
    assert masks.sparsity(mask) == pytest.approx(sparsity)


def test_a_negative_total_has_the_scores_of_a_positive_one() -> None:
    def apply_fn(params: dict[str, chex.Array], x: chex.Array) -> chex.Array:
        return x @ params["w"] @ params["v"] - 100 * jnp.sum(params["w"])

    params = {"w": jnp.array([[1.0, -3.0]]), "v": jnp.array([[2.0], [2.0]])}
    x = jnp.ones((5, 1))
    scores = saliency.synflow(None, params, None, apply_fn=apply_fn, inputs=x)
    # R = 2 |w_1| + 2 |w_2| - 100 (|w_1| + |w_2|) = -392
    np.testing.assert_allclose(scores["w"], [[98 / 392, 3 * 98 / 392]], rtol=1e-6)
    np.testing.assert_allclose(scores["v"], [[2 / 392], [6 / 392]], rtol=1e-6)
