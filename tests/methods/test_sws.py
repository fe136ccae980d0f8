"""Soft weight-sharing against sums over components, and codes by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

from snipjax.methods import SWS, sws
from snipjax.methods.mixtures import Mixture, log_odds, negative_log_prior
from snipjax.methods.quantization import (
    bits_per_weight,
    huffman_bits,
    likeliest_components,
    quantize,
)
from tests.methods import softmax_regression

MIXTURE = Mixture(
    means=jnp.array([0.0, -0.5, 0.4, 1.0]),
    log_precisions=jnp.log(jnp.array([100.0, 16.0, 25.0, 4.0])),
    log_proportions=jnp.log(jnp.array([0.7, 0.1, 0.15, 0.05])),
)


def joint(weights: np.ndarray) -> np.ndarray:
    """Proportion times density, ``[components, weights]``."""
    means, log_precisions, log_proportions = (
        np.float64(np.asarray(x))[:, None] for x in MIXTURE
    )
    densities = stats.norm.pdf(weights, means, np.exp(-log_precisions / 2))
    return np.exp(log_proportions) * densities


@pytest.mark.parametrize("size", [7, 9000])
def test_negative_log_prior_is_the_sum_over_weights_and_pulls_to_the_means(
    size: int,
) -> None:
    weights = np.random.default_rng(0).normal(size=size).astype(np.float32)
    halves = [jnp.asarray(weights[: size // 2]), jnp.asarray(weights[size // 2 :])]
    expected = -np.sum(np.log(joint(np.float64(weights)).sum(axis=0)))
    prior = jax.jit(jax.value_and_grad(lambda w: negative_log_prior(w, MIXTURE)))
    value, slopes = prior(halves)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    # Each component pulls to its mean, by its share in the weight.
    shares = joint(np.float64(weights))
    precisions = np.exp(np.float64(MIXTURE.log_precisions))[:, None]
    pulls = precisions * (np.float64(weights) - np.float64(MIXTURE.means)[:, None])
    pull = (shares / shares.sum(axis=0) * pulls).sum(axis=0)
    np.testing.assert_allclose(np.concatenate(slopes), pull, rtol=1e-3, atol=1e-3)


def test_odds_are_those_of_the_responsibilities() -> None:
    weights = np.linspace(-1.5, 1.5, 201)
    responsibilities = joint(weights) / joint(weights).sum(axis=0)
    odds = log_odds(jnp.asarray(weights, jnp.float32), MIXTURE)
    expected = np.log(responsibilities[1:].max(axis=0) / responsibilities[0])
    np.testing.assert_allclose(odds, expected, rtol=1e-4, atol=1e-4)
    # What is pruned belongs to the zero component.
    np.testing.assert_array_equal(odds > 0, responsibilities.argmax(axis=0) > 0)


PARAMS = {
    "kernel": jnp.array([[0.02, -0.6], [0.45, 0.9]]),
    "scale": jnp.array([0.3, 0.7]),
}
MASK = {
    "kernel": jnp.array([[False, True], [True, True]]),
    "scale": jnp.array(True),
}


def test_quantized_weights_are_the_means_of_their_components() -> None:
    components = likeliest_components(PARAMS, MASK, MIXTURE)
    np.testing.assert_array_equal(components["kernel"], [[0, 1], [2, 3]])
    actual = jax.jit(quantize)(PARAMS, MASK, MIXTURE)
    np.testing.assert_allclose(actual["kernel"], [[0.0, -0.5], [0.4, 1.0]])
    np.testing.assert_array_equal(actual["scale"], PARAMS["scale"])
    # A weight near zero that is kept is not quantized to zero.
    kept = {**MASK, "kernel": jnp.ones((2, 2), bool)}
    assert quantize(PARAMS, kept, MIXTURE)["kernel"][0, 0] == jnp.float32(0.4)


def test_bits_are_of_two_codes_and_a_codebook() -> None:
    # Components 1, 2, 3 take 1 + 2 + 2 bits, their gaps 2, 1, 1 a bit each.
    assert bits_per_weight(PARAMS, MASK, MIXTURE) == (5 + 3 + 3 * 32) / 4
    # Gaps 4; 697 = 256 + 256 + 185: components 3, 0, 0, 3 and gaps 4, 256, 256, 185.
    params = {"w": jnp.zeros(1000).at[jnp.array([3, 700])].set(1.0)}
    mask = {"w": params["w"] > 0}
    assert bits_per_weight(params, mask, MIXTURE) == (4 + 6 + 32) / 1000
    with pytest.raises(ValueError, match="no leaf of the mask is prunable"):
        bits_per_weight({"w": jnp.ones(2)}, {"w": jnp.array(True)}, MIXTURE)


def test_huffman_codes_by_hand() -> None:
    # Of the last, a has one bit, b two, c and d three.
    for symbols, bits in (("", 0), ("aaa", 3), ("abcd", 8), ("aaaaabbbccd", 20)):
        assert huffman_bits(symbols) == bits


def test_steps_go_down_the_loss_and_the_prior_of_weights_and_precisions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optax, "adam", optax.sgd)
    settings = SWS(
        share=1.0,
        num_components=3,
        zero_proportion=0.2,
        strength=0.8,
        initial_std=0.5,
        zero_shape=7.0,
        zero_rate=0.5,
        shape=3.0,
        rate=0.2,
        learning_rate=0.3,
        means_learning_rate=0.2,
        mixture_learning_rate=0.4,
    )
    problem = softmax_regression.problem(steps=2)
    start = softmax_regression.pretrained()
    params, _, history = sws(problem, 0.0, settings, start)

    def by_equation(trained: np.ndarray) -> float:
        weights, means, log_precisions, logits = np.split(trained, [4, 6, 9])
        proportions = np.append(0.2, 0.8 * special.softmax(logits))[:, None]
        means, precisions = np.append(0.0, means)[:, None], np.exp(log_precisions)
        densities = stats.norm.pdf(weights, means, precisions[:, None] ** -0.5)
        prior = np.log(np.sum(proportions * densities, axis=0)).sum()
        hyper_prior = stats.gamma.logpdf(
            precisions, [7.0, 3.0, 3.0], scale=1 / np.array([0.5, 0.2, 0.2])
        ).sum()
        loss = softmax_regression.cross_entropy(weights)
        return loss - 0.8 / 4 * (prior + hyper_prior)

    # Weights, then means, log precisions and logits of the proportions.
    trained = np.concatenate(
        [softmax_regression.WEIGHTS.ravel(), [-1.0, 1.0], np.log([4.0] * 3), [0.0] * 2]
    )
    learning_rates = np.repeat([0.3, 0.2, 0.4], [4, 2, 5])
    for _ in range(2):  # the second step sees what the first made of the mixture
        slope = softmax_regression.gradient(by_equation, trained)
        trained = trained - learning_rates * slope
    actual = params["w"].ravel()
    np.testing.assert_allclose(actual, trained[:4], atol=1e-5)
    assert history.prunes == 0


def test_the_rule_prunes_beyond_the_target_and_the_last_row_is_quantized() -> None:
    # Of components at 0, -1 and 1 as wide as each other, two weights are nearest to
    # the first, where a target of 0.25 would have one go.
    start = np.array([[1.0, 0.1], [-0.2, -0.7]])
    settings = SWS(
        share=1.0,
        num_components=3,
        zero_proportion=0.5,
        initial_std=0.25,
        learning_rate=1e-9,  # the mixture's, too: all stays as it was
        means_learning_rate=1e-9,
        mixture_learning_rate=1e-9,
    )
    problem = softmax_regression.problem(steps=1)
    start = softmax_regression.pretrained(start)
    params, mask, history = sws(problem, 0.25, settings, start)
    pruned, quantized = [[1.0, 0.0], [0.0, -0.7]], [[1.0, 0.0], [0.0, -1.0]]
    np.testing.assert_array_equal(mask["w"], np.eye(2))
    np.testing.assert_allclose(params["w"], pruned, atol=1e-6)
    row, last = history.rows
    assert row["kept_by_rule"] == 2
    assert row["sparsity"] == last["sparsity"] == 0.5
    assert (last["phase"], last["bits_per_weight"]) == ("quantized", (2 + 2 + 64) / 4)
    for found, weights in ((row, pruned), (last, quantized)):
        expected = softmax_regression.cross_entropy(np.array(weights))
        assert found["val_loss"] == pytest.approx(expected, rel=1e-5)
