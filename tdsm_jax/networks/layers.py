"""Layers shared by the networks: convolution, linear, dropout by example key, noise and label embeddings."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

INITS = {"xavier": (1.0, "fan_avg"), "torch": (1 / 3, "fan_in")}  # mean square of a weight times the fan


def kernel_init(init: str, scale: float = 1.0) -> nn.initializers.Initializer:
    """Returns the uniform initialiser `init` times `scale`: Glorot's, or PyTorch's default."""
    variance, mode = INITS[init]
    return nn.initializers.variance_scaling(variance * scale**2, mode, "uniform") if scale else nn.initializers.zeros


def bias_init(init: str, fan_in: int, scale: float = 1.0) -> nn.initializers.Initializer:
    """Returns zeros for Glorot's initialiser; PyTorch draws biases as it draws the weights."""
    if init == "xavier" or not scale:
        return nn.initializers.zeros
    bound = scale / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


BOX = (1, 1)  # resampling filters, to be normalised
TENT = (1, 3, 3, 1)


def upsample(x: jax.Array, taps: tuple[int, ...] = BOX) -> jax.Array:
    """Doubles height and width: zeros between the pixels, then the filter. Shapes: [B,H,W,C] -> [B,2H,2W,C]."""
    if taps == BOX:
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    B, H, W, C = x.shape
    spread = jnp.zeros((B, H, 2, W, 2, C), x.dtype).at[:, :, 0, :, 0].set(4 * x).reshape(B, 2 * H, 2 * W, C)
    return _filter(spread, taps, before=len(taps) // 2, after=(len(taps) - 1) // 2)


def downsample(x: jax.Array, taps: tuple[int, ...] = BOX, padding: int | None = None) -> jax.Array:
    """Halves height and width: the filter, then every other pixel. Shapes: [B,H,W,C] -> [B,H/2,W/2,C].

    `padding` 0 is for an x that comes padded already.
    """
    if taps == BOX:
        B, H, W, C = x.shape
        return x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))
    padding = (len(taps) - 1) // 2 if padding is None else padding
    return _filter(x, taps, before=padding, after=padding)[:, ::2, ::2]


def _filter(x: jax.Array, taps: tuple[int, ...], before: int, after: int) -> jax.Array:
    """Correlates height and width with the normalised taps, after zero padding.

    Shifted sums: on CPU a convolution of single channels costs far more.
    """
    x = jnp.pad(x, [(0, 0), (before, after), (before, after), (0, 0)])
    for axis in (1, 2):
        length = x.shape[axis] - len(taps) + 1
        shifted = (jax.lax.slice_in_dim(x, k, k + length, axis=axis) for k in range(len(taps)))
        x = sum(tap / sum(taps) * part for tap, part in zip(taps, shifted, strict=True))
    return x


class Conv(nn.Module):
    """Convolution with bias, after an optional resampling by two; parameters float32, arithmetic in `dtype`.

    `fused` resamples after the convolution instead, whose output then keeps the margin that the filter needs.
    """

    features: int
    size: int = 3
    up: bool = False
    down: bool = False
    fused: bool = False
    taps: tuple[int, ...] = BOX
    init_kind: str = "xavier"
    init_scale: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init(self.init_kind, self.init_scale), shape)
        bias = self.param("bias", bias_init(self.init_kind, math.prod(shape[:3]), self.init_scale), (self.features,))
        if not self.fused:
            x = resample(x, self.up, self.down, self.taps)
        margin = (len(self.taps) - 1) // 2 if self.fused else 0
        convolved = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (1, 1),
            [(self.size // 2 + margin,) * 2] * 2 if margin else "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.fused:
            convolved = downsample(convolved, self.taps, padding=0)
        return convolved + bias.astype(self.dtype)


def resample(x: jax.Array, up: bool, down: bool, taps: tuple[int, ...]) -> jax.Array:
    """Doubles or halves height and width, or neither."""
    return upsample(x, taps) if up else downsample(x, taps) if down else x


def linear(features: int, dtype: jnp.dtype, name: str, init: str = "xavier", *, fan_in: int = 1) -> nn.Dense:
    """Returns an affine map of the last axis; parameters float32, arithmetic in `dtype`."""
    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init(init), bias_init=bias_init(init, fan_in), name=name)


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
    # Drawn once, by itself: XLA for TPUs would draw it anew inside each of the three convolutions that read it, forward
    # and backward, which takes three times the arithmetic and longer to compile than the convolutions themselves.
    keep = jax.lax.optimization_barrier(keep)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def positional_embedding(c_noise: jax.Array, channels: int, endpoint: bool = True) -> jax.Array:
    """Embeds the noise level as sines and cosines of geometric frequencies from 1 towards 1/10000.

    With `endpoint` the last frequency is 1/10000 (DDPM++), else the next one would be (ADM).
    Shapes: c_noise [B] -> [B,channels], sines first.
    """
    half = channels // 2
    frequencies = 10000.0 ** (-jnp.arange(half) / max(half - endpoint, 1))
    angles = c_noise.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class FourierEmbedding(nn.Module):
    """Embeds the noise level as sines and cosines of stored random frequencies (NCSN++). Shapes: [B] -> [B,channels].

    The frequencies are a constant of the network, in the collection `constants`.
    """

    channels: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, c_noise: jax.Array) -> jax.Array:
        draw = lambda: self.scale * jax.random.normal(self.make_rng("params"), (self.channels // 2,))  # noqa: E731
        frequencies = self.variable("constants", "freqs", draw).value
        angles = c_noise.astype(jnp.float32)[:, None] * (2 * jnp.pi * frequencies)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def label_one_hot(label: jax.Array, num_classes: int) -> jax.Array:
    """Encodes labels at unit mean square; the null label `num_classes` becomes the zero row.

    Shapes: label int [B] -> [B,num_classes], scaled by sqrt(num_classes) (Karras et al. 2022).
    """
    return jax.nn.one_hot(label, num_classes) * math.sqrt(num_classes)
