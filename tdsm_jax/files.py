"""Files that are either whole or absent, on this machine or in a bucket: atomic writes, JSON, content hashes.

An object in a bucket (see `paths`) appears whole when it is closed, and cannot be added to.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from tdsm_jax import hosts
from tdsm_jax.errors import UserError
from tdsm_jax.paths import is_remote, path_of, reaching

_PART = 1 << 24  # bytes of an object that are asked for at once, where not all are


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Yields a binary file that takes its place at `path` only if the block ends without an error.

    Among several hosts one writes; what the others write goes nowhere.
    """
    if not hosts.is_writer():
        yield io.BytesIO()
        return
    path = path_of(path)
    if is_remote(path):
        content = io.BytesIO()
        yield content
        try:
            # In one write: one that is interrupted between two is closed, and the half that it was appears.
            with reaching(path):
                path.write_bytes(content.getvalue())
        except FileNotFoundError:
            raise UserError(f"{path}: cannot be written; there is no such bucket") from None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; keys keep their order."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file; a missing or malformed one is a `UserError` naming it."""
    try:
        return json.loads(read_bytes(path).decode())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run again") from None


def read_bytes(path: str | os.PathLike) -> bytes:
    """Returns the bytes of a file."""
    path = path_of(path)
    with reaching(path):
        return path.read_bytes()


def open_parts(path: str | os.PathLike) -> BinaryIO:
    """Returns a file open for reading here and there, of an object large parts at a time: each is a request."""
    path = path_of(path)
    file = path.open("rb")
    # gcsfs asks for what each read wants, thousands of small images one by one; TensorFlow's files read ahead.
    return io.BufferedReader(file, _PART) if is_remote(path) and hasattr(file, "readinto") else file


def digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's bytes."""
    path, content = path_of(path), hashlib.sha256()
    with reaching(path), path.open("rb") as file:
        while chunk := file.read(_PART):
            content.update(chunk)
    return content.hexdigest()


def sweep_partials(directory: str | os.PathLike) -> None:
    """Removes what a killed process left of its atomic writes under `directory`; in a bucket it leaves nothing."""
    if is_remote(directory) or not hosts.is_writer():
        return
    for partial in pathlib.Path(directory).rglob(".*.partial"):
        partial.unlink(missing_ok=True)


def write_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Writes named arrays as an uncompressed .npz, atomically."""
    with atomic_write(path) as file:
        np.savez(file, **arrays)


# What np.load raises, between them, for what is no whole .npz: an .npy is no context manager, a header may claim
# any size or compression.
_UNREADABLE = (
    ValueError, TypeError, EOFError, OSError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a .npz of plain arrays; pickled objects are refused, a damaged file is a `UserError` naming it."""
    with _stored(path) as stored:
        return {name: stored[name] for name in stored.files}


def array_names(path: str | os.PathLike) -> set[str]:
    """Returns the names of the arrays in a .npz, none of which is read; a damaged file is a `UserError`."""
    with _stored(path) as stored:
        return set(stored.files)


def read_array(path: str | os.PathLike) -> np.ndarray:
    """Reads the array of a .npy; pickled objects are refused, a damaged file is a `UserError` naming it."""
    with _loading(path) as source:
        return np.lib.format.read_array(source, allow_pickle=False)


@contextlib.contextmanager
def _stored(path: str | os.PathLike) -> Iterator[Any]:
    with _loading(path) as source, np.load(source, allow_pickle=False) as stored:
        yield stored


@contextlib.contextmanager
def _loading(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Yields the file to load arrays from; what is wrong with it is a `UserError`."""
    try:
        # An object is read at once: piece by piece it would be a request for each array, or for each few megabytes.
        source = io.BytesIO(read_bytes(path)) if is_remote(path) else open(path, "rb")
        with source:  # of a damaged file np.load leaves a path's open
            yield source
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError:  # which is a ValueError
        raise
    except _UNREADABLE as error:
        raise UserError(f"{path}: not a readable array file ({error}); delete it and run again") from None


class GrowingText:
    """A text file that lines are added to, from `text` on.

    A local one holds a line when `write` returns. An object is written anew by each `save`, and by `close`.
    """

    def __init__(self, path: str | os.PathLike, text: str):
        self._path, self._text = path_of(path), [text]
        write_text(self._path, text)
        self._file = None if is_remote(self._path) else self._path.open("a", encoding="utf-8")
        self._saved = True

    def write(self, line: str) -> None:
        """Adds a line, its newline included."""
        if self._file is None:
            self._text.append(line)
            self._saved = False
        else:
            self._file.write(line)
            self._file.flush()

    def save(self) -> None:
        """Makes sure that all lines so far are in the file."""
        if not self._saved:
            write_text(self._path, "".join(self._text))
            self._saved = True

    def close(self) -> None:
        """Saves and closes the file; a second call does nothing."""
        self.save()
        if self._file is not None:
            self._file.close()
