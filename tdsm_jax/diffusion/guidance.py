"""Guidance: a denoiser made to follow its label more or less, a denoiser again.

The wrappers compose in one order, that of `composed`:

  1. the denoiser itself, or the one that `diffusion/unmixing.py` makes of a model of noisy labels: c
  2. guidance of scale w away from another denoiser u: that of no label, or a weaker model's
  3. its rescaling, phi
  4. its end, for each image by itself, once c and u agree: `Adaptive`
  5. its interval of noise levels; outside it c alone is evaluated

They are driven from Python, with denoisers that are jitted: all but `Adaptive` may be jitted themselves.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.diffusion.process import Denoise, NoiseLevels, per_example


class Guidance(NamedTuple):
    """Guidance by its scale `w`, `interval` (low, high], `rescale` phi, `threshold` of `Adaptive`, 0: off."""

    w: float = 1.0
    interval: tuple[float, float] = (0.0, math.inf)
    rescale: float = 0.0
    threshold: float = 0.0


def composed(c: Denoise, u: Denoise, guidance: Guidance) -> Denoise:
    """Returns `c` guided away from `u`; `c` itself at w = 1. One for each trajectory where `threshold` is set."""
    w, interval, rescale, threshold = guidance
    if w == 1:
        return c
    inside = Adaptive(c, u, w, rescale, threshold) if threshold else extrapolated(c, u, w, rescale)
    return inside if interval == (0.0, math.inf) else within(inside, c, *interval)


def unconditional(denoise: Denoise, null: int) -> Denoise:
    """Returns D_null: `denoise` for the label `null`, whatever label is asked for.

    Asked again about the same array x it answers without evaluating: several wrappers of one step share it.
    """
    last: list = [None, None]

    def denoise_null(x: jax.Array, sigma: NoiseLevels, label: jax.Array, *extra: jax.Array) -> jax.Array:
        if last[0] is not x:
            last[:] = x, denoise(x, sigma, jnp.full_like(label, null), *extra)
        return last[1]

    return denoise_null


def extrapolated(c: Denoise, u: Denoise, w: float, rescale: float = 0.0) -> Denoise:
    """Returns u + w (c - u), and at w = 1 or 0 `c` or `u` itself, by one evaluation.

    With u = D_null it is classifier-free guidance (Ho and Salimans 2022).
    With u a weaker model, an earlier checkpoint or a smaller network, it is autoguidance (Karras et al. 2024): both are
    told the label, and what is amplified is what training has improved. `rescale`: see `rescaled`.
    """
    if w == 1:
        return c
    if w == 0:
        return u

    def guided_denoise(x: jax.Array, sigma: NoiseLevels, label: jax.Array, *extra: jax.Array) -> jax.Array:
        other = u(x, sigma, label, *extra)
        return _extrapolated(c(x, sigma, label, *extra), other, w, rescale)

    return guided_denoise


@functools.partial(jax.jit, static_argnums=3)
def _extrapolated(c: jax.Array, u: jax.Array, w: float, rescale: float) -> jax.Array:
    D = u + w * (c - u)
    return rescaled(D, c, rescale) if rescale else D


def rescaled(D: jax.Array, c: jax.Array, phi: float) -> jax.Array:
    """Returns D [B,...] with the share `phi` of its contrast beyond that of c taken back (Lin et al. 2024, eq. 15-16).

    phi = 1 gives each image the standard deviation that it has in c, 0 leaves it; .7 is the authors' choice. Theirs are
    predictions of v, which at high noise, where guidance burns images out, are denoised images up to their sign.
    """
    pixels = tuple(range(1, D.ndim))
    spread, wanted = D.std(axis=pixels, keepdims=True), c.std(axis=pixels, keepdims=True)
    return D * (phi * wanted / jnp.maximum(spread, 1e-12) + 1 - phi)


def within(inside: Denoise, outside: Denoise, low: float, high: float) -> Denoise:
    """Returns `inside` where low < sigma <= high and `outside` elsewhere: guidance in an interval (Kynkaanniemi 2024).

    One of the two alone is evaluated where sigma is a NumPy array, as solvers give it, that lies on one side.
    """

    def chosen(x: jax.Array, sigma: NoiseLevels, label: jax.Array, *extra: jax.Array) -> jax.Array:
        inner = (low < sigma) & (sigma <= high)
        if isinstance(inner, np.ndarray) and inner.all() == inner.any():
            return (inside if inner.all() else outside)(x, sigma, label, *extra)
        D_inside, D_outside = (denoise(x, sigma, label, *extra) for denoise in (inside, outside))
        return jnp.where(per_example(jnp.asarray(inner), x), D_inside, D_outside)

    return chosen


class Adaptive:
    """Guidance that ends, for each image by itself and for good, once cos(c, u) > threshold (Castillo et al. 2023).

    Their vectors are noise predictions of latents. In x = x0 + sigma n those agree at both ends, so here the denoised
    images are compared. An image's end depends on it alone, whatever batch it is in; evaluations of u are therefore
    saved only from where the last image of a batch has come to its end. An object serves one trajectory.
    """

    def __init__(self, c: Denoise, u: Denoise, w: float, rescale: float, threshold: float):
        self._c, self._u, self._w, self._rescale, self._threshold = c, u, w, rescale, threshold
        self._over: jax.Array | None = None  # bool [B]
        self._all_over = False

    def __call__(self, x: jax.Array, sigma: NoiseLevels, label: jax.Array, *extra: jax.Array) -> jax.Array:
        c = self._c(x, sigma, label, *extra)
        if self._all_over:
            return c
        u = self._u(x, sigma, label, *extra)
        D = _extrapolated(c, u, self._w, self._rescale)
        if self._over is not None:
            D = jnp.where(per_example(self._over, x), c, D)
        agreed = cosine(c, u) > self._threshold
        self._over = agreed if self._over is None else self._over | agreed
        self._all_over = bool(self._over.all())
        return D


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the cosine between the images of two batches [B,...], as [B]; 0 where one is nothing."""
    pixels = tuple(range(1, a.ndim))
    lengths = jnp.sqrt((a**2).sum(axis=pixels) * (b**2).sum(axis=pixels))
    return (a * b).sum(axis=pixels) / jnp.maximum(lengths, 1e-12)
