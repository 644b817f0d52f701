"""The diffusion process of Karras et al. 2022 (EDM): noise levels, preconditioning, loss weight."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

Denoise = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (x [B,...], sigma [B], label [B]) -> D


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


def per_example(scale: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes [B] so that it broadcasts over `like` [B,...]."""
    return scale.reshape(-1, *[1] * (like.ndim - 1))


def make_denoiser(process: EDM, network: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]) -> Denoise:
    """Wraps a raw network F(x_in, c_noise, label) into D(x, sigma, label) = c_skip x + c_out F (EDM eq. 7).

    Shapes: x [B,H,W,C], sigma [B], label int [B] (num_classes = null label) -> [B,H,W,C].
    """

    def denoise(x: jax.Array, sigma: jax.Array, label: jax.Array) -> jax.Array:
        sigma = sigma.astype(jnp.float32)
        F = network(per_example(process.c_in(sigma), x) * x, process.c_noise(sigma), label)
        return per_example(process.c_skip(sigma), x) * x + per_example(process.c_out(sigma), x) * F

    return denoise
