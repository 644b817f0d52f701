"""Labelled images by name, split into train and test, and their content hashes."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable

import numpy as np

from tdsm_jax import paths
from tdsm_jax.data import tfds_store
from tdsm_jax.data.edm_zip import Archive, image_names, read_labels
from tdsm_jax.errors import UserError, did_you_mean

# Other random draws may use the same seed; streams of their own keep these independent of them.
_SPLIT_STREAM = 1
_SYNTHETIC_STREAM = 3


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


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Which images to load. Every source reads `name`; the other fields concern the sources named beside them."""

    name: str
    # archive: folder or zip file of the training images; mnist, cifar10, ...: the data_dir of TensorFlow Datasets
    path: str = ""
    test_path: str = ""  # archive: the same of the test images; "" splits some off the training images
    labels_path: str = ""  # archive: a dataset.json whose labels replace those of `path`
    test_fraction: float = 0.2  # all without test images of their own
    split_seed: int = 0  # all without test images of their own
    image_size: int = 32  # synthetic, imagenet_resized: 8 to 64; mnist, fashion_mnist: 28, or more by a black margin
    channels: int = 3  # synthetic
    num_classes: int = 10  # synthetic
    num_images: int = 1000  # synthetic: train and test together


def load(spec: DataSpec) -> tuple[Dataset, Dataset]:
    """Returns (train, test) of the source `spec.name`.

    An unknown name, a path for a source without files, or a test fraction that leaves a class without train or
    test images, is a `UserError`.
    """
    if spec.name not in SOURCES:
        raise UserError(f"unknown dataset {spec.name!r}{did_you_mean(spec.name, SOURCES)}")
    for field in ("path", "test_path", "labels_path"):
        reads = spec.name == "archive" or (spec.name in tfds_store.IMAGES and field == "path")
        if getattr(spec, field) and not reads:
            raise UserError(f"the dataset {spec.name!r} reads no files, but {field} is given; 'archive' reads it")
    return SOURCES[spec.name](spec)


def _digits(spec: DataSpec) -> tuple[Dataset, Dataset]:
    """The 1,797 handwritten digits of 8 x 8 pixels inside scikit-learn: no download."""
    from sklearn.datasets import load_digits  # a slow import that only this source needs

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # grey levels 0..16
    class_names = tuple(str(name) for name in digits.target_names)
    whole = Dataset("digits", images, digits.target.astype(np.int32), class_names)
    return stratified_split(whole, spec.test_fraction, spec.split_seed)


def _archive(spec: DataSpec) -> tuple[Dataset, Dataset]:
    """The images of folders or zip files in the format of StyleGAN and EDM."""
    if not spec.path:
        raise UserError("the dataset 'archive' needs path, a folder or zip file of images")
    whole = _read_archive(spec.path, spec.labels_path)
    if not spec.test_path:
        return stratified_split(whole, spec.test_fraction, spec.split_seed)
    test = _read_archive(spec.test_path, "")
    if test.images.shape[1:] != whole.images.shape[1:]:
        raise UserError(
            f"{spec.test_path} holds images of shape {test.images.shape[1:]}, but {spec.path} of "
            f"{whole.images.shape[1:]}; bring both to one form"
        )
    class_names = max(whole.class_names, test.class_names, key=len)  # one part may lack the last class
    return tuple(dataclasses.replace(part, class_names=class_names) for part in (whole, test))


def _read_archive(path: str, labels_path: str) -> Dataset:
    with Archive(path) as archive:
        labels = _archive_labels(archive, labels_path)
        name = archive.path if paths.is_remote(path) else archive.path.resolve()
        return Dataset(name.stem, archive.load(), labels, _class_names(archive, labels))


def _archive_labels(archive: Archive, labels_path: str) -> np.ndarray:
    labels = archive.labels_of(labels_path) if labels_path else archive.labels
    if labels is None:
        raise UserError(f"{archive.path}: its images are not labelled; give labels as a file of their own")
    return labels


def _class_names(archive: Archive, labels: np.ndarray) -> tuple[str, ...]:
    return archive.class_names or tuple(str(y) for y in range(labels.max() + 1))


def archive_labels(spec: DataSpec, labels_path: str) -> np.ndarray:
    """Returns other labels int32 [N] of the training images of an archive: those of `load(spec)[0]`, in order.

    They come from the dataset.json at `labels_path`, or from the archive's own where that is "", matched by
    name: noisy labels for images whose clean ones `load` gives, or the other way round. Images of CIFAR and MNIST
    as TensorFlow Datasets has them are named as EDM names those of the original archive, in its order.
    """
    if spec.name in tfds_store.IMAGES and tfds_store.DATASETS[spec.name].keys != "record" and labels_path:
        train, _ = tfds_store.open_splits(spec.name, spec.path, spec.image_size)
        return read_labels(labels_path, image_names(len(train)))
    if spec.name != "archive":
        raise UserError(f"the images of the dataset {spec.name!r} have no names to match labels by; 'archive' has")
    with Archive(spec.path) as archive:
        others = _archive_labels(archive, labels_path)
        if spec.test_path:
            return others
        labels = _archive_labels(archive, spec.labels_path)
        return others[~_in_test(labels, _class_names(archive, labels), spec.test_fraction, spec.split_seed)]


def _prepared(spec: DataSpec) -> tuple[Dataset, Dataset]:
    """The images that TensorFlow Datasets or `data.prepare` has prepared, all in memory."""
    train, test = tfds_store.open_splits(spec.name, spec.path, spec.image_size)
    return tuple(Dataset(spec.name, *part.load(), part.class_names) for part in (train, test))


def _synthetic(spec: DataSpec) -> tuple[Dataset, Dataset]:
    """Noisy gratings of any size, each class with an angle, a frequency and a colour of its own: no download."""
    for field in ("image_size", "channels", "num_classes", "num_images"):
        if getattr(spec, field) < 1:
            raise UserError(f"the dataset 'synthetic' needs {field} >= 1, got {getattr(spec, field)}")
    sequence = np.random.SeedSequence(0, spawn_key=(_SYNTHETIC_STREAM,))
    generator = np.random.Generator(np.random.PCG64(sequence))
    labels = np.arange(spec.num_images, dtype=np.int32) % spec.num_classes
    images = np.stack([_grating(y, spec, generator) for y in labels.tolist()])
    whole = Dataset("synthetic", images, labels, tuple(str(y) for y in range(spec.num_classes)))
    return stratified_split(whole, spec.test_fraction, spec.split_seed)


def _grating(y: int, spec: DataSpec, generator: np.random.Generator) -> np.ndarray:
    """An image uint8 [H, W, C] of class y, at a random phase: arithmetic that every platform rounds alike."""
    size, angles = spec.image_size, math.isqrt(spec.num_classes - 1) + 1
    frequencies = -(-spec.num_classes // angles)
    angle = math.pi * (y % angles) / angles
    cycles = 1 + (size / 4 - 1) * (y // angles) / frequencies  # an image; up to half the Nyquist frequency
    rows, columns = np.mgrid[:size, :size] / size
    position = cycles * (rows * math.sin(angle) + columns * math.cos(angle)) + generator.random()
    wave = np.abs(position % 1 - 0.5) * 4 - 1  # a triangle wave in [-1, 1]
    turns = [y / spec.num_classes + c / spec.channels for c in range(spec.channels)]
    colour = np.array([math.cos(2 * math.pi * turn) for turn in turns])
    noise = generator.random((size, size, spec.channels)) - 0.5
    return np.rint(127.5 + 50 * wave[..., None] + 50 * colour + 40 * noise).astype(np.uint8)


# name -> function returning (train, test)
SOURCES: dict[str, Callable[[DataSpec], tuple[Dataset, Dataset]]] = {
    "archive": _archive,
    "digits": _digits,
    "synthetic": _synthetic,
    **dict.fromkeys(tfds_store.IMAGES, _prepared),
}


def stratified_split(dataset: Dataset, test_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Returns (train, test) with the same fraction of every class in test; both keep the index order.

    A fraction that leaves a class without train or test images, or a negative seed, is a `UserError`.
    """
    in_test = _in_test(dataset.labels, dataset.class_names, test_fraction, seed)
    return subset(dataset, ~in_test), subset(dataset, in_test)


def _in_test(labels: np.ndarray, class_names: tuple[str, ...], test_fraction: float, seed: int) -> np.ndarray:
    if not 0 < test_fraction < 1:
        raise UserError(f"the test fraction must lie strictly between 0 and 1, got {test_fraction}")
    if seed < 0:
        raise UserError(f"the split seed must be a non-negative integer, got {seed}")
    sequence = np.random.SeedSequence(seed, spawn_key=(_SPLIT_STREAM,))
    uniform = np.random.Generator(np.random.PCG64(sequence)).random(len(labels))
    in_test = np.zeros(len(labels), bool)
    for y, class_name in enumerate(class_names):
        members = np.flatnonzero(labels == y)
        test_count = round(len(members) * test_fraction)
        if not 0 < test_count < len(members):
            raise UserError(
                f"a test fraction of {test_fraction} splits the {len(members)} images of class "
                f"{class_name!r} into {len(members) - test_count} + {test_count}; both parts need one"
            )
        in_test[members[np.argsort(uniform[members], kind="stable")[:test_count]]] = True
    return in_test


def subset(dataset: Dataset, chosen: np.ndarray) -> Dataset:
    """Returns the examples that a mask or indices choose."""
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
