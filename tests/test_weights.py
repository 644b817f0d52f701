"""The weights p(y | x_t, y_tilde): on Gaussian mixtures, in both forms, at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaussian import TRANSITIONS, dense_matrix, noisy_examples, random_mixture
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import transition_matrix
from tdsm_jax.labels.losses import forward_corrected
from tdsm_jax.labels.weights import WEIGHTS, clean_prior, make_table, posterior, weights_of_noisy

UNIFORM = np.full(10, 0.1)
seeds = st.integers(0, 2**31)


def random_problem(seed, num_classes=6, batch=5):
    """Returns an S with zeros, a prior, logits [B,K] and labels [B]."""
    rng = np.random.default_rng(seed)
    S = dense_matrix(num_classes, seed)
    S *= (rng.random(S.shape) < 0.6) | np.eye(num_classes, dtype=bool)
    S /= S.sum(axis=1, keepdims=True)
    logits = jnp.asarray(rng.normal(scale=3, size=(batch, num_classes)), jnp.float32)
    return S, rng.dirichlet(np.ones(num_classes)), logits, jnp.asarray(rng.integers(0, num_classes, batch))


@pytest.mark.parametrize("noise", TRANSITIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_weighted_denoisers_are_the_denoiser_of_the_noisy_label(noise, seed):
    """sum_y w_y D_y = E[x0 | x_t, y_tilde] at every noise level and for unequal classes: the class prior cancels."""
    S, mixture = TRANSITIONS[noise], random_mixture(10, seed=seed)
    _, x_t, sigma, _, y_tilde = noisy_examples(mixture, S, 64)
    w = posterior(make_table(S, UNIFORM), mixture.log_h(x_t, sigma), y_tilde)
    D = jax.vmap(lambda y: mixture.denoise(x_t, sigma, jnp.full(64, y)), out_axes=1)(jnp.arange(10))
    M = mixture.denoise_noisy(x_t, sigma, y_tilde, S)
    np.testing.assert_allclose(jnp.einsum("bk,bkd->bd", w, D), M, atol=1e-6 * np.abs(M).max())


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_weights_are_bayes_rule(seed):
    S, prior, logits, y_tilde = random_problem(seed)
    w = posterior(make_table(S, prior), logits, y_tilde)
    h = np.asarray(jax.nn.softmax(logits), np.float64)
    joint = S[:, y_tilde].T * h
    np.testing.assert_allclose(w, joint / joint.sum(axis=1, keepdims=True), atol=2e-6)
    np.testing.assert_allclose(w.sum(axis=1), 1, atol=1e-6)
    assert (np.asarray(w)[S[:, y_tilde].T == 0] == 0).all()


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([0.5, 1.0, 2.0]))
def test_both_forms_of_the_weights_agree_at_any_temperature(seed, temperature):
    """Wherever the label is possible at all, the noisy posterior h S leads back to h."""
    _, prior, logits, y_tilde = random_problem(seed)
    S = dense_matrix(6, seed)
    bayes, inverse = (weigh(make_table(S, prior), logits, y_tilde, temperature) for weigh in WEIGHTS.values())
    np.testing.assert_allclose(inverse, bayes, atol=5e-5)
    np.testing.assert_allclose(bayes, posterior(make_table(S, prior), logits / temperature, y_tilde), atol=1e-6)


def test_a_noisy_posterior_that_no_clean_one_explains_is_clamped_and_normalised():
    S = transition_matrix("sym", 3, 0.3)
    noisy = np.array([[0.7, 0.25, 0.05]])  # less of class 2 than label noise alone would give
    clean = noisy @ np.linalg.inv(S)
    assert clean[0, 2] < 0 < clean[0, 0]
    for j in range(3):
        w = np.clip(S[:, j] * clean / noisy[:, j], 0, 1)
        got = weights_of_noisy(make_table(S, np.full(3, 1 / 3)), jnp.asarray(noisy, jnp.float32), jnp.array([j]))
        np.testing.assert_allclose(got, w / w.sum(), atol=1e-6)


def test_a_label_that_the_noisy_posterior_excludes_has_no_weights():
    table = make_table(transition_matrix("pair", 3, 0.25), np.full(3, 1 / 3))
    w = weights_of_noisy(table, jnp.array([[0.0, 0.4, 0.6], [0.2, 0.3, 0.5]]), jnp.array([0, 0]))
    np.testing.assert_array_equal(w[0], 0)
    assert w[1].sum() == pytest.approx(1)


@pytest.mark.parametrize("S", [transition_matrix("sym", 10, 0.9), transition_matrix("pair", 10, 0.5)])
def test_a_singular_matrix_has_weights_by_bayes_rule_alone(S):
    table = make_table(S, np.full(10, 0.1))
    w = posterior(table, jnp.zeros((1, 10)), jnp.array([3]))
    np.testing.assert_allclose(w[0], S[:, 3], atol=1e-6)
    with pytest.raises(UserError, match="need an invertible S .* use Bayes' rule"):
        WEIGHTS["inverse"](table, jnp.zeros((1, 10)), jnp.array([3]))


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_weights_equal_the_published_form_through_the_inverse_for_any_prior(seed):
    """w_y = R_jy r_y / (R r)_j with r = R^-1 (noisy posterior / noisy prior), R[j,y] = p(y | y_tilde=j)."""
    rng = np.random.default_rng(seed)
    S, prior = 0.3 * dense_matrix(5, seed) + 0.7 * np.eye(5), rng.dirichlet(np.full(5, 2.0))
    logits, y_tilde = rng.normal(size=(5, 5)), np.arange(5)
    table = make_table(S, prior)
    R = (prior[:, None] * S / (prior @ S)).T
    np.testing.assert_allclose(table.label_posterior, R, atol=1e-6)
    noisy = np.asarray(jax.nn.softmax(logits)) @ S / (prior @ S)
    clean = np.linalg.solve(R, noisy.T).T
    w = R[y_tilde] * clean / noisy[y_tilde, y_tilde, None]
    for weigh in WEIGHTS.values():
        np.testing.assert_allclose(weigh(table, logits, y_tilde), w, atol=1e-4)


def test_certain_classifiers_and_certain_labels_stay_finite():
    logits = jnp.array([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]])
    w = posterior(make_table(transition_matrix("pair", 3, 0.25), np.full(3, 1 / 3)), logits, jnp.array([2, 1]))
    np.testing.assert_array_equal(w, [[0, 1, 0], [0, 1, 0]])  # label 2 comes from class 1 or 2, label 1 from 0 or 1
    clean = posterior(make_table(np.eye(3), np.full(3, 1 / 3)), logits, jnp.array([2, 0]))
    np.testing.assert_array_equal(clean, [[0, 0, 1], [1, 0, 0]])


IMPOSSIBLE = np.array([[0.5, 0.5, 0], [0, 1, 0], [0.3, 0.7, 0]])  # nothing is ever labelled 2


def test_an_impossible_label_carries_no_information():
    table, prior = make_table(IMPOSSIBLE, np.array([0.2, 0.3, 0.5])), [0.2, 0.3, 0.5]
    logits = jnp.array([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(posterior(table, logits, jnp.array([2])), jax.nn.softmax(logits), rtol=1e-6)
    np.testing.assert_allclose(table.label_posterior[2], prior, rtol=1e-6)
    assert all(np.isfinite(a).all() for a in (table.S, table.residual, table.label_posterior))


def test_the_residual_is_the_share_above_the_column_floor():
    table = make_table(np.array([[0.7, 0.1, 0.2], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]), np.full(3, 1 / 3))
    expected = [[6 / 7, 0, 0], [1 / 2, 4 / 5, 1 / 3], [0, 0, 3 / 4]]
    np.testing.assert_allclose(table.residual, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("S", "prior", "message"),
    [
        ([[0.9, 0.2], [0.1, 0.9]], [0.5, 0.5], "row 0 .* sums to 1.1"),
        ([[0.9, 0.1], [0.1, 0.9]], [0.5, 0.6], "2 probabilities that sum to 1"),
        ([[0.9, 0.1], [0.1, 0.9]], [1.5, -0.5], "2 probabilities"),
        ([[0.9, 0.1], [0.1, 0.9]], [0.2, 0.3, 0.5], "2 probabilities"),
    ],
)
def test_bad_tables_are_refused(S, prior, message):
    with pytest.raises(UserError, match=message):
        make_table(np.array(S), np.array(prior))


@pytest.mark.parametrize("noise", TRANSITIONS)
def test_the_clean_prior_is_recovered(noise):
    prior = np.random.default_rng(3).dirichlet(np.full(10, 3.0))
    counts = np.round(prior @ TRANSITIONS[noise] * 200_000).astype(int)
    np.testing.assert_allclose(clean_prior(TRANSITIONS[noise], np.repeat(np.arange(10), counts)), prior, atol=1e-4)


def test_the_clean_prior_ignores_labels_that_s_makes_impossible():
    y_tilde = np.repeat([0, 1, 2], [3, 7, 1])
    prior = clean_prior(np.array([[1.0, 0, 0], [0, 1, 0], [0.3, 0.7, 0]]), y_tilde)
    assert np.isfinite(prior).all() and prior.sum() == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_forward_correction_is_the_cross_entropy_of_h_s(seed):
    S, _, logits, y_tilde = random_problem(seed)
    S = 0.9 * S + 0.1 / len(S)
    h = np.asarray(jax.nn.softmax(logits), np.float64)
    expected = -np.log((h @ S)[np.arange(len(h)), y_tilde])
    np.testing.assert_allclose(forward_corrected(logits, y_tilde, jnp.log(S)), expected, rtol=1e-4, atol=1e-6)


def test_forward_correction_by_the_identity_is_plain_cross_entropy():
    _, _, logits, y_tilde = random_problem(0)
    plain = -jax.nn.log_softmax(logits)[jnp.arange(5), y_tilde]
    np.testing.assert_allclose(forward_corrected(logits, y_tilde, jnp.log(jnp.eye(6))), plain, rtol=1e-6)


@pytest.mark.parametrize("noise", TRANSITIONS)
def test_forward_correction_has_no_gradient_at_the_true_posterior(noise):
    """Proper: averaged over the noisy labels that the true h gives rise to, the gradient vanishes there only."""
    S, mixture = TRANSITIONS[noise], random_mixture(10)
    _, x_t, sigma, _, _ = noisy_examples(mixture, S, 8)
    log_h = mixture.log_h(x_t, sigma)
    log_S = jnp.log(jnp.asarray(S, jnp.float32))

    def expected_loss(logits):
        losses = jax.vmap(lambda j: forward_corrected(logits, jnp.full(8, j), log_S), out_axes=1)(jnp.arange(10))
        return jnp.sum(jnp.where(jnp.exp(log_h) @ S > 0, jnp.exp(log_h) @ S * losses, 0.0))

    np.testing.assert_allclose(jax.grad(expected_loss)(log_h + 3.0), 0, atol=2e-6)
    assert np.abs(jax.grad(expected_loss)(0.5 * log_h)).max() > 1e-2


def test_forward_correction_learns_beside_a_label_that_never_occurs():
    """The zero column must not reach the gradient of examples that have other labels."""
    logits, log_S = jnp.array([[1.0, 2.0, 3.0]]), jnp.log(jnp.asarray(IMPOSSIBLE))
    gradient = jax.grad(lambda z: forward_corrected(z, jnp.array([0]), log_S).sum())(logits)
    h, w = jax.nn.softmax(logits), posterior(make_table(IMPOSSIBLE, np.full(3, 1 / 3)), logits, jnp.array([0]))
    np.testing.assert_allclose(gradient, h - w, atol=1e-6)
