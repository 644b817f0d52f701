"""Diffusion transformers across frameworks: state dicts of facebookresearch/DiT <-> our network and its variables.

A state dict is {name: array}, images channels first; names such as `blocks.0.attn.qkv.weight`.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from tdsm_jax.errors import UserError
from tdsm_jax.interop import layout
from tdsm_jax.interop.layout import Path, StateDict
from tdsm_jax.networks.backbones import check_architecture
from tdsm_jax.networks.dit import SIZES, DiT, position_embedding
from tdsm_jax.training.model_file import variable_shapes

PATCHES = "x_embedder.proj.weight"  # that every diffusion transformer has, and no U-Net
POSITIONS = "pos_embed"
LABELS = "y_embedder.embedding_table.weight"
PIXELS = "final_layer.linear."
_FAMILY = "diffusion transformer"
_BLOCK = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.")


def dit_from_official(
    state: StateDict, *, heads: int = 0, like: DiT | None = None
) -> tuple[DiT, Any, tuple[int, int, int]]:
    """Returns the network that a state dict belongs to, its variables (float32) and the image shape (H,W,C).

    Sizes are read off names and shapes, except for the heads, which leave no trace: 0 takes those of the published
    size of this width and depth. `like` says all that a network is, where a description came with the arrays. Networks
    that also predict a variance (learn_sigma) give twice the channels: the second half, which no sampler here reads,
    is dropped. What is missing, extra or of another shape is a `UserError` naming it.
    """
    state = layout.as_arrays(state)
    network, image_shape = architecture(state, heads, like)
    leaves = traverse_util.flatten_dict(variable_shapes(network, image_shape))
    paths = {official_name(path): path for path in leaves}
    expected = {name: _official_shape(name, leaves[path].shape) for name, path in paths.items()}
    state = without_variance(state, expected)
    positions = np.asarray(position_embedding(_grid(network, image_shape), network.width))[None]
    layout.check_arrays(state, expected | {POSITIONS: positions.shape})
    if not np.allclose(state[POSITIONS], positions, atol=1e-4):
        raise UserError(f"{POSITIONS} is not the fixed embedding by sines and cosines, the only one supported")
    flat = {path: _turned(name, state[name], layout.to_flax).astype(np.float32) for name, path in paths.items()}
    return network, traverse_util.unflatten_dict(flat), image_shape


def dit_to_official(network: DiT, variables: Any, image_shape: tuple[int, int, int]) -> StateDict:
    """Returns the state dict of the official module (learn_sigma=False): the inverse of the import, exactly.

    The official module has no augmentation label, whose part is left out: at sampling it adds nothing. One that
    computes something else, or no square image, is a `UserError`.
    """
    H, W, _ = image_shape
    if network.conditioning != "adaln_zero" or network.pattern != "full" or not network.num_classes or H != W:
        raise UserError(
            f"the official {_FAMILY} has adaLN-Zero, full attention, classes and square images; this one has "
            f"{network.conditioning}, {network.pattern}, {network.num_classes} classes and {H}x{W}"
        )
    flat = traverse_util.flatten_dict(jax.device_get(variables))
    named = {official_name(path): array for path, array in flat.items() if path[1] != "map_augment"}
    state = {name: _turned(name, array, layout.to_torch) for name, array in named.items()}
    positions = np.asarray(position_embedding(_grid(network, image_shape), network.width))[None]
    return dict(sorted((state | {POSITIONS: positions}).items()))


def architecture(state: StateDict, heads: int, like: DiT | None) -> tuple[DiT, tuple[int, int, int]]:
    """Reads the network and the image shape (H,W,C) off names and shapes; one of no use is a `UserError`."""
    width, channels, patch, _ = _weight(state, PATCHES, 4).shape
    side = patch * math.isqrt(_weight(state, POSITIONS, 3).shape[1])
    depth = 1 + max((int(m[1]) for m in map(_BLOCK.match, state) if m), default=-1)
    num_classes = _weight(state, LABELS, 2).shape[0] - 1
    if like is not None:
        network = like.clone(augment_dim=0)
    else:
        network = DiT(num_classes, patch, width, depth, heads or published_heads(width, depth), dropout_rate=0.0)
    image_shape = (side, side, channels)
    check_architecture(network, image_shape)
    return network, image_shape


def published_heads(width: int, depth: int) -> int:
    """Returns the heads of the size of this width and depth; `UserError` where there is none."""
    for size in SIZES.values():
        if (size.width, size.depth) == (width, depth):
            return size.heads
    raise UserError(f"no published size has {depth} blocks of {width} channels, so say how many heads: --heads=")


def without_variance(state: StateDict, expected: dict[str, tuple[int, ...]]) -> StateDict:
    """Returns the state dict without what predicts a variance: the second half of the channels of every pixel."""
    halved = {}
    for name in (f"{PIXELS}weight", f"{PIXELS}bias"):
        array, (outputs, *inputs) = state.get(name), expected[name]
        if array is not None and array.shape == (2 * outputs, *inputs):
            pixels = math.prod(expected[PATCHES][2:])  # of a patch; their channels are the last part of an output
            halved[name] = array.reshape(pixels, 2, outputs // pixels, *inputs)[:, 0].reshape(outputs, *inputs)
    return state | halved


def official_name(path: Path) -> str:
    """Turns ("params", "blocks_0", "attn", "qkv", "kernel") into `blocks.0.attn.qkv.weight`."""
    _, *modules, leaf = path
    module = ".".join(modules)
    module = re.sub(r"^blocks_(\d+)", r"blocks.\1", module)
    module = re.sub(r"^t_embedder_mlp_(\d)$", r"t_embedder.mlp.\1", module)
    module = re.sub(r"adaLN_modulation$", "adaLN_modulation.1", module)
    module = {"x_embedder": "x_embedder.proj", "y_embedder": "y_embedder.embedding_table"}.get(module, module)
    return f"{module}.{'weight' if leaf in ('kernel', 'embedding') else leaf}"


def _grid(network: DiT, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    return image_shape[0] // network.patch, image_shape[1] // network.patch


def _turned(name: str, array: np.ndarray, turn: Any) -> np.ndarray:
    """The table of labels lies the same in both, a row a label."""
    return np.ascontiguousarray(array) if name == LABELS else turn(array)


def _official_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if name == LABELS else layout.torch_shape(shape)


def _weight(state: StateDict, name: str, axes: int) -> np.ndarray:
    return layout.weight(state, name, axes, of=_FAMILY)
