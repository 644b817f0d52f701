"""Class-wise metrics: the examples asked for as a class beside the real ones of that class, and what reality scores.

The Frechet distance of a class is biased far more than that of all images: 5000 real images a class (CIFAR-10), or 500
(CIFAR-100), span at most as many of the 2048 directions of Inception features, so that two sets of real images are
far apart, too. `halves` gives that floor. It compares n/2 with n/2 images of a class: its bias is larger than that of
n with n, about twice where n exceeds the number of features, so a generator can lie below it. A floor at the counts
of the samples takes as many real images again, as a second set.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.frechet import distance_of_few, gaussian_distance, moments_of
from tdsm_jax.evaluation.neighbours import neighbour_metrics
from tdsm_jax.evaluation.pairs import Watch, unwatched

_HALVES_SEED = 0


def class_wise(
    real: np.ndarray,
    real_labels: np.ndarray,
    fake: np.ndarray,
    fake_labels: np.ndarray,
    nearest: Sequence[int],
    watch: Watch = unwatched,
) -> dict[str, list[float]]:
    """Returns fd and the neighbour metrics of every class, in the order of the classes of `real_labels`.

    Shapes: real [N,D], fake [M,D], labels [N] and [M]. Every class needs more than max(nearest) examples of both.
    """
    classes = check_classes(real_labels, fake_labels, max(nearest))
    values: dict[str, list[float]] = {}
    for y in watch(classes, "classes", len(classes), len(real) // len(classes)):
        sets = real[real_labels == y], fake[fake_labels == y]
        for name, value in {"fd": _distance(*sets), **neighbour_metrics(*sets, nearest)}.items():
            values.setdefault(name, []).append(value)
    return values


def check_classes(real_labels: np.ndarray, fake_labels: np.ndarray, nearest: int) -> np.ndarray:
    """Returns the classes, in order; both sets must have the same ones, and more than `nearest` examples of each."""
    classes = np.unique(real_labels)
    if (other := np.setxor1d(classes, fake_labels)).size:
        raise UserError(
            f"class {other[0]} has examples in one set and none in the other; compare sets of the same classes"
        )
    for name, labels in (("real", real_labels), ("generated", fake_labels)):
        counts = np.array([np.count_nonzero(labels == y) for y in classes])
        if counts.min() <= nearest:
            few = classes[counts.argmin()]
            raise UserError(
                f"class {few} has {counts.min()} {name} examples; class-wise metrics need more than {nearest} of each"
            )
    return classes


def _distance(real: np.ndarray, fake: np.ndarray) -> float:
    if max(len(real), len(fake)) <= real.shape[1]:
        return distance_of_few(real, fake)
    a, b = moments_of(real), moments_of(fake)
    return gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)


def summary(classes: np.ndarray, values: Mapping[str, Sequence[float]]) -> dict[str, float | list[float]]:
    """Returns cw_NAME (the mean over classes), cw_NAME_spread, _worst, _worst_class, _per_class, and cw_classes.

    The spread is the standard deviation over classes; the worst is the largest distance, or the smallest share.
    `values` are in the order of `classes`.
    """
    found: dict[str, float | list[float]] = {"cw_classes": classes.tolist()}
    for name, per_class in values.items():
        worst = int(np.argmax(per_class) if name == "fd" else np.argmin(per_class))
        found[f"cw_{name}"] = float(np.mean(per_class))
        found[f"cw_{name}_spread"] = float(np.std(per_class))
        found[f"cw_{name}_worst"] = per_class[worst]
        found[f"cw_{name}_worst_class"] = int(classes[worst])
        found[f"cw_{name}_per_class"] = list(per_class)
    return found


def halves(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of two disjoint random halves of every class, of equal size; an odd example is left out.

    Shape: labels [N]. The same halves at every call.
    """
    sequence = np.random.SeedSequence(_HALVES_SEED)
    uniform = np.random.Generator(np.random.PCG64(sequence)).random(len(labels))
    first, second = [], []
    for y in np.unique(labels):
        members = np.flatnonzero(labels == y)
        shuffled, half = members[np.argsort(uniform[members], kind="stable")], len(members) // 2
        first.append(shuffled[:half])
        second.append(shuffled[half : 2 * half])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))
