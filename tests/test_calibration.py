"""Temperatures by noisy labels alone: recovered where they are known, steady where there is little to go by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import asymmetric, corrupt, symmetric
from tdsm_jax.labels.weights import make_table, posterior
from tdsm_jax.training.calibration import (
    SIGMAS,
    TEMPERATURES,
    calibrate,
    expected_own_weight,
    own_weights,
    softened,
    temperature_at,
)

S = symmetric(5, 0.3)
LOG_S = jnp.log(jnp.asarray(S))


def problem(N=6000, seed=0, sharpness=2.0, S=S):
    """Returns calibrated logits [N,K], noise levels [N] and noisy labels [N]."""
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(scale=sharpness, size=(N, len(S))), jnp.float32)
    labels = jax.random.categorical(jax.random.key(seed), logits)
    sigma = jnp.asarray(np.exp(rng.uniform(np.log(SIGMAS[0]), np.log(SIGMAS[-1]), N)), jnp.float32)
    return logits, sigma, jnp.asarray(corrupt(np.asarray(labels, np.int32), S, seed))


def test_the_temperature_of_each_noise_level_is_recovered():
    logits, sigma, y_tilde = problem(N=20_000)
    true = np.geomspace(2.5, 0.8, len(SIGMAS))
    found = calibrate(logits * temperature_at(true, sigma)[:, None], sigma, y_tilde, LOG_S)
    np.testing.assert_allclose(found.temperature, true, rtol=0.15)
    constant = calibrate(logits * temperature_at(true, sigma)[:, None], sigma, y_tilde, LOG_S, per_sigma=False)
    assert np.ptp(constant.temperature) == 0 and found.nll < constant.nll


def test_one_temperature_is_the_special_case():
    logits, sigma, y_tilde = problem()
    found = calibrate(2 * logits, sigma, y_tilde, LOG_S, per_sigma=False)
    np.testing.assert_allclose(found.temperature, 2, rtol=0.12)
    assert found.temperature[0] in TEMPERATURES and np.ptp(found.temperature) == 0
    scalar, array = (softened(logits, T, sigma) for T in (1.7, np.full(len(SIGMAS), 1.7)))
    np.testing.assert_array_equal(scalar, array)
    np.testing.assert_array_equal(scalar, logits / jnp.float32(1.7))


def test_temperatures_are_linear_between_knots_and_constant_beyond():
    values = jnp.asarray(np.geomspace(0.5, 3, len(SIGMAS)), jnp.float32)
    np.testing.assert_allclose(temperature_at(values, jnp.asarray(SIGMAS, jnp.float32)), values, rtol=1e-4)
    middle = jnp.asarray(np.sqrt(SIGMAS[2] * SIGMAS[3]), jnp.float32)[None]
    np.testing.assert_allclose(temperature_at(values, middle), (values[2] + values[3]) / 2, rtol=1e-5)
    np.testing.assert_array_equal(temperature_at(values, jnp.array([0.0, 1e-6])), values[0])
    np.testing.assert_array_equal(temperature_at(values, jnp.array([80.0])), values[-1])


def test_few_examples_do_not_run_away():
    """Three unlucky ones at a high noise level, whom only the softest temperature would suit."""
    logits, _, y_tilde = problem(N=1500)
    sigma = jnp.full(1500, 0.2).at[:3].set(6.0)
    wrong = jax.nn.one_hot((y_tilde[:3] + 1) % 5, 5) * 9
    logits = logits.at[:3].set(wrong)
    found = calibrate(logits, sigma, y_tilde, LOG_S)
    np.testing.assert_allclose(found.temperature[:3], 1, rtol=0.25)
    assert found.temperature.max() < 1.5
    assert np.isnan(found.own_weight[:, 0]).all() and np.isfinite(found.own_weight[:, 2]).all()


def test_noise_draws_of_one_image_do_not_count_twice():
    """Copies carry no information: what few examples say weighs as much as if they came once."""
    few = problem(N=40)
    copies = tuple(jnp.tile(part, (8,) + (1,) * (part.ndim - 1)) for part in few)
    once, pretended = calibrate(*few, LOG_S), calibrate(*copies, LOG_S, draws=8)
    np.testing.assert_allclose(once.temperature, pretended.temperature, rtol=1e-6)
    assert np.ptp(np.log(calibrate(*copies, LOG_S).temperature)) > np.ptp(np.log(once.temperature))


@pytest.mark.parametrize("per_sigma", [False, True])
def test_own_weights_calibrate_an_overconfident_classifier(per_sigma):
    logits, sigma, y_tilde = problem(N=20_000)
    found = calibrate(3 * logits, sigma, y_tilde, LOG_S, criterion="own_weight", per_sigma=per_sigma)
    before, after = np.abs(found.own_weight - 0.7).max(axis=1)
    assert after < 0.02 < 0.04 < before
    np.testing.assert_allclose(found.temperature, 3, rtol=0.25)


def test_own_weights_correct_what_the_likelihood_leaves():
    """The matrix in use says less noise than there is: the likelihood cannot be right, the mean can."""
    logits, sigma, y_tilde = problem(N=20_000)
    assumed = symmetric(5, 0.2)
    log_S = jnp.log(jnp.asarray(assumed))
    by_nll, by_own = (
        calibrate(logits, sigma, y_tilde, log_S, criterion=criterion, per_sigma=False)
        for criterion in ("nll", "own_weight")
    )
    assert np.all(by_own.temperature != by_nll.temperature)
    assert abs(np.mean(by_own.own_weight[1]) - 0.8) < abs(np.mean(by_nll.own_weight[1]) - 0.8)


def test_own_weights_are_those_of_the_posterior_and_average_to_the_clean_share():
    S = asymmetric("digits", 0.4)
    logits, _, y_tilde = problem(N=20_000, S=S)
    log_S = jnp.log(jnp.asarray(S))
    own = own_weights(logits, y_tilde, log_S)
    w = posterior(make_table(S, np.full(10, 0.1)), logits, y_tilde)
    np.testing.assert_allclose(own, w[jnp.arange(len(own)), y_tilde], atol=1e-5)
    expected = expected_own_weight(S, np.full(10, 0.1))
    assert expected == pytest.approx(1 - 0.4 * 4 / 10)
    assert float(own.mean()) == pytest.approx(expected, abs=0.01)


def test_switched_off_nothing_is_softened():
    found = calibrate(*problem(N=50), LOG_S, criterion="off")
    np.testing.assert_array_equal(found.temperature, 1)
    np.testing.assert_array_equal(*found.own_weight)


def test_an_unknown_criterion_is_refused():
    with pytest.raises(UserError, match="unknown criterion of calibration 'nil'; did you mean 'nll'"):
        calibrate(*problem(N=50), LOG_S, criterion="nil")
