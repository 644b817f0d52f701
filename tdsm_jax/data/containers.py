"""The files inside a folder or a zip file, by name: listed at once, read one at a time, never unpacked to disk."""

import contextlib
import errno
import os
import stat
import struct
import zipfile
import zlib

from tdsm_jax import files, paths
from tdsm_jax.errors import Unreachable, UserError

# What zipfile raises, between them, for bytes that are no whole zip file.
_DAMAGE = (
    zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, struct.error, zlib.error
)  # fmt: skip
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # of a name that no file has


class Lost(UserError):
    """A file that is missing, damaged or too large: it will be no other when it is read again."""


class Folder:
    """The files under a folder: their `names`, relative and with forward slashes, and their bytes."""

    def __init__(self, path: str | os.PathLike):
        self._path = paths.path_of(path)
        try:
            self.names = set(paths.walk(self._path))
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from None

    def read(self, name: str, limit: int) -> bytes:
        """Returns the bytes of one of `names`; more than `limit` of them are a `UserError`."""
        return read_file(self._path / name, limit)

    def listing(self) -> list:
        """Returns name and size of every file, in order."""
        return [[name, paths.size(self._path / name)] for name in sorted(self.names)]

    def close(self) -> None:
        """There is nothing to close."""


class Zip:
    """The files inside a zip file, stored or deflated: their `names` and their bytes."""

    def __init__(self, path: str | os.PathLike):
        self._path = paths.path_of(path)
        self._open = contextlib.ExitStack()
        with paths.reaching(self._path):
            try:
                remote = paths.is_remote(self._path)
                file = self._open.enter_context(files.open_parts(self._path)) if remote else self._path
                self._zip = self._open.enter_context(zipfile.ZipFile(file))
            except _DAMAGE as error:
                self.close()
                raise UserError(f"{path}: no whole zip file ({error}); copy or download it again") from None
        self.names: set[str] = set()
        for name in self._zip.namelist():
            if name in self.names:
                self.close()
                raise UserError(f"{path}: holds two files named {name!r}; pack it again with one")
            self.names.add(name)

    def read(self, name: str, limit: int) -> bytes:
        """Returns the bytes of one of `names`; damage, or more than `limit` bytes, is a `UserError`."""
        declared = self._zip.getinfo(name).file_size
        if declared > limit:
            raise Lost(f"{self._path}: {name} would unpack to {declared} bytes; at most {limit} are read")
        with paths.reaching(self._path):
            try:
                with self._zip.open(name) as file:
                    return file.read(declared)  # a bare read() would first inflate all that the stream holds
            except _DAMAGE as error:
                # zipfile seeks to where a damaged file sends it, which is an invalid argument; the rest is of the disk.
                if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                    raise _unread(self._path, error) from None
                reason = f"{name} cannot be unpacked ({error})"
                raise Lost(f"{self._path}: {reason}; copy or download it again") from None

    def listing(self) -> list:
        """Returns name, size and checksum of every file, in order."""
        return [[info.filename, info.file_size, info.CRC] for info in sorted(self._zip.infolist(), key=_name_of)]

    def close(self) -> None:
        """Closes the zip file."""
        self._open.close()


def is_hidden(name: str) -> bool:
    """Says whether a file is none of the user's data: its name or a folder's begins with a dot, or macOS added it."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def read_file(path: str | os.PathLike, limit: int) -> bytes:
    """Returns the bytes of a regular file; none, or one above `limit` bytes, is `Lost`.

    One that a disk or a bucket fails to give is another `UserError`.
    """
    path = paths.path_of(path)
    try:
        if not _is_regular(path):  # opening a pipe would wait forever
            raise Lost(f"{path}: no such file")
        with paths.reaching(path), path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        nowhere = isinstance(error, FileNotFoundError) or error.errno in _NOWHERE  # of a bucket it has no number
        raise (Lost(f"{path}: no such file") if nowhere else _unread(path, error)) from None
    if len(content) > limit:
        raise Lost(f"{path}: larger than {limit} bytes, the most that is read")
    return content


def _is_regular(path: paths.Path) -> bool:
    """Whether there is a file; pathlib's own answer may be a no where the disk gave none."""
    if paths.is_remote(path):
        return paths.is_file(path)
    return "\0" not in str(path) and stat.S_ISREG(path.stat().st_mode)  # with that byte it is no name at all


def _unread(path: paths.Path, error: OSError) -> UserError:
    """What is wrong with the machine or the disk, not with the file: it says nothing of what is in it."""
    kind = UserError if isinstance(error, PermissionError) else Unreachable
    return kind(f"{path}: cannot be read ({error.strerror})")


def _name_of(info: zipfile.ZipInfo) -> str:
    return info.filename
