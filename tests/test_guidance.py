"""Guidance on mixtures whose denoisers are known: its fixed points, and which label noise it undoes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaussian import SIGMAS, noisy_examples, random_mixture
from tdsm_jax.diffusion.guidance import Guidance, composed, unconditional
from tdsm_jax.diffusion.sampling import edm_sigmas, heun
from tdsm_jax.labels.corruption import transition_matrix
from tdsm_jax.labels.weights import make_table

K, EPS = 6, 0.4
WORLD = dataclasses.replace(random_mixture(K), prior=np.full(K, 1 / K))
S = transition_matrix("sym", K, EPS)
B = 1 - K * EPS / (K - 1)  # S = a + B I


def guided(denoise, w, null):
    """Returns D_null + w (D - D_null), `null` the label of D_null."""
    return composed(denoise, unconditional(denoise, null), Guidance(w))


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


def counted(denoise):
    """Returns `denoise` and the list that grows by one a call."""
    calls, jitted = [], jax.jit(denoise)
    return (lambda x, sigma, label: calls.append(1) or jitted(x, sigma, label)), calls


def level(sigma, count):
    return np.full(count, sigma)


def test_outside_its_interval_guidance_costs_and_changes_nothing(seen):
    x_t, _, y, _ = seen
    denoise, calls = counted(WORLD.denoise)
    for sigma, count in ((0.5, 1), (0.50001, 2), (2.0, 2), (2.001, 1)):
        c, g = composed_of(denoise, Guidance(3.0, (0.5, 2.0)))
        calls.clear()
        made = g(x_t, level(sigma, len(y)), y)
        assert len(calls) == count
        expected = c if count == 1 else guided(WORLD.denoise, 3.0, K)
        np.testing.assert_array_equal(made, expected(x_t, level(sigma, len(y)), y))


def composed_of(denoise, guidance):
    return denoise, composed(denoise, unconditional(denoise, K), guidance)


def test_levels_of_a_batch_that_differ_are_chosen_one_by_one(seen):
    x_t, sigma, y, _ = seen
    _, g = composed_of(WORLD.denoise, Guidance(3.0, (0.1, 3.0)))
    made = jax.jit(g)(x_t, sigma, y)
    inner = (np.asarray(sigma) > 0.1) & (np.asarray(sigma) <= 3.0)
    assert inner.any() and not inner.all()
    plain, other = WORLD.denoise(x_t, sigma, y), guided(WORLD.denoise, 3.0, K)(x_t, sigma, y)
    np.testing.assert_allclose(made, np.where(inner[:, None], other, plain), atol=1e-12)
    np.testing.assert_allclose(g(x_t, np.asarray(sigma), y), made, atol=1e-12)


def test_rescaling_gives_an_image_back_the_contrast_it_has_without_guidance(seen):
    x_t, sigma, y, _ = seen
    c, D = WORLD.denoise(x_t, sigma, y), guided(WORLD.denoise, 5.0, K)(x_t, sigma, y)
    made = {phi: composed_of(WORLD.denoise, Guidance(5.0, rescale=phi))[1](x_t, sigma, y) for phi in (0.0, 0.7, 1.0)}
    np.testing.assert_array_equal(made[0.0], D)
    np.testing.assert_allclose(made[1.0].std(axis=1), c.std(axis=1), rtol=1e-9)
    np.testing.assert_allclose(made[0.7], 0.7 * made[1.0] + 0.3 * D, atol=1e-9)  # eq. 16
    np.testing.assert_allclose(made[1.0] / D, np.broadcast_to((c.std(axis=1) / D.std(axis=1))[:, None], D.shape))


def test_autoguidance_is_the_same_away_from_a_weaker_model(seen):
    x_t, sigma, y, _ = seen
    weak = dataclasses.replace(WORLD, sd=2 * WORLD.sd).denoise
    D, D_weak = WORLD.denoise(x_t, sigma, y), weak(x_t, sigma, y)
    made = composed(WORLD.denoise, weak, Guidance(2.0))(x_t, sigma, y)
    np.testing.assert_allclose(made, D_weak + 2 * (D - D_weak), atol=1e-12)
    np.testing.assert_array_equal(composed(WORLD.denoise, weak, Guidance(0.0))(x_t, sigma, y), D_weak)


def test_adaptive_guidance_ends_for_each_image_by_itself(seen):
    """One by one or together: the same images; u is evaluated until the last one has come to its end."""
    _, _, y, _ = seen
    y, threshold = y[:6], 0.9
    latents, sigmas = jax.random.normal(jax.random.key(0), (6, 6), jnp.float64), edm_sigmas(12, 0.01, 20.0)

    def sample(rows):
        denoise, calls = counted(WORLD.denoise)
        g = composed_of(denoise, Guidance(2.0, threshold=threshold))[1]
        made = heun(lambda x, sigma: g(x, sigma, y[rows]), latents[rows], sigmas)
        return made, len(calls) - 23

    together, extra = sample(np.arange(6))
    alone = [sample(np.array([i])) for i in range(6)]
    np.testing.assert_allclose(together, np.concatenate([made for made, _ in alone]), atol=1e-9)
    assert extra == max(n for _, n in alone) and min(n for _, n in alone) < extra < 23
    always, never = (composed_of(WORLD.denoise, Guidance(2.0, threshold=t))[1] for t in (1.0, 1e-9))
    full = heun(lambda x, s: guided(WORLD.denoise, 2.0, K)(x, s, y), latents, sigmas)
    np.testing.assert_allclose(heun(lambda x, s: always(x, s, y), latents, sigmas), full, atol=1e-12)
    made = heun(lambda x, s: never(x, s, y), latents, sigmas)
    assert float(jnp.abs(made - full).max()) > 0.1


def test_one_step_evaluates_the_null_label_once_however_many_ask(seen):
    x_t, sigma, y, _ = seen
    denoise, calls = counted(WORLD.denoise)
    null = unconditional(denoise, K)
    first, second, other = null(x_t, sigma, y), null(x_t, sigma, y), null(x_t + 1, sigma, y)
    assert len(calls) == 2 and first is second
    np.testing.assert_array_equal(other, WORLD.denoise(x_t + 1, sigma, jnp.full_like(y, K)))
