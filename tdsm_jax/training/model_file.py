"""A score network in one file: EMA parameters and all it takes to rebuild the denoiser, without Orbax.

Training writes one beside its checkpoints, conversion from PyTorch makes one; sampling and fine-tuning read it. While
training goes on its description alone stands there, from which a checkpoint can be read like a model file.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tdsm_jax import files, paths
from tdsm_jax.diffusion.process import PROCESSES, Process
from tdsm_jax.errors import UserError, did_you_mean, printable
from tdsm_jax.networks.unet import STYLES, UNet
from tdsm_jax.training import checkpoint
from tdsm_jax.training.state import Params, flatten_params, unflatten_params

FORMAT = 1
LARGEST_SIDE = 4096  # pixels; far beyond what such networks are trained for, as are the next three
LARGEST_WIDTH = 1 << 14  # channels of a level
LARGEST_LABEL = 1 << 20  # classes, or numbers of an augmentation label
MOST_BLOCKS = 16  # of a level
DTYPES = ("float32", "bfloat16", "float16")
_DESCRIPTION = "description"
DESCRIPTION_FILE = "model.json"  # beside the folder of the checkpoints
# What reading a description of the wrong form ends in, where it is not checked for by name.
_MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)


class Model(NamedTuple):
    """A network, its variables, its process and the shape (H,W,C) of its images."""

    network: UNet
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
    network = {name: getattr(model.network, name) for name in _network_fields()}
    return {
        "format": FORMAT,
        "image_shape": list(model.image_shape),
        "network": network | {"dtype": jnp.dtype(model.network.dtype).name},
        "process": {"kind": kind} | dataclasses.asdict(model.process),
    }


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


def _described(description: dict[str, Any]) -> tuple[UNet, Process, tuple[int, int, int]]:
    """Returns network, process and image shape of a description; `UserError` or one of `_MALFORMED` if it is none."""
    if description["format"] > FORMAT:
        raise UserError(f"it has format {description['format']}, newer than this program's; update tdsm_jax")
    network = _network(description["network"])
    image_shape = tuple(description["image_shape"])
    check_architecture(network, image_shape)
    return network, process_from(description["process"]), image_shape


def _network(values: dict[str, Any]) -> UNet:
    """Makes the network that `describe` described; `UserError` or one of `_MALFORMED` if it is none."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for field in dataclasses.fields(UNet):
        if field.name in values and field.type in _IS and not _IS[field.type](values[field.name]):
            raise UserError(f"its network has {field.name} {printable(repr(values[field.name]))}; write it again")
    if unknown := values.keys() - set(_network_fields()):
        raise UserError(f"its network has unknown entries: {printable(', '.join(sorted(unknown)))}; update tdsm_jax")
    if values["dtype"] not in DTYPES:
        raise UserError(f"its network has dtype {printable(repr(values['dtype']))}; valid: {', '.join(DTYPES)}")
    return UNet(**values | {"dtype": jnp.dtype(values["dtype"])})


def process_from(description: dict[str, Any]) -> Process:
    """Returns the process of {"kind": ..., constant: value}; `UserError` where there is none such."""
    try:
        constants = dict(description)
        process = PROCESSES[constants.pop("kind")](**constants)
        if all(map(_is_number, constants.values())) and 0 < process.sigma_min < process.sigma_max:
            return process
        reason = "its constants allow no noise levels"
    except _MALFORMED as error:
        reason = repr(error)
    raise UserError(f"its process cannot be read ({printable(reason)}); {', '.join(PROCESSES)} are supported")


def check_architecture(network: UNet, image_shape: tuple[int, int, int]) -> None:
    """Raises `UserError` where no U-Net can be built as a file says, or only one beyond any use."""
    if len(image_shape) != 3 or not all(type(n) is int and 0 < n <= LARGEST_SIDE for n in image_shape):
        shown = printable(str(image_shape))
        raise UserError(f"its images have shape {shown}; height, width and channels are 1 to {LARGEST_SIDE}")
    if network.style not in STYLES:
        raise UserError(f"its network has style {printable(network.style)}{did_you_mean(network.style, STYLES)}")
    last = len(network.multipliers) - 1
    if last < 0 or any(side >> last << last != side or side >> last == 0 for side in image_shape[:2]):
        raise UserError(f"its network has {last + 1} levels, for which images {image_shape} cannot be halved")
    widths = [network.channels * multiplier for multiplier in network.multipliers]
    if min(widths) < 2 or max(widths) > LARGEST_WIDTH:
        raise UserError(f"its network has {widths} channels a level; 2 to {LARGEST_WIDTH} are supported")
    if not 0 < network.blocks <= MOST_BLOCKS or max(network.num_classes, network.augment_dim) > LARGEST_LABEL:
        raise UserError(
            f"its network has {network.blocks} blocks a level, {network.num_classes} classes and augmentation labels "
            f"of {network.augment_dim}; the most are {MOST_BLOCKS} and {LARGEST_LABEL}"
        )
    per_head = STYLES[network.style].channels_per_head
    for level, width in enumerate(widths):
        attends = level == last or image_shape[0] >> level in network.attention_resolutions
        if per_head and attends and width > per_head and width % (width // per_head):
            raise UserError(f"its network attends to {width} channels, which are not {width // per_head} equal heads")


def variable_shapes(network: UNet, image_shape: tuple[int, int, int]) -> Params:
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


def _network_fields() -> list[str]:
    """What a network computes; how it does so is for the program that runs it to choose."""
    left_out = ("parent", "name", "attention", "remat")
    return [field.name for field in dataclasses.fields(UNet) if field.name not in left_out]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


_IS: dict[Any, Callable[[Any], bool]] = {  # by a field's type
    int: _is_count,
    float: _is_number,
    str: lambda value: type(value) is str,
    tuple[int, ...]: lambda value: type(value) is tuple and all(map(_is_count, value)),
}
