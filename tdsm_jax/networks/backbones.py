"""The kinds of score network by their names in files, and the refusal of those that cannot be built.

All are called alike, (x, c_noise, label, augment_label, dropout_keys) -> F, and have the fields `num_classes`,
`dropout_rate`, `augment_dim`, `dtype`, `attention` and `remat`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from tdsm_jax.errors import UserError, did_you_mean, printable
from tdsm_jax.networks.attention import PATTERNS
from tdsm_jax.networks.dit import CONDITIONINGS, DiT
from tdsm_jax.networks.unet import STYLES, UNet

ScoreNetwork = UNet | DiT
KINDS: dict[str, type[ScoreNetwork]] = {"unet": UNet, "dit": DiT}
FIRST_KIND = "unet"  # that of descriptions from before there were others, which name none
DTYPES = ("float32", "bfloat16", "float16")
LARGEST_SIDE = 4096  # pixels; far beyond what such networks are trained for, as are the next five
LARGEST_WIDTH = 1 << 14  # channels of a level, or of a token
LARGEST_LABEL = 1 << 20  # classes, or numbers of an augmentation label
MOST_BLOCKS = 16  # of a level
MOST_DEPTH = 128  # blocks of a transformer
MOST_TOKENS = 1 << 16
_HOW = ("parent", "name", "attention", "remat")  # fields that do not change what a network computes


def fields_of(kind: type[ScoreNetwork]) -> list[dataclasses.Field]:
    """Returns what says what a network computes; how it does so is for the program that runs it to choose."""
    return [field for field in dataclasses.fields(kind) if field.name not in _HOW]


def describe(network: ScoreNetwork) -> dict[str, Any]:
    """Returns the kind and the fields of a network as JSON values."""
    kind = next(name for name, kind in KINDS.items() if type(network) is kind)
    values = {field.name: getattr(network, field.name) for field in fields_of(type(network))}
    return {"kind": kind} | values | {"dtype": jnp.dtype(network.dtype).name}


def network_from(description: dict[str, Any]) -> ScoreNetwork:
    """Makes the network that `describe` described.

    What is none is a `UserError`, or an error of Python's where the form is not that of a description.
    """
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in description.items()
    }
    name = values.pop("kind", FIRST_KIND)
    if type(name) is not str or name not in KINDS:
        raise UserError(f"its network is of kind {printable(repr(name))}{did_you_mean(str(name), KINDS)}")
    kind = KINDS[name]
    fields = fields_of(kind)
    for field in fields:
        if field.name in values and field.type in _IS and not _IS[field.type](values[field.name]):
            raise UserError(f"its network has {field.name} {printable(repr(values[field.name]))}; write it again")
    if unknown := values.keys() - {field.name for field in fields}:
        raise UserError(f"its network has unknown entries: {printable(', '.join(sorted(unknown)))}; update tdsm_jax")
    if values["dtype"] not in DTYPES:
        raise UserError(f"its network has dtype {printable(repr(values['dtype']))}; valid: {', '.join(DTYPES)}")
    return kind(**values | {"dtype": jnp.dtype(values["dtype"])})


def check_architecture(network: ScoreNetwork, image_shape: tuple[int, int, int]) -> None:
    """Raises `UserError` where no network can be built as described, or only one beyond any use."""
    if len(image_shape) != 3 or not all(type(n) is int and 0 < n <= LARGEST_SIDE for n in image_shape):
        shown = printable(str(image_shape))
        raise UserError(f"its images have shape {shown}; height, width and channels are 1 to {LARGEST_SIDE}")
    _CHECKS[type(network)](network, image_shape)


def _check_unet(network: UNet, image_shape: tuple[int, int, int]) -> None:
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


def _check_dit(network: DiT, image_shape: tuple[int, int, int]) -> None:
    n, (H, W, _) = network, image_shape
    for name, value, valid in (("conditioning", n.conditioning, CONDITIONINGS), ("pattern", n.pattern, PATTERNS)):
        if value not in valid:
            raise UserError(f"its network has {name} {printable(value)}{did_you_mean(value, valid)}")
    if not n.patch or H % n.patch or W % n.patch:
        raise UserError(f"its network has patches of {n.patch} pixels, which do not divide images of {H}x{W}")
    if not 0 < n.width <= LARGEST_WIDTH or n.width % 4 or not 0 < n.depth <= MOST_DEPTH:
        raise UserError(
            f"its network has tokens of {n.width} channels in {n.depth} blocks; multiples of 4 up to {LARGEST_WIDTH}, "
            f"in up to {MOST_DEPTH}, are supported"
        )
    if n.heads < 1 or n.width % n.heads:
        raise UserError(f"its network has tokens of {n.width} channels, which are not {n.heads} equal heads")
    rows, columns = H // n.patch, W // n.patch
    if rows * columns > MOST_TOKENS or max(n.num_classes, n.augment_dim) > LARGEST_LABEL:
        raise UserError(
            f"its network has {rows * columns} tokens, {n.num_classes} classes and augmentation labels of "
            f"{n.augment_dim}; the most are {MOST_TOKENS} and {LARGEST_LABEL}"
        )
    if n.pattern == "full":
        return
    most = min(rows, columns) if n.pattern == "neighbourhood" else rows * columns
    if not 0 < n.window <= most:
        raise UserError(f"its network has a {n.pattern} of {n.window} tokens; among {rows}x{columns} 1 to {most} fit")
    if n.conditioning == "in_context":
        raise UserError(f"its network has conditions in context, which no {n.pattern} takes in; they need pattern full")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    """Tells the finite numbers of a description from everything else that JSON holds."""
    return type(value) in (int, float) and math.isfinite(value)


_CHECKS: dict[type[ScoreNetwork], Callable[[Any, tuple[int, int, int]], None]] = {
    UNet: _check_unet,
    DiT: _check_dit,
}
_IS: dict[Any, Callable[[Any], bool]] = {  # by a field's type
    int: _is_count,
    float: is_number,
    str: lambda value: type(value) is str,
    tuple[int, ...]: lambda value: type(value) is tuple and all(map(_is_count, value)),
}
