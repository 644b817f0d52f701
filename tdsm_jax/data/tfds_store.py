"""Datasets that TensorFlow Datasets has prepared, read without TensorFlow and without a network.

A prepared dataset is the folder DATA_DIR/NAME/VERSION, or DATA_DIR/NAME/CONFIG/VERSION, of record files (array_record
or TFRECORD) and what they hold as JSON. Records lie in the order of the MD5 hash of their keys. Here an image has the
index that it has in the original files wherever that is known, so labels fit whichever way a dataset was prepared:

* CIFAR and its human labels: records carry it, as train_00499;
* MNIST and Fashion-MNIST: their keys are that index, so hashing all of them gives the order back;
* imagenet_resized: the key is the name of a file in the original zip and a number inside it, which no record tells.
  Its images keep the order of the records, which is the same wherever these keys are.
"""

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tdsm_jax import files, paths
from tdsm_jax.data import png
from tdsm_jax.data.record_files import BATCH, ArrayRecordFile, RecordFile, TfrecordFile
from tdsm_jax.errors import UserError

METADATA = "dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_ID = re.compile(rb"([a-z]+)_(\d+)")
_READERS = {"tfrecord": TfrecordFile, "array_record": ArrayRecordFile}
_HASHED_WHOLE = 1 << 30  # bytes of record files; of more, parts are
_PART = 1 << 20


class Known(NamedTuple):
    """What is the same in every copy of a dataset."""

    num_classes: int
    splits: tuple[str, str]  # training images, test images
    keys: str  # how an index is found: id (of the record), index (the key), record (its number)
    sides: tuple[int, ...] = (32,)  # pixels; of several, each is a config of its own


_TEST = ("train", "test")
DATASETS = {
    "mnist": Known(10, _TEST, "index", (28,)),
    "fashion_mnist": Known(10, _TEST, "index", (28,)),
    "cifar10": Known(10, _TEST, "id"),
    "cifar100": Known(100, _TEST, "id"),
    "imagenet_resized": Known(1000, ("train", "validation"), "record", (8, 16, 32, 64)),
    "cifar10_n": Known(10, _TEST, "id"),
    "cifar100_n": Known(100, _TEST, "id"),
}
IMAGES = tuple(name for name in DATASETS if not name.endswith("_n"))  # the others label images of these


class Split:
    """One split of a prepared dataset: `len` images by index, `read` one at a time or all at once.

    `image_shape` is (H, W, C), `class_names` [K]. Nothing but the metadata is read before it is asked for.
    """

    def __init__(self, name: str, directory: paths.Path, part: int, image_size: int = 0):
        """Opens the training (part 0) or test (part 1) images of the dataset `name` in its folder `directory`.

        Images smaller than `image_size` get a black margin.
        """
        known, info = DATASETS[name], _metadata(directory)
        self.name, self.directory, self.split = name, directory, known.splits[part]
        if self.split not in info.splits or not info.splits[self.split].num_examples:
            raise UserError(f"{directory}: has no images in split {self.split!r}; prepare the dataset again")
        self.class_names = tuple(info.features["label"].names)
        if len(self.class_names) != known.num_classes:
            raise UserError(f"{directory}: names {len(self.class_names)} classes, but {name} has {known.num_classes}")
        self._stored_shape = tuple(info.features["image"].shape)
        if self._stored_shape not in [(side, side, c) for side in known.sides for c in (1, 3)]:
            raise UserError(f"{directory}: its images are {self._stored_shape}, which those of {name} are not")
        side, channels = max(image_size, self._stored_shape[0]), self._stored_shape[2]
        self.image_shape = (side, side, channels)
        self._keys = "record" if info.disable_shuffling and known.keys == "index" else known.keys
        self._format = info.file_format.value
        stored = info.splits[self.split]
        self._paths, self._lengths = [paths.path_of(path) for path in stored.filepaths], list(stored.shard_lengths)
        self._ends = np.cumsum(self._lengths)
        self._files: dict[int, RecordFile] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> np.ndarray:
        """Returns image `index` as uint8 [H, W, C]; it is decoded at every call."""
        number = int(self._record_of[index])
        shard = int(np.searchsorted(self._ends, number, side="right"))
        (content,) = self._file(shard).read([number - int(self._ends[shard]) + self._lengths[shard]])
        return self._image(_features_of(content, self._paths[shard]), number)

    @functools.cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.directory)

    def digest(self, index: int) -> bytes:
        """Returns a SHA-256 of the prepared dataset as a whole, the index and the form of an image: none is decoded.

        Labels made of streamed images therefore fit images streamed from the same record files alone, wherever they
        lie, and not the other format of them or an archive.
        """
        return hashlib.sha256(repr((self._fingerprint, self.split, index, self.image_shape)).encode()).digest()

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all images uint8 [N, H, W, C] and labels int32 [N], decoded once: 3 kB an image of 32 x 32.

        CIFAR takes 0.2 GB of memory, imagenet_resized/32x32 4 GB and imagenet_resized/64x64 16 GB.
        """
        images = np.empty((len(self), *self.image_shape), np.uint8)
        labels = np.empty(len(self), np.int32)
        for number, index, features in self._in_order():
            images[index] = self._image(features, number)
            labels[index] = _whole_number(features, "label")
        return images, labels

    def columns(self, fields: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns whole-number features of all records, int64 [N] each, such as "label"; no image is decoded."""
        columns = {field: np.empty(len(self), np.int64) for field in fields}
        for _, index, features in self._in_order():
            for field, values in columns.items():
                if field not in features:
                    raise UserError(f"{self.directory}: its records have no {field!r}; prepare the dataset again")
                values[index] = _whole_number(features, field)
        return columns

    @functools.cached_property
    def _record_of(self) -> np.ndarray:
        """The number of the record of each index, int64 [N]."""
        record_of = np.arange(len(self))
        if self._keys == "index":
            record_of[hash_order(self.split, len(self))] = np.arange(len(self))
        elif self._keys == "id":
            for number, index, _ in self._in_order():
                record_of[index] = number
        return record_of

    def _in_order(self) -> Iterator[tuple[int, int, Any]]:
        """Yields number, index and features of every record, in the order of the files."""
        seen = np.zeros(len(self), bool)
        indices = hash_order(self.split, len(self)) if self._keys == "index" else np.arange(len(self))
        for number, features in enumerate(self._records()):
            index = self._index(features, number) if self._keys == "id" else int(indices[number])
            if seen[index]:
                raise UserError(f"{self.directory}: two records of {self.split} are image {index}; prepare it again")
            seen[index] = True
            yield number, index, features

    def _records(self) -> Iterator[Any]:
        label = f"{self.name} {self.split}"
        with tqdm(total=len(self), desc=label, unit=" images", disable=None, delay=2, leave=False) as progress:
            for shard, length in enumerate(self._lengths):
                file = self._file(shard)
                for start in range(0, length, BATCH):
                    contents = file.read(range(start, min(start + BATCH, length)))
                    yield from (_features_of(content, self._paths[shard]) for content in contents)
                    progress.update(len(contents))

    def _file(self, shard: int) -> RecordFile:
        if shard not in self._files:
            self._files[shard] = _open(self._format, self._paths[shard], self._lengths[shard])
        return self._files[shard]

    def _index(self, features: Any, number: int) -> int:
        stored = features["id"].bytes_list.value
        match = _ID.fullmatch(stored[0]) if len(stored) == 1 else None
        if match is None or match[1].decode() != self.split or int(match[2]) >= len(self):
            given = bytes(stored[0]) if stored else None
            raise UserError(
                f"{self.directory}: record {number} of {self.split} has the id {given!r}, "
                f"not one from {self.split}_00000 to {self.split}_{len(self) - 1:05d}; prepare the dataset again"
            )
        return int(match[2])

    def _image(self, features: Any, number: int) -> np.ndarray:
        try:
            image = png.decode(features["image"].bytes_list.value[0])
        except (UserError, IndexError) as error:
            raise UserError(f"{self.directory}: the image of record {number} of {self.split} {error}") from None
        if image.shape != self._stored_shape:
            raise UserError(
                f"{self.directory}: the image of record {number} of {self.split} has shape {image.shape}, but "
                f"features.json says {self._stored_shape}; prepare the dataset again"
            )
        margin = self.image_shape[0] - image.shape[0]
        around = (margin // 2, margin - margin // 2)
        return np.pad(image, (around, around, (0, 0))) if margin else image


def hash_order(split: str, count: int) -> np.ndarray:
    """Returns where TensorFlow Datasets puts keys 0 .. N-1 of a split: entry r is the key of record r, int64 [N]."""
    from tensorflow_datasets.core.hashing import Hasher  # slow to import, and of no use to other data

    hasher = Hasher(split)
    return np.array(sorted(range(count), key=hasher.hash_key), np.int64)


def find(name: str, data_dir: str | os.PathLike = "", config: str = "") -> paths.Path:
    """Returns the folder of the newest version of a prepared dataset; a missing one is a `UserError` at once.

    `data_dir` is the data_dir of TensorFlow Datasets or a folder inside it; "" stands for $TFDS_DATA_DIR, else for
    ~/tensorflow_datasets.
    """
    top = default_dir() if data_dir in ("", None) else paths.path_of(data_dir)
    inner = "/".join(filter(None, (name, config)))
    if paths.is_file(top):
        raise UserError(f"{top}: a file, not a data_dir of TensorFlow Datasets; the dataset 'archive' reads zip files")
    for folder in (top / inner, *([top / config] if config else []), top):
        if paths.is_file(folder / METADATA):
            found = [folder]
        else:
            found = [child for child in paths.children(folder) if _VERSION.fullmatch(child.name)]
            found = sorted((child for child in found if paths.is_file(child / METADATA)), key=_version)
        if found and _is_of(found[-1], name, config):
            return found[-1]
    out = f" --out={data_dir}" if data_dir and not paths.is_remote(data_dir) else ""
    raise UserError(
        f"{top}: holds no prepared {inner}; run python -m tdsm_jax.data.prepare --dataset={inner} "
        f"--archive_dir=FOLDER{out} with the original archives in FOLDER, or name the data_dir of TensorFlow Datasets "
        "that has it"
    )


def default_dir() -> paths.Path:
    """Returns where TensorFlow Datasets keeps data unless told otherwise: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return paths.path_of(default_name())


def default_name() -> str:
    """Returns the path of `default_dir`, or its address, of which nothing is asked."""
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def _is_of(directory: paths.Path, name: str, config: str) -> bool:
    """Says whether a folder holds the dataset: one that is named itself could be any."""
    content = files.read_json(directory / METADATA)
    return isinstance(content, dict) and (content.get("name"), content.get("configName", "")) == (name, config)


def _version(directory: paths.Path) -> tuple[int, ...]:
    return tuple(map(int, directory.name.split(".")))


def _metadata(directory: paths.Path) -> Any:
    """The DatasetInfo of a folder."""
    import tensorflow_datasets as tfds  # slow to import, and of no use to other data

    try:
        info = tfds.builder_from_directory(directory).info
        info.features["label"].names, info.features["image"].shape, info.splits  # noqa: B018 they may be missing
    except Exception as error:  # of JSON, protobuf and what TensorFlow Datasets makes of them
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{directory}: its metadata cannot be read ({reason}); prepare the dataset again") from None
    if info.file_format is None or info.file_format.value not in _READERS:
        raise UserError(f"{directory}: stored as {info.file_format}; {' and '.join(_READERS)} are read here")
    return info


def _open(file_format: str, path: paths.Path, length: int) -> RecordFile:
    """A record file that has as many records as the metadata says."""
    if not paths.is_file(path):
        raise UserError(f"{path}: missing; prepare the dataset again or copy it again")
    file = _READERS[file_format](path)
    if len(file) != length:
        raise UserError(f"{path}: holds {len(file)} records, but {METADATA} says {length}; prepare the dataset again")
    return file


def _features_of(content: bytes, path: paths.Path) -> Any:
    """The features of a record by name."""
    parse, error = _parser()
    try:
        return parse(content).features.feature
    except error:
        raise UserError(f"{path}: holds a record that is no tf.train.Example; prepare the dataset again") from None


@functools.cache
def _parser() -> tuple[Callable[[bytes], Any], type[Exception]]:
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2  # slow to import, and of no use to other data

    return tf_example_pb2.Example.FromString, DecodeError


def _whole_number(features: Any, field: str) -> int:
    values = features[field].int64_list.value
    return values[0] if len(values) == 1 else -1


def fingerprint(directory: paths.Path) -> str:
    """Returns a SHA-256 that changes with a prepared dataset, whatever its folder is called and how old its files are.

    Record files are read whole up to 1 GiB of them; beyond, where reading would take minutes, their sizes and 64
    evenly spread parts of each.
    """
    names = [name for name in paths.walk(directory) if not name.startswith(".")]
    sizes = {name: paths.size(directory / name) for name in names}
    whole = sum(sizes.values()) <= _HASHED_WHOLE
    return files.digest([[name, sizes[name], _content(directory / name, sizes[name], whole)] for name in names])


def _content(path: paths.Path, size: int, whole: bool) -> str:
    if whole or size <= 64 * _PART:
        return files.file_digest(path)
    content = hashlib.sha256()
    with contextlib.closing(files.open_parts(path)) as file:
        for start in np.linspace(0, size - _PART, 64).astype(np.int64).tolist():
            file.seek(start)
            content.update(file.read(_PART))
    return content.hexdigest()


def find_images(name: str, data_dir: str | os.PathLike = "", image_size: int = 0) -> paths.Path:
    """Returns the folder of a prepared dataset whose images can be had at `image_size`; 0: as they are stored.

    imagenet_resized is a dataset for each size; 28 x 28 digits and clothes may be larger, by a black margin. Any
    other size is a `UserError`.
    """
    sides = DATASETS[name].sides
    if len(sides) > 1:
        if image_size not in sides:
            raise UserError(f"{name} comes at image sizes {', '.join(map(str, sides))}, not {image_size}")
        return find(name, data_dir, f"{image_size}x{image_size}")
    padded = name.endswith("mnist") and image_size > sides[0]
    if image_size not in (0, *sides) and not padded:
        more = ", or larger with a black margin" if name.endswith("mnist") else ""
        raise UserError(f"{name} has images of {sides[0]}x{sides[0]}{more}; set image_size so, not to {image_size}")
    return find(name, data_dir)


def open_splits(name: str, data_dir: str | os.PathLike = "", image_size: int = 0) -> tuple[Split, Split]:
    """Returns the training and the test images of a prepared dataset: see `find` and `find_images`."""
    directory = find_images(name, data_dir, image_size)
    return Split(name, directory, 0, image_size), Split(name, directory, 1, image_size)
