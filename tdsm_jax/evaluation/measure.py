"""All metrics of generated images beside real ones, of their features, and the floor that real images score."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import class_wise
from tdsm_jax.evaluation.frechet import gaussian_distance, moments_of
from tdsm_jax.evaluation.kernels import cmmd, kid
from tdsm_jax.evaluation.neighbours import neighbour_metrics
from tdsm_jax.evaluation.pairs import Watch, check_features, unwatched
from tdsm_jax.evaluation.statistics import SPLITS, inception_score
from tdsm_jax.training.logs import Progress

NEAREST = (3, 5)  # neighbours: 3 for precision, recall and the published class-wise numbers, 5 as in prdc
METRICS = {
    "fd": "Frechet distance, FID where the features are Inception's",
    "kid": "kernel distance",
    "is": "Inception Score, of extractors that are classifiers",
    "neighbours": "precision, recall, density, coverage",
    "cmmd": "maximum mean discrepancy of embeddings, of extractors that are no classifiers",
    "class_wise": "Frechet distance and neighbours within each class, of labelled images",
}
_WORTH_SHOWING = 10000  # images
HIGHER_IS_BETTER = ("is", "precision", "recall", "density", "coverage")


class Observed(NamedTuple):
    """What an extractor made of images: features [N,D], class probabilities [N,L] or None, their labels [N] or None."""

    features: np.ndarray
    probabilities: np.ndarray | None
    labels: np.ndarray | None


class Real(NamedTuple):
    """Mean [D] and covariance [D,D] of real images, their features [N,D] and labels [N], None where not known."""

    mean: np.ndarray
    covariance: np.ndarray
    features: np.ndarray | None
    labels: np.ndarray | None


def real_of(features: np.ndarray, labels: np.ndarray | None) -> Real:
    """Returns features as what others are compared with."""
    moments = moments_of(features)
    return Real(moments.mean, moments.covariance, features, labels)


def chosen_metrics(asked: Collection[str], real: Real, classifies: bool, labelled: bool) -> tuple[str, ...]:
    """Returns the metrics asked for, or all that apply where none is; one that does not apply is a `UserError`.

    `classifies`: the extractor gives class probabilities; `labelled`: the generated images have labels.
    """
    reasons = {
        "kid": "a reference with features" if real.features is None else "",
        "neighbours": "a reference with features" if real.features is None else "",
        "is": "" if classifies else "an extractor that is a classifier, such as inception",
        "cmmd": "a reference with features" if real.features is None else "",
        "class_wise": "labels of both sets" if real.labels is None or not labelled else "",
    }
    for name in asked:
        if reasons.get(name):
            raise UserError(f"the metric {name} needs {reasons[name]}")
    if asked:
        return tuple(name for name in METRICS if name in asked)
    left_out = ("cmmd",) if classifies else ()  # published for embeddings
    return tuple(name for name in METRICS if not reasons.get(name) and name not in left_out)


def check_sizes(metrics: Collection[str], real: Real, count: int, labels: np.ndarray | None) -> None:
    """Raises `UserError` where `count` generated images of `labels` are too few for a metric: known before any is seen.

    Of the real images only the labels are read.
    """
    for name, least in (("fd", 2), ("kid", 2), ("neighbours", max(NEAREST) + 1), ("is", SPLITS)):
        if name in metrics and count < least:
            raise UserError(
                f"the metric {name} needs at least {least} images, got {count}; give more, or other metrics"
            )
    if "class_wise" in metrics:
        class_wise.check_classes(real.labels, labels, max(NEAREST))


def measured(real: Real, fake: Observed, metrics: Collection[str], watch: Watch = unwatched) -> dict[str, Any]:
    """Returns the values of `metrics` by name, those of single classes as lists, see `class_wise.summary`."""
    _check(real, fake, metrics)
    values: dict[str, Any] = {}
    if "fd" in metrics:
        moments = moments_of(fake.features)
        values["fd"] = gaussian_distance(real.mean, real.covariance, moments.mean, moments.covariance)
    if "kid" in metrics:
        values["kid"], values["kid_spread"] = kid(real.features, fake.features, watch=watch)
    if "is" in metrics:
        values["is"], values["is_spread"] = inception_score(fake.probabilities)
        values["is_whole"], _ = inception_score(fake.probabilities, splits=1)
    if "neighbours" in metrics:
        values |= neighbour_metrics(real.features, fake.features, NEAREST, watch)
    if "cmmd" in metrics:
        values["cmmd"] = cmmd(real.features, fake.features, watch=watch)
    if "class_wise" in metrics:
        pairs = real.features, real.labels, fake.features, fake.labels
        values |= class_wise.summary(np.unique(real.labels), class_wise.class_wise(*pairs, NEAREST, watch))
    return values


def _check(real: Real, fake: Observed, metrics: Collection[str]) -> None:
    """Raises `UserError` unless features are finite and as many of both, and labels as many as images."""
    check_features(fake.features)
    width = fake.features.shape[1]
    if real.mean.shape != (width,):
        raise UserError(f"features of {real.mean.size} and {width} numbers cannot be compared; use one extractor")
    if not np.isfinite(real.mean).all() or not np.isfinite(real.covariance).all():
        raise UserError("a feature of the real images is infinite or not a number; check the images and the extractor")
    for name, seen in (("generated", fake), ("real", real)):
        if "class_wise" in metrics and len(seen.labels) != len(seen.features):
            raise UserError(f"{len(seen.labels)} labels for {len(seen.features)} {name} images; give one an image")


def floor(real: Observed, metrics: Collection[str], watch: Watch = unwatched) -> dict[str, Any]:
    """Returns what real images score against real images: the metrics of two disjoint halves of each class.

    Class-wise metrics are left out where a half has too few examples of some class, all but the Inception Score
    where there are too few in all; that score is of all images.
    """
    labels = np.zeros(len(real.features), int) if real.labels is None else real.labels
    first, second = class_wise.halves(labels)
    smallest = min(np.bincount(labels)[np.unique(labels)]) // 2
    possible = {
        "fd": len(first) >= 2,
        "kid": len(first) >= 2,
        "neighbours": len(first) > max(NEAREST),
        "cmmd": len(first) >= 1,
        "class_wise": smallest > max(NEAREST),
        "is": False,
    }
    chosen = [name for name in metrics if possible[name]]
    values = {}
    if chosen:
        halves = [_part(real, indices) for indices in (first, second)]
        values = measured(real_of(halves[0].features, halves[0].labels), halves[1], chosen, watch)
    if "is" in metrics and real.probabilities is not None:
        values["is"], values["is_spread"] = inception_score(real.probabilities)
        values["is_whole"], _ = inception_score(real.probabilities, splits=1)
    return values


def _part(seen: Observed, indices: np.ndarray) -> Observed:
    return Observed(*(None if part is None else part[indices] for part in seen))


def watched(items: Iterable, label: str, total: int, images: int) -> Iterator:
    """Yields `items` and shows how many are done: a bar on a terminal, else a line every 30 seconds.

    What is done in seconds goes without saying.
    """
    if total * images < _WORTH_SHOWING:
        yield from items
        return
    with Progress(label, total, images) as progress:
        for item in items:
            yield item
            progress.update()
