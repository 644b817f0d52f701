"""Sets of images to be compared, in whichever form they come: archives, folders of PNG files, .npz, .npy.

An archive (a folder or a zip file) with a dataset.json has the labels of that. Without one, several subfolders of PNG
files are classes: of the number that is their name where all are numbers, else in the order of their names. Subfolders
named by five digits or more only number the images, as those of samplers do. A .npz holds `images` and maybe `labels`,
as ours, or `arr_0` and maybe `arr_1` as ADM's sample batches; a .npy holds images alone. Arrays are uint8 [N,H,W,C], or
[N,H,W] of grey images.
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tdsm_jax import files, paths
from tdsm_jax.data import sources
from tdsm_jax.data.edm_zip import Archive
from tdsm_jax.data.sources import NAMED, DataSpec
from tdsm_jax.data.stream import Images, Streamed
from tdsm_jax.errors import UserError, did_you_mean

_NUMBERED = re.compile(r"\d{5,}")  # a folder that is no class
_CHUNK = 1000  # images that are hashed at a time


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Images uint8 [N,H,W,C], an array or indexed like one, their labels int32 [N] or None, class names or ()."""

    name: str
    images: Images
    labels: np.ndarray | None
    class_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int | None:
        """The number of classes: of the names, or of the labels up to the largest; None for unlabelled images."""
        if self.labels is None:
            return None
        return max(len(self.class_names), int(self.labels.max()) + 1)

    @functools.cached_property
    def content_hash(self) -> str:
        """The SHA-256 of the images, in order: what `images_hash` gives."""
        content = hashlib.sha256(f"{self.images.dtype.str} {self.images.shape}\n".encode())
        for start in range(0, len(self.images), _CHUNK):
            content.update(np.ascontiguousarray(self.images[start : start + _CHUNK]))
        return content.hexdigest()


def read(
    name: str, split: str | None = None, labels_path: str = "", given: Mapping[str, float | str] = MappingProxyType({})
) -> ImageSet:
    """Returns the images of a file or folder, or of a dataset that is known by `name`.

    `split`, "train" or "test", chooses a part of a named dataset, by default train, or of an archive, by default all:
    the same as a run's of these `given` fields of `sources.DataSpec`. `labels_path` is a dataset.json whose
    labels replace those of an archive. Anything that holds no images in a supported form is a `UserError`.
    """
    arrays = name.endswith((".npz", ".npy"))
    if name not in NAMED and not paths.exists(name):
        raise UserError(f"{name}: no such file, folder or dataset{did_you_mean(name, NAMED)}")
    if labels_path and (name in NAMED or arrays):
        raise UserError(f"the images of {name} have no names to match the labels of {labels_path} by")
    if name in NAMED or (split and not arrays):
        spec = DataSpec(name) if name in NAMED else DataSpec("archive", path=name, labels_path=labels_path)
        train, test = sources.load(dataclasses.replace(spec, **given))
        part = test if split == "test" else train
        return ImageSet(f"{name} ({split or 'train'})", part.images, part.labels, part.class_names)
    if split or given:
        raise UserError(f"{name} is taken whole; a split is chosen of an archive with labels or of {', '.join(NAMED)}")
    return _of_arrays(name) if arrays else _of_archive(name, labels_path)


def _of_archive(path: str, labels_path: str) -> ImageSet:
    archive = Archive(path)
    if labels_path:
        return ImageSet(path, Streamed(archive), archive.labels_of(labels_path), archive.class_names)
    if archive.has_labels_file:
        return ImageSet(path, Streamed(archive), archive.labels, archive.class_names)
    folders = [name.rpartition("/")[0] for name in archive.names]
    classes = sorted(set(folders))
    if "" in classes or all(_NUMBERED.fullmatch(folder.rpartition("/")[2]) for folder in classes):
        if len(classes) > 1 and "" in classes:
            raise UserError(f"{path}: holds PNG files beside folders of them; put each into the folder of its class")
        return ImageSet(path, Streamed(archive), None)
    if len(classes) == 1:  # samples/0.png
        return ImageSet(path, Streamed(archive), None)
    number, names = _numbered_classes(classes)
    return ImageSet(path, Streamed(archive), np.array([number[folder] for folder in folders], np.int32), names)


def _numbered_classes(folders: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Returns the class of each folder, of those in order, and the names of the classes."""
    parents, names = (
        {folder.rpartition("/")[0] for folder in folders},
        [folder.rpartition("/")[2] for folder in folders],
    )
    if len(parents) > 1:
        names = folders
    if all(re.fullmatch("[0-9]+", name) for name in names):  # in the order of names 10 would come before 2
        numbers = {folder: int(name) for folder, name in zip(folders, names, strict=True)}
        return numbers, tuple(map(str, range(max(numbers.values()) + 1)))
    return {folder: y for y, folder in enumerate(folders)}, tuple(names)


def _of_arrays(path: str) -> ImageSet:
    if path.endswith(".npy"):
        return ImageSet(path, _checked(path, files.read_array(path)), None)
    arrays = files.read_arrays(path)
    for images, labels in (("images", "labels"), ("arr_0", "arr_1")):
        if images in arrays:
            checked = _checked(path, arrays[images])
            return ImageSet(path, checked, _checked_labels(path, arrays.get(labels), len(checked)))
    raise UserError(f"{path}: holds {', '.join(sorted(arrays)) or 'nothing'}, neither images nor arr_0")


def _checked(path: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        raise UserError(f"{path}: images must be uint8 in 0..255, got {images.dtype}")
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        raise UserError(f"{path}: images {images.shape} have their channels first; store them as [N, H, W, C]")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise UserError(f"{path}: images must be [N, H, W, C] with N >= 1 and C = 1 or 3, got {images.shape}")
    return images


def _checked_labels(path: str, labels: np.ndarray | None, count: int) -> np.ndarray | None:
    if labels is None:
        return None
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UserError(f"{path}: labels must be {count} integers from 0, got {labels.dtype} {labels.shape}")
    return labels.astype(np.int32)


def describe(images: ImageSet) -> dict[str, str | list[int] | None]:
    """Returns what the images are, for the record of what was made of them."""
    return {"name": os.fspath(images.name), "shape": list(images.images.shape), "sha256": images.content_hash}
