"""Score networks across frameworks: EDM's PyTorch state dicts <-> the U-Net and its variables.

A state dict is {name: array}, images channels first; names such as `model.enc.8x8_block0.conv0.weight`. Those of
diffusion transformers are told apart by their names and handed to interop.dit_params.
"""

import re
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from tdsm_jax.errors import UserError, printable
from tdsm_jax.interop import layout
from tdsm_jax.interop.dit_params import PATCHES, dit_from_official, dit_to_official
from tdsm_jax.interop.layout import Path, StateDict
from tdsm_jax.networks.backbones import LARGEST_SIDE, ScoreNetwork, check_architecture
from tdsm_jax.networks.dit import DiT
from tdsm_jax.networks.layers import TENT
from tdsm_jax.networks.unet import STYLES, UNet
from tdsm_jax.training.model_file import variable_shapes

PREFIX = "model."
_FAMILY = "U-Net of the EDM family"
_FIRST = re.compile(r"enc\.([1-9][0-9]{0,3})x\1_conv\.weight")
_LEVEL = re.compile(r"enc\.([1-9][0-9]{0,3})x\1_")


def network_from_official(
    state: StateDict, heads: int = 0, like: ScoreNetwork | None = None
) -> tuple[ScoreNetwork, Any, tuple[int, int, int]]:
    """Returns the network that a state dict belongs to, its variables (float32) and the image shape (H,W,C).

    The architecture is read off names and shapes; `heads` and `like` are what these do not tell of a transformer, see
    `dit_from_official`. A state dict of another architecture, with names or shapes that do not fit, is a `UserError`.
    """
    if PATCHES in state:
        return dit_from_official(state, heads=heads, like=like if isinstance(like, DiT) else None)
    arrays = layout.as_arrays(state)
    state = {name.removeprefix(PREFIX): array for name, array in arrays.items()}
    if len(state) < len(arrays):
        raise UserError(f"the state dict has arrays twice, with and without {PREFIX!r} before their names")
    network, image_shape = architecture(state)
    leaves = traverse_util.flatten_dict(variable_shapes(network, image_shape))
    paths = {official_name(path, network.style, image_shape[0]): path for path in leaves}
    filters = [name for name in state if name.endswith("resample_filter")]
    layout.check_arrays(state, {name: layout.torch_shape(leaves[path].shape) for name, path in paths.items()}, filters)
    check_filters(state, network)
    flat = {path: layout.to_flax(state[name]).astype(np.float32) for name, path in paths.items()}
    return network, traverse_util.unflatten_dict(flat), image_shape


def network_to_official(network: ScoreNetwork, variables: Any, image_shape: tuple[int, int, int]) -> StateDict:
    """Returns the state dict of the official module of the same architecture: the inverse of the import, exactly."""
    if isinstance(network, DiT):
        return dit_to_official(network, variables, image_shape)
    resolution = image_shape[0]
    flat = traverse_util.flatten_dict(jax.device_get(variables))
    state = {official_name(path, network.style, resolution): layout.to_torch(array) for path, array in flat.items()}
    taps = np.asarray(STYLES[network.style].taps, np.float32)
    kernel = (np.outer(taps, taps) / taps.sum() ** 2)[None, None]
    for path in flat:
        name = official_name(path, network.style, resolution)
        if name.endswith("aux_residual.bias"):
            state[name.replace("bias", "resample_filter")] = kernel
        if re.search(r"(_down|_up)\.conv0\.bias$", name):
            state[name.replace("bias", "resample_filter")] = kernel
            state[name.replace("conv0.bias", "skip.resample_filter")] = kernel
    return {PREFIX + name: array for name, array in sorted(state.items())}


def architecture(state: StateDict) -> tuple[UNet, tuple[int, int, int]]:
    """Reads the architecture and the image shape (H,W,C) off the names (without prefix) and shapes.

    What no U-Net is built of, or none of use, is a `UserError`.
    """
    first = next((m for m in map(_FIRST.fullmatch, state) if m), None)
    if first is None:
        raise UserError(f"this is no {_FAMILY}: no array is called enc.NxN_conv.weight with N up to {LARGEST_SIDE}")
    resolution = int(first[1])
    channels, image_channels = _weight(state, first[0], 4).shape[:2]
    levels = sorted({int(m[1]) for m in map(_LEVEL.match, state) if m}, reverse=True)
    if levels != [resolution >> level for level in range(len(levels))]:
        raise UserError(f"the resolutions of the encoder are {levels[:13]}; each must be half of the one before")
    widths = [_weight(state, f"enc.{r}x{r}_block0.conv0.weight", 4).shape[0] for r in levels]
    if any(width % channels for width in widths):
        raise UserError(f"the encoder's levels have {widths} channels; all must be multiples of the first {channels}")
    network = UNet(
        num_classes=_inputs(state, "map_label.weight"),
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=sum(bool(re.fullmatch(rf"enc\.{resolution}x{resolution}_block\d+\.conv0\.weight", n)) for n in state),
        attention_resolutions=tuple(r for r in levels if f"enc.{r}x{r}_block0.qkv.weight" in state),
        dropout_rate=0.0,
        style=_style(state, resolution),
        augment_dim=_inputs(state, "map_augment.weight"),
    )
    image_shape = (resolution, resolution, image_channels)
    check_architecture(network, image_shape)
    return network, image_shape


def _weight(state: StateDict, name: str, axes: int) -> np.ndarray:
    return layout.weight(state, name, axes, of=_FAMILY)


def _inputs(state: StateDict, name: str) -> int:
    """The number of inputs of a linear layer that not every network has, 0 without it."""
    return _weight(state, name, 2).shape[1] if name in state else 0


def _style(state: StateDict, resolution: int) -> str:
    if "out_norm.weight" in state:
        return "adm"
    fourier = "map_noise.freqs" in state
    residual = any(name.endswith("aux_residual.weight") for name in state)
    if fourier != residual or f"dec.{resolution}x{resolution}_aux_norm.weight" not in state:
        raise UserError(
            "this U-Net mixes the parts of DDPM++ and NCSN++ (embedding, encoder, decoder); only the two presets "
            "and ADM are supported"
        )
    return "ncsnpp" if fourier else "ddpmpp"


def official_name(path: Path, style: str, resolution: int) -> str:
    """Turns ("params", "enc_8x8_block0", "attention", "qkv", "kernel") into `enc.8x8_block0.qkv.weight`.

    The output layers are called by the style and the image's resolution.
    """
    _, *modules, kind = path
    modules = [module for module in modules if module != "attention"]
    if modules[0].startswith("out_") and not STYLES[style].label_late:
        modules = ["dec", f"{resolution}x{resolution}_aux_{modules[0].removeprefix('out_')}"]
    elif modules[0].startswith(("enc_", "dec_")):
        side, _, place = modules[0].partition("_")
        modules = [side, place, *modules[1:]]
    return ".".join([*modules, "weight" if kind in ("scale", "kernel") else kind])


def check_filters(state: StateDict, network: UNet) -> None:
    """Raises `UserError` where a stored resampling filter is not the architecture's."""
    taps = np.asarray(STYLES[network.style].taps)
    expected = np.outer(taps, taps) / taps.sum() ** 2
    for name, array in state.items():
        if name.endswith("resample_filter") and (
            array.shape != (1, 1, *expected.shape) or not np.allclose(array, expected, atol=1e-6)
        ):
            preset = "1,3,3,1" if taps.tolist() == list(TENT) else "1,1"
            raise UserError(
                f"{printable(name)} is not the filter {preset} of this architecture, which is the only one supported"
            )
