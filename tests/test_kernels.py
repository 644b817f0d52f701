"""Kernel distances: KID by hand, by its symmetries, and of what it is a mean."""

import numpy as np
import pytest

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.kernels import kid


def features(count, dimension=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimension))


def test_kid_by_hand():
    """With one feature the kernel is (ab + 1)^3: within 8 and 125 (of 1, 1 and 2, 2), between 27 everywhere."""
    real, fake = np.ones((2, 1)), np.full((2, 1), 2.0)
    assert kid(real, fake, subsets=3) == (pytest.approx(8 + 125 - 2 * 27), 0)


def test_kid_of_all_examples_is_the_unbiased_estimate():
    real, fake = features(7), features(7, seed=1)

    def kernel(a, b):
        return (a @ b / 5 + 1) ** 3

    within = sum(kernel(x[i], x[j]) for x in (real, fake) for i in range(7) for j in range(7) if i != j)
    between = sum(kernel(a, b) for a in real for b in fake)
    mean, spread = kid(real, fake, subsets=2, subset_size=100)
    assert mean == pytest.approx(within / 42 - 2 * between / 49) and spread == pytest.approx(0, abs=1e-12)


def test_kid_is_unbiased_seeded_and_sees_a_shift():
    real, fake = features(400), features(300, seed=1)
    mean, spread = kid(real, fake, subsets=50, subset_size=60)
    assert abs(mean) < 3 * spread / np.sqrt(50) + 0.05 and spread > 0
    assert kid(real, fake, subsets=50, subset_size=60) == (mean, spread)
    assert kid(real, fake, subsets=50, subset_size=60, seed=1) != (mean, spread)
    assert kid(real, fake + 1, subsets=50, subset_size=60)[0] > 1
    single = kid(real.astype(np.float32), fake.astype(np.float32), subsets=50, subset_size=60)
    assert single == pytest.approx((mean, spread), abs=1e-6)


def test_kid_of_one_example_is_refused():
    with pytest.raises(UserError, match="needs at least 2 examples of either set, got 1 and 9"):
        kid(features(1), features(9))
