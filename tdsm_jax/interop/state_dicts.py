"""State dicts with official names as files that nothing executes: .safetensors or .npz."""

import os
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from tdsm_jax import files
from tdsm_jax.errors import UserError, printable
from tdsm_jax.interop.layout import StateDict

SUFFIXES = (".safetensors", ".npz")


def write_state_dict(path: str | os.PathLike, state: StateDict, metadata: dict[str, str]) -> None:
    """Writes a state dict in the format its suffix names, atomically; .npz keeps no metadata."""
    if check_suffix(path) == ".npz":
        files.write_arrays(path, state)
        return
    content = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in state.items()}, metadata)
    with files.atomic_write(path) as file:
        file.write(content)


def read_state_dict(path: str | os.PathLike) -> tuple[StateDict, dict[str, str]]:
    """Reads arrays and metadata that `write_state_dict` wrote; a missing or damaged file is a `UserError` naming it."""
    if check_suffix(path) == ".npz":
        return files.read_arrays(path), {}
    if not pathlib.Path(path).exists():
        raise UserError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError, AttributeError) as error:  # the last: a dtype that NumPy lacks
        reason = printable(str(error))
        raise UserError(f"{path}: not a readable .safetensors file ({reason}); write it again") from None


def check_suffix(path: str | os.PathLike) -> str:
    """Returns the suffix of a path, which must be one of `SUFFIXES`."""
    suffix = pathlib.Path(path).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: a state dict is written as {' or '.join(SUFFIXES)}, by the file's suffix")
    return suffix
