"""Labelled images by name, split into train and test, and their content hashes."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from tdsm_jax.errors import UserError, did_you_mean

# Other random draws may use the same seed; a stream of its own keeps the split independent of them.
_SPLIT_STREAM = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images: uint8 images [N, H, W, C], int32 labels [N] in [0, K), the K class names."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or len(self.images) == 0:
            raise UserError(
                f"{self.name}: images must be uint8 [N, H, W, C] with N >= 1, "
                f"got {self.images.dtype} {self.images.shape}"
            )
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise UserError(
                f"{self.name}: labels must be int32 [{len(self.images)}], one an image, "
                f"got {self.labels.dtype} {self.labels.shape}"
            )
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            raise UserError(
                f"{self.name}: labels span {self.labels.min()}..{self.labels.max()}, "
                f"but there are {self.num_classes} class names"
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def load(name: str, *, test_fraction: float, split_seed: int) -> tuple[Dataset, Dataset]:
    """Returns (train, test) of the source `name`.

    `test_fraction` and `split_seed` govern sources that come without a split of their own.
    An unknown name, or a fraction that leaves a class without train or test images, is a `UserError`.
    """
    if name not in SOURCES:
        raise UserError(f"unknown dataset {name!r}{did_you_mean(name, SOURCES)}")
    return SOURCES[name](test_fraction, split_seed)


def _digits(test_fraction: float, split_seed: int) -> tuple[Dataset, Dataset]:
    """The 1,797 handwritten digits of 8 x 8 pixels inside scikit-learn: no download."""
    from sklearn.datasets import load_digits  # a slow import that only this source needs

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # grey levels 0..16
    class_names = tuple(str(name) for name in digits.target_names)
    return stratified_split(
        Dataset("digits", images, digits.target.astype(np.int32), class_names), test_fraction, split_seed
    )


# name -> function of (test_fraction, split_seed) returning (train, test)
SOURCES: dict[str, Callable[[float, int], tuple[Dataset, Dataset]]] = {"digits": _digits}


def stratified_split(dataset: Dataset, test_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Returns (train, test) with the same fraction of every class in test; both keep the index order.

    A fraction that leaves a class without train or test images, or a negative seed, is a `UserError`.
    """
    if not 0 < test_fraction < 1:
        raise UserError(f"the test fraction must lie strictly between 0 and 1, got {test_fraction}")
    if seed < 0:
        raise UserError(f"the split seed must be a non-negative integer, got {seed}")
    sequence = np.random.SeedSequence(seed, spawn_key=(_SPLIT_STREAM,))
    uniform = np.random.Generator(np.random.PCG64(sequence)).random(len(dataset.labels))
    in_test = np.zeros(len(dataset.labels), bool)
    for y, class_name in enumerate(dataset.class_names):
        members = np.flatnonzero(dataset.labels == y)
        test_count = round(len(members) * test_fraction)
        if not 0 < test_count < len(members):
            raise UserError(
                f"a test fraction of {test_fraction} splits the {len(members)} images of class "
                f"{class_name!r} into {len(members) - test_count} + {test_count}; both parts need one"
            )
        in_test[members[np.argsort(uniform[members], kind="stable")[:test_count]]] = True
    return _subset(dataset, ~in_test), _subset(dataset, in_test)


def _subset(dataset: Dataset, chosen: np.ndarray) -> Dataset:
    return dataclasses.replace(dataset, images=dataset.images[chosen], labels=dataset.labels[chosen])


def to_float(images: np.ndarray) -> np.ndarray:
    """Returns float32 images in [-1, 1] (x / 127.5 - 1) of uint8 ones; other dtypes are refused."""
    if images.dtype != np.uint8:
        raise UserError(f"images must be uint8 in 0..255, got {images.dtype}")
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Returns the uint8 images nearest to float ones in [-1, 1]; values outside are clipped, NaN refused."""
    images = np.asarray(images, np.float32)
    if np.isnan(images).any():
        raise UserError("images contain NaN, which no pixel can hold: the model that made them diverged")
    return np.rint(np.clip((images + 1) * 127.5, 0, 255)).astype(np.uint8)


def images_hash(images: np.ndarray) -> str:
    """Returns the SHA-256 of the shape, dtype and bytes of images [N, H, W, C], in order."""
    return _sha256(images, [np.ascontiguousarray(images)])


def images_set_hash(images: np.ndarray) -> str:
    """Returns a SHA-256 of images [N, H, W, C] that every reordering of the N images shares."""
    return _sha256(images, sorted(hashlib.sha256(image.tobytes()).digest() for image in images))


def _sha256(images: np.ndarray, parts: Iterable[bytes | np.ndarray]) -> str:
    content = hashlib.sha256(f"{images.dtype.str} {images.shape}\n".encode())
    for part in parts:
        content.update(part)
    return content.hexdigest()
