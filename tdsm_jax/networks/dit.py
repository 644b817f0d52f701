"""The diffusion transformer (Peebles & Xie 2023, arXiv 2212.09748): an image as tokens, one for each patch.

Besides the paper's: EDM's augmentation label, dropout, and attention to a window or neighbourhood of tokens. Arrays are
laid out and initialised as in the official implementation, so that its weights fit (interop.dit_params).
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tdsm_jax.networks.attention import full_attention, patterned_attention
from tdsm_jax.networks.layers import dropout, linear, positional_embedding

CONDITIONINGS = ("adaln_zero", "cross_attention", "in_context")
NOISE_CHANNELS = 256  # sines and cosines of the noise level
MLP_RATIO = 4
NORM_EPS = 1e-6
TIME_SCALE = 1000.0  # the noise embedding is made for numbers up to about this one


class Size(NamedTuple):
    """How large a network is: side of a patch in pixels, channels of a token, blocks, heads of attention."""

    patch: int
    width: int
    depth: int
    heads: int


SIZES = {
    "tiny/1": Size(1, 96, 4, 4),  # ours, for images of 8x8
    "tiny/2": Size(2, 96, 4, 4),
    "S/2": Size(2, 384, 12, 6),
    "S/4": Size(4, 384, 12, 6),
    "S/8": Size(8, 384, 12, 6),
    "B/2": Size(2, 768, 12, 12),
    "B/4": Size(4, 768, 12, 12),
    "B/8": Size(8, 768, 12, 12),
    "L/2": Size(2, 1024, 24, 16),
    "L/4": Size(4, 1024, 24, 16),
    "L/8": Size(8, 1024, 24, 16),
    "XL/2": Size(2, 1152, 28, 16),
    "XL/4": Size(4, 1152, 28, 16),
    "XL/8": Size(8, 1152, 28, 16),
}
_SMALL = nn.initializers.normal(0.02)


class Attention(nn.Module):
    """Attention of tokens among each other. Shapes: x [B,N,D], N = H W of the grid -> [B,N,D].

    `grid` None: the tokens are no grid, and every one sees every one.
    """

    heads: int
    grid: tuple[int, int] | None
    pattern: str
    window: int
    attention: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, N, D = x.shape
        qkv = linear(3 * D, self.dtype, "qkv")(x).reshape(B, N, 3, self.heads, D // self.heads)
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        if self.grid is None:
            mixed = full_attention(q, k, v, self.attention)
        else:
            mixed = patterned_attention(q, k, v, self.grid, self.pattern, self.window, self.attention)
        return linear(D, self.dtype, "proj")(mixed.reshape(B, N, D))


class CrossAttention(nn.Module):
    """Attention of tokens to what conditions them. Shapes: x [B,N,D], conditions [B,M,D] -> [B,N,D]."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, conditions: jax.Array) -> jax.Array:
        B, N, D = x.shape
        q = linear(D, self.dtype, "q")(x).reshape(B, N, self.heads, -1)
        kv = linear(2 * D, self.dtype, "kv")(conditions).reshape(B, conditions.shape[1], 2, self.heads, -1)
        k, v = jnp.moveaxis(kv, 2, 0)
        mixed = full_attention(q, k, v, "xla")  # two keys: there is nothing to gain
        return linear(D, self.dtype, "proj")(mixed.reshape(B, N, D))


class Mlp(nn.Module):
    """Two layers, GELU between them, dropout by example key. Shapes: [B,N,D] -> [B,N,D]."""

    dropout_rate: float
    layer: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        hidden = nn.gelu(linear(MLP_RATIO * x.shape[-1], self.dtype, "fc1")(x), approximate=True)
        return linear(x.shape[-1], self.dtype, "fc2")(dropout(hidden, self.dropout_rate, dropout_keys, self.layer))


class Block(nn.Module):
    """Attention and a network for each token, each after a norm and added to what it reads.

    Shapes: x [B,N,D], conditions [B,M,D] (the noise level's, the label's) -> [B,N,D]. adaln_zero lets the sum of the
    conditions shift and scale both norms and gate both branches, which are closed at first; cross_attention attends to
    the conditions in between; in_context has them among the tokens and reads them nowhere else.
    """

    conditioning: str
    heads: int
    attend: Callable[..., Attention]
    dropout_rate: float
    layer: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, conditions: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        attention = self.attend(name="attn")
        mlp = Mlp(self.dropout_rate, self.layer, self.dtype, name="mlp")
        if self.conditioning == "adaln_zero":
            shift0, scale0, gate0, shift1, scale1, gate1 = modulation(conditions, 6, self.dtype)
            x = x + gate0 * attention(modulated(layer_norm(self.dtype, "norm1", learnt=False)(x), shift0, scale0))
            normed = modulated(layer_norm(self.dtype, "norm2", learnt=False)(x), shift1, scale1)
            return x + gate1 * mlp(normed, dropout_keys)
        x = x + attention(layer_norm(self.dtype, "norm1")(x))
        if self.conditioning == "cross_attention":
            cross = CrossAttention(self.heads, self.dtype, name="cross_attn")
            x = x + cross(layer_norm(self.dtype, "norm_cross")(x), conditions)
        return x + mlp(layer_norm(self.dtype, "norm2")(x), dropout_keys)


class FinalLayer(nn.Module):
    """The last norm, adaptive where those of the blocks are, and the pixels of each patch: [B,N,D] -> [B,N,features].

    Zero at first.
    """

    features: int
    adaptive: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, conditions: jax.Array) -> jax.Array:
        x = layer_norm(self.dtype, "norm_final", learnt=not self.adaptive)(x)
        if self.adaptive:
            x = modulated(x, *modulation(conditions, 2, self.dtype))
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="linear")(x)


class DiT(nn.Module):
    """The raw network F(x, c_noise, label, augment_label); `diffusion.process` makes a denoiser of it.

    `pattern` (of `attention.PATTERNS`) and `window` say which tokens see which. The noise level is embedded as
    `time_scale` times c_noise, which is right at about 0 to 1000: 1 where c_noise is a time step (VP). `augment_dim`,
    `attention` and `remat` as in `unet.UNet`.
    """

    num_classes: int
    patch: int
    width: int
    depth: int
    heads: int
    dropout_rate: float
    conditioning: str = "adaln_zero"
    pattern: str = "full"
    window: int = 0
    time_scale: float = 1.0
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
        B, H, W, C = x.shape
        grid = H // self.patch, W // self.patch
        conditions = self.embed(c_noise, label, augment_label)
        tokens = PatchEmbedding(self.patch, self.width, self.dtype, name="x_embedder")(x)
        tokens = tokens + position_embedding(grid, self.width).astype(self.dtype)
        in_context = self.conditioning == "in_context"
        if in_context:
            tokens = jnp.concatenate([conditions, tokens], axis=1)

        def attend(name: str) -> Attention:
            seen = (None if in_context else grid, self.pattern, self.window)
            return Attention(self.heads, *seen, self.attention, self.dtype, name=name)

        kind_of_block = nn.remat(Block) if self.remat else Block
        for index in range(self.depth):
            own = self.dropout_rate, index, self.dtype
            block = kind_of_block(self.conditioning, self.heads, attend, *own, name=f"blocks_{index}")
            tokens = block(tokens, conditions, dropout_keys)
        if in_context:
            tokens = tokens[:, conditions.shape[1] :]
        adaptive = self.conditioning == "adaln_zero"
        pixels = FinalLayer(self.patch**2 * C, adaptive, self.dtype, name="final_layer")(tokens, conditions)
        pixels = pixels.reshape(B, *grid, self.patch, self.patch, C).swapaxes(2, 3)
        return pixels.reshape(B, H, W, C).astype(jnp.float32)

    def embed(self, c_noise: jax.Array, label: jax.Array, augment_label: jax.Array | None) -> jax.Array:
        """Maps noise level, with the augmentation label, and label to the conditions [B,2,D]; [B,1,D] without classes.

        The table of labels has a row more than there are classes: that of the null label.
        """
        sines = positional_embedding(self.time_scale * c_noise.astype(jnp.float32), NOISE_CHANNELS, endpoint=False)
        noise = jnp.roll(sines, NOISE_CHANNELS // 2, axis=-1).astype(self.dtype)  # cosines first
        for index in (0, 2):
            dense = nn.Dense(self.width, dtype=self.dtype, kernel_init=_SMALL, name=f"t_embedder_mlp_{index}")
            noise = dense(nn.silu(noise) if index else noise)
        if self.augment_dim:
            none = jnp.zeros((len(c_noise), self.augment_dim))
            dense = nn.Dense(self.width, use_bias=False, dtype=self.dtype, kernel_init=_SMALL, name="map_augment")
            noise = noise + dense(none if augment_label is None else augment_label)
        if not self.num_classes:
            return noise[:, None]
        table = nn.Embed(self.num_classes + 1, self.width, dtype=self.dtype, embedding_init=_SMALL, name="y_embedder")
        return jnp.stack([noise, table(label)], axis=1)


class PatchEmbedding(nn.Module):
    """One linear map of all patches, its kernel that of a convolution: [B,H,W,C] -> [B,H W/patch^2,features]."""

    patch: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        p, n = self.patch, self.patch**2 * C
        flat = nn.initializers.xavier_uniform()

        def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return flat(key, (n, self.features)).reshape(shape)

        kernel = self.param("kernel", init, (p, p, C, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        patches = x.astype(self.dtype).reshape(B, H // p, p, W // p, p, C).swapaxes(2, 3).reshape(B, -1, n)
        return patches @ kernel.astype(self.dtype).reshape(n, -1) + bias.astype(self.dtype)


def position_embedding(grid: tuple[int, int], width: int) -> jax.Array:
    """Returns the fixed embedding of a grid's tokens, float32 [H W,width]: half of it of the column, half of the row.

    Each half is sines, then cosines, of frequencies from 1 down to 1/10000. `width` must be a multiple of 4.
    """
    H, W = (positional_embedding(jnp.arange(n), width // 2, endpoint=False) for n in grid)
    columns, rows = jnp.broadcast_to(W, (len(H), *W.shape)), jnp.broadcast_to(H[:, None], (len(H), *W.shape))
    return jnp.concatenate([columns, rows], axis=-1).reshape(-1, width)


def layer_norm(dtype: jnp.dtype, name: str, learnt: bool = True) -> nn.LayerNorm:
    """Returns the norm of a token's channels, with a learnt scale and shift or none."""
    return nn.LayerNorm(NORM_EPS, dtype=dtype, use_bias=learnt, use_scale=learnt, name=name)


def modulation(conditions: jax.Array, parts: int, dtype: jnp.dtype) -> list[jax.Array]:
    """Maps the sum of the conditions to shifts, scales and gates [B,1,D], zero at first; called within a module."""
    features = parts * conditions.shape[-1]
    dense = nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.zeros, name="adaLN_modulation")
    return jnp.split(dense(nn.silu(conditions.sum(axis=1)))[:, None], parts, axis=-1)


def modulated(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    return x * (1 + scale) + shift
