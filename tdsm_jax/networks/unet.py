"""The U-Nets of the EDM family in one body: DDPM++ and NCSN++ (Song et al. 2021), ADM (Dhariwal & Nichol 2021).

All as configured by Karras et al. 2022; what tells them apart is a `Style`.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tdsm_jax.networks.attention import full_attention
from tdsm_jax.networks.layers import (
    BOX,
    TENT,
    Conv,
    FourierEmbedding,
    dropout,
    group_norm,
    kernel_init,
    label_one_hot,
    linear,
    positional_embedding,
    resample,
)


@dataclasses.dataclass(frozen=True)
class Style:
    """What tells the U-Nets apart.

    `skip_scale` keeps the variance of a sum of two branches; `last_scale` and `attention_scale` are the initial
    scales of a branch's last convolution and of an attention's first one; `adaptive_scale` lets the embedding scale
    and shift the second norm instead of being added before it; `residual_encoder` adds the downsampled image to
    every lower level; `label_late` adds the label after the second mapping layer instead of before the first;
    `project_resampled` gives a resampled skip a 1x1 convolution even where the width stays; `attend_everywhere`
    goes beyond the decoder's last block of a level.
    """

    norm_eps: float = 1e-6
    skip_scale: float = math.sqrt(0.5)
    init: str = "xavier"
    last_scale: float = 1e-5
    attention_scale: float = math.sqrt(0.2)
    channels_per_head: int | None = None  # None: one head
    fourier: bool = False
    taps: tuple[int, ...] = BOX
    residual_encoder: bool = False
    adaptive_scale: bool = False
    label_late: bool = False
    project_resampled: bool = True
    attend_everywhere: bool = False


STYLES = {
    "ddpmpp": Style(),
    "ncsnpp": Style(fourier=True, taps=TENT, residual_encoder=True),
    "adm": Style(
        norm_eps=1e-5,
        skip_scale=1.0,
        init="torch",
        last_scale=0.0,
        attention_scale=1.0,
        channels_per_head=64,
        adaptive_scale=True,
        label_late=True,
        project_resampled=False,
        attend_everywhere=True,
    ),
}


class SelfAttention(nn.Module):
    """Self-attention over pixels with a residual connection. Shapes: [B,H,W,C] -> [B,H,W,C]."""

    style: Style
    heads: int
    dtype: jnp.dtype
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        style, heads = self.style, self.heads
        conv: dict[str, Any] = {"size": 1, "init_kind": style.init, "dtype": self.dtype}
        normed = group_norm(C, style.norm_eps, self.dtype, "norm2")(x)
        qkv = Conv(3 * C, init_scale=style.attention_scale, **conv, name="qkv")(normed)
        # Channels come interleaved as (head, c, q/k/v), the layout of EDM's weights.
        q, k, v = jnp.moveaxis(qkv.reshape(B, H * W, heads, C // heads, 3), -1, 0)
        attended = full_attention(q, k, v, self.attention).reshape(B, H, W, C)
        return (x + Conv(C, init_scale=style.last_scale, **conv, name="proj")(attended)) * style.skip_scale


class Block(nn.Module):
    """Residual block: norm, SiLU, convolution twice, the embedding between, attention after.

    Shapes: x [B,H,W,C], embedding [B,E] -> [B,H',W',features] (H' doubled by `up`, halved by `down`).
    """

    features: int
    style: Style
    up: bool = False
    down: bool = False
    attend: bool = False
    dropout_rate: float = 0.0
    layer: int = 0
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        style, C = self.style, self.features
        conv: dict[str, Any] = {"init_kind": style.init, "dtype": self.dtype}
        moved = {"up": self.up, "down": self.down, "taps": style.taps, **conv}
        branch = nn.silu(group_norm(x.shape[-1], style.norm_eps, self.dtype, "norm0")(x))
        branch = Conv(C, **moved, name="conv0")(branch)
        affine = linear(C * (1 + style.adaptive_scale), self.dtype, "affine", style.init, fan_in=embedding.shape[-1])
        affine = affine(embedding)[:, None, None, :]
        norm1 = group_norm(C, style.norm_eps, self.dtype, "norm1")
        if style.adaptive_scale:
            scale, shift = jnp.split(affine, 2, axis=-1)
            branch = nn.silu(norm1(branch) * (1 + scale) + shift)
        else:
            branch = nn.silu(norm1(branch + affine))
        branch = dropout(branch, self.dropout_rate, dropout_keys, self.layer)
        branch = Conv(C, init_scale=style.last_scale, **conv, name="conv1")(branch)
        if x.shape[-1] != C or ((self.up or self.down) and style.project_resampled):
            x = Conv(C, size=1, **moved, name="skip")(x)
        else:
            x = resample(x, self.up, self.down, style.taps)
        x = (x + branch) * style.skip_scale
        heads = C // style.channels_per_head if style.channels_per_head else 1  # too narrow for a head: no attention
        if not self.attend or not heads:
            return x
        return SelfAttention(style, heads, self.dtype, self.attention, name="attention")(x)


class UNet(nn.Module):
    """The raw network F(x, c_noise, label, augment_label); `diffusion.process` makes a denoiser of it.

    Module names spell place and resolution (`enc_8x8_block0`) as in EDM's state dicts. `augment_dim` is the length
    of the augmentation label, 0 for a network that takes none. `attention` is how attention is computed (of
    `attention.IMPLEMENTATIONS`); `remat` computes the blocks' activations a second time in the
    backward pass instead of keeping them. Neither changes what the network computes.
    """

    num_classes: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention_resolutions: tuple[int, ...]
    dropout_rate: float
    style: str = "ddpmpp"
    augment_dim: int = 0
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,  # [B,H,W,C]
        c_noise: jax.Array,  # [B]
        label: jax.Array,  # int [B]; num_classes is the null label
        augment_label: jax.Array | None = None,  # [B,augment_dim], None for images as they are
        dropout_keys: jax.Array | None = None,  # [B], None in evaluation
    ) -> jax.Array:  # [B,H,W,C] float32
        style = STYLES[self.style]
        embedding = self.embed(c_noise, label, augment_label)
        layer = 0

        def block(name: str, x: jax.Array, features: int, **kind: bool) -> jax.Array:
            nonlocal layer
            layer += 1
            common: dict[str, Any] = {
                "dropout_rate": self.dropout_rate,
                "layer": layer,
                "dtype": self.dtype,
                "name": name,
            }
            kind_of_block = nn.remat(Block) if self.remat else Block
            made = kind_of_block(features, style, **kind, **common, attention=self.attention)
            return made(x, embedding, dropout_keys)

        conv: dict[str, Any] = {"init_kind": style.init, "dtype": self.dtype}
        image, resolution = x, x.shape[1]
        skips, levels = [], []
        for level, multiplier in enumerate(self.multipliers):
            size = f"{resolution >> level}x{resolution >> level}"
            attend = resolution >> level in self.attention_resolutions
            levels.append((size, attend, self.channels * multiplier))
            if level == 0:
                x = Conv(self.channels, **conv, name=f"enc_{size}_conv")(x)
                residual = image
            else:
                x = block(f"enc_{size}_down", x, x.shape[-1], down=True)
                if style.residual_encoder:
                    shrink: dict[str, Any] = {"down": True, "fused": True, "taps": style.taps}
                    residual = Conv(x.shape[-1], **shrink, **conv, name=f"enc_{size}_aux_residual")(residual)
                    x = residual = (x + residual) * style.skip_scale
            skips.append(x)
            for index in range(self.blocks):
                x = block(f"enc_{size}_block{index}", x, self.channels * multiplier, attend=attend)
                skips.append(x)

        for size, attend, features in reversed(levels):
            if size == levels[-1][0]:
                x = block(f"dec_{size}_in0", x, x.shape[-1], attend=True)
                x = block(f"dec_{size}_in1", x, x.shape[-1])
            else:
                x = block(f"dec_{size}_up", x, x.shape[-1], up=True)
            for index in range(self.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                chosen = style.attend_everywhere or index == self.blocks
                x = block(f"dec_{size}_block{index}", x, features, attend=attend and chosen)

        x = nn.silu(group_norm(x.shape[-1], style.norm_eps, self.dtype, "out_norm")(x))
        x = Conv(image.shape[-1], init_scale=style.last_scale, **conv, name="out_conv")(x)
        return x.astype(jnp.float32)

    def embed(self, c_noise: jax.Array, label: jax.Array, augment_label: jax.Array | None) -> jax.Array:
        """Maps noise level, label and augmentation label to the conditioning vector [B,4*channels]."""
        style = STYLES[self.style]
        if style.fourier:
            embedding = FourierEmbedding(2 * self.channels, name="map_noise")(c_noise)
        else:
            embedding = positional_embedding(c_noise, self.channels, endpoint=not style.label_late)
        if style.label_late:  # cosines first
            embedding = jnp.roll(embedding, self.channels // 2, axis=-1)

        def mapped(name: str, x: jax.Array) -> jax.Array:
            return linear(4 * self.channels, self.dtype, name, style.init, fan_in=x.shape[-1])(x)

        def unbiased(features: int, name: str, init: nn.initializers.Initializer) -> nn.Dense:
            return nn.Dense(features, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)

        width = embedding.shape[-1]
        if self.num_classes and not style.label_late:
            one_hot = label_one_hot(label, self.num_classes)
            embedding = embedding + linear(width, self.dtype, "map_label")(one_hot)
        if self.augment_dim:
            none = jnp.zeros((len(c_noise), self.augment_dim))
            init = nn.initializers.zeros if style.label_late else kernel_init(style.init)
            map_augment = unbiased(width, "map_augment", init)
            embedding = embedding + map_augment(none if augment_label is None else augment_label)
        embedding = mapped("map_layer1", nn.silu(mapped("map_layer0", embedding)))
        if self.num_classes and style.label_late:
            one_hot = jax.nn.one_hot(label, self.num_classes)
            embedding = embedding + unbiased(4 * self.channels, "map_label", nn.initializers.normal(1.0))(one_hot)
        return nn.silu(embedding)
