"""What a residual costs: its square, or scheduled pseudo-Huber, on which images that do not belong pull less.

Khrapov et al. 2024 (arXiv:2403.16728) train diffusion models with the pseudo-Huber loss of the network's residual; its
delta depends on the noise level. Here the residual is r = (D - x0) / c_out, the error of the raw network under every
process, whose target has about unit variance; the published time t/T becomes the share of training noise levels below
sigma, so that a schedule spends its range where training spends its examples.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tdsm_jax.diffusion.process import Process, per_example
from tdsm_jax.errors import UserError, did_you_mean


def _constant(delta: float, sigma: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.full_like(t, delta)


def _exponential(delta: float, sigma: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.exp(t * math.log(delta))


def _reversed(delta: float, sigma: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.exp((1 - t) * math.log(delta))


def _snr(delta: float, sigma: jax.Array, t: jax.Array) -> jax.Array:
    return delta + (1 - delta) / (1 + sigma) ** 2


# delta of a noise level, [B] -> [B]: delta0 everywhere; from 1 at the least noise to delta0 at the most, robust where
# the outline is decided and squared where details are (published); the other way round, which is known to fail; and by
# the signal-to-noise ratio itself, as training scripts built on the paper have it.
SCHEDULES: dict[str, Callable[[float, jax.Array, jax.Array], jax.Array]] = {
    "huber": _constant,
    "huber_exponential": _exponential,
    "huber_reversed": _reversed,
    "huber_snr": _snr,
}
RESIDUALS = ("squared", *SCHEDULES)
FORMS = ("element", "example")


@dataclasses.dataclass(frozen=True)
class Residual:
    """Which cost: "squared", or pseudo-Huber by one of `SCHEDULES`, down to `delta` (published .01; .001, .1 in use).

    `form` "element" bounds each pixel's pull (published): where delta is small, what is learnt is near a median of each
    pixel. "example" bounds that of a whole image: its direction is the squared loss's, so that what is learnt stays
    near the mean of the images that belong, which mixtures of denoisers and samplers need. A name that is none, or a
    delta outside (0, inf), is a `UserError`.
    """

    kind: str = "squared"
    delta: float = 0.1
    form: str = "element"

    def __post_init__(self):
        for name, valid in ((self.kind, RESIDUALS), (self.form, FORMS)):
            if name not in valid:
                raise UserError(f"unknown residual {name!r}{did_you_mean(name, valid)}")
        if not 0 < self.delta < math.inf:
            raise UserError(f"delta of a residual must be a positive number, got {self.delta}")


def deltas(residual: Residual, process: Process, sigma: jax.Array) -> jax.Array:
    """Returns delta of each noise level. Shapes: sigma [B] -> [B]."""
    return SCHEDULES[residual.kind](residual.delta, sigma, process.quantile(sigma))


def pseudo_huber(r: jax.Array, delta: jax.Array, form: str = "element") -> jax.Array:
    """Returns rho = 2 delta (sqrt(r^2 + delta^2) - delta) of each pixel, or a share of it whose mean is the example's.

    r^2 for |r| << delta, 2 delta |r| beyond: the slope stays below 2 delta. Of the form "example" the root holds the
    mean over pixels m of r^2 in place of r^2; pixels get its rho in proportion to their r^2. Written as
    2 r^2 / (1 + sqrt(1 + (r/delta)^2)), which neither cancels nor overflows for large delta and is r^2 in the limit.
    Shapes: r [B,...], delta [B] -> [B,...]. Source: Khrapov et al. 2024, with the factor 2 that makes it r^2 at zero.
    """
    squared = r**2
    within = squared.mean(axis=tuple(range(1, r.ndim)), keepdims=True) if form == "example" else squared
    return 2 * squared / (1 + jnp.sqrt(1 + within / per_example(delta, r) ** 2))


def cost(
    residual: Residual, process: Process, weight: jax.Array, D: jax.Array, x0: jax.Array, sigma: jax.Array
) -> jax.Array:
    """Returns weight (D - x0)^2 of each pixel, or the pseudo-Huber cost that this is the limit of, for large delta.

    Shapes: weight, sigma [B]; D, x0 [B,...] -> [B,...]. The weight is on ||D - x0||^2, so that on rho(r) it is
    weight c_out^2, which is 1 under EDM's own weighting.
    """
    if residual.kind == "squared":
        return per_example(weight, x0) * (D - x0) ** 2
    c_out = process.c_out(sigma)
    r = (D - x0) / per_example(c_out, x0)
    return per_example(weight * c_out**2, x0) * pseudo_huber(r, deltas(residual, process, sigma), residual.form)
