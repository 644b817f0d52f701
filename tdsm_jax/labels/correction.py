"""Label correction: other labels in place of the given ones, and the transition matrix that is left.

w[n,i] = p(y=i | x0_n, y_tilde_n) throughout: of clean images, by classifiers that did not see them.
"""

import numpy as np

from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.labels.transition import ROW_SUM_TOLERANCE

# Label corruption may use the same seed; a stream of its own keeps the draws independent of it.
_DRAW_STREAM = 8
CORRECTIONS = ("argmax", "soft")


def corrected(w: np.ndarray, kind: str, seed: int = 0) -> np.ndarray:
    """Returns new labels y_hat int32 [N] of the posteriors w [N,K].

    "argmax" takes the most probable class, the fewest wrong labels; "soft" draws one from each posterior, so that
    every class keeps its share. Posteriors that are none, or another `kind`, raise `UserError`.
    """
    w = check_posteriors(w)
    if kind == "argmax":
        return w.argmax(axis=1).astype(np.int32)
    if kind != "soft":
        raise UserError(f"unknown label correction {kind!r}{did_you_mean(kind, CORRECTIONS)}")
    sequence = np.random.SeedSequence(seed, spawn_key=(_DRAW_STREAM,))
    uniform = np.random.Generator(np.random.PCG64(sequence)).random((len(w), 1))
    cumulative = w.cumsum(axis=1)
    return (uniform * cumulative[:, -1:] >= cumulative).sum(axis=1).astype(np.int32)


def suspects(w: np.ndarray, y_tilde: np.ndarray) -> np.ndarray:
    """Returns the images whose label is likely wrong, int [M]: another class is likelier, least trusted labels first.

    Shapes: w [N,K], y_tilde int [N]. Posteriors that are none, and labels out of range, raise `UserError`.
    """
    w = check_posteriors(w)
    N, K = w.shape
    check_labels(y_tilde, N, K, "given")
    own = w[np.arange(N), y_tilde]
    least_trusted = np.argsort(own, kind="stable")
    return least_trusted[(own < w.max(axis=1))[least_trusted]]


def residual_matrix(w: np.ndarray, y_hat: np.ndarray) -> np.ndarray:
    """Returns S_res[i,k] = p(y_hat=k | y=i) [K,K] by the posteriors alone: sum_n w[n,i] 1{y_hat_n=k}, normalised.

    It is right where w is calibrated. Corrected labels depend on the image beyond its class, so the residual noise
    is class-conditional on average only. Shapes: w [N,K], y_hat int [N]. A class without any posterior mass raises
    `UserError`, as do posteriors that are none and labels out of range.
    """
    w = check_posteriors(w)
    N, K = w.shape
    y_hat = np.asarray(y_hat)
    check_labels(y_hat, N, K, "corrected")
    joint = w.T @ np.eye(K)[y_hat]  # [y, y_hat]
    mass = joint.sum(axis=1, keepdims=True)
    if mass.min() <= 0:
        raise UserError(f"no image can be of class {int(mass.argmin())}: its row of the residual matrix is unknown")
    return joint / mass


def check_labels(labels: np.ndarray, N: int, K: int, what: str) -> None:
    """Raises `UserError` unless labels are N integers in [0, K)."""
    if labels.shape != (N,) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= K:
        raise UserError(f"{what} labels must be {N} integers from 0 to {K - 1}, one for each posterior")


def check_posteriors(w: np.ndarray) -> np.ndarray:
    """Returns w [N,K] in float64; raises `UserError` unless it is finite, non-negative, its rows summing to 1."""
    w = np.asarray(w)
    if w.ndim != 2 or w.dtype.kind != "f" or len(w) == 0 or w.shape[1] < 2:
        raise UserError(f"posteriors must be floats [N,K] with N >= 1 and K >= 2, got {w.dtype} {w.shape}")
    if not np.isfinite(w).all():
        raise UserError("posteriors hold entries that are not finite: the classifier that made them diverged")
    sums = w.sum(axis=1, dtype=np.float64)
    worst = int(np.abs(sums - 1).argmax())
    if w.min() < 0 or abs(sums[worst] - 1) > ROW_SUM_TOLERANCE:
        raise UserError(
            f"posteriors must be probabilities: the smallest is {w.min():.6g}, row {worst} sums to {sums[worst]:.6g}"
        )
    return w.astype(np.float64)
