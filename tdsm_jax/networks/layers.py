"""Layers shared by the networks: convolution, linear, dropout by example key, noise and label embeddings."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def xavier(scale: float = 1.0) -> nn.initializers.Initializer:
    """Returns Glorot's uniform initialiser times `scale`."""
    return nn.initializers.variance_scaling(scale**2, "fan_avg", "uniform")


def upsample(x: jax.Array) -> jax.Array:
    """Doubles height and width by repetition. Shapes: [B,H,W,C] -> [B,2H,2W,C]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def downsample(x: jax.Array) -> jax.Array:
    """Halves height and width by the mean of 2x2 pixels. Shapes: [B,H,W,C] -> [B,H/2,W/2,C]."""
    B, H, W, C = x.shape
    return x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))


class Conv(nn.Module):
    """Convolution with bias, after an optional resampling by two; parameters float32, arithmetic in `dtype`."""

    features: int
    size: int = 3
    up: bool = False
    down: bool = False
    init_scale: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", xavier(self.init_scale), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = upsample(x) if self.up else downsample(x) if self.down else x
        convolved = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return convolved + bias.astype(self.dtype)


def linear(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
    """Returns an affine map of the last axis; parameters float32, arithmetic in `dtype`."""
    return nn.Dense(features, dtype=dtype, kernel_init=xavier(), name=name)


def group_norm(channels: int, eps: float, dtype: jnp.dtype, name: str) -> nn.GroupNorm:
    """Returns the group norm of the EDM networks: min(32, channels // 4) groups, or the next fewer that divide."""
    groups = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, epsilon=eps, dtype=dtype, name=name)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None, layer: int) -> jax.Array:
    """Zeroes entries with probability `rate`, by one key per example: masks ignore batch and device layout.

    Shapes: x [B,...], keys [B] or None for no dropout; `layer` separates the masks of different layers.
    """
    if keys is None or rate == 0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def positional_embedding(c_noise: jax.Array, channels: int) -> jax.Array:
    """Embeds the noise level as sines and cosines of geometric frequencies from 1 to 1/10000 (DDPM++).

    Shapes: c_noise [B] -> [B,channels], sines first.
    """
    half = channels // 2
    frequencies = 10000.0 ** (-jnp.arange(half) / max(half - 1, 1))
    angles = c_noise.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def label_one_hot(label: jax.Array, num_classes: int) -> jax.Array:
    """Encodes labels at unit mean square; the null label `num_classes` becomes the zero row.

    Shapes: label int [B] -> [B,num_classes], scaled by sqrt(num_classes) (Karras et al. 2022).
    """
    return jax.nn.one_hot(label, num_classes) * math.sqrt(num_classes)
