"""Classifiers and transition matrices made worse on purpose, and how far a classifier is from calibrated."""

import jax
import numpy as np

from tdsm_jax.errors import UserError
from tdsm_jax.labels.transition import check_stochastic

# Label corruption may use the same seed; a stream of its own keeps the direction independent of it.
_PERTURB_STREAM = 9


def degraded(keys: jax.Array, logits: jax.Array, noise: float = 0.0, temperature: float = 1.0) -> jax.Array:
    """Returns logits / temperature plus Gaussian noise of standard deviation `noise`, drawn by each example's key.

    A temperature below 1 makes h over-confident, above 1 under-confident. Shapes: keys [B], logits [B,K] -> [B,K].
    """
    drawn = jax.vmap(lambda key: jax.random.normal(key, logits.shape[1:]))(keys)
    return logits / temperature + noise * drawn


def perturbed(S: np.ndarray, relative_l1: float, seed: int) -> np.ndarray:
    """Returns a transition matrix [K,K] whose relative L1 distance from S is `relative_l1`.

    Rows move in the direction of seeded random ones, all by the same distance. An S that is none, and a distance
    that does not leave the rows probabilities, raise `UserError`.
    """
    check_stochastic(S)
    S = np.asarray(S, np.float64)
    sequence = np.random.SeedSequence(seed, spawn_key=(_PERTURB_STREAM,))
    exponential = -np.log1p(-np.random.Generator(np.random.PCG64(sequence)).random(S.shape))
    towards = exponential / exponential.sum(axis=1, keepdims=True) - S
    direction = towards / np.abs(towards).sum(axis=1, keepdims=True)
    reach = np.divide(S, -direction, out=np.full_like(S, np.inf), where=direction < 0).min()
    if not 0 <= relative_l1 <= reach:
        raise UserError(
            f"with seed {seed}, S can be perturbed by a relative L1 distance from 0 to {reach:.3g}, got {relative_l1}"
        )
    return np.maximum(S + relative_l1 * direction, 0.0)


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
