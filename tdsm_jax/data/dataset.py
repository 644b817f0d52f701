"""Labelled images: the form they have in memory, their split into train and test, their floats and content hashes."""

import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np

from tdsm_jax.data import stream
from tdsm_jax.data.stream import Images, part_of
from tdsm_jax.errors import UserError

# Other random draws may use the same seed; a stream of its own keeps this one independent of them.
_SPLIT_STREAM = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images: uint8 images [N, H, W, C], int32 labels [N] in [0, K), the K class names.

    The labels are the true classes if `clean`, else those that the images came with, right or wrong. Of such images
    there may be others with true labels, `reference`, and `pairs` int32 [M, 2], the true and the given label of
    images that have both. `files` str [N] are the names of the files that images come from, where each has its own.
    """

    name: str
    images: Images
    labels: np.ndarray
    class_names: tuple[str, ...]
    clean: bool = True
    reference: "Dataset | None" = None
    pairs: np.ndarray | None = None
    files: np.ndarray | None = None

    def __post_init__(self):
        if len(self.images) == 0:  # of streamed ones there is no shape, then
            raise UserError(f"{self.name}: there must be images [N, H, W, C] with N >= 1, got none")
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise UserError(
                f"{self.name}: images must be uint8 [N, H, W, C], got {self.images.dtype} {self.images.shape}"
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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, H, W, C = self.images.shape
        return H, W, C


def stratified_split(dataset: Dataset, test_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Returns (train, test) with the same fraction of every class in test; both keep the index order.

    A fraction that leaves a class without train or test images, or a negative seed, is a `UserError`.
    """
    of_test = in_test(dataset.labels, dataset.class_names, test_fraction, seed)
    return subset(dataset, ~of_test), subset(dataset, of_test)


def in_test(labels: np.ndarray, class_names: tuple[str, ...], test_fraction: float, seed: int) -> np.ndarray:
    """Returns which examples of `labels` [N] a split puts into the test part, bool [N]: see `stratified_split`."""
    if not 0 < test_fraction < 1:
        raise UserError(f"the test fraction must lie strictly between 0 and 1, got {test_fraction}")
    if seed < 0:
        raise UserError(f"the split seed must be a non-negative integer, got {seed}")
    sequence = np.random.SeedSequence(seed, spawn_key=(_SPLIT_STREAM,))
    uniform = np.random.Generator(np.random.PCG64(sequence)).random(len(labels))
    chosen = np.zeros(len(labels), bool)
    for y, class_name in enumerate(class_names):
        members = np.flatnonzero(labels == y)
        test_count = round(len(members) * test_fraction)
        if not 0 < test_count < len(members):
            raise UserError(
                f"a test fraction of {test_fraction} splits the {len(members)} images of class "
                f"{class_name!r} into {len(members) - test_count} + {test_count}; both parts need one"
            )
        chosen[members[np.argsort(uniform[members], kind="stable")[:test_count]]] = True
    return chosen


def subset(dataset: Dataset, chosen: np.ndarray) -> Dataset:
    """Returns the examples that a mask or indices choose."""
    files = None if dataset.files is None else dataset.files[chosen]
    images, labels = part_of(dataset.images, chosen), dataset.labels[chosen]
    return dataclasses.replace(dataset, images=images, labels=labels, files=files)


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


def images_hash(images: Images) -> str:
    """Returns the SHA-256 of the shape, dtype and bytes of images [N, H, W, C], in order.

    Of streamed images it is one of their digests, so that a million files need not be decoded at every start.
    """
    streamed = stream.is_streamed(images)
    return _sha256(images, images.digests() if streamed else [np.ascontiguousarray(images)])


def images_set_hash(images: Images) -> str:
    """Returns a SHA-256 of images [N, H, W, C] that every reordering of the N images shares."""
    if stream.is_streamed(images):
        return _sha256(images, sorted(images.digests()))
    return _sha256(images, sorted(hashlib.sha256(image.tobytes()).digest() for image in images))


def _sha256(images: Images, parts: Iterable[bytes | np.ndarray]) -> str:
    content = hashlib.sha256(f"{images.dtype.str} {images.shape}\n".encode())
    for part in parts:
        content.update(part)
    return content.hexdigest()
