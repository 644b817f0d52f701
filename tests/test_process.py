"""Noise levels, preconditioning and loss weights against table 1 of Karras et al. 2022."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax.diffusion.process import EDM, PROCESSES, VE, VP, make_denoiser, per_example

SIGMA = jnp.array([0.002, 0.5, 3.0, 80.0])


def test_the_preconditioning_has_the_values_of_the_paper():
    process = EDM()
    expected = {  # sigma = 0.5 = sigma_data, worked out by hand
        process.c_skip: 0.5,
        process.c_out: 0.5 / np.sqrt(2),
        process.c_in: np.sqrt(2),
        process.c_noise: np.log(0.5) / 4,
        process.loss_weight: 8.0,
    }
    for function, value in expected.items():
        assert float(function(jnp.float32(0.5))) == pytest.approx(value, rel=1e-6), function


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.3])
def test_every_noise_level_counts_the_same_and_reaches_the_network_with_unit_variance(sigma_data):
    process = EDM(sigma_data=sigma_data)
    np.testing.assert_allclose(process.loss_weight(SIGMA) * process.c_out(SIGMA) ** 2, 1, rtol=1e-5)
    np.testing.assert_allclose(process.c_in(SIGMA) ** 2 * (sigma_data**2 + SIGMA**2), 1, rtol=1e-5)
    # The network's target (x0 - c_skip x_t) / c_out has unit variance too.
    c_skip, c_out = process.c_skip(SIGMA), process.c_out(SIGMA)
    target = ((1 - c_skip) * sigma_data) ** 2 + (c_skip * SIGMA) ** 2
    np.testing.assert_allclose(target / c_out**2, 1, rtol=1e-4)


def test_noise_levels_are_log_normal():
    process = EDM()
    normal = jax.random.normal(jax.random.key(0), (100_000,))
    log_sigma = jnp.log(process.sigma(normal))
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.02)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.02)
    np.testing.assert_allclose(process.sigma(jnp.array([0.0, 1.0])), np.exp([-1.2, 0.0]), rtol=1e-6)


def test_variance_preserving_has_the_values_of_the_paper():
    process = VP()
    t = np.array([1e-5, 1e-3, 0.1, 0.7, 1.0])
    sigma = np.sqrt(np.exp(0.5 * 19.9 * t**2 + 0.1 * t) - 1)
    assert (process.sigma_min, process.sigma_max) == (pytest.approx(sigma[1]), pytest.approx(sigma[-1]))
    sigma = jnp.asarray(sigma, jnp.float32)
    np.testing.assert_allclose(process.time(sigma), t, rtol=1e-5)
    np.testing.assert_allclose(process.c_noise(sigma), 999 * t, rtol=1e-5)
    np.testing.assert_array_equal(process.c_skip(sigma), 1)
    np.testing.assert_array_equal(process.c_out(sigma), -sigma)
    np.testing.assert_allclose(process.c_in(sigma), 1 / np.sqrt(1 + sigma**2), rtol=1e-6)
    np.testing.assert_allclose(process.loss_weight(sigma), 1 / sigma**2, rtol=1e-6)


def test_variance_exploding_has_the_values_of_the_paper():
    process = VE()
    assert (process.sigma_min, process.sigma_max) == (0.02, 100.0)
    np.testing.assert_array_equal(process.c_skip(SIGMA), 1)
    np.testing.assert_array_equal(process.c_out(SIGMA), SIGMA)
    np.testing.assert_array_equal(process.c_in(SIGMA), 1)
    np.testing.assert_allclose(process.c_noise(SIGMA), np.log(SIGMA / 2), rtol=1e-6)
    np.testing.assert_allclose(process.loss_weight(SIGMA), 1 / SIGMA**2, rtol=1e-6)


def test_times_and_log_noise_levels_are_uniform():
    normal = jax.random.normal(jax.random.key(0), (100_000,))
    t = VP().time(VP().sigma(normal))
    log_sigma = jnp.log(VE().sigma(normal) / 0.02) / np.log(100 / 0.02)
    for uniform in (t, log_sigma):
        counts, _ = np.histogram(uniform, bins=10, range=(0, 1))
        np.testing.assert_allclose(counts / len(normal), 0.1, atol=0.005)


@pytest.mark.parametrize(("process", "lowest", "highest"), [(VP(), 0.0010005, 152.2), (VE(), 0.02, 100.0)])
def test_the_most_extreme_draws_stay_in_range_and_in_order(process, lowest, highest):
    """Up to where the uniform quantile of a float32 normal draw rounds to 0 or 1."""
    sigma = process.sigma(jnp.array([-jnp.inf, -14.0, -6.0, -3.0, 0.0, 3.0, 5.0, 9.0, jnp.inf], jnp.float32))
    assert (np.diff(sigma) >= 0).all() and (np.diff(sigma[2:7]) > 0).all()
    assert float(sigma[0]) == pytest.approx(lowest, rel=1e-3) and float(sigma[-1]) == pytest.approx(highest, rel=1e-3)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_perfect_network_gives_back_the_image(name):
    """The network's target is (x0 - c_skip x_t) / c_out under every process."""
    process = PROCESSES[name]()
    x0, n = jax.random.normal(jax.random.key(0), (2, 4, 2, 2, 1))
    x_t = x0 + per_example(SIGMA, x0) * n

    def network(x_in, c_noise, label):
        c_in, c_skip, c_out = (per_example(getattr(process, c)(SIGMA), x0) for c in ("c_in", "c_skip", "c_out"))
        np.testing.assert_allclose(x_in, c_in * x_t, rtol=1e-6)
        return (x0 - c_skip * x_t) / c_out

    D = make_denoiser(process, network)(x_t, SIGMA, jnp.zeros(4, int))
    np.testing.assert_allclose(D, x0, atol=1e-4)


def test_the_network_receives_an_augmentation_label_only_where_there_is_one():
    seen = []

    def network(x_in, *conditions):
        seen.append(conditions[2:])
        return x_in

    denoise, x, label = make_denoiser(EDM(), network), jnp.ones((4, 2)), jnp.zeros(4, int)
    augment_label = jnp.arange(36.0).reshape(4, 9)
    denoise(x, SIGMA, label)
    denoise(x, SIGMA, label, None)
    denoise(x, SIGMA, label, augment_label)
    assert seen[0] == seen[1] == ()
    np.testing.assert_array_equal(seen[2][0], augment_label)


def test_the_denoiser_is_skip_plus_scaled_network():
    process, x = EDM(), jax.random.normal(jax.random.key(0), (4, 2, 2, 1))
    seen = {}

    def network(x_in, c_noise, label):
        seen.update(x_in=x_in, c_noise=c_noise, label=label)
        return jnp.ones_like(x_in)

    label = jnp.arange(4)
    D = make_denoiser(process, network)(x, SIGMA, label)
    scale = {c: getattr(process, c)(SIGMA).reshape(4, 1, 1, 1) for c in ("c_skip", "c_out", "c_in")}
    np.testing.assert_allclose(D, scale["c_skip"] * x + scale["c_out"], rtol=1e-6)
    np.testing.assert_allclose(seen["x_in"], scale["c_in"] * x, rtol=1e-6)
    np.testing.assert_allclose(seen["c_noise"], np.log(SIGMA) / 4, rtol=1e-6)
    np.testing.assert_array_equal(seen["label"], label)
    zero = make_denoiser(process, lambda x_in, c_noise, label: jnp.zeros_like(x_in))
    np.testing.assert_allclose(zero(x, SIGMA, label), scale["c_skip"] * x, rtol=1e-6)


def test_noise_levels_in_low_precision_are_preconditioned_in_float32():
    seen = {}

    def network(x_in, c_noise, label):
        seen["c_noise"] = c_noise
        return jnp.zeros_like(x_in)

    sigma = jnp.full(1, 3, jnp.bfloat16)
    make_denoiser(EDM(), network)(jnp.ones((1, 1)), sigma, jnp.zeros(1, int))
    np.testing.assert_allclose(seen["c_noise"], np.log(3) / 4, rtol=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_vanishing_noise_level_stays_finite(name):
    assert np.isfinite(PROCESSES[name]().c_noise(jnp.zeros(1))).all()


def test_per_example_factors_broadcast_over_all_other_axes():
    assert per_example(jnp.ones(3), jnp.ones((3, 4, 5, 6))).shape == (3, 1, 1, 1)
    assert per_example(jnp.ones(3), jnp.ones((3, 2))).shape == (3, 1)
