"""What a comparison of labelled feature sets and verdicts comes to: class-wise distances, accuracies, recovery."""

import numpy as np

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.frechet import frechet_distance
from tdsm_jax.evaluation.neighbours import density_coverage

SPLITS = 10  # of the Inception Score as it is published
_SHUFFLE_SEED = 2020  # that of torch-fidelity


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


def inception_score(probabilities: np.ndarray, splits: int = SPLITS) -> tuple[float, float]:
    """Returns mean and standard deviation over `splits` of the Inception Score (Salimans et al. 2016).

    exp of the mean over examples of KL(p(y|x) || p(y)), p(y) being their mean, within each of `splits` parts; published
    with 10 of 5000 each. The parts are of shuffled examples, or images in the order of their classes would score
    little; shuffled as torch-fidelity does, so that both give the same number. Shape: [N,L], rows that sum to 1,
    N >= splits.
    """
    N = len(probabilities)
    if splits > N:
        raise UserError(f"an Inception Score of {splits} parts needs at least {splits} examples, got {N}")
    probabilities = probabilities[np.random.RandomState(_SHUFFLE_SEED).permutation(N)]
    scores = []
    for i in range(splits):
        p = probabilities[i * N // splits : (i + 1) * N // splits].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0, p * (np.log(p) - np.log(p.mean(axis=0))), 0)  # p log p -> 0
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


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
