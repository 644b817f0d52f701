"""Score-matching losses: the mixture of a plan against the clean image."""

import jax

from tdsm_jax.diffusion.mixture import Mixture, Plan, evaluate
from tdsm_jax.diffusion.process import Denoise, Process, per_example


def add_noise(x0: jax.Array, sigma: jax.Array, n: jax.Array) -> jax.Array:
    """x_t = x0 + sigma n. Shapes: x0, n [B,...], sigma [B] -> [B,...]."""
    return x0 + per_example(sigma, x0) * n


def score_matching(
    process: Process,
    denoise: Denoise,
    frozen: Denoise | None,
    x0: jax.Array,  # [B,...]
    x_t: jax.Array,  # [B,...]
    sigma: jax.Array,  # [B]
    slots: Plan,
    capacity: float | None = None,
    augment_label: jax.Array | None = None,  # [B,A]
) -> tuple[jax.Array, Mixture]:
    """Returns lambda(sigma) (M - x0)^2 of each pixel, [B,...], and the mixture.

    The plan makes it DSM, S-weighted DSM or TDSM (Na et al. 2024, eq. 9); see `mixture.evaluate` for `frozen`.
    """
    mixture = evaluate(denoise, frozen, x_t, sigma, slots, capacity, augment_label)
    return per_example(process.loss_weight(sigma), x0) * (mixture.M - x0) ** 2, mixture
