"""Gaussian mixtures: everything that the method has to learn is known there in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


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
