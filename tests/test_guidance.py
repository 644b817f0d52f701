"""Guidance on mixtures whose denoisers are known: its fixed points, and which label noise it undoes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaussian import SIGMAS, noisy_examples, random_mixture
from tdsm_jax.diffusion.guidance import guided
from tdsm_jax.labels.corruption import transition_matrix
from tdsm_jax.labels.weights import make_table

K, EPS = 6, 0.4
WORLD = dataclasses.replace(random_mixture(K), prior=np.full(K, 1 / K))
S = transition_matrix("sym", K, EPS)
B = 1 - K * EPS / (K - 1)  # S = a + B I


@pytest.fixture(scope="module")
def seen():
    """x_t, sigma and y_tilde in float64, and the denoisers of all noisy labels, M [N,K,d]."""
    with jax.enable_x64(True):
        _, x_t, sigma, _, y_tilde = noisy_examples(WORLD, S, 64)
        x_t, sigma = x_t.astype(jnp.float64), sigma.astype(jnp.float64)
        M = [WORLD.denoise_noisy(x_t, sigma, jnp.full_like(y_tilde, j), S) for j in range(K)]
        yield x_t, sigma, y_tilde, jnp.stack(M, axis=1)


def denoiser(every, null):
    """Returns the denoise of known values: every [N,K,d] by label, null [N,d]."""
    values = jnp.concatenate([every, null[:, None]], axis=1)
    return lambda x, sigma, label: jnp.take_along_axis(values, label[:, None, None], axis=1)[:, 0]


def test_scales_0_and_1_are_the_unconditional_and_the_conditional_denoiser(seen):
    (x_t, sigma, y, _), denoise = seen, WORLD.denoise
    u, c = denoise(x_t, sigma, jnp.full_like(y, K)), denoise(x_t, sigma, y)
    np.testing.assert_array_equal(guided(denoise, 0.0, K)(x_t, sigma, y), u)
    np.testing.assert_array_equal(guided(denoise, 1.0, K)(x_t, sigma, y), c)
    np.testing.assert_allclose(guided(denoise, 2.5, K)(x_t, sigma, y), 2.5 * c - 1.5 * u, atol=1e-12)
    assert guided(denoise, 1.0, K) is denoise
    calls = []
    for w in (0, 1, 2):
        guided(lambda x, sigma, label, w=w: calls.append(w) or x, w, K)(x_t, sigma, y)
    assert calls == [0, 1, 2, 2]


def test_further_conditions_are_handed_on():
    def denoise(x, sigma, label, augment_label):
        return x + label[:, None] + augment_label

    x, sigma, label = jnp.zeros((2, 3)), jnp.ones(2), jnp.array([1, 3])
    made = guided(denoise, 2.0, null=5)(x, sigma, label, jnp.full((2, 3), 10.0))
    np.testing.assert_array_equal(made, 10 + 2.0 * label[:, None] - 5 + jnp.zeros((2, 3)))


def s_weighted_optimum(M):
    """What S-weighted score matching converges to: the D with sum_y p(y | y_tilde=j) D_y = M_j."""
    R = np.asarray(make_table(S, WORLD.prior).label_posterior, np.float64)
    return jnp.einsum("jk,nkd->njd", np.linalg.inv(R), M)


def test_s_weighting_of_symmetric_noise_is_noisy_label_training_guided_by_one_over_b(seen):
    """And guidance of scale b takes it back; both about the mean over labels, which neither changes."""
    x_t, sigma, y_tilde, M = seen
    weighted = s_weighted_optimum(M)
    np.testing.assert_allclose(weighted.mean(axis=1), M.mean(axis=1), atol=1e-6)
    noisy, sharp = denoiser(M, M.mean(axis=1)), denoiser(weighted, M.mean(axis=1))
    for j in range(K):
        label = jnp.full_like(y_tilde, j)
        np.testing.assert_allclose(guided(noisy, 1 / B, K)(x_t, sigma, label), weighted[:, j], atol=1e-6)
        np.testing.assert_allclose(guided(sharp, B, K)(x_t, sigma, label), M[:, j], atol=1e-6)


def test_so_matched_scales_compare_equals_and_neither_is_the_clean_denoiser(seen):
    """About the null label that label dropout trains, D_null, the match is close; the clean denoiser stays far."""
    x_t, sigma, y_tilde, M = seen
    D_null = WORLD.denoise(x_t, sigma, jnp.full_like(y_tilde, K))
    matched = guided(denoiser(s_weighted_optimum(M), D_null), B, K)(x_t, sigma, y_tilde)
    noisy, clean = (f(x_t, sigma, y_tilde) for f in (denoiser(M, D_null), WORLD.denoise))
    for level in SIGMAS:
        at = sigma == np.float32(level)
        distance = [float(jnp.abs(values - matched)[at].mean()) for values in (noisy, clean)]
        assert distance[0] < 0.1 * distance[1], level
