"""Files that are either whole or absent, on this machine or in a bucket: atomic writes, JSON, content hashes.

A path is local, or the address gs://BUCKET/NAME of an object in Google Cloud Storage. Objects appear whole when they
are closed, cannot be added to, and make their folders: these exist as long as something is in them.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from tdsm_jax import hosts
from tdsm_jax.errors import UserError

# Local paths stay pathlib's: epath's own hide names that end in ~, and stat fails for users without a name.
Path = pathlib.Path | epath.Path

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_PART = 1 << 24  # bytes of an object that are asked for at once, where not all are
_reached: set[str] = set()  # buckets that have answered


def is_remote(path: str | os.PathLike) -> bool:
    """Tells an address such as gs://bucket/run from a path of this machine."""
    return _SCHEME.match(os.fspath(path)) is not None


def path_of(name: str | os.PathLike) -> Path:
    """Returns the path of a name: pathlib's where it is local, epath's for an address gs://BUCKET/NAME.

    Raises `UserError` for addresses of another kind, and where a bucket does not answer.
    """
    scheme = _SCHEME.match(os.fspath(name))
    if scheme is None:
        return pathlib.Path(name)
    if scheme[1] != "gs":
        raise UserError(f"{name}: addresses {scheme[0]} are not read here; give gs://BUCKET/NAME or a local path")
    found = epath.Path(os.fspath(name))  # never pathlib.Path: it makes a local path of an address
    bucket = os.fspath(found).removeprefix(scheme[0]).partition("/")[0]
    if not bucket:
        raise UserError(f"{name}: names no bucket; give gs://BUCKET/NAME")
    if bucket not in _reached:
        _reach(found)
        _reached.add(bucket)
    return found


def _reach(path: epath.Path) -> None:
    """Asks for a path, to learn at once whether the bucket can be reached."""
    import fsspec.config  # what epath opens buckets with; of no use where all is local

    # A listing that is kept misses what Orbax, which writes on its own, and other hosts have written since.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    _kind(path)


@contextlib.contextmanager
def reaching(path: str | os.PathLike) -> Iterator[None]:
    """Makes a `UserError` of whatever goes wrong with an address, unless nothing is there; local errors stay."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except ImportError as error:
        if not is_remote(path):
            raise
        raise UserError(f"{path}: {_line(error)}; pip install 'tdsm_jax[gcs]' brings what gs:// needs") from None
    except Exception as error:  # of gcsfs, aiohttp, google.auth, tensorstore ...: none of them is imported here
        if not is_remote(path):
            raise
        raise UserError(
            f"{path}: cannot be reached ({_line(error)}); check the bucket, the network and "
            "`gcloud auth application-default login`"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def absolute(name: str | os.PathLike) -> Path:
    """Returns the path of a name, a local one from the root; an address is whole as it is."""
    path = path_of(name)
    return path if is_remote(path) else path.absolute()  # epath's puts the working directory before an address


def exists(path: str | os.PathLike) -> bool:
    """Says whether there is a file or folder; where a bucket does not answer it is a `UserError`, not a no."""
    path = path_of(path)
    return _kind(path) is not None if is_remote(path) else path.exists()


def is_file(path: str | os.PathLike) -> bool:
    """Says whether there is a file; where a bucket does not answer it is a `UserError`, not a no."""
    path = path_of(path)
    return _kind(path) == "file" if is_remote(path) else path.is_file()


def _kind(path: epath.Path) -> str | None:
    """What is at an address, None for nothing: epath's own questions take a failure for a no."""
    with reaching(path), contextlib.suppress(FileNotFoundError):
        return "folder" if path.stat().is_directory else "file"
    return None


def make_folder(path: str | os.PathLike) -> None:
    """Makes a folder and those above it; in a bucket there is nothing to make."""
    if not is_remote(path):
        path_of(path).mkdir(parents=True, exist_ok=True)


def children(directory: str | os.PathLike) -> list[Path]:
    """Returns what a folder holds, in order; nothing where it is missing."""
    directory = path_of(directory)
    with reaching(directory), contextlib.suppress(FileNotFoundError):
        return sorted(child for child in directory.iterdir() if child != directory)  # a bucket may name it, too
    return []


def walk(directory: str | os.PathLike) -> list[str]:
    """Returns the names of all files under a folder, relative and with forward slashes, in order.

    Raises `OSError` where a local folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    directory = path_of(directory)
    if is_remote(directory):
        top = _without_scheme(directory)
        with reaching(directory):  # the folders that epath's walk names lack the scheme
            found = [
                f"{_without_scheme(folder).removeprefix(top)}/{name}".lstrip("/")
                for folder, _, names in directory.walk(on_error=refuse)
                for name in names
                if name  # "": an object that stands for the folder itself
            ]
    else:
        found = [
            pathlib.Path(folder, name).relative_to(directory).as_posix()
            for folder, _, names in os.walk(directory, onerror=refuse)
            for name in names
        ]
    return sorted(found)


def _without_scheme(path: str | os.PathLike) -> str:
    return _SCHEME.sub("", os.fspath(path), count=1).rstrip("/")


def size(path: str | os.PathLike) -> int:
    """Returns the number of bytes of a file."""
    path = path_of(path)
    with reaching(path):
        return path.stat().length if is_remote(path) else path.stat().st_size


def modified(path: str | os.PathLike) -> float:
    """Returns when a file was written last, in seconds: whole ones in a bucket."""
    path = path_of(path)
    with reaching(path):
        return path.stat().mtime if is_remote(path) else path.stat().st_mtime


def remove(path: str | os.PathLike, *, ignore_errors: bool = False) -> None:
    """Removes a file, or a folder with all that is in it; nothing happens where there is neither."""
    path = path_of(path)
    if is_remote(path):
        with contextlib.suppress(*[UserError] if ignore_errors else []), reaching(path):
            kind = _kind(path)
            if kind == "folder":
                path.rmtree(missing_ok=True)
            elif kind == "file":
                path.unlink(missing_ok=True)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink(missing_ok=True)


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
    try:
        # An object is read at once: piece by piece it would be a request for each array, or for each few megabytes.
        source = io.BytesIO(read_bytes(path)) if is_remote(path) else path
        with np.load(source, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
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
