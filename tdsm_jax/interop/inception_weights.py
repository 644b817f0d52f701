"""The weights of FID's Inception network: the published PyTorch file, read as data, becomes our variables.

The file is `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, or `weights-inception-2015-12-05-6726825d.pth` of
torch-fidelity, which has the same bytes: TensorFlow's weights by names such as `Mixed_5b.branch1x1.conv.weight`.
"""

import functools
import os
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from tdsm_jax import files, paths
from tdsm_jax.errors import UserError
from tdsm_jax.interop import layout
from tdsm_jax.interop.layout import StateDict
from tdsm_jax.interop.unpickle import read_snapshot
from tdsm_jax.networks.inception import BATCH_NORM_EPS, NUM_LOGITS, InceptionV3

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # its start is in the published names
_NORM = ("weight", "bias", "running_mean", "running_var")


def read_inception(path: str | os.PathLike, *, checked: bool = True) -> tuple[Any, str]:
    """Returns the network's variables (float32) and the SHA-256 of the file that they are from.

    With `checked` any other content than the published is a `UserError`, before it is read; without, whatever has
    the right names and shapes is taken. A missing, damaged or hostile file, which nothing executes, is a `UserError`.
    """
    if paths.is_remote(path):
        raise UserError(f"{path}: weights are read from this machine; copy the file here first")
    if not paths.is_file(path):
        raise UserError(f"{path}: no such file; give pytorch-fid's pt_inception-2015-12-05-{SHA256[:8]}.pth")
    digest = files.file_digest(path)
    if checked and digest != SHA256:
        raise UserError(
            f"{path}: is not the published file (its SHA-256 starts with {digest[:8]}, not {SHA256[:8]}), so its FID "
            f"would be another measure; download it again, or ask for inception_unchecked:{path}"
        )
    state = read_snapshot(path)
    if not (isinstance(state, dict) and all(isinstance(array, np.ndarray) for array in state.values())):
        raise UserError(f"{path}: holds no state dict of arrays by name")
    try:
        return variables_from(state), digest
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def variables_from(state: StateDict) -> Any:
    """Returns the variables of `InceptionV3` with each batch norm folded into its convolution, in float64.

    Names and shapes other than the network's, and numbers that are none, are a `UserError`. Batch counters may be
    there; the bias of the logits is not used (see `networks.inception.Activations`).
    """
    state = layout.as_arrays(state)
    leaves = traverse_util.flatten_dict(variable_shapes()["params"], sep=".")
    kernels = {name.removesuffix(".kernel"): leaf.shape for name, leaf in leaves.items() if name.endswith(".kernel")}
    outputs = kernels.pop("fc")[0]
    expected = {f"{name}.conv.weight": layout.torch_shape(shape) for name, shape in kernels.items()}
    expected |= {f"{name}.bn.{part}": shape[-1:] for name, shape in kernels.items() for part in _NORM}
    expected |= {"fc.weight": (NUM_LOGITS, outputs), "fc.bias": (NUM_LOGITS,)}
    layout.check_arrays(state, expected, [f"{name}.bn.num_batches_tracked" for name in kernels])
    flat = {"fc.kernel": layout.to_flax(state["fc.weight"]).astype(np.float32)}
    for name in kernels:
        flat[f"{name}.kernel"], flat[f"{name}.bias"] = _folded(state, name)
    for name, array in flat.items():
        if not np.isfinite(array).all():
            raise UserError(f"the weights of {name} are not all numbers, or a variance of its batch norm is negative")
    return {"params": traverse_util.unflatten_dict(flat, sep=".")}


def _folded(state: StateDict, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel [h,w,inputs,features] and bias of a convolution and the batch norm after it, as one."""
    kernel = layout.to_flax(state[f"{name}.conv.weight"]).astype(np.float64)
    scale, bias, mean, variance = (state[f"{name}.bn.{part}"].astype(np.float64) for part in _NORM)
    with np.errstate(invalid="ignore"):  # of a negative variance the caller says so
        gain = scale / np.sqrt(variance + BATCH_NORM_EPS)
        return (kernel * gain).astype(np.float32), (bias - mean * gain).astype(np.float32)


@functools.cache
def variable_shapes() -> Any:
    """Returns the shapes of the network's variables, as `jax.eval_shape` gives them."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), image)
