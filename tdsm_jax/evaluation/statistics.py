"""Distances between sets of feature vectors, in float64."""

from collections.abc import Iterator

import numpy as np

from tdsm_jax.errors import UserError

BLOCK = 1024  # rows of a matrix of distances that are held at a time


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Returns the squared Frechet distance of the Gaussians fitted to two feature sets (Heusel et al. 2017).

    ||mu_r - mu_f||^2 + tr(C_r + C_f - 2 (C_r C_f)^(1/2)). Biased upwards for few examples: always read it beside
    the distance between two real sets of that size. Shapes: [N,D], [M,D] with N, M >= 2.
    """
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    covariance_real, covariance_fake = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (real, fake))
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
    hits, covered = 0, 0
    for inside in _in_balls(real, fake, nearest):
        hits += inside.sum()
        covered += inside.any(axis=1).sum()
    return float(hits / (len(fake) * nearest)), float(covered / len(real))


def precision_recall(real: np.ndarray, fake: np.ndarray, nearest: int) -> tuple[float, float]:
    """Returns precision and recall (Kynkaanniemi et al. 2019) with balls up to the `nearest`-th neighbour.

    Precision: share of fake examples inside a real ball; recall: share of real ones inside a fake ball.
    Shapes: [N,D], [M,D] with N, M > nearest.
    """
    return _share_in_balls(real, fake, nearest), _share_in_balls(fake, real, nearest)


def _share_in_balls(centres: np.ndarray, points: np.ndarray, nearest: int) -> float:
    found = np.zeros(len(points), bool)
    for inside in _in_balls(centres, points, nearest):
        found |= inside.any(axis=0)
    return float(found.mean())


def _in_balls(centres: np.ndarray, points: np.ndarray, nearest: int) -> Iterator[np.ndarray]:
    """Yields, by blocks of centres [N,D], which points [M,D] lie nearer than the `nearest`-th other centre."""
    if len(centres) <= nearest:
        raise UserError(f"balls up to neighbour {nearest} need more than {nearest} examples, got {len(centres)}")
    for block in _blocks(centres):
        # Place 0 of the sorted distances is the centre itself.
        radius = np.partition(_squared_distances(block, centres), nearest, axis=1)[:, nearest, None]
        yield _squared_distances(block, points) < radius


def cmmd(real: np.ndarray, fake: np.ndarray, bandwidth: float = 10.0) -> float:
    """Returns 1000 times the squared maximum mean discrepancy of L2-normalised embeddings (Jayasumana et al. 2024).

    Gaussian kernel exp(-||a-b||^2 / (2 bandwidth^2)); the means include each example's kernel with itself, so that
    equal sets give 0 and finite samples of one distribution a little more. Shapes: [N,D], [M,D].
    """
    real, fake = _normalised(real), _normalised(fake)
    pairs = ((real, real), (fake, fake), (real, fake))
    real_real, fake_fake, real_fake = (_mean_kernel_less_one(a, b, bandwidth) for a, b in pairs)
    return 1000 * (real_real + fake_fake - 2 * real_fake)


def _normalised(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if not (length > 0).all():
        raise UserError("an embedding is zero or not a number, so it has no direction; check the images and features")
    return x / length


def _mean_kernel_less_one(a: np.ndarray, b: np.ndarray, bandwidth: float) -> float:
    """Unit vectors are close beside the bandwidth: kernel - 1 keeps the digits that the ones would swallow."""
    total = sum(np.expm1(-_squared_distances(block, b) / (2 * bandwidth**2)).sum() for block in _blocks(a))
    return float(total / (len(a) * len(b)))


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    return (x[start : start + BLOCK] for start in range(0, len(x), BLOCK))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, float64 [N,M]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.clip((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0, None)


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
