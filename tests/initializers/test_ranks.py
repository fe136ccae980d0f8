"""Rank correlations are Spearman's."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from snipjax.initializers import ranks


def mean_correlation(*samples: np.ndarray) -> float:
    sums = ranks.RankSums()
    for sample in samples:
        sums = ranks.add(sums, jnp.asarray(sample, jnp.float32))
    return float(ranks.mean_correlation(sums, len(samples)))


def test_the_mean_is_over_all_pairs_and_ties_share_their_rank() -> None:
    samples = np.random.default_rng(0).integers(0, 8, (4, 30))
    pairs = itertools.combinations(samples, 2)
    expected = np.mean([scipy.stats.spearmanr(a, b).statistic for a, b in pairs])
    np.testing.assert_allclose(mean_correlation(*samples), expected, atol=1e-5)


def test_equal_and_opposite_samples_are_the_ends_of_the_scale() -> None:
    sample = np.arange(9.0)
    assert mean_correlation(sample, sample) == pytest.approx(1.0, rel=1e-5)
    assert mean_correlation(sample, -sample) == pytest.approx(-1.0, rel=1e-5)


@pytest.mark.parametrize("other", [[2.0, 2.0, 2.0], [1.0, np.nan, 3.0], [1, np.inf, 3]])
def test_a_constant_or_infinite_sample_has_no_correlation(other: list[float]) -> None:
    assert np.isnan(mean_correlation(np.arange(3.0), np.array(other)))


def test_a_single_sample_has_no_correlation() -> None:
    assert np.isnan(mean_correlation(np.arange(3.0)))
