"""Files that are either whole or absent: atomic writes, JSON, content hashes."""

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


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Yields a binary file that takes its place at `path` only if the block ends without an error.

    Among several hosts one writes; what the others write goes nowhere.
    """
    if not hosts.is_writer():
        yield io.BytesIO()
        return
    path = pathlib.Path(path)
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
        return json.loads(pathlib.Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run again") from None


def digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep_partials(directory: str | os.PathLike) -> None:
    """Removes what a killed process left of its atomic writes under `directory`."""
    for partial in pathlib.Path(directory).rglob(".*.partial") if hosts.is_writer() else ():
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
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except _UNREADABLE as error:
        raise UserError(f"{path}: not a readable array file ({error}); delete it and run again") from None
