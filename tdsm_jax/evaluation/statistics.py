"""Distances between sets of feature vectors, in float64."""

import numpy as np


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Returns the squared Frechet distance of the Gaussians fitted to two feature sets (Heusel et al. 2017).

    ||mu_r - mu_f||^2 + tr(C_r + C_f - 2 (C_r C_f)^(1/2)). Biased upwards for few examples: always read it beside
    the distance between two real sets of that size. Shapes: [N,D], [M,D] with N, M >= 2.
    """
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    covariance_real, covariance_fake = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = _square_root(covariance_real)
    # tr (C_r C_f)^(1/2) = tr (C_r^(1/2) C_f C_r^(1/2))^(1/2), whose argument is symmetric.
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ covariance_fake @ root), 0, None)).sum()
    means = np.sum((real.mean(0) - fake.mean(0)) ** 2)
    return float(means + np.trace(covariance_real) + np.trace(covariance_fake) - 2 * cross)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def density_coverage(real: np.ndarray, fake: np.ndarray, nearest: int) -> tuple[float, float]:
    """Returns density and coverage (Naeem et al. 2020) with balls up to the `nearest`-th real neighbour.

    Density: mean number of real balls a fake example lies in, over `nearest` (about 1 where the sets agree, can
    exceed it). Coverage: share of the real balls that hold a fake example. Shapes: [N,D] with N > nearest, [M,D].
    """
    radius = np.sort(_distances(real, real), axis=1)[:, nearest]  # column 0 is the example itself
    inside = _distances(real, fake) < radius[:, None]
    return float(inside.sum(axis=0).mean() / nearest), float(inside.any(axis=1).mean())


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances [N,M]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.clip(squared, 0, None))


def compare(
    real: np.ndarray, real_labels: np.ndarray, fake: np.ndarray, fake_labels: np.ndarray, nearest: int
) -> dict[str, float | list[float]]:
    """Returns fd, density, coverage over all examples and their class-wise means cw_*, with cw_fd_per_class.

    Class-wise means compare the fakes asked for as a class with the real images of that class (Na et al. 2024).
    Shapes: real [N,D], fake [M,D], labels [N] and [M]; every class needs more than `nearest` real examples.
    """
    density, coverage = density_coverage(real, fake, nearest)
    classes = np.unique(real_labels)
    sets = [(real[real_labels == y], fake[fake_labels == y]) for y in classes]
    distances = [frechet_distance(r, f) for r, f in sets]
    cw_density, cw_coverage = np.mean([density_coverage(r, f, nearest) for r, f in sets], axis=0)
    return {
        "fd": frechet_distance(real, fake),
        "cw_fd": float(np.mean(distances)),
        "cw_fd_per_class": distances,
        "density": density,
        "coverage": coverage,
        "cw_density": float(cw_density),
        "cw_coverage": float(cw_coverage),
    }


def per_class_accuracy(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> list[float]:
    """Returns the share of right predictions for each class; NaN for a class without examples."""
    right = np.bincount(labels, weights=predicted == labels, minlength=num_classes)
    count = np.bincount(labels, minlength=num_classes)
    return np.divide(right, count, out=np.full(num_classes, np.nan), where=count > 0).tolist()


def confusion(asked: np.ndarray, seen: np.ndarray, num_classes: int) -> list[list[int]]:
    """Returns counts [K,K]: rows the class that was asked for, columns the class that was seen."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (asked, seen), 1)
    return counts.tolist()


def recovery(noisy: float, value: float, clean: float) -> float | None:
    """Returns how much of what label noise cost was won back: (noisy - value) / (noisy - clean).

    1 is the clean-label model, 0 the plain one; None where label noise cost nothing.
    """
    return (noisy - value) / (noisy - clean) + 0.0 if noisy != clean else None  # + 0.0: no minus zero
