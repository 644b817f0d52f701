"""What is made worse is worse by as much as asked, and the calibration error says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import pair, symmetric
from tdsm_jax.labels.stress import REACH, calibration_error, fixed_error, perturbed, share_of
from tdsm_jax.labels.transition import check_stochastic, relative_l1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 12), st.sampled_from([0.0, 0.01, 0.05]))
def test_a_perturbed_matrix_lies_as_far_off_as_asked(seed, num_classes, distance):
    S = symmetric(num_classes, 0.4)
    moved = perturbed(S, distance, seed)
    check_stochastic(moved)
    assert relative_l1(moved, S) == pytest.approx(distance, abs=1e-12)
    assert distance == 0 or np.any(moved != perturbed(S, distance, seed + 1))


def test_a_distance_out_of_reach_is_refused():
    for distance in (2.1, -0.1, float("nan")):
        with pytest.raises(UserError, match="relative L1 distance from 0 to"):
            perturbed(pair(10, 0.4), distance, seed=0)


def test_the_fixed_error_is_a_function_of_the_image():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(scale=2, size=(4000, 6, 6, 1)), jnp.float32)
    error = np.asarray(fixed_error(x, 5))
    assert error.shape == (4000, 5)
    np.testing.assert_allclose(error[:7], fixed_error(x[:7], 5), atol=1e-5)  # whatever stands beside it
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(error.std(axis=0), 1, rtol=0.05)
    assert np.abs(np.corrcoef(error.T) - np.eye(5)).max() < 0.06  # of two classes
    assert abs(np.mean(error * np.roll(error, 1, axis=0))) < 0.03  # of two images


def test_the_fixed_error_forgets_an_image_over_its_reach():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(500, 64)), jnp.float32)
    step = rng.normal(size=(500, 64))
    step /= np.sqrt(np.mean(step**2, axis=1, keepdims=True))
    for distance in (0.1, 0.5, 1.0):
        both = fixed_error(x, 50), fixed_error(x + distance * step, 50)
        expected = np.exp(-((distance / REACH) ** 2) / 2)
        assert float(jnp.mean(both[0] * both[1])) == pytest.approx(expected, abs=0.04)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_share_is_as_large_as_asked_and_lies_in_a_larger_one(seed, a, b):
    chosen = np.arange(50) % 3 > 0
    small, large = (share_of(chosen, share, seed) for share in sorted((a, b)))
    assert small.sum() == np.ceil(min(a, b) * chosen.sum())
    assert not np.any(small & ~large) and not np.any(large & ~chosen)
    np.testing.assert_array_equal(share_of(chosen, 1.0, seed), chosen)


def test_another_seed_chooses_another_share():
    chosen = np.ones(1000, bool)
    assert np.any(share_of(chosen, 0.5, 0) != share_of(chosen, 0.5, 1))
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(UserError, match="share of the images"):
            share_of(chosen, share, 0)


def test_the_calibration_error_is_the_gap_of_confidence_and_accuracy():
    h = np.array([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.35, 0.65]])
    assert calibration_error(h, np.array([0, 1, 1, 1])) == pytest.approx(0.5 * 0.4 + 0.5 * 0.35)
    assert calibration_error(np.eye(2)[[0, 1]], np.array([0, 1])) == 0  # sure and right
    assert calibration_error(h, np.array([0, 1, 1, 0]), bins=1) == pytest.approx(0.275)


def test_the_calibration_error_of_a_calibrated_classifier_is_small():
    logits = jnp.asarray(np.random.default_rng(0).normal(scale=2, size=(20_000, 5)), jnp.float32)
    y = np.asarray(jax.random.categorical(jax.random.key(1), logits))
    errors = [calibration_error(np.asarray(jax.nn.softmax(logits / T)), y) for T in (1.0, 0.5, 2.0)]
    assert errors[0] < 0.02 < 0.1 < min(errors[1:])


def test_mismatched_labels_are_refused():
    with pytest.raises(UserError, match="need probabilities"):
        calibration_error(np.eye(3), np.zeros(2, int))
