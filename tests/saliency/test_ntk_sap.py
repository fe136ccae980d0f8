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


def masks_of() -> list[np.ndarray]:
    masks = [np.ones(shape) for shape in SHAPES]
    masks[0][1, 2] = masks[1][3, 1] = 0
    return masks


def test_a_score_is_the_derivative_of_the_expected_distance() -> None:
    rng, draws, epsilon = np.random.default_rng(0), 20_000, 0.1
    w, n = ([rng.normal(size=(draws, *shape)) for shape in SHAPES] for _ in range(2))
    z = rng.normal(size=(draws, 1, 3))

    def distances(masks: list[np.ndarray]) -> np.ndarray:
        near = [m * a for m, a in zip(masks, w)]
        far = [m * (a + epsilon * b) for m, a, b in zip(masks, w, n)]
        return ((outputs(near, z) - outputs(far, z)) ** 2).sum(axis=(1, 2))

    samples = 4000
    score = functools.partial(
        saliency.ntk_sap,
        apply_fn=apply_fn,
        inputs=jnp.zeros((5, 3)),
        init_fn=init_fn,
        num_samples=samples,
        epsilon=epsilon,
    )
    scores = jax.jit(lambda params: score(None, params, None, key=KEY))(
        jax.tree.map(np.float32, masks_of())
    )
    for layer, shape in enumerate(SHAPES):
        for index in np.ndindex(*shape):
            if not masks_of()[layer][index]:
                assert scores[layer][index] == 0
                continue
            more, less = masks_of(), masks_of()
            more[layer][index] += 1e-4
            less[layer][index] -= 1e-4
            derivative = (distances(more) - distances(less)) / 2e-4
            error = derivative.std() * (1 / draws + 1 / samples) ** 0.5
            assert abs(scores[layer][index] - abs(derivative.mean())) < 4.5 * error


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
