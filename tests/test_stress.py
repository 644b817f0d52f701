"""What is made worse is worse by as much as asked, and the calibration error says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import pair, symmetric
from tdsm_jax.labels.stress import calibration_error, degraded, perturbed
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


def test_logits_are_sharpened_and_blurred():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 5)), jnp.float32)
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(0), n))(jnp.arange(4000))
    np.testing.assert_array_equal(degraded(keys, logits), logits)
    np.testing.assert_array_equal(degraded(keys, logits, temperature=0.5), 2 * logits)
    added = degraded(keys, logits, noise=3.0) - logits
    assert np.std(added) == pytest.approx(3, rel=0.03) and abs(np.corrcoef(added.T)[0, 1]) < 0.06
    np.testing.assert_array_equal(degraded(keys[:7], logits[:7], noise=3.0), degraded(keys, logits, noise=3.0)[:7])


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
