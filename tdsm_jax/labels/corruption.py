"""Models of class-conditional label noise, and the corruption of clean labels by them.

S[i, j] = p(y_tilde=j | y=i) throughout: rows are clean classes, columns noisy ones.
"""

import math

import numpy as np

from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.labels.tables import ASYMMETRIC_TABLES
from tdsm_jax.labels.transition import check_stochastic

CLASS_CONDITIONAL = ("sym", "sym_inclusive", "pair", "asym", "clean")  # the kinds of `transition_matrix`

# The labels are drawn from PCG64(seed) itself; a stream of its own keeps the choice of images independent of them.
_IMBALANCE_STREAM = 4


def symmetric(num_classes: int, rate: float) -> np.ndarray:
    """Returns S [K, K]: a label is wrong with probability `rate`, each wrong class being equally likely."""
    check_model(num_classes, rate)
    S = np.full((num_classes, num_classes), rate / (num_classes - 1))
    np.fill_diagonal(S, 1 - rate)
    return S


def symmetric_inclusive(num_classes: int, rate: float) -> np.ndarray:
    """Returns S [K, K] = (1 - rate) I + rate / K: with probability `rate` a label is drawn anew from all classes.

    The new label is right once in K times, so only a share rate (K - 1) / K of the labels is wrong.
    """
    check_model(num_classes, rate)
    S = np.full((num_classes, num_classes), rate / num_classes)
    np.fill_diagonal(S, 1 - rate + rate / num_classes)
    return S


def pair(num_classes: int, rate: float) -> np.ndarray:
    """Returns S [K, K]: class c becomes (c + 1) mod K with probability `rate`."""
    return _flip(num_classes, {c: (c + 1) % num_classes for c in range(num_classes)}, rate)


def asymmetric(table: str, rate: float) -> np.ndarray:
    """Returns S [K, K]: the look-alike classes of a data set flip with probability `rate`.

    `table` names an entry of `ASYMMETRIC_TABLES`; an unknown one is a `UserError`.
    Source: Patrini et al., CVPR 2017; the digits without that paper's 7 -> 1, as in TDSM.
    """
    if table not in ASYMMETRIC_TABLES:
        hint = did_you_mean(table, ASYMMETRIC_TABLES)
        raise UserError(f"unknown table of asymmetric label noise {table!r}{hint}")
    num_classes, flips = ASYMMETRIC_TABLES[table]
    return _flip(num_classes, flips, rate)


def _flip(num_classes: int, flips: dict[int, int], rate: float) -> np.ndarray:
    check_model(num_classes, rate)
    S = np.eye(num_classes)
    for source, target in flips.items():
        S[source, source] = 1 - rate
        S[source, target] = rate
    return S


def check_model(num_classes: int, rate: float) -> None:
    """Raises `UserError` for fewer than two classes or a rate outside [0, 1]."""
    if num_classes < 2:
        raise UserError(f"label noise needs at least 2 classes, got {num_classes}")
    if not 0 <= rate <= 1:
        raise UserError(f"the label noise rate must lie in [0, 1], got {rate}")


def transition_matrix(kind: str, num_classes: int, rate: float, table: str = "") -> np.ndarray:
    """Returns float64 S [K, K] of the label noise `kind`, one of `CLASS_CONDITIONAL`.

    "clean" is what labels that nobody corrupted are taken for, symmetric noise: no data set is labelled without
    error. `table` is read by "asym" only. Unknown kinds or tables, a table of another K, and rates outside
    [0, 1] raise `UserError`.
    """
    if kind in ("sym", "clean"):
        return symmetric(num_classes, rate)
    if kind == "sym_inclusive":
        return symmetric_inclusive(num_classes, rate)
    if kind == "pair":
        return pair(num_classes, rate)
    if kind == "asym":
        S = asymmetric(table, rate)
        if len(S) != num_classes:
            raise UserError(f"table {table!r} is for {len(S)} classes, but the data has {num_classes}")
        return S
    raise UserError(f"unknown kind of label noise {kind!r}{did_you_mean(kind, CLASS_CONDITIONAL)}")


def corrupt(labels: np.ndarray, S: np.ndarray, seed: int, exact: bool = False) -> np.ndarray:
    """Returns noisy labels y_tilde int32 [N], y_tilde[n] ~ S[labels[n]]: a pure function of its arguments.

    Example n owns the n-th uniform of PCG64(seed), turned into a class by the inverse CDF of its row: the
    result depends on the order of `labels` [N], on nothing else, and is the same on every platform. `exact` deals
    out the labels of each clean class so that their shares equal its row up to rounding to whole examples; the
    uniforms then only rank the examples of the class. They are those that np.random.default_rng(seed) draws first:
    examples that were made up from it need labels of another seed, or which labels are wrong depends on the example.
    Raises `UserError` for labels outside [0, K), no labels, a negative seed or an S [K, K] that is not
    row-stochastic.
    """
    check_stochastic(S)
    S = np.asarray(S, np.float64)
    num_classes = len(S)
    labels = check_labels("labels", labels)
    check_range("labels", labels, num_classes)
    uniform = uniforms(seed, len(labels))
    y_tilde = np.empty(len(labels), np.int32)
    cdf = _cdf(S)
    for y in range(num_classes):
        members = np.flatnonzero(labels == y)
        if exact:
            ranked = members[np.argsort(uniform[members], kind="stable")]
            y_tilde[ranked] = np.repeat(np.arange(num_classes), _whole_shares(S[y], len(members)))
        else:
            y_tilde[members] = np.searchsorted(cdf[y], uniform[members], side="right")
    return y_tilde


def corrupt_each(p: np.ndarray, seed: int) -> np.ndarray:
    """Returns noisy labels y_tilde int32 [N], y_tilde[n] ~ p[n], of a distribution p [N, K] for each example.

    The uniforms are those of `corrupt`: with p = S[labels] both return the same. `UserError` for a negative seed.
    """
    uniform = uniforms(seed, len(p))
    return (_cdf(p) <= uniform[:, None]).sum(axis=1, dtype=np.int32)


def uniforms(seed: int, count: int, stream: tuple[int, ...] = ()) -> np.ndarray:
    """Returns `count` uniforms float64 in [0, 1) of PCG64(seed), or of an independent `stream` of that seed.

    The raw stream is the same on every platform and with every NumPy. A negative seed is a `UserError`.
    """
    if seed < 0:
        raise UserError(f"the corruption seed must be a non-negative integer, got {seed}")
    sequence = np.random.SeedSequence(seed, spawn_key=stream)  # without a stream, that of PCG64(seed)
    return np.random.Generator(np.random.PCG64(sequence)).random(count)


def _cdf(p: np.ndarray) -> np.ndarray:
    """The cumulative distributions [N, K] of the rows of p [N, K]."""
    num_classes = p.shape[1]
    last_possible = num_classes - 1 - np.argmax(p[:, ::-1] > 0, axis=1)
    # A sum may round to just below 1; a uniform in that gap must not reach an impossible class.
    return np.where(np.arange(num_classes) >= last_possible[:, None], 1, np.cumsum(p, axis=1))


def _whole_shares(p: np.ndarray, count: int) -> np.ndarray:
    """Splits `count` examples by p [K] into whole numbers [K]; the largest remainders are rounded up."""
    shares = count * (p / math.fsum(p))
    whole = np.floor(shares).astype(np.int64)
    # Remainders that differ in their last bits only are ties, which the lower class wins.
    order = np.argsort(-np.round(shares - whole, 9), kind="stable")
    whole[order[: count - whole.sum()]] += 1
    return whole


def imbalanced(labels: np.ndarray, ratio: float, num_classes: int, seed: int) -> np.ndarray:
    """Returns the sorted indices of the examples that stay where class k keeps n_max ratio^(k/(K-1)) of them.

    n_max is the size of the largest class. No class keeps fewer than one example, nor more than it has: ratio 1
    keeps everything. Of one seed, a smaller ratio keeps a subset of what a larger one keeps.
    A ratio outside (0, 1], an empty class, labels [N] outside [0, K) or a negative seed raise `UserError`.
    Source: the exponential profile of Cui et al., CVPR 2019.
    """
    if not 0 < ratio <= 1:
        raise UserError(f"the imbalance is the smallest class over the largest, in (0, 1]; got {ratio}")
    labels = check_labels("labels", labels)
    check_range("labels", labels, num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    if counts.min() == 0:
        raise UserError(f"class {counts.argmin()} has no examples to keep; classes cannot be made imbalanced")
    rank = uniforms(seed, len(labels), (_IMBALANCE_STREAM,))
    kept = []
    for k in range(num_classes):
        members = np.flatnonzero(labels == k)
        wanted = counts.max() * ratio ** (k / max(num_classes - 1, 1))
        # Powers differ in their last bits between platforms; the rounding to a whole number must not.
        size = max(1, round(round(wanted, 6)))
        kept.append(members[np.argsort(rank[members], kind="stable")[:size]])
    return np.sort(np.concatenate(kept))


def realised_matrix(labels: np.ndarray, y_tilde: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns float64 [K, K]: the fraction of each clean class that carries each noisy label.

    A class without examples has no such fractions: its row is NaN, which no later check mistakes for
    a distribution. `labels` and `y_tilde` are [N]; other shapes or labels outside [0, K) raise `UserError`.
    """
    labels, y_tilde = _check_pair(labels, y_tilde)
    check_range("labels", labels, num_classes)
    check_range("y_tilde", y_tilde, num_classes)
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, y_tilde), 1)
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)


def realised_rate(labels: np.ndarray, y_tilde: np.ndarray) -> float:
    """Returns the fraction of the labels [N] that differ from y_tilde [N]; other shapes raise `UserError`."""
    labels, y_tilde = _check_pair(labels, y_tilde)
    return float(np.mean(labels != y_tilde))


def expected_rate(labels: np.ndarray, S: np.ndarray) -> float:
    """Returns the fraction of the labels [N] in [0, K) that S [K, K] turns into wrong ones on average."""
    counts = np.bincount(labels, minlength=len(S))
    return max(0.0, 1 - math.fsum(counts * np.diag(S)) / len(labels))


def _check_pair(labels: np.ndarray, y_tilde: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, y_tilde = check_labels("labels", labels), check_labels("y_tilde", y_tilde)
    if len(labels) != len(y_tilde):
        raise UserError(f"{len(labels)} clean labels do not match {len(y_tilde)} noisy ones")
    return labels, y_tilde


def check_labels(name: str, labels: np.ndarray) -> np.ndarray:
    """Returns `labels` as an array; anything but a non-empty list of integers raises a `UserError` naming it."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) == 0:
        raise UserError(f"{name} must be a non-empty list of class indices, got shape {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{name} must be integers, got {labels.dtype}")
    return labels


def check_range(name: str, labels: np.ndarray, num_classes: int) -> None:
    """Raises a `UserError` naming the labels [N] unless all lie in [0, K)."""
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"{name} span {labels.min()}..{labels.max()}, but classes are 0..{num_classes - 1}")
