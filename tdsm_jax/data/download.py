"""Files from the web, whole and right or not at all: what a broken transfer left is gone on with."""

import http.client
import os
import pathlib
import urllib.error
import urllib.request

from tqdm import tqdm

from tdsm_jax import files
from tdsm_jax.errors import Unreachable, UserError

_CHUNK = 1 << 18
_SECONDS = 30  # without a byte
_RANGE_REFUSED = 416  # there is nothing after the bytes that are here


def fetch(url: str, path: str | os.PathLike, size: int, checksum: str) -> None:
    """Downloads a file of `size` bytes and the SHA-256 `checksum` to `path`, which appears when it is all there.

    Until then it is called `path`.part; another call asks for the rest of it only. No connection or a broken one is
    an `Unreachable`, other bytes than expected are a `UserError` and are not kept.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    have = partial.stat().st_size if partial.exists() else 0
    if have < size:
        try:
            _receive(url, partial, have, size)
        except (OSError, http.client.HTTPException) as error:  # urllib's own are OSErrors
            raise _broken(url, path, partial, size, error) from None
    have = partial.stat().st_size
    if have < size:
        raise _broken(url, path, partial, size, EOFError(f"it ended after {have} bytes"))
    found = files.file_digest(partial)
    if found != checksum:
        partial.unlink()
        raise UserError(
            f"{url}: its {have} bytes have the SHA-256 {found}, not the registered {checksum}; they are not kept: "
            "try again, or put the right file there by hand"
        )
    os.replace(partial, path)


def _receive(url: str, partial: pathlib.Path, have: int, size: int) -> None:
    """Adds what is missing to `partial`, of which the first `have` bytes are there."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != _RANGE_REFUSED or not have:
            raise
        response = urllib.request.urlopen(url, timeout=_SECONDS)  # from the start
    with response:
        goes_on = response.status == http.client.PARTIAL_CONTENT
        if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise http.client.HTTPException(f"it sends {response.headers.get('Content-Range')}, not from byte {have}")
        have = have if goes_on else 0  # servers may send everything
        with (
            partial.open("ab" if goes_on else "wb") as file,
            tqdm(total=size, initial=have, desc=partial.stem, unit="B", unit_scale=True, disable=None) as progress,
        ):
            while have < size + 1 and (chunk := response.read(_CHUNK)):  # more than it should be is wrong anyway
                file.write(chunk)
                have += len(chunk)
                progress.update(len(chunk))


def _broken(url: str, path: pathlib.Path, partial: pathlib.Path, size: int, error: Exception) -> Unreachable:
    have = partial.stat().st_size if partial.exists() else 0
    cause = error.reason if type(error) is urllib.error.URLError else error  # which wraps what went wrong
    reason = " ".join(str(cause).split()) or type(error).__name__
    kept = f"; the {have} of {size} bytes that are here are kept, and the same command goes on" if have else ""
    return Unreachable(f"{url}: the download failed ({reason}){kept}; or put the file at {path} by hand")
