"""Classifiers and transition matrices made worse on purpose, and how far a classifier is from calibrated."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.errors import UserError
from tdsm_jax.labels.transition import check_stochastic

REACH = 0.5  # between images as the network sees them, whose pixels differ by about 1
# Label corruption may use the same seed; streams of their own keep what is drawn here independent of it.
_PERTURB_STREAM, _SHARE_STREAM = 9, 11


def fixed_error(x: jax.Array, num_classes: int) -> jax.Array:
    """Returns pseudo-random logits of mean 0 and standard deviation 1, a fixed function of the image.

    sqrt(2) cos(W x + b) with W and b of a fixed key: a classifier errs in the same way at every look at an image.
    The errors of two images correlate by exp(-(d / REACH)^2 / 2), d the root mean square difference of their
    pixels; those of two classes do not. Shapes: x [B,...] -> [B,K].
    """
    x = x.reshape(len(x), -1)
    W_key, b_key = jax.random.split(jax.random.key(0))
    W = jax.random.normal(W_key, (x.shape[1], num_classes)) / (REACH * math.sqrt(x.shape[1]))
    b = jax.random.uniform(b_key, (num_classes,), maxval=2 * math.pi)
    return math.sqrt(2) * jnp.cos(jnp.matmul(x, W, precision="highest") + b)


def share_of(chosen: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns bool [N] with a seeded `share` of what `chosen` bool [N] chooses, rounded up.

    A smaller share lies in a larger one. A share outside (0, 1] raises `UserError`.
    """
    if not 0 < share <= 1:
        raise UserError(f"the share of the images must be above 0 and at most 1, got {share}")
    index = np.flatnonzero(chosen)
    order = np.argsort(_uniform(seed, _SHARE_STREAM, index.shape), kind="stable")
    kept = np.zeros_like(chosen)
    kept[index[order[: math.ceil(share * len(index))]]] = True
    return kept


def perturbed(S: np.ndarray, relative_l1: float, seed: int) -> np.ndarray:
    """Returns a transition matrix [K,K] whose relative L1 distance from S is `relative_l1`.

    Rows move in the direction of seeded random ones, all by the same distance. An S that is none, and a distance
    that does not leave the rows probabilities, raise `UserError`.
    """
    check_stochastic(S)
    S = np.asarray(S, np.float64)
    exponential = -np.log1p(-_uniform(seed, _PERTURB_STREAM, S.shape))
    towards = exponential / exponential.sum(axis=1, keepdims=True) - S
    direction = towards / np.abs(towards).sum(axis=1, keepdims=True)
    reach = np.divide(S, -direction, out=np.full_like(S, np.inf), where=direction < 0).min()
    if not 0 <= relative_l1 <= reach:
        raise UserError(
            f"with seed {seed}, S can be perturbed by a relative L1 distance from 0 to {reach:.3g}, got {relative_l1}"
        )
    return np.maximum(S + relative_l1 * direction, 0.0)


def _uniform(seed: int, stream: int, shape: tuple[int, ...]) -> np.ndarray:
    sequence = np.random.SeedSequence(seed, spawn_key=(stream,))
    return np.random.Generator(np.random.PCG64(sequence)).random(shape)


def calibration_error(h: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    """Returns the expected calibration error: mean |accuracy - confidence| over bins of equal width, by their size.

    Confidence is the largest probability of a row. Shapes: h [N,K], clean labels y int [N]. Source: Guo et al. 2017.
    """
    h, y = np.asarray(h, np.float64), np.asarray(y)
    if h.ndim != 2 or y.shape != h.shape[:1] or len(y) == 0 or bins < 1:
        raise UserError(f"need probabilities [N,K], labels [N] and a bin or more, got {h.shape}, {y.shape}, {bins}")
    confidence, right = h.max(axis=1), h.argmax(axis=1) == y
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(y))
