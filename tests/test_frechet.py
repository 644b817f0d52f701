"""Moments that are added up in parts, and the Frechet distance in its two forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import pairs
from tdsm_jax.evaluation.frechet import (
    Moments,
    distance_of_few,
    frechet_distance,
    gaussian_distance,
    merged,
    moments_of,
)


def features(count, dimension=6, seed=0):
    rng = np.random.default_rng(seed)
    return 1000 + rng.normal(size=(count, dimension)) @ rng.normal(size=(dimension, dimension))


def assert_moments_equal(a, b):
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-13)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-10, atol=1e-9 * np.abs(b.scatter).max())


def two_pass(x):
    return Moments(len(x), x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False)) * (len(x) - 1))


@pytest.mark.parametrize("count", [2, 5, 6, 23])
def test_moments_read_in_blocks_are_those_of_two_passes(count, monkeypatch):
    """The features lie a thousand spreads off zero, where a sum of squares would lose six digits."""
    monkeypatch.setattr(pairs, "ROWS", 5)
    assert_moments_equal(moments_of(features(count)), two_pass(features(count)))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**31))
def test_moments_of_parts_are_merged_in_any_split(sizes, seed):
    x = features(sum(sizes) + 1, seed=seed)
    parts = np.split(x, np.cumsum(sizes))
    assert_moments_equal(merged(map(moments_of, parts)), two_pass(x))
    assert_moments_equal(merged([moments_of(part) for part in parts[::-1]]), two_pass(x))


def test_single_precision_features_have_moments_of_double():
    x = features(40).astype(np.float32)
    assert_moments_equal(moments_of(x), two_pass(x.astype(np.float64)))


def test_the_distance_of_moments_is_that_of_the_features():
    real, fake = features(40), features(30, seed=1)
    a, b = moments_of(real), moments_of(fake)
    got = gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert got == pytest.approx(frechet_distance(real, fake), rel=1e-9)


@pytest.mark.parametrize(("counts", "dimension"), [((40, 30), 6), ((9, 4), 6), ((4, 9), 20), ((2, 2), 50)])
def test_the_distance_by_singular_values_is_the_same(counts, dimension):
    real, fake = (features(n, dimension, seed=seed) for seed, n in enumerate(counts))
    assert distance_of_few(real, fake) == pytest.approx(frechet_distance(real, fake), rel=1e-6)


def test_few_examples_are_compared_to_more_digits_by_singular_values():
    """Of equal sets in many dimensions the distance is zero; roots of rounded zeros are not."""
    x = np.random.default_rng(0).normal(size=(20, 100))
    assert abs(distance_of_few(x, x)) < 1e-10 * np.sum(x**2)
    assert abs(distance_of_few(x, x)) < abs(frechet_distance(x, x))


@pytest.mark.parametrize("distance", [frechet_distance, distance_of_few])
def test_one_example_has_no_covariance(distance):
    for sets in ((features(1), features(9)), (features(9), features(1))):
        with pytest.raises(UserError, match="a covariance needs at least 2 examples, got 1"):
            distance(*sets)
    with pytest.raises(UserError, match="at least 2 examples, got 1"):
        _ = moments_of(features(1)).covariance
