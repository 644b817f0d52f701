"""A score network in one file: EMA parameters and all it takes to rebuild the denoiser, without Orbax.

Training writes one beside its checkpoints, conversion from PyTorch makes one; sampling and fine-tuning read it. While
training goes on its description alone stands there, from which a checkpoint can be read like a model file.
"""

import dataclasses
import json
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tdsm_jax import files, paths
from tdsm_jax.diffusion.process import PROCESSES, Process
from tdsm_jax.errors import UserError, printable
from tdsm_jax.networks import backbones
from tdsm_jax.networks.backbones import ScoreNetwork
from tdsm_jax.training import checkpoint, manifests
from tdsm_jax.training.state import Params, flatten_params, unflatten_params

FORMAT = 1
_DESCRIPTION = "description"
DESCRIPTION_FILE = "model.json"  # beside the folder of the checkpoints
# What reading a description of the wrong form ends in, where it is not checked for by name.
_MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)


class Model(NamedTuple):
    """A network, its variables, its process and the shape (H,W,C) of its images."""

    network: ScoreNetwork
    params: Params
    process: Process
    image_shape: tuple[int, int, int]


def write(path: str | os.PathLike, model: Model) -> None:
    """Writes a model as one .npz, atomically: a JSON description beside the parameters."""
    description = np.array(json.dumps(describe(model)))
    files.write_arrays(path, flatten_params(model.params) | {_DESCRIPTION: description})


def write_description(directory: paths.Path, model: Model) -> None:
    """Writes what a model will be, in the folder of its training, without its parameters."""
    files.write_json(directory / DESCRIPTION_FILE, describe(model))


def describe(model: Model) -> dict[str, Any]:
    """Returns everything but the parameters as JSON values."""
    kind = next(kind for kind, process in PROCESSES.items() if type(model.process) is process)
    return {
        "format": FORMAT,
        "image_shape": list(model.image_shape),
        "network": backbones.describe(model.network),
        "process": {"kind": kind} | dataclasses.asdict(model.process),
    }


def find(given: str, name: str) -> paths.Path:
    """Returns the model file or the checkpoint that a path stands for: of a training's folder the model or last step.

    `name` is the option or config key that gives it, for the `UserError` where there is none.
    """
    path = paths.absolute(given)
    if paths.is_file(path) or checkpoint.is_step(path):
        return path
    if not paths.exists(path):
        raise UserError(f"{name}={given}: no such file or folder")
    if paths.is_file(path / "ema.npz"):
        return path / "ema.npz"
    steps = [step for step in paths.children(path / "checkpoints") if checkpoint.is_step(step)]
    if not steps:
        raise UserError(f"{name}={given}: holds no ema.npz and no finished checkpoint; give WORKDIR/score/METHOD")
    return steps[-1]


def identity(path: paths.Path) -> str:
    """Returns the hash that says which model a file, or a checkpoint by its manifest, is."""
    return files.file_digest(manifests.manifest_of(path) if checkpoint.is_step(path) else path)


def read(path: str | os.PathLike) -> Model:
    """Reads what `write` wrote, or the averaged parameters of a checkpoint, whose folder is .../checkpoints/00001000.

    What is missing, damaged or something else is a `UserError` naming it.
    """
    folder = paths.absolute(path)
    if checkpoint.is_step(folder):
        return _read_checkpoint(folder)
    arrays = files.read_arrays(path)
    if _DESCRIPTION not in arrays:
        raise UserError(f"{path} is not a model file: it lacks a description; give an ema.npz of this program")
    try:
        network, process, image_shape = _described(json.loads(str(arrays.pop(_DESCRIPTION))))
        params = unflatten_params(arrays)
    except _MALFORMED as error:
        raise _unreadable(path, error) from None
    check_params(params, variable_shapes(network, image_shape), str(path))
    return Model(network, params, process, image_shape)


def _read_checkpoint(folder: paths.Path) -> Model:
    """Reads the averaged parameters of a step, with the description beside the folder of the steps."""
    path = folder.parent.parent / DESCRIPTION_FILE
    description = files.read_json(path)
    try:
        network, process, image_shape = _described(description)
    except _MALFORMED as error:
        raise _unreadable(path, error) from None
    params = checkpoint.read_field(folder, "ema_params", variable_shapes(network, image_shape))
    return Model(network, params, process, image_shape)


def _unreadable(path: str | os.PathLike, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return UserError(f"{path}: {error}")
    return UserError(f"{path}: its description cannot be read ({printable(repr(error))}); write the file again")


def _described(description: dict[str, Any]) -> tuple[ScoreNetwork, Process, tuple[int, int, int]]:
    """Returns network, process and image shape of a description; `UserError` or one of `_MALFORMED` if it is none."""
    if description["format"] > FORMAT:
        raise UserError(f"it has format {description['format']}, newer than this program's; update tdsm_jax")
    network = backbones.network_from(description["network"])
    image_shape = tuple(description["image_shape"])
    backbones.check_architecture(network, image_shape)
    return network, process_from(description["process"]), image_shape


def process_from(description: dict[str, Any]) -> Process:
    """Returns the process of {"kind": ..., constant: value}; `UserError` where there is none such."""
    try:
        constants = dict(description)
        process = PROCESSES[constants.pop("kind")](**constants)
        if all(map(backbones.is_number, constants.values())) and 0 < process.sigma_min < process.sigma_max:
            return process
        reason = "its constants allow no noise levels"
    except _MALFORMED as error:
        reason = repr(error)
    raise UserError(f"its process cannot be read ({printable(reason)}); {', '.join(PROCESSES)} are supported")


def variable_shapes(network: ScoreNetwork, image_shape: tuple[int, int, int]) -> Params:
    """Returns the shapes of a network's variables, as `jax.eval_shape` gives them."""
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    c_noise, label = (jax.ShapeDtypeStruct((1,), dtype) for dtype in (jnp.float32, jnp.int32))
    return jax.eval_shape(network.init, jax.random.key(0), x, c_noise, label)


def check_params(params: Params, shapes: Params, source: str) -> None:
    """Raises `UserError` where parameters from `source` are not, in name and shape, those a network has."""
    given, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, shapes))
    for verb, names in (("needs", expected.keys() - given.keys()), ("has no", given.keys() - expected.keys())):
        if names:
            shown = ", ".join(printable(name) for name in sorted(names)[:3])
            raise UserError(f"{source} does not fit the network, which {verb} {shown} ({len(names)} arrays in all)")
    for name, leaf in expected.items():
        if given[name].shape != leaf.shape:
            raise UserError(
                f"{source} does not fit: {name} has shape {given[name].shape}, the network's is {leaf.shape}"
            )
        if not jnp.issubdtype(given[name].dtype, jnp.floating):
            raise UserError(f"{source} does not fit: {name} has dtype {given[name].dtype}, not one of real numbers")
