"""One's own images: a folder or zip file of CLASS/image.jpg, a .npz of arrays, and readers of image files by name."""

import functools
import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from tdsm_jax import files, paths
from tdsm_jax.data import class_order, pictures
from tdsm_jax.data.containers import Folder, Lost, Zip, is_hidden
from tdsm_jax.data.pictures import Form
from tdsm_jax.data.stream import Corrupt, Reader
from tdsm_jax.errors import UserError, printable

_SHOWN = 5  # names of an error message
_NEEDED, _OPTIONAL = {"images", "labels"}, {"test_images", "test_labels", "class_names"}  # arrays of a .npz


class Container(Protocol):
    """Files by name."""

    def read(self, name: str, limit: int) -> bytes: ...

    def listing(self) -> list: ...


class Pictures:
    """The images `names` [N] of a container, each brought to one form when it is read.

    Without a size they must have that of the first one that can be decoded; what has another is a `UserError`.
    """

    def __init__(self, path: paths.Path, container: Container, names: Sequence[str], form: Form):
        self._path, self._container, self.names, self._form = path, container, names, form

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> np.ndarray:
        """Returns an image uint8 [H, W, C]; what is wrong with its file names it."""
        image = self._decode(index)
        if image.shape[:2] != self._sides:
            raise UserError(
                f"{self._path}: {printable(self.names[index])} has {image.shape[1]} x {image.shape[0]} pixels, others "
                f"{self._sides[1]} x {self._sides[0]}; set config key data.image_size, to which all are then brought"
            )
        return image

    @functools.cached_property
    def _sides(self) -> tuple[int, int]:
        if self._form.size:
            return self._form.size, self._form.size
        for index in range(len(self)):
            try:
                return self._decode(index).shape[:2]
            except Corrupt:
                continue  # its own turn tells
        return 0, 0

    def _decode(self, index: int) -> np.ndarray:
        name = self.names[index]
        try:
            content = self._container.read(name, pictures.MAX_FILE_BYTES)
        except Lost as error:  # others, which a disk or a bucket gives rise to, say nothing of the image
            raise Corrupt(f"{error}; or set config key data.on_corrupt=skip") from None
        try:
            return pictures.decode(content, self._form)
        except Corrupt as error:
            raise Corrupt(
                f"{self._path}: {printable(name)} {error}; replace or remove it, or set config key data.on_corrupt=skip"
            ) from None

    @functools.cached_property
    def _listed(self) -> dict[str, list]:
        return {name: rest for name, *rest in self._container.listing()}

    def digest(self, index: int) -> bytes:
        """Returns a SHA-256 of an image's name, size, checksum (in a zip file) and form: nothing is decoded."""
        name = self.names[index]
        return hashlib.sha256(repr((name, self._listed[name], *self._form)).encode()).digest()


class Found(NamedTuple):
    """Images by a reader, or uint8 [N, H, W, C] where they are in memory anyway, labels int32 [N], class names."""

    images: Reader | np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def find(path: str | os.PathLike, form: Form) -> Found:
    """Returns the images of a folder or zip file of class folders, in the order of their sorted names.

    The folders at the top are the classes, in the order of their sorted names; further folders inside them are only
    gone through. A single folder around all of them, as packing a folder makes, is passed over; so are files and
    folders whose names begin with a dot, and what macOS adds. An empty folder, a file that is no image by its name,
    an image outside the class folders or a lone class is a `UserError`.
    """
    path = paths.path_of(path)
    container, names = _opened(path)
    wrapped = _is_wrapped(names)
    classes = [_class_of(path, name, wrapped) for name in names]
    class_names = tuple(sorted(set(classes)))
    if len(class_names) < 2:
        raise UserError(f"{path}: has one class folder only, {printable(class_names[0])}; two classes are needed")
    number = {name: y for y, name in enumerate(class_names)}
    labels = np.array([number[name] for name in classes], np.int32)
    check_pairs_of_images(path, labels, class_names)
    return Found(Pictures(path, container, names, form), labels, class_names)


def _opened(path: paths.Path) -> tuple[Container, list[str]]:
    """The container at a path, and the sorted names of its images."""
    if not paths.exists(path):
        raise UserError(f"{path}: no such folder or zip file")
    container = Folder(path) if path.is_dir() else Zip(path)
    names = sorted(name for name in container.names if not name.endswith("/") and not is_hidden(name))
    if not names:
        raise UserError(f"{path}: holds no images; it should hold a folder for each class, with the images in it")
    others = [name for name in names if not name.lower().endswith(pictures.SUFFIXES)]
    if others:
        raise UserError(
            f"{path}: {printable(others[0])} is no image by its name"
            f"{f' (nor are {len(others) - 1} more)' if len(others) > 1 else ''}; "
            f"move it away, or convert it to one of {', '.join(pictures.SUFFIXES)}"
        )
    return container, names


def check_pairs_of_images(path: str | os.PathLike, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Raises `UserError` for a class with fewer than two images: no part of it could be held out."""
    counts = np.bincount(labels, minlength=len(class_names))
    if counts.min() < 2:
        lone = printable(class_names[counts.argmin()])
        raise UserError(f"{path}: class {lone!r} has {counts.min()} of the images; each needs two at least")


def _is_wrapped(names: Sequence[str]) -> bool:
    return len({name.partition("/")[0] for name in names}) == 1 and all(name.count("/") >= 2 for name in names)


def _class_of(path: paths.Path, name: str, wrapped: bool) -> str:
    parts = name.split("/")
    if len(parts) < 2:
        raise UserError(f"{path}: {printable(name)} lies in no class folder; images are named CLASS/image.png")
    return parts[1] if wrapped else parts[0]


def same_classes(path: str, train: Found, test_path: str, test: Found) -> None:
    """Raises `UserError` where two parts of a data set have not the same classes in the same order."""
    differ = sorted(set(train.class_names) ^ set(test.class_names))
    if differ:
        shown = ", ".join(printable(name) for name in differ[:_SHOWN])
        raise UserError(
            f"{path} has {len(train.class_names)} classes and {test_path} {len(test.class_names)}; only one of them "
            f"has: {shown}{', ...' if len(differ) > _SHOWN else ''}"
        )
    class_order.check(path, train.class_names, test_path, test.class_names)


def read_npz(path: str | os.PathLike) -> tuple[Found, Found | None]:
    """Returns the training images of a .npz file and its test images, None where it has none.

    Arrays: images uint8 [N, H, W, C] or [N, H, W], labels int [N]; test_images and test_labels likewise; class_names
    [K] of text, by default the numbers up to the largest label. Anything else is a `UserError`.
    """
    arrays = files.read_arrays(path)
    missing, unknown = sorted(_NEEDED - arrays.keys()), sorted(arrays.keys() - _NEEDED - _OPTIONAL)
    if missing or unknown:
        what = f"has no array {missing[0]!r}" if missing else f"has an array {printable(unknown[0])!r}"
        raise UserError(
            f"{path}: {what}; it should hold images and labels, and may hold test_images, test_labels, class_names"
        )
    if ("test_images" in arrays) != ("test_labels" in arrays):
        raise UserError(f"{path}: test_images and test_labels go together; give both or neither")
    labels = {name: _whole(path, name, arrays[name]) for name in ("labels", "test_labels") if name in arrays}
    count = int(max(values.max() for values in labels.values())) + 1
    class_names = tuple(map(str, range(count)))
    if "class_names" in arrays:
        class_names = tuple(map(str, arrays["class_names"].tolist()))
        if arrays["class_names"].ndim != 1 or len(class_names) < count:
            raise UserError(f"{path}: {len(class_names)} class_names, but labels up to {count - 1}")
    train = Found(_pixels(path, "images", arrays["images"]), labels["labels"], class_names)
    if "test_images" not in arrays:
        return train, None
    return train, Found(_pixels(path, "test_images", arrays["test_images"]), labels["test_labels"], class_names)


def _whole(path: str | os.PathLike, name: str, labels: np.ndarray) -> np.ndarray:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0 or labels.min() < 0:
        raise UserError(f"{path}: {name} must be whole numbers from 0, one an image, got {labels.dtype} {labels.shape}")
    return labels.astype(np.int32)


def _pixels(path: str | os.PathLike, name: str, images: np.ndarray) -> np.ndarray:
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"{path}: {name} must be uint8 [N, H, W], or [N, H, W, C] with 1 or 3 channels, "
            f"got {images.dtype} {images.shape}"
        )
    return images
