"""Diffusion processes: noise levels, preconditioning and loss weight (Karras et al. 2022, table 1).

All share one interface. `sigma_min` and `sigma_max` bound the noise levels of sampling; training draws its own.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

NoiseLevels = jax.Array | np.ndarray  # [B]; of NumPy as solvers give them
# (x [B,...], sigma [B], label [B]) -> D [B,...]; augmented images come with augment_label [B,A] as fourth argument
Denoise = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class EDM:
    """EDM: ln sigma ~ N(P_mean, P_std^2) in training, data of standard deviation `sigma_data` (table 1)."""

    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def sigma(self, normal: jax.Array) -> jax.Array:
        """Maps a standard normal draw to a training noise level. Shapes: [...] -> [...]."""
        return jnp.exp(self.P_mean + self.P_std * normal)

    def quantile(self, sigma: jax.Array) -> jax.Array:
        """Returns the share of training noise levels below sigma: `sigma(normal)` gives Phi(normal). [...] -> [...]."""
        return ndtr((jnp.log(sigma) - self.P_mean) / self.P_std)

    def c_skip(self, sigma: jax.Array) -> jax.Array:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: jax.Array) -> jax.Array:
        return sigma * self.sigma_data / jnp.sqrt(sigma**2 + self.sigma_data**2)

    def c_in(self, sigma: jax.Array) -> jax.Array:
        return 1 / jnp.sqrt(sigma**2 + self.sigma_data**2)

    def c_noise(self, sigma: jax.Array) -> jax.Array:
        return jnp.log(jnp.maximum(sigma, self.sigma_min * 1e-2)) / 4

    def loss_weight(self, sigma: jax.Array) -> jax.Array:
        """lambda(sigma) on ||D - x0||^2."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclasses.dataclass(frozen=True)
class VP:
    """Variance preserving (Song et al. 2021): t ~ U(epsilon_t, 1) in training, t >= epsilon_s in sampling.

    1 + sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t); the network is told (M - 1) t.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000
    epsilon_t: float = 1e-5
    epsilon_s: float = 1e-3

    @property
    def sigma_min(self) -> float:
        return math.sqrt(math.expm1(self._exponent(self.epsilon_s)))

    @property
    def sigma_max(self) -> float:
        return math.sqrt(math.expm1(self._exponent(1.0)))

    def sigma(self, normal: jax.Array) -> jax.Array:
        """Maps a standard normal draw, through its uniform quantile, to a training noise level: [...] -> [...]."""
        t = self.epsilon_t + (1 - self.epsilon_t) * ndtr(normal)
        return jnp.sqrt(jnp.expm1(self._exponent(t)))

    def quantile(self, sigma: jax.Array) -> jax.Array:
        """Returns the share of training noise levels below sigma, from 0 to 1. Shapes: [...] -> [...]."""
        return jnp.clip((self.time(sigma) - self.epsilon_t) / (1 - self.epsilon_t), 0, 1)

    def _exponent(self, t):
        return self.beta_d * t**2 / 2 + self.beta_min * t

    def time(self, sigma: jax.Array) -> jax.Array:
        """The inverse of sigma(t). Shapes: [...] -> [...]."""
        exponent = jnp.log1p(sigma**2)
        # The root of the quadratic in the form that does not cancel at small t.
        return 2 * exponent / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * self.beta_d * exponent))

    def c_skip(self, sigma: jax.Array) -> jax.Array:
        return jnp.ones_like(sigma)

    def c_out(self, sigma: jax.Array) -> jax.Array:
        return -sigma

    def c_in(self, sigma: jax.Array) -> jax.Array:
        return 1 / jnp.sqrt(sigma**2 + 1)

    def c_noise(self, sigma: jax.Array) -> jax.Array:
        return (self.M - 1) * self.time(sigma)

    def loss_weight(self, sigma: jax.Array) -> jax.Array:
        """lambda(sigma) on ||D - x0||^2."""
        return 1 / sigma**2


@dataclasses.dataclass(frozen=True)
class VE:
    """Variance exploding (Song et al. 2021): ln sigma is uniform between those of sigma_min and sigma_max."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def sigma(self, normal: jax.Array) -> jax.Array:
        """Maps a standard normal draw, through its uniform quantile, to a training noise level: [...] -> [...]."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** ndtr(normal)

    def quantile(self, sigma: jax.Array) -> jax.Array:
        """Returns the share of training noise levels below sigma, from 0 to 1. Shapes: [...] -> [...]."""
        return jnp.clip(jnp.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min), 0, 1)

    def c_skip(self, sigma: jax.Array) -> jax.Array:
        return jnp.ones_like(sigma)

    def c_out(self, sigma: jax.Array) -> jax.Array:
        return sigma

    def c_in(self, sigma: jax.Array) -> jax.Array:
        return jnp.ones_like(sigma)

    def c_noise(self, sigma: jax.Array) -> jax.Array:
        return jnp.log(jnp.maximum(sigma, self.sigma_min * 1e-2) / 2)

    def loss_weight(self, sigma: jax.Array) -> jax.Array:
        """lambda(sigma) on ||D - x0||^2."""
        return 1 / sigma**2


Process = EDM | VP | VE
PROCESSES: dict[str, type[Process]] = {"edm": EDM, "vp": VP, "ve": VE}


def per_example(scale: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes [B] so that it broadcasts over `like` [B,...]."""
    return scale.reshape(-1, *[1] * (like.ndim - 1))


def make_denoiser(process: Process, network: Callable[..., Any]) -> Denoise:
    """Wraps a raw network F(x_in, c_noise, label) into D(x, sigma, label) = c_skip x + c_out F (EDM eq. 7).

    Shapes: x [B,H,W,C], sigma [B], label int [B] (num_classes = null label), augment_label [B,A] or None ->
    [B,H,W,C]. The network receives an augmentation label, as fourth argument, only where there is one.
    """

    def denoise(x: jax.Array, sigma: jax.Array, label: jax.Array, augment_label: jax.Array | None = None) -> jax.Array:
        sigma = sigma.astype(jnp.float32)
        conditions = (label,) if augment_label is None else (label, augment_label)
        F = network(per_example(process.c_in(sigma), x) * x, process.c_noise(sigma), *conditions)
        return per_example(process.c_skip(sigma), x) * x + per_example(process.c_out(sigma), x) * F

    return denoise
