"""Gaussian mixtures to test on, and matrices of label noise."""

import jax.numpy as jnp
import numpy as np

from tdsm_jax.diffusion.gaussian import GaussianMixture
from tdsm_jax.labels.corruption import transition_matrix


def random_mixture(num_classes: int, dimension: int = 6, seed: int = 0) -> GaussianMixture:
    """Returns a mixture of overlapping classes of unequal size."""
    rng = np.random.default_rng(seed)
    prior = rng.dirichlet(np.full(num_classes, 3.0))
    return GaussianMixture(prior, rng.normal(size=(num_classes, dimension)), rng.uniform(0.2, 0.8, num_classes))


def dense_matrix(num_classes: int, seed: int = 0) -> np.ndarray:
    """Returns a random S with a heavy diagonal and no equal entries, as estimators give."""
    rng = np.random.default_rng(seed)
    return 0.5 * np.eye(num_classes) + 0.5 * rng.dirichlet(np.ones(num_classes), num_classes)


TRANSITIONS = {
    "sym": transition_matrix("sym", 10, 0.4),
    "asym": transition_matrix("asym", 10, 0.4, "digits"),
    "pair": transition_matrix("pair", 10, 0.3),
    "dense": dense_matrix(10),
}
SIGMAS = (0.05, 0.5, 2.0, 40.0)


def noisy_examples(mixture: GaussianMixture, S: np.ndarray, count: int, sigmas=SIGMAS, seed: int = 0):
    """Draws x0, x_t [N,d], sigma [N], y and y_tilde [N] as float32 and int32; the levels of `sigmas` take turns."""
    rng = np.random.default_rng(seed)
    x0, y = mixture.draw(rng, count)
    sigma = np.resize(np.asarray(sigmas), count)
    x_t = x0 + sigma[:, None] * rng.standard_normal(x0.shape)
    y_tilde = (rng.random(count)[:, None] > np.cumsum(S[y], axis=1)).sum(axis=1).clip(max=len(S) - 1)
    return (*(jnp.asarray(a, jnp.float32) for a in (x0, x_t, sigma)), jnp.asarray(y), jnp.asarray(y_tilde))
