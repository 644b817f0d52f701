"""Images that are decoded when they are asked for, for data sets that do not fit in memory, and batches made ahead.

`Streamed` stands where an array of images stands: `images[index]` gives uint8 [B, H, W, C]. Which examples make up
which batch stays the pure function of (seed, step) that it is in memory (`batches.py`): grain only makes the batches
of the next steps in threads while the device works, so that there is no iterator to save or restore.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
from absl import logging
from tqdm import tqdm

from tdsm_jax.errors import UserError

BLOCK = 256  # images that are read at a time where all of them are gone through
THREADS = min(16, os.cpu_count() or 1)  # that decode; Pillow decodes without holding the interpreter
AHEAD = 2 * THREADS  # calls of the step whose batches may wait, at most
_WAITING = 2**31  # bytes of batches that may wait; two calls in any case, or nothing would be made ahead
_NAMED = 5  # files left out that a log line names


class Reader(Protocol):
    """Random access to images uint8 [H, W, C] of one shape, from several threads at once.

    `read` may raise `UserError`, and `Corrupt` for what is left out where data.on_corrupt=skip. A reader that can
    tell an image from others without decoding it also has `digest(index) -> bytes`.
    """

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray: ...


class Corrupt(UserError):
    """An image that cannot be decoded."""


class Streamed:
    """Images uint8 [N, H, W, C] that `reader` decodes when they are asked for.

    `index` [N] says which of its images they are (None: all). They are an array as far as shape, dtype, length and
    indexing go; what would make one array of all of them is a `UserError`.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, reader: Reader, index: np.ndarray | None = None):
        self._reader = reader
        self._index = np.arange(len(reader)) if index is None else index

    def __len__(self) -> int:
        return len(self._index)

    @functools.cached_property
    def _image_shape(self) -> tuple[int, ...]:
        return self._reader.read(int(self._index[0])).shape

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self._image_shape

    def __getitem__(self, chosen: Any) -> np.ndarray:
        """Returns the images uint8 [B, H, W, C] that indices [B], a mask [N] or a slice choose; of a number one image.

        What cannot be decoded, or has another shape than the first image, is a `UserError`.
        """
        index = self._index[chosen]
        if np.ndim(index) == 0:
            return self._read(int(index))
        images = np.empty((len(index), *self._image_shape), np.uint8)
        for row, image in enumerate(_threads().map(self._read, index.tolist())):
            images[row] = image
        return images

    def _read(self, index: int) -> np.ndarray:
        image = self._reader.read(index)
        if image.dtype != np.uint8 or image.shape != self._image_shape:
            raise UserError(
                f"image {index} is {image.dtype} {image.shape}, the first one uint8 {self._image_shape}; "
                "bring all images to one form"
            )
        return image

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise UserError(
            f"config key data.stream=True leaves {len(self)} images on disk, but what the config asks for needs all of "
            "them in memory: set data.stream=False, or change it"
        )

    def part(self, chosen: np.ndarray) -> "Streamed":
        """Returns the images that a mask [N] or indices choose, none of them decoded."""
        return Streamed(self._reader, self._index[chosen])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields all images in order, `BLOCK` of them at a time."""
        return (self[start : start + BLOCK] for start in range(0, len(self), BLOCK))

    def digests(self) -> Iterator[bytes]:
        """Yields what tells each image from others: what the reader knows of it, else a SHA-256 of its pixels."""
        return iter(self._digests)

    @functools.cached_property
    def _digests(self) -> list[bytes]:
        if hasattr(self._reader, "digest"):
            return [self._reader.digest(index) for index in self._index.tolist()]
        return [hashlib.sha256(image.tobytes()).digest() for block in self.blocks() for image in block]


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="decode")


Images = np.ndarray | Streamed


def is_streamed(images: Images) -> TypeGuard[Streamed]:
    """Says whether images are decoded when they are asked for."""
    return isinstance(images, Streamed)


def part_of(images: Images, chosen: np.ndarray) -> Images:
    """Returns the images that a mask [N] or indices choose; none is decoded where they are streamed."""
    return images.part(chosen) if isinstance(images, Streamed) else images[chosen]


class _Joined:
    """Several sets of images, one after the other."""

    def __init__(self, parts: Sequence[Images]):
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> np.ndarray:
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[which][index - (self._ends[which] - len(self._parts[which]))]


def joined(first: Images, second: Images) -> Images:
    """Returns the images of both, streamed where either is."""
    if is_streamed(first) or is_streamed(second):
        return Streamed(_Joined((first, second)))
    return np.concatenate((first, second))


def loaded(images: Streamed, label: str) -> np.ndarray:
    """Returns all images, uint8 [N, H, W, C]; more than memory holds are a `UserError`."""
    shape = images.shape
    try:
        whole = np.empty(shape, np.uint8)
    except MemoryError:
        raise UserError(f"{label}: images {shape} do not fit in memory; set config key data.stream=True") from None
    with tqdm(total=len(whole), desc=label, unit=" images", disable=None, delay=2, leave=False) as progress:
        for start, block in zip(range(0, len(whole), BLOCK), images.blocks(), strict=True):
            whole[start : start + BLOCK] = block
            progress.update(len(block))
    return whole


def readable(reader: Reader, label: str) -> np.ndarray:
    """Returns the indices of the images that can be decoded; the others are counted in the log, the first ones named.

    It decodes every image once: which examples there are is then a function of the files alone.
    """

    def complaint(index: int) -> str:
        try:
            reader.read(index)
        except Corrupt as error:
            return str(error)
        return ""

    found: list[str] = []
    with tqdm(total=len(reader), desc=f"check {label}", unit=" images", disable=None, delay=2) as progress:
        for start in range(0, len(reader), BLOCK):  # not all at once: each image that waits for its turn takes 2 kB
            found += _threads().map(complaint, range(start, min(start + BLOCK, len(reader))))
            progress.update(len(found) - start)
    corrupt = [text for text in found if text]
    if corrupt:
        more = f" and {len(corrupt) - _NAMED} more" if len(corrupt) > _NAMED else ""
        named = "; ".join(corrupt[:_NAMED])
        logging.warning(
            "data.on_corrupt=skip: %d of %d images are left out: %s%s", len(corrupt), len(found), named, more
        )
    if len(corrupt) == len(found):
        raise UserError(f"{label}: none of its {len(found)} images can be decoded, the first: {corrupt[0]}")
    return np.flatnonzero([not text for text in found])


def check_installed() -> None:
    """Raises `UserError` where grain, which reads ahead, is not installed."""
    try:
        import grain  # noqa: F401
    except ImportError:
        raise UserError(
            "config key data.stream=True reads ahead with grain, which is not installed: pip install 'tdsm_jax[stream]'"
        ) from None


class _Failed(NamedTuple):
    """What a thread raised; handed over as it is, since grain would add lines of its own to the message."""

    error: Exception


class _Calls:
    """What grain reads: entry i is made by a function of the i-th number, when a thread gets to it."""

    def __init__(self, make: Callable[[int], Any], numbers: range):
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Any:
        try:
            return self._make(self._numbers[index])
        except Exception as error:
            return _Failed(error)


@contextlib.contextmanager
def ahead(make: Callable[[int], Any], numbers: range) -> Iterator[Iterator[Any]]:
    """Yields an iterator of `make`(number) for all numbers, in order, made by threads of grain ahead of their turn.

    The first is made here, since its size says how many may wait. What `make` raises is raised in the turn of its
    number.
    """
    check_installed()
    import grain  # an extra

    if not numbers:
        yield iter(())
        return
    known = {numbers[0]: make(numbers[0])}
    waiting = calls_ahead(_bytes(known[numbers[0]]))
    calls = _Calls(lambda number: known.pop(number) if number in known else make(number), numbers)
    options = grain.ReadOptions(num_threads=min(THREADS, waiting), prefetch_buffer_size=waiting)
    iterator = iter(grain.MapDataset.source(calls).to_iter_dataset(options))
    try:
        yield map(_made, iterator)
    finally:
        iterator.close()


def calls_ahead(bytes_a_call: int) -> int:
    """Returns how many calls' batches of that size may wait."""
    return max(2, min(AHEAD, _WAITING // max(1, bytes_a_call)))


def _bytes(made: Any) -> int:
    arrays = made.values() if isinstance(made, dict) else [made]
    return sum(getattr(array, "nbytes", 0) for array in arrays)


def _made(value: Any) -> Any:
    if isinstance(value, _Failed):
        raise value.error
    return value
