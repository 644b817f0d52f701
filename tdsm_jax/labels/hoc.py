"""S without a classifier, from the agreement of neighbours' noisy labels (higher-order consensus)."""

import numpy as np

from tdsm_jax.errors import UserError
from tdsm_jax.labels.em import Fit, diagonal_start, fit_transition
from tdsm_jax.labels.shrinkage import shrunk

NEIGHBOURS = 2  # with the image itself three labels, the fewest that identify S
_CHUNK = 1000  # images whose distances are held at once


def nearest_neighbours(features: np.ndarray, count: int = NEIGHBOURS) -> np.ndarray:
    """Returns int [N,count], the nearest other rows of features [N,D] by Euclidean distance, nearest first."""
    if len(features) <= count:
        raise UserError(f"{len(features)} images have no {count} neighbours each; consensus needs more images")
    features = np.asarray(features, np.float64)
    square = (features**2).sum(axis=1)
    nearest = np.empty((len(features), count), np.int64)
    for first in range(0, len(features), _CHUNK):
        rows = np.arange(first, min(first + _CHUNK, len(features)))
        distance = square - 2 * features[rows] @ features.T  # the rows' own squares change no order
        distance[np.arange(len(rows)), rows] = np.inf
        candidates = np.argpartition(distance, count - 1, axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(distance, candidates, axis=1), axis=1, kind="stable")
        nearest[rows] = np.take_along_axis(candidates, order, axis=1)
    return nearest


def consensus_labels(features: np.ndarray, y_tilde: np.ndarray) -> np.ndarray:
    """Returns int [N,3]: the noisy labels of each image and of its nearest neighbours in features [N,D]."""
    return np.column_stack([y_tilde, y_tilde[nearest_neighbours(features)]])


def hoc(labels: np.ndarray, num_classes: int) -> Fit:
    """Fits S and the class prior to noisy labels int [N,3] of images that share their clean class.

    p(j, k, l) = sum_i prior_i S_ij S_ik S_il; its sums over l, and over k and l, are the consensus of second and
    first order, and together they identify a diagonally dominant S. The counts of triples are matched by maximum
    likelihood, which weighs them by their precision, where the published least squares weigh all alike. Neighbours
    of another class make S look noisier than it is. An image has part in about three triples, so the expected
    counts of the three labels are averaged: they add up to N.
    Source: Zhu, Song, Liu, ICML 2021, "Clusterability as an alternative to anchor points".
    """
    return fit_transition(_uniform(labels, num_classes), labels, diagonal_start(num_classes), learn_prior=True)


def hoc_shrunk(labels: np.ndarray, num_classes: int) -> Fit:
    """`hoc`, and from there with rows that are `shrunk`.

    Triples tell classes apart only through their rows of S. Two classes that are mistaken for each other so often
    that their rows nearly agree are told apart weakly, shrunk or not; a posterior h says more about them.
    """
    start = hoc(labels, num_classes).rows.S
    return fit_transition(_uniform(labels, num_classes), labels, start, shrunk, learn_prior=True)


def _uniform(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.full((len(labels), num_classes), 1 / num_classes)
