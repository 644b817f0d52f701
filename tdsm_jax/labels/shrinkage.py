"""Rows of a transition matrix from counts of (clean class, noisy label): plain, or shrunk to what rows share."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import betaln, gammaln, logsumexp

STRENGTHS = np.geomspace(0.1, 1e6, 36)  # of a prior, in images; the last means that the rows are alike


class Rows(NamedTuple):
    """A row-stochastic S float64 [K,K] and the standard error of each entry, given the counts."""

    S: np.ndarray
    standard_error: np.ndarray


Smooth = Callable[[np.ndarray], Rows]  # counts [K,K], not necessarily whole -> Rows


def frequencies(counts: np.ndarray, pseudo: float = 0.0) -> Rows:
    """Returns the share of each noisy label in the rows of counts [K,K], `pseudo` added to every count.

    This is the posterior mean under a Dirichlet prior of parameter `pseudo`. A row without counts is uniform.
    """
    counts = counts + pseudo
    total = counts.sum(axis=1, keepdims=True)
    S = np.divide(counts, total, out=np.full_like(counts, 1 / len(counts)), where=total > 0)
    return Rows(S, np.sqrt(S * (1 - S) / (total + 1)))


def shrunk(counts: np.ndarray) -> Rows:
    """Returns the rows of counts [K,K] shrunk to each other as far as the counts do not contradict it.

    Of n_i images in row i, C_ii keep their label and C_ij take each other one. The model has two levels,

        d_i = S_ii             ~ Beta(A m, A (1 - m))          how often a class keeps its label
        q_i = S_i,j!=i / (1-d_i) ~ Dirichlet(B / (K-1), ...)   where the other labels go

    with a mean m and strengths A, B, counted in images, that all rows share. Integrating d_i and q_i out leaves a
    beta-binomial likelihood of (m, A) and a Dirichlet-multinomial one of B. The strengths are averaged over their
    posterior on a logarithmic grid (flat prior), m is the mean of the proportions C_ii / n_i weighted by
    n_i / (n_i + A), the inverse of their variance. Given the strengths the posterior means are

        d_i = (C_ii + A m) / (n_i + A),  q_ij = (C_ij + B / (K-1)) / (n_i - C_ii + B).

    Rows alike, as in symmetric noise, make A and B large: K rates and K (K-2) shares are then estimated as one
    rate. Pair or asymmetric flips concentrate q_i, which makes B small and leaves the counts as they are; rates that
    differ between the classes do the same to A. The weight of the prior falls as 1/n_i, so the rows are consistent
    for any S. Standard errors are those of the posterior, strengths included.
    """
    num_classes = len(counts)
    off_diagonal = ~np.eye(num_classes, dtype=bool)
    kept = np.diag(counts)
    others = counts[off_diagonal].reshape(num_classes, num_classes - 1)
    d, d_square = _kept(kept, others.sum(axis=1))
    q, q_square = _shares(others)
    S, square = np.diag(d), np.diag(d_square)
    S[off_diagonal] = ((1 - d)[:, None] * q).ravel()
    square[off_diagonal] = ((1 - 2 * d + d_square)[:, None] * q_square).ravel()
    return Rows(S, np.sqrt(np.maximum(square - S**2, 0)))


def _kept(kept: np.ndarray, lost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the posterior mean of d and of d^2 [K] under the beta-binomial level."""
    A = STRENGTHS[:, None]
    n = kept + lost
    share = np.divide(kept, n, out=np.full_like(n, 0.5), where=n > 0)
    weight = n / (n + A)  # [strengths, K]
    total = np.maximum(weight.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    m = np.clip((weight * share).sum(axis=1, keepdims=True) / total, 1e-6, 1 - 1e-6)
    a, b = A * m, A * (1 - m)
    return _average((betaln(a + kept, b + lost) - betaln(a, b)).sum(axis=1), (kept + a) / (n + A), n + A)


def _shares(others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the posterior mean of q and of q^2 [K,K-1] under the Dirichlet-multinomial level."""
    n = others.sum(axis=1)
    evidence, means = [], []
    for B in STRENGTHS:
        b = B / others.shape[1]
        evidence.append((gammaln(B) - gammaln(B + n)).sum() + (gammaln(b + others) - gammaln(b)).sum())
        means.append((others + b) / (n + B)[:, None])
    return _average(np.array(evidence), np.array(means), (n + STRENGTHS[:, None])[..., None])


def _average(log_evidence: np.ndarray, mean: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages over strengths (first axis) the mean and mean square of proportions with beta parameters `total`."""
    weight = np.exp(log_evidence - logsumexp(log_evidence))
    square = mean**2 + mean * (1 - mean) / (total + 1)
    return np.tensordot(weight, mean, axes=1), np.tensordot(weight, square, axes=1)
