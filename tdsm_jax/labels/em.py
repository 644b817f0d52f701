"""Expectation maximisation with the clean class hidden: S from posteriors, posteriors from S."""

from typing import NamedTuple

import numpy as np

from tdsm_jax.labels.shrinkage import Rows, Smooth, frequencies, shrunk

STEPS = 500  # at most
TOLERANCE = 1e-5  # of every entry of S between two steps
_SCAN_TOLERANCE = 1e-4  # the same, while temperatures are compared
TEMPERATURES = np.geomspace(4, 1 / 8, 16)
FLOOR = 1e-3  # share of the uniform distribution in an h that is sharpened: one wrong certainty costs a finite amount


class Fit(NamedTuple):
    """A fitted S: its rows, the class prior [K], the responsibilities p(y | x, labels) [N,K], the log likelihood.

    `log_likelihood` is the mean over images. `temperature` is the one that h was softened by (1: as given).
    """

    rows: Rows
    prior: np.ndarray
    responsibilities: np.ndarray
    log_likelihood: float
    temperature: float = 1.0


def diagonal_start(num_classes: int) -> np.ndarray:
    """Returns the S [K,K] that keeps a label half of the time and prefers no other."""
    S = np.full((num_classes, num_classes), 0.5 / (num_classes - 1))
    np.fill_diagonal(S, 0.5)
    return S


def fit_transition(
    h: np.ndarray,
    labels: np.ndarray,
    start: np.ndarray,
    smooth: Smooth = frequencies,
    *,
    learn_prior: bool = False,
    tolerance: float = TOLERANCE,
) -> Fit:
    """Fits S to V noisy labels of each image, independent given its clean class.

    E: r_ni ~ h_ni prod_v S[i, labels_nv];  M: the rows of the expected counts C_ij = mean_v sum_{n: labels_nv = j}
    r_ni, as `smooth` makes them: their frequencies maximise the likelihood. `learn_prior` puts the mean of r in
    place of h. With one label and h as given the likelihood is concave in S: any start with positive entries ends
    in the same place. Shapes: h [N,K], labels int [N,V], start [K,K].
    """
    num_classes = h.shape[1]
    member = np.mean(np.eye(num_classes)[labels], axis=1)  # [N,K], the share of each label among the views
    S = start
    for _ in range(STEPS):
        r, _ = _responsibilities(h, labels, S)
        rows = smooth(r.T @ member)
        change = np.abs(rows.S - S).max()
        S = rows.S
        if learn_prior:
            h = np.broadcast_to(r.mean(axis=0), h.shape)
        if change < tolerance:
            break
    r, log_likelihood = _responsibilities(h, labels, S)
    return Fit(rows, r.mean(axis=0), r, log_likelihood)


def _responsibilities(h: np.ndarray, labels: np.ndarray, S: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns p(y | x, labels) [N,K] and the mean log likelihood of the labels; impossible labels say nothing."""
    joint = np.array(h)
    for view in labels.T:
        joint *= S.T[view]
    total = joint.sum(axis=1, keepdims=True)
    r = np.divide(joint, total, out=np.array(h), where=total > 0)
    return r, float(np.log(np.maximum(total, np.finfo(np.float64).tiny)).mean())


def em(h: np.ndarray, y_tilde: np.ndarray) -> Fit:
    """Returns the maximum-likelihood S of p(y_tilde | x) = h S for fixed h [N,K] and y_tilde int [N]."""
    return fit_transition(h, y_tilde[:, None], diagonal_start(h.shape[1]))


def em_shrunk(h: np.ndarray, y_tilde: np.ndarray) -> Fit:
    """`em` whose M step is `shrunk`: the strengths of the prior are estimated again in every step.

    It goes on from the unshrunk solution, which has not been told that rows may be alike. The expected counts stand
    in for counts of clean classes: the standard errors take the responsibilities as known, so an h that is vague
    makes them optimistic and rows look more alike than they are.
    """
    return fit_transition(h, y_tilde[:, None], em(h, y_tilde).rows.S, shrunk)


def em_calibrated(h: np.ndarray, y_tilde: np.ndarray) -> Fit:
    """`em_shrunk` for h^(1/T), with the temperature T under which the noisy labels are likeliest.

    An h too vague looks like an S too close to the identity and the other way round; but only one sharpness explains
    both the images that are clear and those that are not. h must be out-of-fold: on images that h was fitted to, the
    likelihood prefers it too sharp.
    """
    labels = y_tilde[:, None]
    log_h = np.log((1 - FLOOR) * h + FLOOR / h.shape[1])

    def fit(temperature: float, start: np.ndarray, tolerance: float) -> Fit:
        softened = np.exp(log_h / temperature)
        softened /= softened.sum(axis=1, keepdims=True)
        found = fit_transition(softened, labels, start, shrunk, tolerance=tolerance)
        return found._replace(temperature=float(temperature))

    start = em(h, y_tilde).rows.S
    best = max((fit(T, start, _SCAN_TOLERANCE) for T in TEMPERATURES), key=lambda found: found.log_likelihood)
    return fit(best.temperature, best.rows.S, TOLERANCE)


def em_posterior(
    noisy_posterior: np.ndarray, S: np.ndarray, prior: np.ndarray | None = None, steps: int = 50
) -> np.ndarray:
    """Returns h [N,K], the clean posterior on the simplex whose h S is closest to noisy_posterior [N,K].

    Maximum likelihood, h_i <- h_i sum_j S_ij p_j / (S^T h)_j, from `prior` [K] (uniform without one). Unlike p S^-1
    it has no negative entries; it equals p S^-1 in the limit wherever that has none. Few steps stay near the prior.
    """
    num_classes = len(S)
    start = np.full(num_classes, 1 / num_classes) if prior is None else prior
    h = np.tile(np.asarray(start, np.float64), (len(noisy_posterior), 1))
    for _ in range(steps):
        mixed = h @ S
        h = h * (np.divide(noisy_posterior, mixed, out=np.zeros_like(mixed), where=mixed > 0) @ S.T)
        h /= h.sum(axis=1, keepdims=True)
    return h
