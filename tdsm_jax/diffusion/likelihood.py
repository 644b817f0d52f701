"""What a conditional diffusion model says of the class of an image: its evidence, by the errors of its denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from tdsm_jax.diffusion.objectives import add_noise
from tdsm_jax.diffusion.process import Denoise, Process, per_example


def noise_levels(process: Process, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns sigma [count], at the middles of equal shares of those trained at, and the d ln sigma of each [count].

    One level alone has no neighbour to say its share: it counts for one e-fold.
    """
    middles = (jnp.arange(count) + 0.5) / count
    sigma = np.asarray(process.sigma(ndtri(middles)), np.float64)
    return sigma, np.gradient(np.log(sigma)) if count > 1 else np.ones(1)


def denoising_error(
    denoise: Denoise,
    x0: jax.Array,  # [B,...]
    sigma: jax.Array,  # [B]
    n: jax.Array,  # [B,...]
    label: jax.Array,  # int [B]
) -> jax.Array:
    """Returns ||D(x0 + sigma n, sigma, label) - x0||^2 / sigma^2 of each image [B].

    Its mean over n, integrated over ln sigma, is -log p(x0 | label) up to what does not depend on the label, for an
    ideal denoiser; for any other it bounds it (Kingma et al. 2021; as a classifier Li et al. 2023, Clark and Jaini
    2023). With the same n for all labels their differences vary the least.
    """
    x_t = add_noise(x0, sigma, n)
    residual = (denoise(x_t, sigma, label) - x0) / per_example(sigma, x0)
    return (residual**2).reshape(len(x0), -1).sum(axis=1)


def times_evidence(w: np.ndarray, log_evidence: np.ndarray) -> np.ndarray:
    """Returns w [N,K] times the evidence for each class [N,K], normalised; what w rules out stays so."""
    with np.errstate(divide="ignore"):
        log_w = np.log(np.asarray(w, np.float64)) + log_evidence
    refined = np.exp(log_w - log_w.max(axis=1, keepdims=True))
    return refined / refined.sum(axis=1, keepdims=True)
