"""Solvers of the probability-flow ODE and of its stochastic kin: (denoise, latents, sigmas, ...) -> images.

All processes here are x = x0 + sigma n, so that one form of a solver serves EDM's, VP's and VE's models alike. Each is
a Python loop: hand it a jitted `denoise`. It is told one noise level for the whole batch, as a NumPy array [B] of equal
numbers: what wraps a denoiser may look at it, and choose by it, without waiting for a device.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from tdsm_jax.diffusion.process import VP, Process

Bound = Callable[[jax.Array, np.ndarray], jax.Array]  # (x [B,...], sigma [B]) -> D [B,...], its labels bound
Noise = Callable[[int], jax.Array]  # number of a step -> unit normals [B,...] of the latents' shape


LEAST_RHO = 1.0  # of EDM's levels, there evenly spaced; far below, sigma^(1/rho) overflows, or the last level is 0


class Churn(NamedTuple):
    """How `stochastic_heun` adds noise again: as much as S_churn says, where low <= sigma <= high, S_noise times."""

    S_churn: float
    low: float = 0.0
    high: float = math.inf
    S_noise: float = 1.0

    def gamma(self, sigma: float, steps: int) -> float:
        """Returns by how much of itself a noise level is raised before a step (Karras et al. 2022, algorithm 2)."""
        return min(self.S_churn / steps, math.sqrt(2) - 1) if self.low <= sigma <= self.high else 0.0


def edm_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """Returns the falling noise levels of EDM (Karras et al. 2022, eq. 5) and a final 0: float64 [steps+1].

    `rho` is at least `LEAST_RHO`.
    """
    ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return np.append(sigmas, 0.0)


def vp_sigmas(steps: int, sigma_min: float, sigma_max: float, process: VP) -> np.ndarray:
    """Returns noise levels at equal steps of VP's time, and a final 0: float64 [steps+1].

    Between a VP process's own bounds they are t = 1 to epsilon_s (Song et al. 2021; Karras et al. 2022, table 1).
    """
    d, m = process.beta_d, process.beta_min
    exponent = np.log1p(np.square([sigma_max, sigma_min]))
    first, last = 2 * exponent / (m + np.sqrt(m**2 + 2 * d * exponent))
    t = np.linspace(first, last, steps)
    return np.append(np.sqrt(np.expm1(d * t**2 / 2 + m * t)), 0.0)


def ve_sigmas(steps: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """Returns noise levels of equal ratios, as VE's are, and a final 0: float64 [steps+1] (Song et al. 2021)."""
    return np.append(np.geomspace(sigma_max, sigma_min, steps), 0.0)


def noise_levels(schedule: str, process: Process, steps: int, rho: float = 7.0) -> np.ndarray:
    """Returns the noise levels of a schedule, one of `SCHEDULES`, between a process's bounds: float64 [steps+1].

    edm: evenly spaced sigma^(1/rho); vp: evenly spaced times of VP; ve: evenly spaced ln sigma. Any fits any model.
    """
    low, high = process.sigma_min, process.sigma_max
    if schedule == "vp":
        return vp_sigmas(steps, low, high, process if isinstance(process, VP) else VP())
    return ve_sigmas(steps, low, high) if schedule == "ve" else edm_sigmas(steps, low, high, rho)


def euler(denoise: Bound, latents: jax.Array, sigmas: np.ndarray) -> jax.Array:
    """Deterministic first-order sampler, DDIM in this variable: as many evaluations as steps.

    latents [B,...] unit normal, sigmas [steps+1] falling, the last one 0 -> images [B,...]; so for all that follow.
    """
    x = latents * sigmas[0]
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (following - sigma) * _slope(denoise, x, float(sigma))
    return x


def heun(denoise: Bound, latents: jax.Array, sigmas: np.ndarray) -> jax.Array:
    """Deterministic second-order sampler (Karras et al. 2022, algorithm 1): 2 steps - 1 evaluations."""
    x = latents * sigmas[0]
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = _heun_step(denoise, x, sigma, following)
    return x


def stochastic_heun(denoise: Bound, latents: jax.Array, sigmas: np.ndarray, churn: Churn, noise: Noise) -> jax.Array:
    """Heun's sampler with noise added before each step (Karras et al. 2022, algorithm 2): 2 steps - 1 evaluations.

    With an ideal denoiser the distribution stays as it is; of a learnt one errors of earlier steps are forgotten.
    """
    x, steps = latents * sigmas[0], len(sigmas) - 1
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        raised = sigma * (1 + churn.gamma(float(sigma), steps))
        if raised > sigma:
            x = x + math.sqrt(raised**2 - sigma**2) * churn.S_noise * noise(step)
        x = _heun_step(denoise, x, raised, following)
    return x


def dpmpp_2m(denoise: Bound, latents: jax.Array, sigmas: np.ndarray) -> jax.Array:
    """DPM-Solver++(2M), second order by one evaluation a step (Lu et al. 2022, algorithm 2).

    In x = x0 + sigma n, lambda = -ln sigma: a VP model's own variable is alpha times it, and alpha cancels in the
    update. The last step, to 0, returns the denoised image.
    """
    x, before, h_before = latents * sigmas[0], None, 0.0
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        D = denoise(x, _level(x, float(sigma)))
        if following == 0:
            return D
        h = math.log(sigma / following)
        r = h_before / h
        extrapolated = D if before is None else D + (D - before) / (2 * r)
        x = (following / sigma) * x - math.expm1(-h) * extrapolated
        before, h_before = D, h
    return x


def _heun_step(denoise: Bound, x: jax.Array, sigma: float, following: float) -> jax.Array:
    d = _slope(denoise, x, float(sigma))
    predicted = x + (following - sigma) * d
    if following == 0:
        return predicted
    return x + (following - sigma) * (d + _slope(denoise, predicted, float(following))) / 2


def _slope(denoise: Bound, x: jax.Array, sigma: float) -> jax.Array:
    return (x - denoise(x, _level(x, sigma))) / sigma


def _level(x: jax.Array, sigma: float) -> np.ndarray:
    return np.full(x.shape[0], sigma, x.dtype)


class Solver(NamedTuple):
    """A solver, its evaluations of the denoiser for so many steps, and whether it takes a `Churn` and a `Noise`."""

    solve: Callable[..., jax.Array]
    evaluations: Callable[[int], int]
    stochastic: bool = False


SOLVERS = {
    "euler": Solver(euler, lambda steps: steps),
    "heun": Solver(heun, lambda steps: 2 * steps - 1),
    "stochastic_heun": Solver(stochastic_heun, lambda steps: 2 * steps - 1, stochastic=True),
    "dpmpp_2m": Solver(dpmpp_2m, lambda steps: steps),
}
SCHEDULES = ("edm", "vp", "ve")
