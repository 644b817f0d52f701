"""The Frechet distance of Gaussians fitted to feature sets, from all features or from moments added up in parts."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.pairs import blocks


class Moments(NamedTuple):
    """Of N examples: their number, mean float64 [D] and scatter, the sum of (x - mean)(x - mean)^T, float64 [D,D]."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance [D,D]; fewer than two examples have none."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 examples, got {self.count}")
        return self.scatter / (self.count - 1)


def moments_of(x: np.ndarray) -> Moments:
    """Returns the moments of features [N,D], read a block at a time."""
    return merged(_of_block(rows) for rows in blocks(x))


def _of_block(rows: np.ndarray) -> Moments:
    rows = rows.astype(np.float64)
    mean = rows.mean(axis=0)
    rows -= mean
    return Moments(len(rows), mean, rows.T @ rows)


def merged(parts: Iterable[Moments]) -> Moments:
    """Returns the moments of all examples together, of the moments of disjoint parts (Chan et al. 1979)."""
    return functools.reduce(_merged, parts)


def _merged(a: Moments, b: Moments) -> Moments:
    count, gap = a.count + b.count, b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(gap, gap) * (a.count * b.count / count)
    return Moments(count, a.mean + gap * (b.count / count), scatter)


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Returns the squared Frechet distance of the Gaussians fitted to two feature sets (Heusel et al. 2017).

    ||mu_r - mu_f||^2 + tr(C_r + C_f - 2 (C_r C_f)^(1/2)). Biased upwards for few examples: always read it beside
    the distance between two real sets of that size. Shapes: [N,D], [M,D] with N, M >= 2.
    """
    real, fake = _two_or_more(real), _two_or_more(fake)
    covariance_real, covariance_fake = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (real, fake))
    return gaussian_distance(real.mean(0), covariance_real, fake.mean(0), covariance_fake)


def gaussian_distance(
    mean_real: np.ndarray, covariance_real: np.ndarray, mean_fake: np.ndarray, covariance_fake: np.ndarray
) -> float:
    """Returns the squared Frechet distance of two Gaussians: means [D], covariances [D,D], all float64."""
    root = _square_root(covariance_real)
    # tr (C_r C_f)^(1/2) = tr (C_r^(1/2) C_f C_r^(1/2))^(1/2), whose argument is symmetric.
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ covariance_fake @ root), 0, None)).sum()
    means = np.sum((mean_real - mean_fake) ** 2)
    return float(means + np.trace(covariance_real) + np.trace(covariance_fake) - 2 * cross)


def distance_of_few(real: np.ndarray, fake: np.ndarray) -> float:
    """Returns the same as `frechet_distance`, faster and to more digits where there are fewer examples than features.

    With X_r, X_f the centred examples over the roots of N - 1 and M - 1, tr (C_r C_f)^(1/2) is the sum of the
    singular values of X_r X_f^T [N,M]. There most eigenvalues of the [D,D] matrices are zero up to rounding, whose
    roots add up. Shapes: [N,D], [M,D] with N, M >= 2.
    """
    (mean_real, real), (mean_fake, fake) = _centred(real), _centred(fake)
    cross = np.linalg.svd(real @ fake.T, compute_uv=False).sum()
    return float(np.sum((mean_real - mean_fake) ** 2) + np.sum(real**2) + np.sum(fake**2) - 2 * cross)


def _centred(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = _two_or_more(x)
    mean = x.mean(axis=0)
    return mean, (x - mean) / np.sqrt(len(x) - 1)


def _two_or_more(x: np.ndarray) -> np.ndarray:
    if len(x) < 2:
        raise UserError(f"a covariance needs at least 2 examples, got {len(x)}")
    return x.astype(np.float64)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
