"""How much each noise level counts: weights on ||D - x0||^2, whatever parametrisation they were published for.

With x_t = x0 + sigma n the signal-to-noise ratio of a level is SNR = 1/sigma^2 (that of a variance preserving process
at the level that sigma stands for), and ||eps_theta - eps||^2 = SNR ||D - x0||^2: a weight v on the error of predicted
noise is the weight v SNR here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.diffusion.process import Process

P2_GAMMA = 1.0
MIN_SNR_GAMMA = 5.0
_FREQUENCIES = 128


def own(process: Process, sigma: jax.Array) -> jax.Array:
    """lambda(sigma) of the process itself: EDM's (sigma^2 + sigma_data^2)/(sigma sigma_data)^2 (Karras et al. 2022)."""
    return process.loss_weight(sigma)


def p2(process: Process, sigma: jax.Array) -> jax.Array:
    """SNR/(1 + SNR)^gamma with gamma 1, here 1/(1 + sigma^2): 1/(k + SNR)^gamma, k = 1, on the error of eps.

    Source: Choi et al. 2022, arXiv:2204.00227, eq. 8.
    """
    return sigma ** (2 * P2_GAMMA - 2) / (1 + sigma**2) ** P2_GAMMA


def debiased(process: Process, sigma: jax.Array) -> jax.Array:
    """sqrt(SNR), here 1/sigma: 1/sqrt(SNR) on the error of eps.

    Source: debiased estimation, Yu et al. 2023, arXiv:2310.08442.
    """
    return 1 / sigma


def min_snr(process: Process, sigma: jax.Array) -> jax.Array:
    """min(SNR, gamma) with gamma 5, here min(1/sigma^2, 5), published for the error of x0: as it is.

    Source: Hang et al. 2023, arXiv:2303.09556.
    """
    return jnp.minimum(1 / sigma**2, MIN_SNR_GAMMA)


Weighting = Callable[[Process, jax.Array], jax.Array]  # process, sigma [B] -> [B]
WEIGHTINGS: dict[str, Weighting] = {
    "own": own,
    "p2": p2,
    "debiased": debiased,
    "min_snr": min_snr,
    "uncertainty": own,  # times exp(-u(sigma)), learnt: see `Uncertainty`
}


class Uncertainty(NamedTuple):
    """The parameters of u(sigma), the learnt logarithm of how large the loss is at a noise level: weights [128], bias.

    Trained along with the network on loss / exp(u) + u, whose minimum is u = log E loss: every noise level then counts
    the same. Source: Karras et al. 2024 (EDM2), arXiv:2312.02696, eq. 14-21.
    """

    weights: jax.Array
    bias: jax.Array


def initial_uncertainty() -> Uncertainty:
    """Returns u = 0: the loss as it is."""
    return Uncertainty(jnp.zeros(_FREQUENCIES), jnp.zeros(()))


def log_loss(uncertainty: Uncertainty, sigma: jax.Array) -> jax.Array:
    """Returns u(sigma), a linear layer on fixed Fourier features of ln(sigma)/4. Shapes: [B] -> [B]."""
    rng = np.random.default_rng(0)  # the same features in every run: they are no parameters
    frequency, phase = rng.normal(size=_FREQUENCIES), rng.uniform(size=_FREQUENCIES)
    turns = jnp.log(sigma)[:, None] / 4 * jnp.float32(frequency) + jnp.float32(phase)
    features = jnp.sqrt(2.0) * jnp.cos(2 * jnp.pi * turns)
    dot = jnp.matmul(features, uncertainty.weights, precision="highest")
    return dot / jnp.sqrt(float(_FREQUENCIES)) + uncertainty.bias


def balanced(uncertainty: Uncertainty, loss: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns loss / exp(u(sigma)) + u(sigma) of each pixel. Shapes: loss [B,...], sigma [B] -> [B,...]."""
    u = log_loss(uncertainty, sigma).reshape(-1, *[1] * (loss.ndim - 1))
    return loss * jnp.exp(-u) + u
