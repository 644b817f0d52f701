"""Score networks across frameworks: EDM's PyTorch state dicts <-> the U-Net and its variables.

A state dict is {name: array}, images channels first; names such as `model.enc.8x8_block0.conv0.weight`.
"""

import re
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from tdsm_jax.errors import UserError
from tdsm_jax.networks.layers import TENT
from tdsm_jax.networks.unet import STYLES, UNet
from tdsm_jax.training.model_file import check_params, variable_shapes

StateDict = dict[str, np.ndarray]
Path = tuple[str, ...]  # of a leaf in the variables: collection, modules, name

PREFIX = "model."
_ATTENTION = ("norm2", "qkv", "proj")


def network_from_official(state: StateDict) -> tuple[UNet, Any, tuple[int, int, int]]:
    """Returns the U-Net that a state dict belongs to, its variables (float32) and the image shape (H,W,C).

    The architecture is read off names and shapes. A state dict of another architecture, with names or shapes that
    do not fit, is a `UserError`.
    """
    state = {name.removeprefix(PREFIX): np.asarray(array) for name, array in state.items()}
    network, image_shape = architecture(state)
    flat = {
        flax_path(name): to_flax(array).astype(np.float32)
        for name, array in state.items()
        if not name.endswith("resample_filter")
    }
    check_filters(state, network)
    variables = traverse_util.unflatten_dict(flat)
    check_params(variables, variable_shapes(network, image_shape), "the state dict")
    return network, variables, image_shape


def network_to_official(network: UNet, variables: Any, image_shape: tuple[int, int, int]) -> StateDict:
    """Returns the state dict of the official module of the same architecture: the inverse of the import, exactly."""
    resolution = image_shape[0]
    flat = traverse_util.flatten_dict(jax.device_get(variables))
    state = {official_name(path, network.style, resolution): to_torch(array) for path, array in flat.items()}
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
    """Reads the architecture and the image shape (H,W,C) off the names (without prefix) and shapes."""
    first = next((m for m in map(re.compile(r"enc\.(\d+)x\1_conv\.weight").fullmatch, state) if m), None)
    if first is None:
        raise UserError("this is no U-Net of the EDM family: no array is called enc.NxN_conv.weight")
    resolution = int(first.group(1))
    channels, image_channels = state[first.group(0)].shape[:2]
    levels = sorted({int(m.group(1)) for m in map(re.compile(r"enc\.(\d+)x.*").match, state) if m}, reverse=True)
    widths = [state.get(f"enc.{r}x{r}_block0.conv0.weight", np.zeros(1)).shape[0] for r in levels]
    label = state.get("map_label.weight", np.zeros((0, 0)))
    network = UNet(
        num_classes=label.shape[1],
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=sum(bool(re.fullmatch(rf"enc\.{resolution}x{resolution}_block\d+\.conv0\.weight", n)) for n in state),
        attention_resolutions=tuple(r for r in levels if f"enc.{r}x{r}_block0.qkv.weight" in state),
        dropout_rate=0.0,
        style=_style(state, resolution),
        augment_dim=state.get("map_augment.weight", np.zeros((0, 0))).shape[1],
    )
    return network, (resolution, resolution, image_channels)


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


def flax_path(name: str) -> Path:
    """Turns `enc.8x8_block0.qkv.weight` into ("params", "enc_8x8_block0", "attention", "qkv", "kernel")."""
    *modules, kind = name.split(".")
    if modules and modules[0] in ("enc", "dec") and len(modules) > 1:
        place, *rest = modules[1:]
        if place.endswith(("_aux_norm", "_aux_conv")):
            modules = ["out_" + place.rpartition("_")[2]]
        else:
            inner = ["attention"] if rest and rest[0] in _ATTENTION else []
            modules = [f"{modules[0]}_{place}", *inner, *rest]
    if kind == "weight":
        kind = "scale" if "norm" in modules[-1] else "kernel"
    return ("constants" if modules[:1] == ["map_noise"] else "params", *modules, kind)


def official_name(path: Path, style: str, resolution: int) -> str:
    """The inverse of `flax_path`; the output layers are called by the style and the image's resolution."""
    _, *modules, kind = path
    modules = [module for module in modules if module != "attention"]
    if modules[0].startswith("out_") and not STYLES[style].label_late:
        modules = ["dec", f"{resolution}x{resolution}_aux_{modules[0].removeprefix('out_')}"]
    elif modules[0].startswith(("enc_", "dec_")):
        side, _, place = modules[0].partition("_")
        modules = [side, place, *modules[1:]]
    return ".".join([*modules, "weight" if kind in ("scale", "kernel") else kind])


def to_flax(array: np.ndarray) -> np.ndarray:
    """Turns a weight from OIHW to HWIO, or from [out,in] to [in,out]; other arrays stay."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_torch(array: np.ndarray) -> np.ndarray:
    """The inverse of `to_flax`, in contiguous memory."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T)


def check_filters(state: StateDict, network: UNet) -> None:
    """Raises `UserError` where a stored resampling filter is not the architecture's."""
    taps = np.asarray(STYLES[network.style].taps)
    expected = np.outer(taps, taps) / taps.sum() ** 2
    for name, array in state.items():
        if name.endswith("resample_filter") and (
            array.shape != (1, 1, *expected.shape) or not np.allclose(array, expected, atol=1e-6)
        ):
            preset = "1,3,3,1" if taps.tolist() == list(TENT) else "1,1"
            raise UserError(f"{name} is not the filter {preset} of this architecture, which is the only one supported")
