"""State dicts with official names as files that nothing executes: .safetensors or .npz."""

import os
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from tdsm_jax import files
from tdsm_jax.errors import UserError
from tdsm_jax.interop.torch_params import StateDict

SUFFIXES = (".safetensors", ".npz")


def write_state_dict(path: str | os.PathLike, state: StateDict, metadata: dict[str, str]) -> None:
    """Writes a state dict in the format its suffix names, atomically; .npz keeps no metadata."""
    if check_suffix(path) == ".npz":
        files.write_arrays(path, state)
        return
    content = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in state.items()}, metadata)
    with files.atomic_write(path) as file:
        file.write(content)


def read_state_dict(path: str | os.PathLike) -> StateDict:
    """Reads what `write_state_dict` wrote; a missing or damaged file is a `UserError` naming it."""
    if check_suffix(path) == ".npz":
        return files.read_arrays(path)
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable .safetensors file ({error}); write it again") from None


def check_suffix(path: str | os.PathLike) -> str:
    """Returns the suffix of a path, which must be one of `SUFFIXES`."""
    suffix = pathlib.Path(path).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: a state dict is written as {' or '.join(SUFFIXES)}, by the file's suffix")
    return suffix
