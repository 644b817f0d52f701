"""The Heun sampler against the official one, in float64 and in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import official
from gaussian import GaussianMixture
from official import relative_error
from tdsm_jax.diffusion.process import EDM
from tdsm_jax.diffusion.sampling import edm_sigmas, heun

STEPS = sorted(int(key.removeprefix("heun_")) for key in official.load("sampler") if key.startswith("heun_"))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-5), (True, 1e-9)])
def test_samples_match_the_official_sampler(steps, double, tolerance, golden):
    arrays = golden("sampler")
    mean = arrays["mean"]
    K = len(mean)
    world = GaussianMixture(np.full(K, 1 / K), mean, np.full(K, arrays["sd"]))
    with jax.enable_x64(double):
        dtype = jnp.float64 if double else jnp.float32
        label = jnp.asarray(arrays["labels"])

        @jax.jit
        def denoise(x, sigma):
            return world.denoise(x.reshape(len(x), -1), sigma, label).reshape(x.shape)

        sigmas = edm_sigmas(steps, EDM.sigma_min, EDM.sigma_max)
        images = heun(denoise, jnp.asarray(arrays["latents"], dtype), sigmas)
        assert images.dtype == dtype
        assert relative_error(images, arrays[f"heun_{steps}"]) <= tolerance
