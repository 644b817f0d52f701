"""Solvers of the probability-flow ODE: (denoise, latents, sigmas) -> images."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def edm_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """Returns the falling noise levels of EDM (Karras et al. 2022, eq. 5) and a final 0: float64 [steps+1]."""
    ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return np.append(sigmas, 0.0)


def heun(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],  # (x [B,...], sigma [B]) -> D, its labels bound
    latents: jax.Array,  # [B,...], unit normal
    sigmas: np.ndarray,  # [steps+1], falling, the last one 0
) -> jax.Array:  # [B,...]
    """Deterministic second-order sampler (Karras et al. 2022, algorithm 1): 2 steps - 1 evaluations.

    A Python loop: hand it a jitted `denoise`.
    """
    x = latents * sigmas[0]

    def slope(x: jax.Array, sigma: float) -> jax.Array:
        return (x - denoise(x, jnp.full(x.shape[0], sigma, x.dtype))) / sigma

    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        d = slope(x, float(sigma))
        euler = x + (following - sigma) * d
        x = euler if following == 0 else x + (following - sigma) * (d + slope(euler, float(following))) / 2
    return x
