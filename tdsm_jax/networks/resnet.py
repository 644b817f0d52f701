"""Time-dependent residual networks (He et al. 2016, the CIFAR form), as TDSM's classifiers of noisy images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tdsm_jax.networks.layers import kernel_init, linear, positional_embedding

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
AXIS = "data"  # the mapped axis of data-parallel training: batch statistics are those of the global batch


def embed_noise(c_noise: jax.Array, channels: int, dtype: jnp.dtype) -> jax.Array:
    """Maps the noise level to a conditioning vector; its two layers belong to the calling module.

    Shapes: c_noise [B] -> [B,4*channels].
    """
    embedding = positional_embedding(c_noise, channels)
    embedding = nn.silu(linear(4 * channels, dtype, "map_layer0", "torch", fan_in=channels)(embedding))
    embedding = nn.silu(linear(4 * channels, dtype, "map_layer1", "torch", fan_in=4 * channels)(embedding))
    return nn.silu(embedding)  # once more: the published networks activate it again before every use


def add_noise_level(x: jax.Array, embedding: jax.Array, name: str) -> jax.Array:
    """Adds a linear map of the embedding [B,E] to every pixel of x [B,H,W,C]."""
    shift = linear(x.shape[-1], x.dtype, name, "torch", fan_in=embedding.shape[-1])(embedding)
    return x + shift[:, None, None, :]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, beside the identity or a strided 1x1 convolution.

    Shapes: [B,H,W,C] -> [B,H/stride,W/stride,features].
    """

    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        branch = convolution(self.features, 3, self.stride, self.dtype, "conv1")(x)
        branch = nn.relu(batch_norm(train, self.dtype, "bn1")(branch))
        branch = convolution(self.features, 3, 1, self.dtype, "conv2")(branch)
        branch = batch_norm(train, self.dtype, "bn2")(branch)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = convolution(self.features, 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = batch_norm(train, self.dtype, "shortcut_bn")(x)
        return nn.relu(x + branch)


class ResNet(nn.Module):
    """A ResNet of basic blocks for small images, the noise level added after each stage; parameters float32.

    Stages double the channels and, from the second on, halve the image; the mean over all pixels is classified, so
    any image size goes with the same parameters. `__call__` returns (logits [B,num_classes], features [B,D]), both
    float32. With `train`, the collection `batch_stats` must be mutable, under the mapped axis `AXIS`.
    """

    num_classes: int
    blocks: tuple[int, ...] = BLOCKS["resnet18"]  # per stage
    channels: int = 64
    embedding_channels: int = 128
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,  # [B,H,W,C]
        c_noise: jax.Array,  # [B]
        dropout_keys: jax.Array | None = None,  # part of the classifiers' interface; nothing is dropped here
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        embedding = embed_noise(c_noise, self.embedding_channels, self.dtype)
        x = convolution(self.channels, 3, 1, self.dtype, "conv1")(x)
        x = nn.relu(batch_norm(train, self.dtype, "bn1")(x))
        for stage, count in enumerate(self.blocks, start=1):
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                width = self.channels * 2 ** (stage - 1)
                x = ResidualBlock(width, stride, self.dtype, name=f"layer{stage}_{index}")(x, train)
            x = add_noise_level(x, embedding, f"dense_{stage}")
        features = x.astype(jnp.float32).mean((1, 2))
        logits = linear(self.num_classes, jnp.float32, "linear", "torch", fan_in=features.shape[-1])(features)
        return logits, features


def convolution(features: int, size: int, stride: int, dtype: jnp.dtype, name: str) -> nn.Conv:
    """Returns a convolution without bias, padded alike on all sides: "SAME" would shift it where it strides."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=kernel_init("torch"),
        name=name,
    )


def batch_norm(train: bool, dtype: jnp.dtype, name: str) -> nn.BatchNorm:
    """Returns a batch norm: statistics of the global batch in training, running averages otherwise."""
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=dtype, axis_name=AXIS, name=name)
