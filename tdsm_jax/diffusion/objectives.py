"""Score-matching losses: the mixture of a plan against the clean image."""

import jax
import jax.numpy as jnp

from tdsm_jax.diffusion.mixture import Mixture, Plan, evaluate
from tdsm_jax.diffusion.process import Denoise, Process, per_example
from tdsm_jax.diffusion.residuals import Residual, cost
from tdsm_jax.diffusion.weightings import WEIGHTINGS

SQUARED = Residual()


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
    residual: Residual = SQUARED,
    weighting: str = "own",
) -> tuple[jax.Array, Mixture]:
    """Returns lambda(sigma) (M - x0)^2 of each pixel, [B,...], and the mixture.

    The plan makes it DSM, S-weighted DSM or TDSM (Na et al. 2024, eq. 9); see `mixture.evaluate` for `frozen`.
    `weighting`, of `WEIGHTINGS`, says what lambda is, and another `residual` what M - x0 costs in place of its square.
    """
    mixture = evaluate(denoise, frozen, x_t, sigma, slots, capacity, augment_label)
    return cost(residual, process, WEIGHTINGS[weighting](process, sigma), mixture.M, x0, sigma), mixture


def sampled_score_matching(
    process: Process,
    denoise: Denoise,
    frozen: Denoise,
    x0: jax.Array,  # [B,...]
    x_t: jax.Array,  # [B,...]
    sigma: jax.Array,  # [B]
    slots: Plan,  # of the rule `sampled`
    augment_label: jax.Array | None = None,  # [B,A]
    weighting: str = "own",
) -> jax.Array:
    """Returns a loss of each pixel, [B,...]: in expectation TDSM's through all classes, and so is its gradient.

    E[(D' - x0)(D'' - x0)] = (M - x0)^2 for independent draws y', y'' ~ w, and 2 (D'' - x0) grad D' has the mean
    2 (M - x0) grad M: any K and S by two evaluations, one of them with a gradient, at the price of variance. No other
    residual than the squared one is such a product.
    """
    extra = () if augment_label is None else (augment_label,)
    # An example without label has its null label alone: both factors are then the same.
    second = jnp.where(slots.weights[:, 1] > 0, slots.classes[:, 1], slots.classes[:, 0])
    scale = per_example(WEIGHTINGS[weighting](process, sigma), x0)
    first = denoise(x_t, sigma, slots.classes[:, 0], *extra)
    residual = jax.lax.stop_gradient(frozen(x_t, sigma, second, *extra) - x0)
    surrogate = 2 * scale * residual * first
    return surrogate + jax.lax.stop_gradient(scale * (first - x0) * residual - surrogate)


def draw_labels(keys: jax.Array, image_posterior: jax.Array) -> jax.Array:
    """Draws y_hat ~ p(y | x0, y_tilde) for each example, int [B]: posterior-sampled DSM trains it by itself.

    (x0, y_hat) is then distributed as (x0, y), whatever made the noisy labels, so DSM on it is DSM on clean labels.
    `image_posterior` [B,K] belongs to the *clean* image, once for all noise levels: weights at x_t are another
    distribution, whose draws bias the denoisers. keys [B].
    """
    log_posterior = jnp.log(image_posterior)
    return jax.vmap(jax.random.categorical)(keys, log_posterior).astype(jnp.int32)
