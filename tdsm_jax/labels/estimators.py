"""Estimators of the transition matrix S[i, j] = p(y_tilde=j | y=i), all behind `estimate`."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.labels.em import TEMPERATURES, Fit, em, em_calibrated, em_shrunk
from tdsm_jax.labels.evidence import Evidence
from tdsm_jax.labels.hoc import consensus_labels, hoc, hoc_shrunk
from tdsm_jax.labels.shrinkage import Smooth, frequencies, shrunk
from tdsm_jax.labels.transition import CONDITION_LIMIT, condition_number
from tdsm_jax.labels.weights import clean_prior

ANCHOR_OUTLIERS = 0.03  # share of the images left out as too good to be true
WEAK_ROW = 20  # a row that rests on fewer images is reported


class Diagnostics(NamedTuple):
    """What to know before an estimated S is trusted.

    `standard_error` [K,K] is None where none is known; `images` [K] is the number of images that a row rests on,
    `temperature` the one h was calibrated by, `warnings` one line each.
    """

    condition: float
    standard_error: np.ndarray | None
    images: np.ndarray
    temperature: float
    warnings: tuple[str, ...]


class Estimate(NamedTuple):
    """S float64 [K,K], row-stochastic; the prior of the clean classes [K]; diagnostics."""

    S: np.ndarray
    prior: np.ndarray
    diagnostics: Diagnostics


class Estimator(NamedTuple):
    """How S is estimated, and the fields of `Evidence` that it reads besides y_tilde."""

    run: Callable[[Evidence], Estimate]
    needs: tuple[str, ...]


def estimate(name: str, evidence: Evidence) -> Estimate:
    """Returns the estimate of S that `ESTIMATORS[name]` makes of the evidence.

    An unknown name, or evidence without what the estimator reads, raises `UserError`.
    """
    if name not in ESTIMATORS:
        raise UserError(f"unknown transition estimator {name!r}{did_you_mean(name, ESTIMATORS)}")
    missing = [field for field in ESTIMATORS[name].needs if getattr(evidence, field) is None]
    if missing:
        raise UserError(f"the transition estimator {name!r} needs {' and '.join(missing)}; give it, or choose another")
    return ESTIMATORS[name].run(evidence)


def counts(evidence: Evidence, smooth: Smooth = lambda c: frequencies(c, pseudo=0.5)) -> Estimate:
    """Counts the noisy labels of a small clean subset; by default under a Dirichlet prior of parameter 1/2.

    A class without a clean image raises `UserError`. The subset need not follow the class prior.
    """
    joint = evidence.clean_joint
    absent = np.flatnonzero(joint.sum(axis=1) == 0)
    if len(absent):
        raise UserError(f"no clean image of class {absent[0]} is given; every class needs at least one")
    return _of_counts(joint, smooth, evidence)


def anchor(evidence: Evidence) -> Estimate:
    """Takes the noisy posterior of one image as row i: the surest of class i but for the top 3%, which may be flukes.

    Exact where that image certainly belongs to class i and its posterior is right. The share left out shrinks where
    a class holds so few images (K > 10) that it would remove them all.
    Source: Patrini et al., CVPR 2017.
    """
    S = _anchor_rows(evidence.noisy_posterior)
    return _finish(S, clean_prior(S, evidence.y_tilde), None, evidence)


def dualt(evidence: Evidence) -> Estimate:
    """Factorises S through the predicted class: (anchor rows) @ (share of noisy labels in each predicted class).

    Made for posteriors that are too sure of themselves, whose anchor rows tell how often a class is mistaken for
    another. Where they are calibrated, as out-of-fold ones are, the anchor rows hold the label noise already and
    it counts twice: S then looks much too noisy.
    Source: Yao et al., NeurIPS 2020, "Dual T".
    """
    predicted = evidence.noisy_posterior.argmax(axis=1)
    seen = frequencies(_count(predicted, evidence.y_tilde, evidence.num_classes)).S
    S = _anchor_rows(evidence.noisy_posterior) @ seen
    S /= S.sum(axis=1, keepdims=True)
    return _finish(S, clean_prior(S, evidence.y_tilde), None, evidence)


def confident_joint(evidence: Evidence, smooth: Smooth = frequencies) -> Estimate:
    """Counts the images whose noisy posterior is confident of a class, by that class and their noisy label.

    Confident of k is p_k above its mean over y_tilde=k; among several such k the likeliest counts. Each noisy label
    is then scaled to its share of all images. A class that nobody is confident of counts one image.
    Source: Northcutt, Jiang, Chuang, JAIR 2021, "Confident learning". Needs out-of-fold posteriors.
    """
    p, y_tilde = evidence.noisy_posterior, evidence.y_tilde
    threshold = np.array([p[y_tilde == k, k].mean() for k in range(evidence.num_classes)])
    candidates = np.where(p >= threshold, p, -1.0)
    confident = candidates.max(axis=1) >= 0
    joint = _count(y_tilde[confident], candidates[confident].argmax(axis=1), evidence.num_classes)
    np.fill_diagonal(joint, np.maximum(np.diag(joint), 1))
    joint *= (np.bincount(y_tilde, minlength=len(joint)) / joint.sum(axis=1))[:, None]
    estimate = _of_counts(joint.T, smooth, evidence)
    return estimate._replace(prior=joint.sum(axis=0) / joint.sum())


def weight_error(S_hat: np.ndarray, S: np.ndarray, h: np.ndarray, y_tilde: np.ndarray) -> float:
    """Returns the mean over images of sum_i |w_i(S_hat) - w_i(S)|, what an error in S does to the weights (0 to 2).

    w_i ~ S[i, y_tilde] h_i. Shapes: S_hat, S [K,K], h [N,K], y_tilde int [N].
    """
    w_hat, w = (_weights(np.asarray(T, np.float64), h, y_tilde) for T in (S_hat, S))
    return float(np.abs(w_hat - w).sum(axis=1).mean())


def _weights(S: np.ndarray, h: np.ndarray, y_tilde: np.ndarray) -> np.ndarray:
    joint = S.T[y_tilde] * h
    total = joint.sum(axis=1, keepdims=True)
    return np.divide(joint, total, out=np.array(h, np.float64), where=total > 0)


def _count(rows: np.ndarray, columns: np.ndarray, num_classes: int) -> np.ndarray:
    joint = np.zeros((num_classes, num_classes))
    np.add.at(joint, (rows, columns), 1)
    return joint


def _anchor_rows(p: np.ndarray) -> np.ndarray:
    """Returns the noisy posterior of the anchor of each class, [K,K] from p [N,K]."""
    num_classes = p.shape[1]
    left_out = int(len(p) * min(ANCHOR_OUTLIERS, 10 * ANCHOR_OUTLIERS / num_classes))
    anchors = np.argsort(-p, axis=0, kind="stable")[left_out]
    return p[anchors] / p[anchors].sum(axis=1, keepdims=True)


def _of_counts(joint: np.ndarray, smooth: Smooth, evidence: Evidence) -> Estimate:
    """Makes an estimate of counts [K,K], clean classes in rows."""
    S, standard_error = smooth(joint)
    return _finish(S, clean_prior(S, evidence.y_tilde), standard_error, evidence, images=joint.sum(axis=1))


def _of_fit(fit: Fit, evidence: Evidence) -> Estimate:
    return _finish(fit.rows.S, fit.prior, fit.rows.standard_error, evidence, temperature=fit.temperature)


def _finish(
    S: np.ndarray,
    prior: np.ndarray,
    standard_error: np.ndarray | None,
    evidence: Evidence,
    *,
    images: np.ndarray | None = None,
    temperature: float = 1.0,
) -> Estimate:
    images = prior * len(evidence.y_tilde) if images is None else images
    condition = condition_number(S)
    warnings = tuple(_warnings(S, condition, images, temperature))
    return Estimate(S, prior, Diagnostics(condition, standard_error, images, temperature, warnings))


def _warnings(S: np.ndarray, condition: float, images: np.ndarray, temperature: float) -> Iterator[str]:
    """Yields one line for each thing that makes S doubtful."""
    weak = np.flatnonzero(images < WEAK_ROW)
    if len(weak):
        rows = ", ".join(f"{i} ({images[i]:.0f})" for i in weak)
        yield f"rows of S that rest on fewer than {WEAK_ROW} images, and how many: {rows}"
    swapped = np.flatnonzero(S.argmax(axis=1) != np.arange(len(S)))
    if len(swapped):
        rows = ", ".join(f"{i} (mostly {S[i].argmax()})" for i in swapped)
        yield f"classes that lose most of their labels, or whose names are permuted: {rows}"
    if condition > CONDITION_LIMIT:
        yield f"S is nearly singular (condition number {condition:.3g}): clean classes cannot be told apart"
    if temperature in (TEMPERATURES.min(), TEMPERATURES.max()):
        yield f"h is likeliest at temperature {temperature:.3g}, the end of the range: it is far from calibrated"


def _posterior_em(fit: Callable[[np.ndarray, np.ndarray], Fit]) -> Estimator:
    return Estimator(lambda e: _of_fit(fit(e.clean_posterior, e.y_tilde), e), ("clean_posterior",))


def _consensus(fit: Callable[[np.ndarray, int], Fit]) -> Estimator:
    return Estimator(lambda e: _of_fit(fit(consensus_labels(e.features, e.y_tilde), e.num_classes), e), ("features",))


_SUBSET, _NOISY = ("clean_labels",), ("noisy_posterior",)
ESTIMATORS: dict[str, Estimator] = {
    "counts": Estimator(counts, _SUBSET),
    "counts_shrunk": Estimator(lambda e: counts(e, shrunk), _SUBSET),
    "anchor": Estimator(anchor, _NOISY),
    "dualt": Estimator(dualt, _NOISY),
    "confident_joint": Estimator(confident_joint, _NOISY),
    "confident_joint_shrunk": Estimator(lambda e: confident_joint(e, shrunk), _NOISY),
    "hoc": _consensus(hoc),
    "hoc_shrunk": _consensus(hoc_shrunk),
    "em": _posterior_em(em),
    "em_shrunk": _posterior_em(em_shrunk),
    "em_calibrated": _posterior_em(em_calibrated),
}
