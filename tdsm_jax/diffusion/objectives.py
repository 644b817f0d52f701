"""Score-matching losses: the mixture of a plan against the clean image."""

import jax

from tdsm_jax.diffusion.mixture import Mixture, Plan, evaluate
from tdsm_jax.diffusion.process import EDM, Denoise, per_example


def add_noise(x0: jax.Array, sigma: jax.Array, n: jax.Array) -> jax.Array:
    """x_t = x0 + sigma n. Shapes: x0, n [B,...], sigma [B] -> [B,...]."""
    return x0 + per_example(sigma, x0) * n


def score_matching(
    process: EDM,
    denoise: Denoise,
    frozen: Denoise | None,
    x0: jax.Array,  # [B,...]
    x_t: jax.Array,  # [B,...]
    sigma: jax.Array,  # [B]
    slots: Plan,
    capacity: float | None = None,
) -> tuple[jax.Array, Mixture]:
    """Returns lambda(sigma) ||M - x0||^2 averaged over pixels, [B], and the mixture.

    The plan makes it DSM, S-weighted DSM or TDSM (Na et al. 2024, eq. 9); see `mixture.evaluate` for `frozen`.
    """
    mixture = evaluate(denoise, frozen, x_t, sigma, slots, capacity)
    squared = (mixture.M - x0) ** 2
    return process.loss_weight(sigma) * squared.reshape(x0.shape[0], -1).mean(axis=1), mixture
