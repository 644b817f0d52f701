"""The score network that a config describes."""

from typing import Any

import jax.numpy as jnp

from tdsm_jax.diffusion.process import VP, Process
from tdsm_jax.errors import UserError
from tdsm_jax.networks import dit
from tdsm_jax.networks.backbones import ScoreNetwork
from tdsm_jax.networks.dit import SIZES, DiT
from tdsm_jax.networks.unet import UNet


def score_network(config: Any, num_classes: int, augment_dim: int, process: Process) -> ScoreNetwork:
    """Returns the network of sections network, dit and compute; `augment_dim` 0: it takes no augmentation label."""
    n = config.network
    shared = {
        "num_classes": num_classes,
        "dropout_rate": n.dropout,
        "augment_dim": augment_dim,
        "dtype": jnp.dtype(n.dtype),
        "attention": config.compute.attention,
        "remat": config.compute.remat,
    }
    if not is_dit(config):
        return UNet(
            channels=n.channels,
            multipliers=n.multipliers,
            blocks=n.blocks,
            attention_resolutions=n.attention_resolutions,
            style=n.style,
            **shared,
        )
    local = config.dit.attention != "full"
    return DiT(
        **size_of(config)._asdict(),
        conditioning=config.dit.conditioning,
        pattern=config.dit.attention,
        window=config.dit.window if local else 0,
        time_scale=1.0 if isinstance(process, VP) else dit.TIME_SCALE,  # VP's c_noise is a time step as it is
        **shared,
    )


def is_dit(config: Any) -> bool:
    """Says whether the network is a diffusion transformer; else it is a U-Net."""
    return config.network.style == "dit"


def size_of(config: Any) -> dit.Size:
    """Returns the size of a diffusion transformer: that named, with what the config says otherwise."""
    named = SIZES[config.dit.size]._asdict()
    return dit.Size(**{name: config.dit[name] or value for name, value in named.items()})


def check_start(network: ScoreNetwork, initial: ScoreNetwork, path: str) -> None:
    """Raises `UserError` where a model to start from computes with the same arrays something else than `network`.

    Which tokens see which may change on the way, and so may dropout and precision.
    """
    for name in ("heads", "time_scale", "conditioning"):
        own, given = getattr(network, name, None), getattr(initial, name, None)
        if own != given:
            raise UserError(f"{path} has {name} {given}, the config makes it {own}: set sections network and dit")
