"""Gaussian mixtures: everything that the method has to learn is known there in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.labels.corruption import transition_matrix


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """Images x0 [d] of class y are N(mean[y], sd[y]^2 I), class y has probability prior[y].

    Plain NumPy arrays: prior [K], mean [K,d], sd [K]. Results have the dtype of x_t.
    """

    prior: np.ndarray
    mean: np.ndarray
    sd: np.ndarray

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns images [N,d] and their classes [N]."""
        y = rng.choice(len(self.prior), count, p=self.prior)
        return self.mean[y] + self.sd[y, None] * rng.standard_normal((count, self.mean.shape[1])), y

    def log_h(self, x_t: jax.Array, sigma: jax.Array) -> jax.Array:
        """Returns log p(y | x_t) [B,K] at noise level sigma [B]."""
        return jax.nn.log_softmax(self._log_likelihood(x_t, sigma) + self._constant(x_t, jnp.log(self.prior)))

    def denoise(self, x_t: jax.Array, sigma: jax.Array, label: jax.Array) -> jax.Array:
        """Returns E[x0 | x_t, y=label] [B,d], or E[x0 | x_t] where the label is K."""
        D = self._every_D(x_t, sigma)
        null = jnp.einsum("bk,bkd->bd", jnp.exp(self.log_h(x_t, sigma)), D)
        every = jnp.concatenate([D, null[:, None]], axis=1)
        return jnp.take_along_axis(every, label[:, None, None], axis=1)[:, 0]

    def denoise_noisy(self, x_t: jax.Array, sigma: jax.Array, y_tilde: jax.Array, S: np.ndarray) -> jax.Array:
        """Returns M = E[x0 | x_t, y_tilde] [B,d]: the mixture whose prior is p(y, y_tilde)."""
        joint = self._constant(x_t, self.prior[:, None] * S).T[y_tilde]
        p = jax.nn.softmax(self._log_likelihood(x_t, sigma) + jnp.log(joint))
        return jnp.einsum("bk,bkd->bd", p, self._every_D(x_t, sigma))

    def _log_likelihood(self, x_t, sigma):
        variance = self._constant(x_t, self.sd) ** 2 + sigma[:, None] ** 2  # [B,K]
        squared = ((x_t[:, None] - self._constant(x_t, self.mean)) ** 2).sum(axis=-1)
        return -squared / (2 * variance) - x_t.shape[1] / 2 * jnp.log(variance)

    def _every_D(self, x_t, sigma):
        mean, variance = self._constant(x_t, self.mean), self._constant(x_t, self.sd) ** 2
        shrink = variance / (variance + sigma[:, None] ** 2)  # [B,K]
        return mean + shrink[:, :, None] * (x_t[:, None] - mean)

    @staticmethod
    def _constant(x_t, values):
        return jnp.asarray(values, x_t.dtype)


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
