"""Undoing label noise in a trained model: exact where its denoisers and the classifier are, bounded where not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaussian import SIGMAS, TRANSITIONS, dense_matrix, noisy_examples, random_mixture
from tdsm_jax.diffusion.guidance import Guidance, composed, unconditional
from tdsm_jax.diffusion.unmixing import factors, unmixed, unmixing_terms
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import transition_matrix

WORLD, K = random_mixture(10), 10
CLEAN, POSTERIOR = jax.jit(WORLD.denoise), jax.jit(WORLD.log_h)
EVALUATIONS = {"sym": 1, "asym": 3, "pair": 10, "dense": 10}  # of M_j, beside the null label's


def noisy_model(S):
    """The ideal denoiser of noisy labels, that of the null label too, and the list that grows by one a call."""
    calls = []

    @jax.jit
    def evaluate(x, sigma, label):
        M = WORLD.denoise_noisy(x, sigma, jnp.minimum(label, K - 1), S)
        return jnp.where((label == K)[:, None], WORLD.denoise(x, sigma, jnp.full_like(label, K)), M)

    return (lambda x, sigma, label: calls.append(1) or evaluate(x, sigma, label)), calls


def clean_model(S, most=9, limit=1e12):
    M, calls = noisy_model(S)
    null = unconditional(M, K)
    return unmixed(M, null, POSTERIOR, unmixing_terms(S, most), limit), null, calls


def examples(count=40):
    _, x_t, sigma, y, _ = noisy_examples(WORLD, np.eye(K), count)
    return x_t.astype(jnp.float64), sigma.astype(jnp.float64), y


@pytest.mark.parametrize("kind", [*TRANSITIONS, "sym_60"])
def test_the_clean_denoisers_come_out_of_those_of_noisy_labels(kind):
    S = TRANSITIONS[kind] if kind in TRANSITIONS else transition_matrix("sym", K, 0.6)
    with jax.enable_x64(True):
        x_t, sigma, y = examples()
        denoise, _, calls = clean_model(S)
        made, noisy = denoise(x_t, sigma, y), WORLD.denoise_noisy(x_t, sigma, y, S)
        clean = CLEAN(x_t, sigma, y)
        np.testing.assert_allclose(made, clean, atol=1e-6)
        assert float(jnp.abs(noisy - clean).max()) > 0.1
    assert len(calls) <= 1 + EVALUATIONS.get(kind, 1), "terms of no weight are evaluated"


def test_symmetric_noise_leaves_the_own_label_and_a_known_factor():
    for eps in (0.2, 0.6):
        terms = unmixing_terms(transition_matrix("sym", K, eps), most=9)
        assert terms.classes.tolist() == [[y] for y in range(K)]
        a, b, h = eps / (K - 1), 1 - K * eps / (K - 1), np.array([[0.3] + 9 * [0.7 / 9]])
        made = factors(terms, jnp.log(jnp.asarray(h)), jnp.array([0]), 1e9)
        np.testing.assert_allclose(made, [[1 + a / (b * 0.3)]], rtol=1e-5)
    assert unmixing_terms(np.eye(K), 9).classes.shape == (K, 1)
    assert unmixing_terms(np.array([[0.7, 0.3], [0.2, 0.8]]), 9).classes.shape == (2, 1)


def test_a_matrix_of_float32_is_no_less_sparse():
    for kind in ("sym", "asym"):
        S = TRANSITIONS[kind]
        assert unmixing_terms(S.astype(np.float32), 9).classes.shape == unmixing_terms(S, 9).classes.shape


def test_fewer_terms_cost_less_and_leave_the_smallest_out():
    with jax.enable_x64(True):
        x_t, sigma, y = examples()
        clean, errors = CLEAN(x_t, sigma, y), []
        S = transition_matrix("pair", K, 0.3)
        for most in (0, 2, 5, 9):
            denoise, _, calls = clean_model(S, most)
            errors.append(float(jnp.abs(denoise(x_t, sigma, y) - clean).mean()))
            assert len(calls) == 2 + min(most, 8)  # the median of a column takes one away
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6 < errors[-2] < 0.1 * errors[0]


def test_the_factor_is_bounded_and_finite_whatever_the_classifier_says():
    terms, label = unmixing_terms(dense_matrix(K), 9), jnp.arange(K)
    bound = jax.jit(lambda log_h: factors(terms, log_h, label, 5.0))
    sure = jnp.where(jax.nn.one_hot((label + 1) % K, K, dtype=bool), 0.0, -jnp.inf)  # of another class
    for log_h in (sure, jnp.full((K, K), 0.0), -1e4 * (1 - jnp.eye(K))[::-1]):
        made = bound(log_h)
        assert np.isfinite(made).all() and float(jnp.abs(made).max()) <= 5.0 * (1 + 1e-6)
    h = jnp.full((1, K), 0.9 / 9).at[0, 0].set(0.1)
    free, bounded = (factors(terms, jnp.log(h), jnp.array([0]), limit) for limit in (1e9, 2.0))
    np.testing.assert_allclose(bounded, free * 2.0 / jnp.abs(free).max(), rtol=1e-5)  # scaled, all alike


def test_it_composes_with_guidance_about_the_same_null_label():
    """D_null + w (D - D_null), one evaluation more than the terms whatever asks for the null label."""
    with jax.enable_x64(True):
        x_t, sigma, y = examples()
        denoise, null, calls = clean_model(TRANSITIONS["sym"])
        made = composed(denoise, null, Guidance(2.0))(x_t, sigma, y)
        D, u = CLEAN(x_t, sigma, y), CLEAN(x_t, sigma, jnp.full_like(y, K))
        np.testing.assert_allclose(made, 2 * D - u, atol=1e-6)
    assert len(calls) == 2 and len(set(np.asarray(sigma).tolist())) == len(SIGMAS)


def test_a_singular_matrix_is_refused_in_one_line():
    with pytest.raises(UserError, match="S is singular") as error:
        unmixing_terms(transition_matrix("sym", K, 0.9), 9)
    assert "\n" not in str(error.value)
