"""The files inside a folder or a zip file, by name: listed at once, read one at a time, never unpacked to disk."""

import os
import pathlib
import struct
import zipfile
import zlib

from tdsm_jax.errors import UserError

# What zipfile raises, between them, for bytes that are no whole zip file.
_DAMAGE = (
    zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, struct.error, zlib.error
)  # fmt: skip


class Folder:
    """The files under a folder: their `names`, relative and with forward slashes, and their bytes."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.names = {
            pathlib.Path(folder, name).relative_to(path).as_posix()
            for folder, _, names in os.walk(path, onerror=_refuse_listing)
            for name in names
        }

    def read(self, name: str, limit: int) -> bytes:
        """Returns the bytes of one of `names`; more than `limit` of them are a `UserError`."""
        return read_file(self._path / name, limit)

    def listing(self) -> list:
        """Returns name and size of every file, in order."""
        return [[name, (self._path / name).stat().st_size] for name in sorted(self.names)]

    def close(self) -> None:
        """There is nothing to close."""


class Zip:
    """The files inside a zip file, stored or deflated: their `names` and their bytes."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except _DAMAGE as error:
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
            raise UserError(f"{self._path}: {name} would unpack to {declared} bytes; at most {limit} are read")
        try:
            with self._zip.open(name) as file:
                return file.read(declared)  # a bare read() would first inflate all that the stream holds
        except _DAMAGE as error:
            raise UserError(f"{self._path}: {name} cannot be unpacked ({error}); copy or download it again") from None

    def listing(self) -> list:
        """Returns name, size and checksum of every file, in order."""
        return [[info.filename, info.file_size, info.CRC] for info in sorted(self._zip.infolist(), key=_name_of)]

    def close(self) -> None:
        """Closes the zip file."""
        self._zip.close()


def read_file(path: pathlib.Path, limit: int) -> bytes:
    """Returns the bytes of a regular file; none, an unreadable one or one above `limit` bytes is a `UserError`."""
    if not path.is_file():  # opening a pipe would wait forever
        raise UserError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > limit:
        raise UserError(f"{path}: larger than {limit} bytes, the most that is read")
    return content


def _name_of(info: zipfile.ZipInfo) -> str:
    return info.filename


def _refuse_listing(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror})")
