"""A score network in one file: EMA parameters and all it takes to rebuild the denoiser, without Orbax.

Training writes one beside its checkpoints, conversion from PyTorch makes one; sampling and fine-tuning read it.
"""

import dataclasses
import json
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tdsm_jax import files
from tdsm_jax.diffusion.process import PROCESSES, Process
from tdsm_jax.errors import UserError
from tdsm_jax.networks.unet import UNet
from tdsm_jax.training.state import Params, flatten_params, unflatten_params

FORMAT = 1
_DESCRIPTION = "description"


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
    """Reads what `write` wrote; a file that is missing, damaged or something else is a `UserError` naming it."""
    arrays = files.read_arrays(path)
    if _DESCRIPTION not in arrays:
        raise UserError(f"{path} is not a model file: it lacks a description; give an ema.npz of this program")
    try:
        description = json.loads(str(arrays.pop(_DESCRIPTION)))
        if description["format"] > FORMAT:
            raise UserError(f"{path} has format {description['format']}, newer than this program's; update tdsm_jax")
        process = dict(description["process"])
        made = Model(
            UNet(**{name: _static(value) for name, value in description["network"].items()}),
            unflatten_params(arrays),
            PROCESSES[process.pop("kind")](**process),
            tuple(description["image_shape"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its description cannot be read ({error!r}); write the file again") from None
    check_params(made.params, variable_shapes(made.network, made.image_shape), str(path))
    return made


def variable_shapes(network: UNet, image_shape: tuple[int, int, int]) -> Params:
    """Returns the shapes of a network's variables, as `jax.eval_shape` gives them."""
    x, zero = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    return jax.eval_shape(network.init, jax.random.key(0), x, zero, zero.astype(jnp.int32))


def check_params(params: Params, shapes: Params, source: str) -> None:
    """Raises `UserError` where parameters from `source` are not, in name and shape, those a network has."""
    given, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, shapes))
    for verb, names in (("needs", expected.keys() - given.keys()), ("has no", given.keys() - expected.keys())):
        if names:
            shown = ", ".join(sorted(names)[:3])
            raise UserError(f"{source} does not fit the network, which {verb} {shown} ({len(names)} arrays in all)")
    for name, leaf in expected.items():
        if given[name].shape != leaf.shape:
            raise UserError(
                f"{source} does not fit: {name} has shape {given[name].shape}, the network's is {leaf.shape}"
            )


def _network_fields() -> list[str]:
    return [field.name for field in dataclasses.fields(UNet) if field.name not in ("parent", "name")]


def _static(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
