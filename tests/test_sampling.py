"""The Heun sampler where the trajectory or the distribution is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaussian import GaussianMixture, random_mixture
from tdsm_jax.diffusion.sampling import edm_sigmas, heun


def test_noise_levels_fall_from_sigma_max_to_sigma_min_and_zero():
    sigmas = edm_sigmas(18, 0.002, 80.0)
    assert sigmas.dtype == np.float64 and sigmas.shape == (19,)
    assert (sigmas[0], sigmas[-1]) == (pytest.approx(80), 0) and sigmas[-2] == pytest.approx(0.002)
    assert (np.diff(sigmas) < 0).all()
    np.testing.assert_allclose(np.diff(sigmas[:-1] ** (1 / 7), n=2), 0, atol=1e-12)  # rho = 7
    assert edm_sigmas(1, 0.002, 80.0).tolist() == [pytest.approx(80), 0]


def test_the_error_falls_with_the_square_of_the_steps():
    """For one Gaussian the trajectory is x(sigma) = mean + (x(sigma_max) - mean) sqrt(v(sigma) / v(sigma_max))."""
    with jax.enable_x64(True):
        world = random_mixture(3)
        label = jnp.arange(6) % 3
        latents = jax.random.normal(jax.random.key(0), (6, 6), jnp.float64)
        denoise = jax.jit(lambda x, sigma: world.denoise(x, sigma, label))
        mean, sd = world.mean[label], world.sd[label, None]
        exact = mean + (20 * latents - mean) * sd / np.sqrt(sd**2 + 20**2)
        errors = [
            np.abs(heun(denoise, latents, edm_sigmas(steps, 1e-4, 20.0)) - exact).max() for steps in (32, 64, 128)
        ]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 2, atol=0.25)


def test_a_sampler_of_n_steps_evaluates_2n_minus_1_times():
    seen = []

    def denoise(x, sigma):
        seen.append(float(sigma[0]))
        return jnp.zeros_like(x)

    sigmas = edm_sigmas(5, 0.002, 80.0)
    heun(denoise, jnp.ones((2, 3)), sigmas)
    np.testing.assert_allclose(seen, [sigmas[0], *np.repeat(sigmas[1:-1], 2)], rtol=1e-6)


def test_samples_of_the_null_label_follow_the_mixture():
    world = GaussianMixture(np.array([0.7, 0.3]), np.array([[-2.0], [2.0]]), np.array([0.3, 0.5]))
    latents = jax.random.normal(jax.random.key(1), (4000, 1))
    denoise = jax.jit(lambda x, sigma: world.denoise(x, sigma, jnp.full(len(x), 2)))
    images = np.asarray(heun(denoise, latents, edm_sigmas(64, 0.002, 80.0)))[:, 0]
    assert (images < 0).mean() == pytest.approx(0.7, abs=0.03)
    assert images[images < 0].std() == pytest.approx(0.3, abs=0.03)
    assert images[images > 0].mean() == pytest.approx(2.0, abs=0.05)
