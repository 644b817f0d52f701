"""Time-dependent classifiers across frameworks: TDSM's PyTorch state dicts <-> our networks and their variables.

A state dict is {name: array}, images channels first; names such as `model.classifier.layer1.0.conv1.weight`. A
learnt transition matrix lies beside the network as `transition_matrix`: the V of `labels.transition.volmin_matrix`.
"""

import itertools
import math
import re
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from tdsm_jax.errors import UserError
from tdsm_jax.interop import layout
from tdsm_jax.interop.layout import Path, StateDict
from tdsm_jax.networks.mnist_cnn import MnistCNN
from tdsm_jax.networks.resnet import ResNet

OfficialClassifier = ResNet | MnistCNN

TRANSITION = "transition_matrix"
BODY = "model.classifier."
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_RESNET_MODULES = {"shortcut_conv": "shortcut.0", "shortcut_bn": "shortcut.1"}
_CNN_MODULES = {"conv1": "conv1.0", "conv2": "conv2.0"}
MOST_BLOCKS = 64


def classifier_from_official(state: StateDict) -> tuple[OfficialClassifier, Any, np.ndarray | None]:
    """Returns the network that a state dict belongs to, its variables (float32), and V [K,K] or None without one.

    Kind and sizes are read off names and shapes. The ResNets serve every image size with the same variables; the
    MNIST network is bound to square images of one size. Unknown or missing names and shapes that do not fit are a
    `UserError`.
    """
    state = layout.as_arrays(state)
    V = state.pop(TRANSITION, None)
    network, image_shape = architecture(state)
    inputs = jax.ShapeDtypeStruct((1, *image_shape), np.float32), jax.ShapeDtypeStruct((1,), np.float32)
    template = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    leaves = traverse_util.flatten_dict(template)
    paths = {official_name(path, network): path for path in leaves}
    expected = {name: layout.torch_shape(leaves[path].shape) for name, path in paths.items()}
    counters = {counter_name(name): () for name in paths if name.endswith("running_mean")}
    layout.check_arrays(state, expected | counters)
    flat = {path: to_flax(state[name], path, network).astype(np.float32) for name, path in paths.items()}
    if V is not None and V.shape != (network.num_classes,) * 2:
        raise UserError(f"{TRANSITION} is {V.shape}, but the network has {network.num_classes} classes")
    return network, traverse_util.unflatten_dict(flat), None if V is None else V.astype(np.float32)


def classifier_to_official(network: OfficialClassifier, variables: Any, V: np.ndarray | None = None) -> StateDict:
    """Returns the state dict of the official module of the same architecture: the inverse of the import, exactly.

    Batch counters, which nothing reads, are zero.
    """
    flat = traverse_util.flatten_dict(jax.device_get(variables))
    state = {official_name(path, network): to_torch(array, path, network) for path, array in flat.items()}
    counters = [counter_name(name) for name in state if name.endswith("running_mean")]
    state |= {name: np.zeros((), np.int64) for name in counters}
    return dict(sorted(state.items())) | ({} if V is None else {TRANSITION: np.asarray(V)})


def architecture(state: StateDict) -> tuple[OfficialClassifier, tuple[int, int, int]]:
    """Reads the network and an image shape (H,W,C) that it takes off names and shapes."""
    embedding_channels = _weight(state, "model.map_layer0.weight", 2).shape[1]
    if embedding_channels % 2:
        raise UserError(f"model.map_layer0.weight takes {embedding_channels} inputs; sines and cosines come in pairs")
    K, features = _weight(state, BODY + "linear.weight", 2).shape
    if BODY + "layer1.0.conv1.weight" in state:
        channels, image_channels = _weight(state, BODY + "conv1.weight", 4).shape[:2]
        blocks = tuple(itertools.takewhile(bool, (_count_blocks(state, stage) for stage in itertools.count(1))))
        if sum(blocks) > MOST_BLOCKS:
            raise UserError(f"this is no classifier of TDSM: it has {sum(blocks)} residual blocks")
        return ResNet(K, blocks, channels, embedding_channels), (32, 32, image_channels)
    if BODY + "conv1.0.weight" in state:
        first, second = (_weight(state, f"{BODY}conv{stage}.0.weight", 4) for stage in (1, 2))
        channels = first.shape[0], second.shape[0]
        side = math.isqrt(features // channels[1])
        if features != side**2 * channels[1]:
            raise UserError(f"{BODY}linear.weight takes {features} inputs: no square image of {channels[1]} channels")
        return MnistCNN(K, channels, embedding_channels), (4 * side, 4 * side, first.shape[1])  # two stages halve it
    raise UserError(
        f"this is no classifier of TDSM: it has neither {BODY}layer1.0.conv1.weight (ResNet) nor "
        f"{BODY}conv1.0.weight (MNIST network)"
    )


def _count_blocks(state: StateDict, stage: int) -> int:
    names = (f"{BODY}layer{stage}.{index}.conv1.weight" for index in itertools.count())
    return sum(1 for _ in itertools.takewhile(state.__contains__, names))


def _weight(state: StateDict, name: str, axes: int) -> np.ndarray:
    return layout.weight(state, name, axes, of="classifier of TDSM")


def official_name(path: Path, network: OfficialClassifier) -> str:
    """Turns ("params", "layer2_0", "shortcut_bn", "scale") into `model.classifier.layer2.0.shortcut.1.weight`."""
    _, *modules, leaf = path
    prefix = "model." if modules[0].startswith("map_layer") else BODY
    names = _RESNET_MODULES if isinstance(network, ResNet) else _CNN_MODULES
    modules = [names.get(module, re.sub(r"^(layer\d+)_", r"\1.", module)) for module in modules]
    return prefix + ".".join([*modules, _LEAVES[leaf]])


def counter_name(running_mean: str) -> str:
    """Returns the name of the batch counter that PyTorch keeps beside a running mean."""
    return running_mean.removesuffix("running_mean") + "num_batches_tracked"


def _classifies_pixels(path: Path, network: OfficialClassifier) -> bool:
    """Whether the array's input is an image, flattened: by PyTorch channels first, by us channels last."""
    return isinstance(network, MnistCNN) and path[-2:] == ("linear", "kernel")


def to_flax(array: np.ndarray, path: Path, network: OfficialClassifier) -> np.ndarray:
    """Turns an array of the state dict into ours; flat inputs go from C,H,W to H,W,C."""
    if not _classifies_pixels(path, network):
        return layout.to_flax(array)
    K, C = array.shape[0], network.channels[-1]
    side = math.isqrt(array.shape[1] // C)
    return array.reshape(K, C, side, side).transpose(2, 3, 1, 0).reshape(-1, K)


def to_torch(array: np.ndarray, path: Path, network: OfficialClassifier) -> np.ndarray:
    """The inverse of `to_flax`, in contiguous memory."""
    if not _classifies_pixels(path, network):
        return layout.to_torch(array)
    K, C = array.shape[1], network.channels[-1]
    side = math.isqrt(array.shape[0] // C)
    return np.ascontiguousarray(array.reshape(side, side, C, K).transpose(3, 2, 0, 1).reshape(K, -1))
