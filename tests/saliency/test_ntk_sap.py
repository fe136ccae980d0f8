"""NTK-SAP against its definition in NumPy, on draws of its own."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import pruning, saliency
from tests.conftest import flatten

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [(3, 4), (4, 2)]
KEY = jax.random.key(0)


def init_fn(key: chex.PRNGKey) -> list[chex.Array]:
    keys = jax.random.split(key, len(SHAPES))
    return [jax.random.normal(k, shape) for k, shape in zip(keys, SHAPES)]


def apply_fn(params: list[chex.Array], x: chex.Array) -> chex.Array:
    return jax.nn.relu(x @ params[0]) @ params[1]


def outputs(params: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """The network in NumPy, for a stack of samples."""
    return np.maximum(x @ params[0], 0) @ params[1]


def test_a_score_is_the_derivative_of_the_mean_distance() -> None:
    masks = [np.ones(shape) for shape in SHAPES]
    masks[0][1, 2] = masks[1][3, 1] = 0
    drawn: list[tuple[list[np.ndarray], np.ndarray]] = []

    def record(*seen: Any) -> None:
        drawn.append(jax.tree.map(np.array, seen))

    def recorded(params: list[chex.Array], x: chex.Array) -> chex.Array:
        jax.debug.callback(record, params, x, ordered=True)
        return apply_fn(params, x)

    scores = saliency.ntk_sap(
        None,
        jax.tree.map(np.float32, masks),
        None,
        key=KEY,
        apply_fn=recorded,
        inputs=jnp.zeros((5, 3)),
        init_fn=init_fn,
        num_samples=3,
        epsilon=0.1,
    )
    jax.effects_barrier()

    def mean_distance(masks: list[np.ndarray]) -> float:
        def output(seen: tuple[list[np.ndarray], np.ndarray]) -> np.ndarray:
            params, z = seen
            return outputs([m * np.float64(w) for m, w in zip(masks, params)], z)

        pairs = zip(drawn[::2], drawn[1::2])
        return sum(((output(a) - output(b)) ** 2).sum() / 5 for a, b in pairs) / 3

    changes = [
        (flatten(b) - flatten(a))[flatten(masks) > 0] / 0.1
        for (a, _), (b, _) in zip(drawn[::2], drawn[1::2])
    ]
    for gaussian in (changes, [z for _, z in drawn]):
        assert 0.7 < np.std(gaussian) < 1.3
    for layer, shape in enumerate(SHAPES):
        for index in np.ndindex(*shape):
            near, far = ([m.copy() for m in masks] for _ in range(2))
            near[layer][index] += 1e-6
            far[layer][index] -= 1e-6
            derivative = (mean_distance(near) - mean_distance(far)) / 2e-6
            expected = abs(masks[layer][index] * derivative)
            np.testing.assert_allclose(scores[layer][index], expected, rtol=1e-3)


def test_scores_depend_on_the_key_and_not_on_the_values() -> None:
    @jax.jit
    def scores(key: chex.PRNGKey, params: list[chex.Array]) -> list[chex.Array]:
        return saliency.ntk_sap(
            None,
            params,
            None,
            key=key,
            apply_fn=apply_fn,
            inputs=jnp.ones((5, 3)),
            init_fn=init_fn,
            num_samples=1,
        )

    params = init_fn(KEY)
    one = scores(KEY, params)
    chex.assert_trees_all_equal(one, scores(KEY, jax.tree.map(jnp.negative, params)))
    other = scores(jax.random.key(1), params)
    assert not np.isclose(flatten(one), flatten(other)).any()


def test_rounds_take_the_mask_of_the_round_before() -> None:
    seen: list[Any] = []

    def criterion(*args: Any, key: Any) -> Any:
        scores = score(*args, key=key)
        seen.append((key, scores))
        return scores

    score = functools.partial(
        saliency.ntk_sap, apply_fn=apply_fn, inputs=jnp.ones((5, 3)), init_fn=init_fn
    )
    scores, mask = pruning.score_and_mask(
        None, init_fn(KEY), None, 0.5, criterion=criterion, rounds=3, key=KEY
    )
    for s, keep in zip(scores, mask):
        assert np.all(np.asarray(s)[np.asarray(keep)] > 0)
    assert sum(int(jnp.sum(keep)) for keep in mask) == 10
    assert sum(int(jnp.sum(s > 0)) for s in scores) == round(20 * 0.5 ** (2 / 3))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"key": None}, "saliency.ntk_sap draws random numbers and has no key"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"inputs": jnp.ones((5, 3), int)}, "inputs leaf '' has dtype int32"),
        ({"init_fn": lambda key: {"w": 1.0}}, "init_fn does not have the structure"),
    ],
)
def test_bad_input(fields: Any, problem: str) -> None:
    good = {
        "key": KEY,
        "apply_fn": apply_fn,
        "inputs": jnp.ones((5, 3)),
        "init_fn": init_fn,
    }
    with pytest.raises(ValueError, match=problem):
        saliency.ntk_sap(None, init_fn(KEY), None, **good | fields)


def test_statistics_are_of_the_weights_before_their_change() -> None:
    # Each layer is divided by its deviation, so that scores do not vanish with depth.
    depth, width = 12, 16

    def network(
        params: list[chex.Array], x: chex.Array, deviations: list[chex.Array]
    ) -> chex.Array:
        for w, deviation in zip(params, deviations):
            x = jax.nn.relu(x @ w / deviation)
        return x

    def normalized_by(params: list[chex.Array], x: chex.Array) -> Any:
        deviations = []
        for w in params:
            deviations.append(jnp.std(x @ w) + 1e-9)
            x = jax.nn.relu(x @ w / deviations[-1])
        return functools.partial(network, deviations=deviations)

    def sample(key: chex.PRNGKey) -> list[chex.Array]:
        return [
            jax.random.normal(k, (width, width)) for k in jax.random.split(key, depth)
        ]

    params = jax.tree.map(
        lambda w: jnp.where(jnp.abs(w) > 1.5, w, 0), sample(jax.random.key(1))
    )
    score = functools.partial(
        saliency.ntk_sap,
        *(None, params, None),
        key=KEY,
        apply_fn=functools.partial(network, deviations=[1e3] * depth),
        inputs=jnp.ones((50, width)),
        init_fn=sample,
    )
    assert max(jnp.max(s) for s in score()) < 1e-12
    assert all(jnp.max(s) > 1e-6 for s in score(normalized_by=normalized_by))
