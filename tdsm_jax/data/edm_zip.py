"""The dataset format of StyleGAN, EDM and TDSM: PNG images and a dataset.json, in a folder or a zip file.

Image i is named 00000/img00000000.png onwards, a thousand to a folder, and the order of the images is that of
their sorted names. dataset.json holds {"labels": [[name, label], ...]}, or null for unlabelled images. Noisy
labels are released as another such file. A "class_names" list beside "labels" is ours; other readers pass it over.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from tdsm_jax import files, paths
from tdsm_jax.data import class_order, png
from tdsm_jax.data.containers import Folder, Zip, is_hidden, read_file
from tdsm_jax.data.stream import Streamed, loaded
from tdsm_jax.errors import UserError

LABELS = "dataset.json"
MAX_CLASSES = 2**16  # a larger label is a mistake, and would size matrices
MAX_LABELS_BYTES = 2**28  # several times those of ImageNet
MAX_IMAGE_BYTES = 2**26  # the largest uncompressed image that is read, and its metadata
_OTHER_IMAGES = (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class Archive:
    """Images and labels of a folder or zip file, each read when asked for; close it, or use it in a `with`.

    `names` are the sorted names of the N images and `image_shape` is (H, W, C), C being 1 or 3, stated by the
    header of the first image. Opening lists names and decodes nothing. Names are only ever looked up, never
    used as paths to write to. What is missing, damaged or unsupported raises a `UserError` naming the file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = paths.path_of(path)
        if not paths.exists(self.path):
            raise UserError(f"{path}: no such folder or zip file")
        self._container = Folder(self.path) if self.path.is_dir() else Zip(self.path)
        self.names = _image_names(self.path, self._container.names)
        self.image_shape = self._judged(self.names[0], png.shape_of)

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the zip file; a folder has nothing to close."""
        self._container.close()

    @functools.cached_property
    def _own_json(self) -> Any:
        if not self.has_labels_file:
            raise UserError(f"{self.path}: no {LABELS} at its top level; give the labels as a file of their own")
        return _parse_json(f"{self.path}/{LABELS}", self._container.read(LABELS, MAX_LABELS_BYTES))

    @property
    def has_labels_file(self) -> bool:
        """Whether the archive has a dataset.json of its own."""
        return LABELS in self._container.names

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """The labels int32 [N] of the archive's own dataset.json, None for unlabelled images."""
        return _labels(f"{self.path}/{LABELS}", self._own_json, self.names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names of the archive's own dataset.json, () where it has none."""
        return _class_names(f"{self.path}/{LABELS}", self._own_json) if self.has_labels_file else ()

    def labels_of(self, path: str | os.PathLike) -> np.ndarray:
        """Returns the labels int32 [N] that a separate dataset.json gives to these images, matched by name.

        Where both name their classes, names in another order are a `UserError`.
        """
        labels, class_names = read_labels(path, self.names)
        class_order.check(self.path, self.class_names, path, class_names)
        return labels

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> np.ndarray:
        """Returns the image uint8 [H, W, C] at `index` of `names`."""
        return self._judged(self.names[index], self._decode)

    @functools.cached_property
    def _listed(self) -> dict[str, list]:
        return {name: rest for name, *rest in self._container.listing()}

    def digest(self, index: int) -> bytes:
        """Returns a SHA-256 of an image's name, size and checksum (in a zip file), without decoding it."""
        name = self.names[index]
        return hashlib.sha256(repr((name, self._listed[name])).encode()).digest()

    def load(self) -> np.ndarray:
        """Returns all images, uint8 [N, H, W, C]."""
        return loaded(Streamed(self), self.path.name)

    def _judged(self, name: str, function: Callable[[bytes], Any]) -> Any:
        """Returns `function` of a file's bytes; its complaint is completed by the name of the file."""
        content = self._container.read(name, MAX_IMAGE_BYTES)
        try:
            return function(content)
        except UserError as error:
            raise UserError(f"{self.path}: {name} {error}") from None

    def _decode(self, content: bytes) -> np.ndarray:
        shape = png.shape_of(content)
        if shape != self.image_shape:
            raise UserError(
                f"has height, width and channels {shape}, but {self.names[0]} has {self.image_shape}; "
                "bring all images to one form"
            )
        return png.decode(content)


def fingerprint(path: str | os.PathLike) -> str:
    """Returns a SHA-256 that changes with a file, or with the files and labels of an archive (a folder or a .zip).

    Of an archive's images it reads the table of contents alone: names, sizes and, in a zip file, checksums. Hidden
    files, which file managers leave, do not count.
    """
    path = paths.path_of(path)
    if not path.is_dir() and path.suffix != ".zip":
        if not paths.is_file(path):
            raise UserError(f"{path}: no such file or folder")
        return files.file_digest(path)
    if not paths.exists(path):
        raise UserError(f"{path}: no such folder or zip file")
    with contextlib.closing(Folder(path) if path.is_dir() else Zip(path)) as container:
        labels = container.read(LABELS, MAX_LABELS_BYTES) if LABELS in container.names else b""
        listing = [entry for entry in container.listing() if not is_hidden(entry[0])]
        return files.digest([listing, hashlib.sha256(labels).hexdigest()])


def _image_names(path: paths.Path, names: set[str]) -> list[str]:
    check_plain(path, sorted(name for name in names if name.lower().endswith(".png")))  # before ../ counts as hidden
    seen = sorted(name for name in names if not is_hidden(name))
    chosen = [name for name in seen if name.lower().endswith(".png")]
    others = [name for name in seen if name.lower().endswith(_OTHER_IMAGES)]
    if others:
        raise UserError(f"{path}: {others[0]} is not named as a PNG file; convert the images to PNG")
    if not chosen:
        raise UserError(f"{path}: holds no PNG images")
    return chosen


def check_plain(path: paths.Path, names: Sequence[str]) -> None:
    """Raises `UserError` for a name that may lead out of the folder or zip file that its file is looked for in."""
    for name in names:
        if "\\" in name or {"", ".", ".."} & set(name.split("/")):
            raise UserError(f"{path}: {_short(name)} is no plain relative name; pack or name the images again")


def _parse_json(path: str | os.PathLike, content: bytes) -> dict:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(parsed, dict) or "labels" not in parsed:
        raise UserError(f'{path}: not of the form {{"labels": [[name, label], ...]}}')
    return parsed


def _labels(path: str, content: dict, names: Sequence[str]) -> np.ndarray | None:
    """The labels in the order of `names`, each of which must have exactly one."""
    pairs = content["labels"]
    if pairs is None:
        return None
    if not isinstance(pairs, list):
        raise UserError(f'{path}: "labels" must be a list of [name, label] pairs, or null')
    label_of = {}
    for index, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UserError(f"{path}: entry {index} of the labels is {_short(pair)}, not [name, label]")
        name, label = pair
        if type(label) is not int or not 0 <= label < MAX_CLASSES:
            raise UserError(
                f"{path}: {_short(name)} has the label {_short(label)}; labels are integers from 0, not scores or names"
            )
        if name in label_of:
            raise UserError(f"{path}: {_short(name)} is labelled twice")
        label_of[name] = label
    unlabelled, missing = sorted(set(names) - label_of.keys()), sorted(label_of.keys() - set(names))
    if unlabelled:
        raise UserError(f"{path}: no label for {_some(unlabelled)}; is it the label file of these images?")
    if missing:
        raise UserError(f"{path}: labels for {_some(missing)} without an image; is it the label file of these images?")
    return np.array([label_of[name] for name in names], np.int32)


def read_labels(path: str | os.PathLike, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the labels int32 [N] that a dataset.json gives to the images `names` [N], all of which it labels.

    With them come the class names of that file, () where it has none.
    """
    content = _parse_json(path, read_file(path, MAX_LABELS_BYTES))
    labels = _labels(str(path), content, names)
    if labels is None:
        raise UserError(f'{path}: "labels" is null; give a file that holds labels')
    return labels, _class_names(str(path), content)


def _class_names(path: str, content: dict) -> tuple[str, ...]:
    class_names = content.get("class_names", [])
    if not isinstance(class_names, list) or not all(isinstance(name, str) and name for name in class_names):
        raise UserError(f'{path}: "class_names" must be a list of names')
    return tuple(class_names)


def _some(names: list[str]) -> str:
    return f"{_short(names[0])} and {len(names) - 1} more" if len(names) > 1 else _short(names[0])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def image_names(count: int) -> list[str]:
    """Returns the names that the format gives to `count` images, in order."""
    return [f"{index // 1000:05d}/img{index:08d}.png" for index in range(count)]


def write(
    path: str | os.PathLike,
    images: np.ndarray,
    labels: np.ndarray | None,
    class_names: Sequence[str] = (),
    names: Sequence[str] | None = None,
) -> None:
    """Writes images uint8 [N, H, W, C] and labels int [N] (None: unlabelled) to a zip file or a new folder.

    A `path` ending in .zip is a zip file, any other a folder. The archive appears whole or not at all, and the
    same input gives the same bytes. `names` are those of the images, in sorted order; by default the format's
    own. A path that exists, or images that are not square, grey or RGB, raise `UserError`.
    """
    path = paths.path_of(path)
    names = image_names(len(images)) if names is None else list(names)
    _, height, width, channels = images.shape
    if images.dtype != np.uint8 or height != width or channels not in (1, 3):
        raise UserError(
            f"{path}: archives hold square uint8 images, grey or RGB; these are {height}x{width}x{channels}"
        )
    if labels is not None and class_names and np.max(labels) >= len(class_names):
        raise UserError(f"{path}: the labels go up to {np.max(labels)}, but there are {len(class_names)} class names")
    if sorted(set(names)) != names:
        raise UserError(f"{path}: the image names must be distinct and sorted, since readers sort them")
    check_plain(path, names)
    if paths.exists(path):
        raise UserError(f"{path} exists; give another path or remove it")
    if paths.is_remote(path) and path.suffix != ".zip":
        raise UserError(f"{path}: a folder in a bucket would be there before it is whole; let the name end in .zip")
    paths.make_folder(path.parent)
    with _new_zip(path) if path.suffix == ".zip" else _new_folder(path) as add:
        for name, image in zip(tqdm(names, desc=path.name, unit=" images", disable=None, delay=2), images, strict=True):
            add(name, png.encode(image))
        add(LABELS, labels_text(names, labels, class_names).encode())  # last: without it nothing looks finished


def labels_text(names: Sequence[str], labels: np.ndarray | None, class_names: Sequence[str] = ()) -> str:
    """Returns the text of a dataset.json that labels `names` [N] with `labels` int [N], one image a line."""
    head = f'"class_names": {json.dumps(list(class_names))},\n' if class_names else ""
    if labels is None:
        return f'{{{head}"labels": null}}\n'
    pairs = (json.dumps([name, label]) for name, label in zip(names, np.asarray(labels).tolist(), strict=True))
    return f'{{{head}"labels": [\n' + ",\n".join(pairs) + "\n]}\n"


@contextlib.contextmanager
def _new_zip(path: paths.Path) -> Iterator[Callable[[str, bytes], None]]:
    with files.atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, content: bytes) -> None:
            entry = zipfile.ZipInfo(name)  # dated 1980, whatever the time: the same input gives the same bytes
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # and on every platform
            archive.writestr(entry, content)

        yield add


@contextlib.contextmanager
def _new_folder(path: pathlib.Path) -> Iterator[Callable[[str, bytes], None]]:
    partial = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".unfinished"))

    def add(name: str, content: bytes) -> None:
        target = partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    try:
        yield add
        partial.chmod(0o755)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial)
        raise
