"""What a complete checkpoint holds: the manifest beside each step, and the checks of every byte against it."""

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np

from tdsm_jax import files, paths
from tdsm_jax.errors import UserError

FORMAT = 2
ADVICE = "use the configuration that wrote it or another directory"


class Damaged(Exception):
    """What is wrong with a step that was once complete."""


class Spec(NamedTuple):
    """Shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def manifest_of(directory: paths.Path) -> paths.Path:
    """Returns where the manifest of the step in a folder stands."""
    return directory.with_name(f"{directory.name}.json")


def write(directory: paths.Path, state: Any, about: dict[str, Any]) -> None:
    """Writes the manifest of a step whose `state`, a pytree of numpy arrays, stands in a folder; atomically."""
    manifest = {
        "format": FORMAT,
        "step": int(directory.name),
        **about,
        "arrays": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": checksum(array)}
            for name, array in named_leaves(state).items()
        },
        "files": {
            name: {"bytes": paths.size(directory / name), "sha256": files.file_digest(directory / name)}
            for name in paths.walk(directory)
        },
    }
    files.write_json(manifest_of(directory), {**manifest, "digest": files.digest(manifest)})


def read(directory: paths.Path) -> dict[str, Any]:
    """Returns the manifest of a step; raises `Damaged`, and `UserError` for one of another format."""
    path = manifest_of(directory)
    try:
        manifest = files.read_json(path)
    except UserError as error:
        raise Damaged(str(error)) from None
    seal = manifest.pop("digest", None) if isinstance(manifest, dict) else None
    if seal != files.digest(manifest):
        raise Damaged(f"{path.name} does not match its own digest")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{path}: checkpoint format {manifest['format']}, this version reads {FORMAT}; "
            "use the version of tdsm_jax that wrote it"
        )
    return manifest


def verify(directory: paths.Path) -> None:
    """Raises `UserError` unless every file of a complete step is the one that its manifest speaks of."""
    try:
        check_files(directory, read(directory)["files"])
    except Damaged as damage:
        raise UserError(f"{directory} is damaged: {damage}") from None


def check_files(directory: paths.Path, recorded: dict[str, Any]) -> None:
    """Raises `Damaged` unless all files of a step are as recorded."""
    for name, file in recorded.items():
        path = directory / name
        if not paths.is_file(path):
            raise Damaged(f"missing file {name}")
        if (size := paths.size(path)) != file["bytes"]:
            raise Damaged(f"{name} has {size} bytes instead of {file['bytes']}")
        if files.file_digest(path) != file["sha256"]:
            raise Damaged(f"wrong checksum of file {name}")


def check_shapes(directory: paths.Path, recorded: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises `UserError` unless the recorded arrays have the names, shapes and dtypes of the leaves wanted."""
    saved = {name: Spec(tuple(array["shape"]), array["dtype"]) for name, array in recorded.items()}
    here = {name: Spec(tuple(leaf.shape), str(leaf.dtype)) for name, leaf in wanted.items()}
    different = sorted(name for name in saved.keys() | here.keys() if saved.get(name) != here.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"{directory}: {len(different)} arrays differ from this configuration's, first {name}: "
            f"{saved.get(name, 'absent')} in the checkpoint, {here.get(name, 'absent')} here; {ADVICE}"
        )


def check_content(recorded: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Raises `Damaged` unless every array has the content that is recorded of it."""
    for name, array in arrays.items():
        if checksum(array) != recorded[name]["sha256"]:
            raise Damaged(f"wrong checksum of array {name}")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by the names that manifests call them."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def checksum(array: np.ndarray) -> str:
    """Returns the SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()
