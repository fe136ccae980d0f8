"""Training in phases: which evaluation is chosen, and how fast is learnt."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snipjax import training
from snipjax.methods import fitting
from tests.methods import softmax_regression

# What the second class has of the outputs; of the four examples 2, 1, 1, 3 are wrong.
DIRECTIONS = np.array([[1.0, -1.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])


def test_the_later_of_those_best_on_validation_is_chosen() -> None:
    parts = softmax_regression.parts(steps=1)  # between two evaluations
    # On these labels whatever is right for validation is wrong, so that the fourth
    # is the best.
    others = training.Batch(parts.test.images, 1 - parts.test.labels)

    def step(
        number: chex.Array, batch: training.Batch, key: chex.PRNGKey
    ) -> tuple[chex.Array, training.Metrics]:
        del batch, key
        return number + 1, training.Metrics(jnp.float32(0), jnp.float32(0))

    def deployed(number: chex.Array) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        # What the mask hides would turn the outputs around.
        kernel = jnp.stack(
            [jnp.full(2, 9.0), jnp.asarray(DIRECTIONS, jnp.float32)[number - 1]], 1
        )
        mask = jnp.array([[False, True], [False, True]])
        return {"Dense_0": {"kernel": kernel}}, {"Dense_0": {"kernel": mask}}

    fitted = fitting.fit(
        parts._replace(test=others),
        step,
        jnp.int32(0),
        num_steps=4,
        deployed=deployed,
        key=jax.random.key(0),
        phase="counting",
        measure=lambda number: {"number": number},
    )
    rows = fitted.history.rows
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["val_error"] for row in rows] == [50, 25, 25, 75]
    assert [row["test_error"] for row in rows] == [50, 75, 75, 25]
    assert int(fitted.carry) == 4
    assert int(fitted.measured["number"]) == 3
    kernel = fitted.params["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel, [[0, 0], [0, 1]])


@pytest.mark.parametrize("learning_rate", [0.5, 2.0])
def test_a_phase_has_its_share_of_the_learning_rate_and_its_own_decays(
    learning_rate: float,
) -> None:
    parts = softmax_regression.parts(steps=1, learning_rate=0.4)
    parts.config.train.update(decay_factor=0.1, momentum=0.5, weight_decay=0.25)
    optimizer = fitting.phase_optimizer(parts, 5, learning_rate=learning_rate, decays=1)
    weights = {"w": jnp.array([2.0])}
    state = optimizer.init(weights)
    # Five steps with one decay: three, and two at a tenth of the rate.
    w, velocity = 2.0, 0.0
    for rate in 0.4 * learning_rate * np.array([1, 1, 1, 0.1, 0.1]):
        updates, state = optimizer.update({"w": jnp.array([3.0])}, state, weights)
        weights = optax.apply_updates(weights, updates)
        velocity = 0.5 * velocity + 3.0 + 0.25 * w
        w -= rate * velocity
        np.testing.assert_allclose(weights["w"], [w], rtol=1e-5)
