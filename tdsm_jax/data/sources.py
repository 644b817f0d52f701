"""Labelled images by name: where each data set comes from, as training and test images."""

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from tdsm_jax import hosts, paths
from tdsm_jax.data import class_order, clothing1m, folder, stream, synthetic, tfds_store
from tdsm_jax.data.dataset import Dataset, in_test, stratified_split
from tdsm_jax.data.edm_zip import Archive, image_names, read_labels
from tdsm_jax.data.folder import Found
from tdsm_jax.data.pictures import Form
from tdsm_jax.data.stream import Images
from tdsm_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Which images to load. Every source reads `name`; the other fields concern the sources named beside them."""

    name: str
    # archive, folder: folder or zip file of the training images; npz: the file; clothing1m: the folder; mnist,
    # cifar10, ...: the data_dir of TensorFlow Datasets
    path: str = ""
    test_path: str = ""  # archive, folder, npz: the same of the test images; "" splits some off the training images
    labels_path: str = ""  # archive: a dataset.json whose labels replace those of `path`
    test_fraction: float = 0.2  # all without test images of their own
    split_seed: int = 0  # all without test images of their own
    # synthetic; folder, clothing1m: what images are cropped and resized to, 0: they are alike; imagenet_resized: 8 to
    # 64; mnist, fashion_mnist: 28, or more by a black margin
    image_size: int = 32
    channels: int = 3  # synthetic; folder, clothing1m: what images are converted to, 1 or 3
    num_classes: int = 10  # synthetic
    num_images: int = 1000  # synthetic: train and test together
    stream: bool = False  # from files, but for npz: images are decoded when they are asked for
    on_corrupt: str = "stop"  # folder, clothing1m: images that cannot be decoded; skip: they are left out


def load(spec: DataSpec) -> tuple[Dataset, Dataset]:
    """Returns (train, test) of the source `spec.name`.

    An unknown name, a field that the source does not read, or a test fraction that leaves a class without train or
    test images, is a `UserError`.
    """
    if spec.name not in SOURCES:
        raise UserError(f"unknown dataset {spec.name!r}{did_you_mean(spec.name, SOURCES)}")
    for field, readers in _READERS.items():
        given = getattr(spec, field) != getattr(DataSpec, field)
        if given and spec.name not in readers:
            reads_files = spec.name in FROM_FILES or spec.name in tfds_store.IMAGES
            files = " no files" if not reads_files and field.endswith("path") else f" no {field}"
            known = ", ".join(map(repr, readers))
            raise UserError(f"the dataset {spec.name!r} reads{files}, but {field} is given; it is for {known}")
    if spec.name in FROM_FILES and not spec.path:
        raise UserError(f"the dataset {spec.name!r} needs path, {FROM_FILES[spec.name]}")
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
    whole, names = _read_archive(spec.path, spec.labels_path, spec.stream)
    if not spec.test_path:
        return stratified_split(whole, spec.test_fraction, spec.split_seed)
    test, test_names = _read_archive(spec.test_path, "", spec.stream)
    _check_alike(spec, whole, test)
    class_order.check(spec.path, names, spec.test_path, test_names)
    # One part may lack the last classes; names are better than the numbers that stand for them where there are none.
    class_names = max(names, test_names, whole.class_names, test.class_names, key=len)
    return tuple(dataclasses.replace(part, class_names=class_names) for part in (whole, test))


def _read_archive(path: str, labels_path: str, streamed: bool) -> tuple[Dataset, tuple[str, ...]]:
    """The images with their labels, and the names that the archive itself gives to classes, () for none."""
    archive = Archive(path)
    try:
        labels = _archive_labels(archive, labels_path)
        images = stream.Streamed(archive) if streamed else archive.load()
        return Dataset(_stem(path), images, labels, _class_names(archive, labels)), archive.class_names
    finally:
        if not streamed:  # else it is read from then on
            archive.close()


def _stem(path: str) -> str:
    """The name of a data set: that of its folder or file."""
    return (paths.path_of(path) if paths.is_remote(path) else paths.path_of(path).resolve()).stem


def _folder(spec: DataSpec) -> tuple[Dataset, Dataset]:
    """The images of a folder or zip file with a folder for each class."""
    form = _form(spec)
    found = folder.find(spec.path, form)
    if not spec.test_path:
        return stratified_split(_dataset(spec, spec.path, found), spec.test_fraction, spec.split_seed)
    test = folder.find(spec.test_path, form)
    folder.same_classes(spec.path, found, spec.test_path, test)
    parts = tuple(_dataset(spec, path, part) for path, part in ((spec.path, found), (spec.test_path, test)))
    _check_alike(spec, *parts)
    return parts


def _npz(spec: DataSpec) -> tuple[Dataset, Dataset]:
    """The arrays of a .npz file, as they are."""
    found, test = folder.read_npz(spec.path)
    if spec.test_path and test is not None:
        raise UserError(f"{spec.path} holds test images of its own; leave test_path out, or leave them out of the file")
    if spec.test_path:
        test, _ = folder.read_npz(spec.test_path)
        folder.same_classes(spec.path, found, spec.test_path, test)
    if test is None:
        return stratified_split(Dataset(_stem(spec.path), *found), spec.test_fraction, spec.split_seed)
    parts = tuple(Dataset(_stem(spec.path), *part) for part in (found, test))
    _check_alike(spec, *parts)
    return parts


def _clothing1m(spec: DataSpec) -> tuple[Dataset, Dataset]:
    """Clothing-1M: noisy training images, clean test images, and the other clean ones as the reference."""
    parts = clothing1m.find(spec.path, _form(spec))
    train, test, reference = (_dataset(spec, spec.path, part) for part in parts[:3])
    _check_alike(spec, train, test)
    _check_alike(spec, train, reference, "clean")
    pairs = parts.pairs if len(parts.pairs) else None
    return dataclasses.replace(train, clean=False, reference=reference, pairs=pairs), test


def _form(spec: DataSpec) -> Form:
    if spec.channels not in (1, 3):
        raise UserError(f"channels must be 1 (grey) or 3 (RGB), got {spec.channels}")
    return Form(spec.image_size, spec.channels)


def _dataset(spec: DataSpec, path: str, found: Found) -> Dataset:
    """Loads images of `path`, or leaves them there; those that cannot be decoded are left out if so asked."""
    images, labels = stream.Streamed(found.images), found.labels
    names = np.array(found.images.names)
    name = "clothing1m" if spec.name == "clothing1m" else _stem(spec.path)
    if spec.on_corrupt == "skip":
        kept = stream.readable(found.images, name)
        hosts.check_equal(hashlib.sha256(kept.tobytes()).hexdigest(), "set of images that can be decoded")
        images, labels, names = images.part(kept), labels[kept], names[kept]
        folder.check_pairs_of_images(path, labels, found.class_names)
    images = images if spec.stream else stream.loaded(images, name)
    return Dataset(name, images, labels, found.class_names, files=names)


def _check_alike(spec: DataSpec, train: Dataset, test: Dataset, kind: str = "test") -> None:
    if test.images.shape[1:] != train.images.shape[1:]:
        raise UserError(
            f"{spec.test_path or spec.path} holds {kind} images of shape {test.images.shape[1:]}, but training images "
            f"of {train.images.shape[1:]}; bring both to one form"
        )


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
        labels, class_names = read_labels(labels_path, image_names(len(train)))
        class_order.check(train.directory, train.class_names, labels_path, class_names)
        return labels
    if spec.name != "archive":
        raise UserError(f"the images of the dataset {spec.name!r} have no names to match labels by; 'archive' has")
    with Archive(spec.path) as archive:
        others = _archive_labels(archive, labels_path)
        if spec.test_path:
            return others
        labels = _archive_labels(archive, spec.labels_path)
        return others[~in_test(labels, _class_names(archive, labels), spec.test_fraction, spec.split_seed)]


def _prepared(spec: DataSpec) -> tuple[Dataset, Dataset]:
    """The images that TensorFlow Datasets or `data.prepare` has prepared."""
    parts = tfds_store.open_splits(spec.name, spec.path, spec.image_size)
    return tuple(Dataset(spec.name, *_contents(part, spec.stream), part.class_names) for part in parts)


def _contents(part: tfds_store.Split, streamed: bool) -> tuple[Images, np.ndarray]:
    """Images and labels of a split, all of them decoded or, streamed, none."""
    if not streamed:
        return part.load()
    return stream.Streamed(part), part.columns(("label",))["label"].astype(np.int32)


def _synthetic(spec: DataSpec) -> tuple[Dataset, Dataset]:
    """Noisy gratings of any size, each class with an angle, a frequency and a colour of its own: no download."""
    for field in ("image_size", "channels", "num_classes", "num_images"):
        if getattr(spec, field) < 1:
            raise UserError(f"the dataset 'synthetic' needs {field} >= 1, got {getattr(spec, field)}")
    images, labels = synthetic.gratings(spec.num_images, spec.num_classes, spec.image_size, spec.channels)
    whole = Dataset("synthetic", images, labels, tuple(str(y) for y in range(spec.num_classes)))
    return stratified_split(whole, spec.test_fraction, spec.split_seed)


# name -> function returning (train, test)
SOURCES: dict[str, Callable[[DataSpec], tuple[Dataset, Dataset]]] = {
    "archive": _archive,
    "clothing1m": _clothing1m,
    "digits": _digits,
    "folder": _folder,
    "npz": _npz,
    "synthetic": _synthetic,
    **dict.fromkeys(tfds_store.IMAGES, _prepared),
}
# name -> what its path is
FROM_FILES = {
    "archive": "a folder or zip file of images",
    "clothing1m": "the folder of Clothing-1M as unpacked",
    "folder": "a folder or zip file of class folders",
    "npz": "a .npz file of images and labels",
}
NAMED = tuple(sorted(SOURCES.keys() - FROM_FILES.keys()))  # those that need no path
# field -> the only sources that read it
_READERS = {
    "path": (*FROM_FILES, *tfds_store.IMAGES),
    "test_path": ("archive", "folder", "npz"),
    "labels_path": ("archive",),
    "stream": ("archive", "clothing1m", "folder", *tfds_store.IMAGES),
    "on_corrupt": ("clothing1m", "folder"),
}
