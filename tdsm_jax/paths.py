"""Where files are: on this machine, or in a bucket of Google Cloud Storage; the same questions to both.

A path is local, or the address gs://BUCKET/NAME of an object. Objects make their folders: these exist as long as
something is in them.
"""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import TypeAlias

from etils import epath

from tdsm_jax.errors import Unreachable, UserError

# Local paths stay pathlib's: epath's own hide names that end in ~, and stat fails for users without a name.
Path: TypeAlias = pathlib.Path | epath.Path

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
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
        raise Unreachable(
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

    Links to folders are followed; one that leads back to where it lies is a `UserError`. Raises `OSError` where a
    local folder cannot be listed.
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
            for folder, _, names in _followed(directory, refuse)
            for name in names
        ]
    return sorted(found)


def _followed(directory: pathlib.Path, refuse: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    """What os.walk finds, through links as well; none of them may lead to a folder above it."""
    above: dict[str, tuple[str, ...]] = {os.fspath(directory): (os.path.realpath(directory),)}
    for folder, folders, names in os.walk(directory, onerror=refuse, followlinks=True):
        yield folder, folders, names
        reached = above.pop(folder)
        for name in folders:
            inner = os.path.join(folder, name)
            real = os.path.realpath(inner)
            if real in reached:
                raise UserError(f"{inner}: a link to {real}, which it lies in itself; remove the link")
            above[inner] = (*reached, real)


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


def remove(path: str | os.PathLike) -> None:
    """Removes a file, or a folder with all that is in it; nothing happens where there is neither."""
    path = path_of(path)
    if is_remote(path):
        with reaching(path):
            kind = _kind(path)
            if kind == "folder":
                path.rmtree(missing_ok=True)
            elif kind == "file":
                path.unlink(missing_ok=True)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
