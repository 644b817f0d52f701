"""The archives that CIFAR, MNIST and small ImageNet are published as, read in the order of their files.

Examples are what the builders of TensorFlow Datasets make of the same archives: the keys that they order records by,
and features. Nothing in the archives is ever unpickled.
"""

import functools
import gzip
import io
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tdsm_jax import paths
from tdsm_jax.errors import UserError

Example = tuple[int | str, dict[str, Any]]  # a key, and features whose image is uint8 [H, W, C]

_SIDE = 32  # of CIFAR's images
_DAMAGE = (OSError, EOFError, ValueError, KeyError, zlib.error, struct.error, tarfile.TarError, zipfile.BadZipFile)


class Contents(NamedTuple):
    """Class names by feature (those that the archives tell), and by split a function that starts its examples."""

    class_names: Mapping[str, list[str]]
    examples: Mapping[str, Callable[[], Iterator[Example]]]


def _reading(path: paths.Path, error: Exception) -> UserError:
    return UserError(f"{path}: not the archive it should be ({' '.join(str(error).split()) or type(error).__name__})")


class _CifarFiles(NamedTuple):
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: Mapping[str, str]  # feature -> the file of its class names, in the order of the label bytes


_CIFAR = {
    "cifar10": _CifarFiles(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
        ("test_batch.bin",),
        {"label": "batches.meta.txt"},
    ),
    "cifar100": _CifarFiles(
        "cifar-100-binary",
        ("train.bin",),
        ("test.bin",),
        {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    ),
}


def read_cifar(name: str, archive: paths.Path) -> Contents:
    """Returns the examples of CIFAR's binary archive: a byte for each label and 3,072 of red, green and blue rows."""
    stored = _CIFAR[name]
    members = _read_tar(archive, stored.folder, {*stored.train, *stored.test, *stored.names.values()})
    class_names = {
        feature: [line for line in members[file].decode().split("\n") if line] for feature, file in stored.names.items()
    }
    width = len(stored.names)
    length = width + 3 * _SIDE * _SIDE
    rows = {}
    for split, batches in (("train", stored.train), ("test", stored.test)):
        content = b"".join(members[file] for file in batches)
        if not content or len(content) % length:
            raise UserError(f"{archive}: {len(content)} bytes of {split} images are no records of {length} bytes")
        rows[split] = np.frombuffer(content, np.uint8).reshape(-1, length)

    def examples(split: str) -> Iterator[Example]:
        for index, row in enumerate(rows[split]):
            labels = dict(zip(stored.names, row[:width].tolist(), strict=True))
            image = row[width:].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
            yield index, {"id": f"{split}_{index:05d}", "image": image} | labels

    return Contents(class_names, {split: functools.partial(examples, split) for split in rows})


def _read_tar(path: paths.Path, folder: str, names: set[str]) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:  # in their order: going back would unpack everything again
                name = member.name.removeprefix("./").removeprefix(f"{folder}/")
                if name in names and member.isfile():
                    found[name] = archive.extractfile(member).read()
    except _DAMAGE as error:
        raise _reading(path, error) from None
    if names - found.keys():
        raise UserError(f"{path}: has no {folder}/{min(names - found.keys())}")
    return found


def read_mnist(name: str, *archives: paths.Path) -> Contents:
    """Returns the examples of MNIST's four files: images and labels of the training set, then of the test set."""
    arrays = [_read_idx(path) for path in archives]
    pairs = {"train": arrays[:2], "test": arrays[2:]}
    for (images, labels), path in zip(pairs.values(), archives[::2], strict=True):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise UserError(f"{path}: holds images {images.shape} for labels {labels.shape}")

    def examples(split: str) -> Iterator[Example]:
        for index, (image, label) in enumerate(zip(*pairs[split], strict=True)):
            yield index, {"image": image[..., None], "label": int(label)}

    return Contents({}, {split: functools.partial(examples, split) for split in pairs})


def _read_idx(path: paths.Path) -> np.ndarray:
    """An array of bytes: two zeros, the type 8, the rank, the sizes as big-endian 32 bits, the values."""
    try:
        with gzip.open(path) as file:
            content = file.read()
        kind, rank = struct.unpack(">HBB", content[:4])[1:]
        shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
        if kind != 8 or content[:2] != b"\0\0":
            raise ValueError("its values are no bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except _DAMAGE as error:
        raise _reading(path, error) from None


def read_imagenet(name: str, *archives: paths.Path) -> Contents:
    """Returns the examples of ImageNet in small (Chrabaszcz et al. 2017): zips of .npz files, the last of validation.

    The key of an image is the name of its .npz file followed by its number in it; labels count from 1 there.
    """
    parts = {"train": archives[:-1], "validation": archives[-1:]}

    def examples(split: str) -> Iterator[Example]:
        for path in parts[split]:
            try:
                yield from _zip_examples(path)
            except _DAMAGE as error:
                if isinstance(error, UserError):
                    raise
                raise _reading(path, error) from None

    return Contents({}, {split: functools.partial(examples, split) for split in parts})


def _zip_examples(path: paths.Path) -> Iterator[Example]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = posixpath.normpath(member.filename)
            if member.is_dir() or not member.file_size or posixpath.basename(name).startswith("."):
                continue  # folders and what file managers leave behind
            with np.load(io.BytesIO(archive.read(member)), allow_pickle=False) as stored:
                images, labels = stored["data"], stored["labels"]
            side = round((images.shape[-1] / 3) ** 0.5)
            images = images.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield f"{name}{number}", {"image": image, "label": int(label) - 1}
