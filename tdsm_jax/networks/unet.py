"""The U-Net of DDPM++ (Song et al. 2021, as configured by Karras et al. 2022): noise level and label in, image out."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from tdsm_jax.networks.layers import (
    Conv,
    dropout,
    group_norm,
    label_one_hot,
    linear,
    positional_embedding,
)

SKIP_SCALE = math.sqrt(0.5)  # keeps the variance of a sum of two branches
ZERO_SCALE = 1e-5  # nearly zero: a fresh residual branch adds almost nothing
ATTENTION_SCALE = math.sqrt(0.2)
NORM_EPS = 1e-6


class SelfAttention(nn.Module):
    """Single-head self-attention over pixels with a residual connection. Shapes: [B,H,W,C] -> [B,H,W,C]."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        qkv = Conv(3 * C, size=1, init_scale=ATTENTION_SCALE, dtype=self.dtype, name="qkv")(
            group_norm(C, NORM_EPS, self.dtype, "norm2")(x)
        )
        # Channels come interleaved as (c, q/k/v), the layout of EDM's weights.
        q, k, v = jnp.moveaxis(qkv.reshape(B, H * W, 1, C, 3), -1, 0)
        attended = jax.nn.dot_product_attention(q, k, v).reshape(B, H, W, C)
        projected = Conv(C, size=1, init_scale=ZERO_SCALE, dtype=self.dtype, name="proj")(attended)
        return (x + projected) * SKIP_SCALE


class Block(nn.Module):
    """Residual block: norm, SiLU, convolution twice, the embedding added between, attention after.

    Shapes: x [B,H,W,C], embedding [B,E] -> [B,H',W',features] (H' doubled by `up`, halved by `down`).
    """

    features: int
    up: bool = False
    down: bool = False
    attention: bool = False
    dropout_rate: float = 0.0
    layer: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        resample = {"up": self.up, "down": self.down, "dtype": self.dtype}
        branch = nn.silu(group_norm(x.shape[-1], NORM_EPS, self.dtype, "norm0")(x))
        branch = Conv(self.features, **resample, name="conv0")(branch)
        branch = branch + linear(self.features, self.dtype, "affine")(embedding)[:, None, None, :]
        branch = nn.silu(group_norm(self.features, NORM_EPS, self.dtype, "norm1")(branch))
        branch = dropout(branch, self.dropout_rate, dropout_keys, self.layer)
        branch = Conv(self.features, init_scale=ZERO_SCALE, dtype=self.dtype, name="conv1")(branch)
        if self.up or self.down or x.shape[-1] != self.features:
            x = Conv(self.features, size=1, **resample, name="skip")(x)
        x = (x + branch) * SKIP_SCALE
        return SelfAttention(self.dtype, name="attention")(x) if self.attention else x


class UNet(nn.Module):
    """DDPM++: the raw network F(x, c_noise, label); `diffusion.process` makes a denoiser of it.

    Module names spell place and resolution (`enc_8x8_block0`) as in EDM's state dicts.
    """

    num_classes: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention_resolutions: tuple[int, ...]
    dropout_rate: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,  # [B,H,W,C]
        c_noise: jax.Array,  # [B]
        label: jax.Array,  # int [B]; num_classes is the null label
        dropout_keys: jax.Array | None = None,  # [B], None in evaluation
    ) -> jax.Array:  # [B,H,W,C] float32
        embedding = self.embed(c_noise, label)
        layer = 0

        def block(name: str, x: jax.Array, features: int, **kind: bool) -> jax.Array:
            nonlocal layer
            layer += 1
            module = Block(features, dropout_rate=self.dropout_rate, layer=layer, dtype=self.dtype, name=name, **kind)
            return module(x, embedding, dropout_keys)

        image_channels, resolution = x.shape[-1], x.shape[1]
        skips = []
        for level, multiplier in enumerate(self.multipliers):
            size = f"{resolution >> level}x{resolution >> level}"
            attend = resolution >> level in self.attention_resolutions
            if level == 0:
                x = Conv(self.channels, dtype=self.dtype, name=f"enc_{size}_conv")(x)
            else:
                x = block(f"enc_{size}_down", x, x.shape[-1], down=True)
            skips.append(x)
            for index in range(self.blocks):
                x = block(f"enc_{size}_block{index}", x, self.channels * multiplier, attention=attend)
                skips.append(x)

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            size = f"{resolution >> level}x{resolution >> level}"
            attend = resolution >> level in self.attention_resolutions
            if level == len(self.multipliers) - 1:
                x = block(f"dec_{size}_in0", x, x.shape[-1], attention=True)
                x = block(f"dec_{size}_in1", x, x.shape[-1])
            else:
                x = block(f"dec_{size}_up", x, x.shape[-1], up=True)
            for index in range(self.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                last = index == self.blocks
                x = block(f"dec_{size}_block{index}", x, self.channels * multiplier, attention=attend and last)

        x = nn.silu(group_norm(x.shape[-1], NORM_EPS, self.dtype, "out_norm")(x))
        x = Conv(image_channels, init_scale=ZERO_SCALE, dtype=self.dtype, name="out_conv")(x)
        return x.astype(jnp.float32)

    def embed(self, c_noise: jax.Array, label: jax.Array) -> jax.Array:
        """Maps noise level and label to the conditioning vector [B,4*channels]."""
        embedding = positional_embedding(c_noise, self.channels)
        one_hot = label_one_hot(label, self.num_classes)
        embedding = embedding + linear(self.channels, self.dtype, "map_label")(one_hot)
        embedding = nn.silu(linear(4 * self.channels, self.dtype, "map_layer0")(embedding))
        return nn.silu(linear(4 * self.channels, self.dtype, "map_layer1")(embedding))
