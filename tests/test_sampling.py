"""The solvers where the trajectory or the distribution is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaussian import GaussianMixture, random_mixture
from tdsm_jax.diffusion.process import EDM, VE, VP
from tdsm_jax.diffusion.sampling import (
    SOLVERS,
    Churn,
    dpmpp_2m,
    edm_sigmas,
    euler,
    heun,
    noise_levels,
    stochastic_heun,
)


def test_noise_levels_fall_from_sigma_max_to_sigma_min_and_zero():
    sigmas = edm_sigmas(18, 0.002, 80.0)
    assert sigmas.dtype == np.float64 and sigmas.shape == (19,)
    assert (sigmas[0], sigmas[-1]) == (pytest.approx(80), 0) and sigmas[-2] == pytest.approx(0.002)
    assert (np.diff(sigmas) < 0).all()
    np.testing.assert_allclose(np.diff(sigmas[:-1] ** (1 / 7), n=2), 0, atol=1e-12)  # rho = 7
    assert edm_sigmas(1, 0.002, 80.0).tolist() == [pytest.approx(80), 0]


@pytest.mark.parametrize("process", [EDM(), VP(), VE(), VP(beta_d=15.0)], ids=str)
def test_every_schedule_goes_with_every_process(process):
    """Each evenly spaced in its own variable, between the process's own bounds."""
    spaced = {"edm": lambda s: s ** (1 / 7), "vp": lambda s: (process if isinstance(process, VP) else VP()).time(s)}
    for schedule in ("edm", "vp", "ve"):
        sigmas = noise_levels(schedule, process, 9)
        assert sigmas.shape == (10,) and sigmas.dtype == np.float64 and sigmas[-1] == 0
        np.testing.assert_allclose(sigmas[[0, -2]], [process.sigma_max, process.sigma_min], rtol=1e-9)
        with jax.enable_x64(True):
            steps = np.diff(spaced.get(schedule, np.log)(sigmas[:-1]))
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
        assert len(noise_levels(schedule, process, 1)) == 2
    times = np.linspace(1, VP.epsilon_s, 9)  # as published, Karras et al. 2022, table 1
    published = np.sqrt(np.exp(19.9 * times**2 / 2 + 0.1 * times) - 1)
    np.testing.assert_allclose(noise_levels("vp", VP(), 9)[:-1], published, rtol=1e-9)


@pytest.mark.parametrize(("solver", "order", "steps"), [(euler, 1, 64), (heun, 2, 32), (dpmpp_2m, 2, 64)])
def test_the_error_falls_with_the_power_of_the_steps_that_is_the_order(solver, order, steps):
    """For one Gaussian the trajectory is x(sigma) = mean + (x(sigma_max) - mean) sqrt(v(sigma) / v(sigma_max))."""
    with jax.enable_x64(True):
        world = random_mixture(3)
        label = jnp.arange(6) % 3
        latents = jax.random.normal(jax.random.key(0), (6, 6), jnp.float64)
        denoise = jax.jit(lambda x, sigma: world.denoise(x, sigma, label))
        mean, sd = world.mean[label], world.sd[label, None]
        exact = mean + (20 * latents - mean) * sd / np.sqrt(sd**2 + 20**2)
        made = [solver(denoise, latents, edm_sigmas(steps << n, 1e-4, 20.0)) for n in range(3)]
    errors = [np.abs(images - exact).max() for images in made]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, order, atol=0.25)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_evaluates_as_often_as_its_table_says(name):
    seen = []

    def denoise(x, sigma):
        seen.append(float(sigma[0]))
        assert sigma.shape == (2,) and (sigma == sigma[0]).all()
        return jnp.zeros_like(x)

    sigmas, solver = edm_sigmas(5, 0.002, 80.0), SOLVERS[name]
    more = (Churn(0.0), None) if solver.stochastic else ()
    solver.solve(denoise, jnp.ones((2, 3)), sigmas, *more)
    twice = [sigmas[0], *np.repeat(sigmas[1:-1], 2)]
    np.testing.assert_allclose(seen, twice if "heun" in name else sigmas[:-1], rtol=1e-6)
    assert solver.evaluations(5) == len(seen)


def test_the_multistep_solver_is_that_of_vps_own_variable():
    """z = alpha x, alpha = 1 / sqrt(1 + sigma^2): z' = s'/s z - alpha' (e^-h - 1) D, with h of ln(alpha / s)."""
    world, label = random_mixture(3), jnp.arange(6) % 3
    with jax.enable_x64(True):
        sigmas = noise_levels("vp", VP(), 12)
        latents = jax.random.normal(jax.random.key(0), (6, 6), jnp.float64)
        alpha = 1 / np.sqrt(1 + sigmas**2)
        std, z, before = sigmas * alpha, latents * sigmas[0] * alpha[0], None
        for i in range(12):
            D = world.denoise(z / alpha[i], jnp.full(6, sigmas[i]), label)
            if i == 11:
                break
            log_snr = np.log(alpha[i - 1 : i + 2] / std[i - 1 : i + 2]) if i else np.log(alpha[:2] / std[:2])
            h = log_snr[-1] - log_snr[-2]
            mixed = D if before is None else D + h / (2 * (log_snr[1] - log_snr[0])) * (D - before)
            z, before = std[i + 1] / std[i] * z - alpha[i + 1] * np.expm1(-h) * mixed, D
        made = dpmpp_2m(lambda x, sigma: world.denoise(x, jnp.asarray(sigma), label), latents, sigmas)
    np.testing.assert_allclose(made, D, atol=1e-10)


def test_without_churn_the_stochastic_sampler_is_the_deterministic_one():
    world, label = random_mixture(3), jnp.arange(6) % 3
    latents, sigmas = jax.random.normal(jax.random.key(0), (6, 6)), edm_sigmas(8, 0.002, 80.0)
    denoise = jax.jit(lambda x, sigma: world.denoise(x, sigma, label))
    plain = heun(denoise, latents, sigmas)
    for churn in (Churn(0.0), Churn(10.0, low=90.0), Churn(10.0, high=0.001)):
        np.testing.assert_array_equal(stochastic_heun(denoise, latents, sigmas, churn, None), plain)


def test_churn_raises_the_noise_level_as_published():
    assert Churn(40).gamma(1.0, 64) == math.sqrt(2) - 1  # below 40/64
    assert Churn(8).gamma(1.0, 64) == 8 / 64 and Churn(80).gamma(1.0, 18) == math.sqrt(2) - 1
    steps, seen = [], []

    def denoise(x, sigma):
        seen.append(float(sigma[0]))
        return jnp.zeros_like(x)

    sigmas = edm_sigmas(4, 0.002, 80.0)
    noise = lambda step: steps.append(step) or jnp.ones((2, 3))  # noqa: E731
    churn = Churn(1.0, low=sigmas[2], high=sigmas[1], S_noise=1.1)
    made = stochastic_heun(denoise, jnp.ones((2, 3)), sigmas, churn, noise)
    assert steps == [1, 2]
    raised = [sigmas[0], sigmas[1], sigmas[1] * 1.25, sigmas[2], sigmas[2] * 1.25, sigmas[3], sigmas[3]]
    np.testing.assert_allclose(seen, raised, rtol=1e-6)
    np.testing.assert_allclose(made, 0, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_of_the_null_label_follow_the_mixture(name):
    world = GaussianMixture(np.array([0.7, 0.3]), np.array([[-2.0], [2.0]]), np.array([0.3, 0.5]))
    latents, key = jax.random.normal(jax.random.key(1), (4000, 1)), jax.random.key(2)
    denoise = jax.jit(lambda x, sigma: world.denoise(x, sigma, jnp.full(len(x), 2)))
    noise = jax.jit(lambda step: jax.random.normal(jax.random.fold_in(key, step), (4000, 1)))
    solver = SOLVERS[name]
    steps = 128 if name == "euler" else 64
    more = (Churn(20.0), noise) if solver.stochastic else ()
    images = np.asarray(solver.solve(denoise, latents, edm_sigmas(steps, 0.002, 80.0), *more))[:, 0]
    assert (images < 0).mean() == pytest.approx(0.7, abs=0.03)
    assert images[images < 0].std() == pytest.approx(0.3, abs=0.03)
    assert images[images > 0].mean() == pytest.approx(2.0, abs=0.05)
    assert images[images > 0].std() == pytest.approx(0.5, abs=0.05)
