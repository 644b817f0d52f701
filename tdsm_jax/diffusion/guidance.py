"""Guidance: a denoiser made to follow its label more or less, a denoiser again."""

import jax
import jax.numpy as jnp

from tdsm_jax.diffusion.process import Denoise


def guided(denoise: Denoise, w: float, null: int) -> Denoise:
    """Returns D_null + w (D - D_null): classifier-free guidance of scale w (Ho and Salimans 2022).

    w = 0 is unconditional; 1 is `denoise` itself; any other scale evaluates it twice. `null` is the label of D_null.
    """
    if w == 1:
        return denoise

    def guided_denoise(x: jax.Array, sigma: jax.Array, label: jax.Array, *extra: jax.Array) -> jax.Array:
        u = denoise(x, sigma, jnp.full_like(label, null), *extra)
        return u + w * (denoise(x, sigma, label, *extra) - u) if w else u

    return guided_denoise
