"""What an estimator of S may read, checked once."""

import dataclasses

import numpy as np

from tdsm_jax.errors import UserError

# Label corruption may use the same seed; a stream of its own keeps the choice independent of it.
_SUBSET_STREAM = 10
POSTERIOR_TOLERANCE = 1e-4  # of a row sum; float32 softmax of a thousand classes passes


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """Noisy labels y_tilde int [N] in [0, K), and what else is known of their images; None where it is not.

    Posteriors should be out-of-fold: on images that a classifier was fitted to, it has learnt their flips. A field
    that is malformed, a noisy label that never occurs, or a lone class raises `UserError`.
    """

    num_classes: int
    y_tilde: np.ndarray
    noisy_posterior: np.ndarray | None = None  # p(y_tilde | x) [N,K]
    clean_posterior: np.ndarray | None = None  # h = p(y | x) [N,K]
    features: np.ndarray | None = None  # [N,D], in which neighbours share their clean class
    clean_index: np.ndarray | None = None  # int [M], the images whose clean label is known
    clean_labels: np.ndarray | None = None  # int [M], those labels
    clean_given: np.ndarray | None = None  # int [M], instead of clean_index: noisy labels of M images beside the N

    def __post_init__(self):
        if self.num_classes < 2:
            raise UserError(f"label noise needs at least 2 classes, got {self.num_classes}")
        self._check_noisy_labels()
        for field in ("noisy_posterior", "clean_posterior"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, self._posterior(field))
        if self.features is not None:
            self._check_features()
        if self.clean_given is not None:
            self._check_pairs()
        elif (self.clean_index is None) != (self.clean_labels is None):
            raise UserError("a clean subset needs both clean_index and clean_labels")
        elif self.clean_index is not None:
            self._check_subset()

    def _check_noisy_labels(self) -> None:
        _check_integers("y_tilde", self.y_tilde, self.num_classes)
        seen = np.bincount(self.y_tilde, minlength=self.num_classes)
        if (seen > 0).sum() == 1:
            raise UserError(f"every noisy label is class {seen.argmax()}; one class says nothing about label noise")
        if (seen == 0).any():
            raise UserError(
                f"class {seen.argmin()} never occurs among the {len(self.y_tilde)} noisy labels; "
                "leave it out, or give S"
            )

    def _posterior(self, name: str) -> np.ndarray:
        """Returns the posterior in float64, its rows summing to exactly 1."""
        p = np.asarray(getattr(self, name), np.float64)
        expected = (len(self.y_tilde), self.num_classes)
        if p.shape != expected:
            raise UserError(f"{name} must have one row a noisy label and K columns, {expected}, got shape {p.shape}")
        if not np.isfinite(p).all():
            row = np.argwhere(~np.isfinite(p))[0][0]
            raise UserError(f"{name} has entries that are not finite numbers, first in row {row}; give probabilities")
        if p.min() < 0:
            row = np.argwhere(p < 0)[0][0]
            raise UserError(f"{name} has negative entries, first in row {row}; give probabilities, not logits")
        sums = p.sum(axis=1, keepdims=True)
        row = int(np.abs(sums - 1).argmax())
        if abs(sums[row, 0] - 1) > POSTERIOR_TOLERANCE:
            raise UserError(f"row {row} of {name} sums to {sums[row, 0]:.6g}, not 1; give probabilities")
        return p / sums

    def _check_features(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.y_tilde):
            raise UserError(
                f"features must have one row a noisy label, [{len(self.y_tilde)}, D], got shape {self.features.shape}"
            )
        if not np.isfinite(self.features).all():
            raise UserError("features have entries that are not finite numbers")

    @property
    def clean_joint(self) -> np.ndarray:
        """How often each clean class (row) was given each noisy label (column) in the clean subset, [K,K]."""
        noisy = self.y_tilde[self.clean_index] if self.clean_given is None else self.clean_given
        joint = np.zeros((self.num_classes, self.num_classes))
        np.add.at(joint, (self.clean_labels, noisy), 1)
        return joint

    def _check_pairs(self) -> None:
        if self.clean_index is not None or self.clean_labels is None:
            raise UserError("clean_given goes with clean_labels, and without clean_index")
        _check_integers("clean_labels", self.clean_labels, self.num_classes)
        _check_integers("clean_given", self.clean_given, self.num_classes)
        if len(self.clean_given) != len(self.clean_labels):
            raise UserError(f"{len(self.clean_labels)} clean labels do not match {len(self.clean_given)} noisy ones")

    def _check_subset(self) -> None:
        _check_integers("clean_index", self.clean_index, len(self.y_tilde))
        _check_integers("clean_labels", self.clean_labels, self.num_classes)
        if len(self.clean_index) != len(self.clean_labels):
            raise UserError(f"{len(self.clean_labels)} clean labels do not match {len(self.clean_index)} indices")
        if len(np.unique(self.clean_index)) != len(self.clean_index):
            raise UserError("clean_index names an image twice")


def clean_subset(y: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Returns the indices int [M], in order, of `per_class` random images of each class of y int [N].

    A class with fewer images gives all it has.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(_SUBSET_STREAM,))
    order = np.argsort(np.random.Generator(np.random.PCG64(sequence)).random(len(y)), kind="stable")
    chosen = [order[y[order] == k][:per_class] for k in np.unique(y)]
    return np.sort(np.concatenate(chosen))


def _check_integers(name: str, values: np.ndarray, limit: int) -> None:
    if values.ndim != 1 or len(values) == 0:
        raise UserError(f"{name} must be a non-empty list, got shape {values.shape}")
    if values.dtype.kind not in "iu":
        raise UserError(f"{name} must be integers, got {values.dtype}")
    if values.min() < 0 or values.max() >= limit:
        raise UserError(f"{name} span {values.min()}..{values.max()}, but must lie in 0..{limit - 1}")
