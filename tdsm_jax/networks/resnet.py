"""Residual networks (He et al. 2016): TDSM's classifiers of noisy images, and the judges of generated ones."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from tdsm_jax.networks.layers import kernel_init, linear, positional_embedding

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}  # of basic blocks, for images of 32x32
BOTTLENECKS = {"resnet50": (3, 4, 6, 3)}
STEMS = ("cifar", "imagenet")  # a 3x3 convolution; a strided 7x7 one, then a pool: a quarter of height and width
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
        return nn.relu(shortcut(x, branch, self.stride, train) + branch)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a widening 1x1 convolution with batch norm, beside the identity or a strided 1x1 convolution.

    The 3x3 convolution strides, as in torchvision. Shapes: [B,H,W,C] -> [B,H/stride,W/stride,4*features].
    """

    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        branch = convolution(self.features, 1, 1, self.dtype, "conv1")(x)
        branch = nn.relu(batch_norm(train, self.dtype, "bn1")(branch))
        branch = convolution(self.features, 3, self.stride, self.dtype, "conv2")(branch)
        branch = nn.relu(batch_norm(train, self.dtype, "bn2")(branch))
        branch = convolution(4 * self.features, 1, 1, self.dtype, "conv3")(branch)
        branch = batch_norm(train, self.dtype, "bn3")(branch)
        return nn.relu(shortcut(x, branch, self.stride, train) + branch)


def shortcut(x: jax.Array, branch: jax.Array, stride: int, train: bool) -> jax.Array:
    """Returns x in the shape of a block's branch; its two layers, where it needs any, belong to the calling module."""
    if stride == 1 and x.shape[-1] == branch.shape[-1]:
        return x
    x = convolution(branch.shape[-1], 1, stride, branch.dtype, "shortcut_conv")(x)
    return batch_norm(train, branch.dtype, "shortcut_bn")(x)


class ResNet(nn.Module):
    """A ResNet of basic blocks or bottlenecks, the noise level added after each stage; parameters float32.

    Stages double the channels and, from the second on, halve the image; the mean over all pixels is classified, so
    any image size goes with the same parameters. `embedding_channels` 0 is a network that reads no noise level.
    `__call__` returns (logits [B,num_classes], features [B,D]), both float32. With `train`, the collection
    `batch_stats` must be mutable, under the mapped axis `AXIS`.
    """

    num_classes: int
    blocks: tuple[int, ...] = BLOCKS["resnet18"]  # per stage
    channels: int = 64
    embedding_channels: int = 128
    dtype: jnp.dtype = jnp.float32
    block: type[nn.Module] = ResidualBlock  # or Bottleneck
    stem: str = "cifar"  # of `STEMS`

    @nn.compact
    def __call__(
        self,
        x: jax.Array,  # [B,H,W,C]
        c_noise: jax.Array,  # [B]
        dropout_keys: jax.Array | None = None,  # part of the classifiers' interface; nothing is dropped here
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        embedding = None
        if self.embedding_channels:
            embedding = embed_noise(c_noise, self.embedding_channels, self.dtype)
        size, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        x = convolution(self.channels, size, stride, self.dtype, "conv1")(x)
        x = nn.relu(batch_norm(train, self.dtype, "bn1")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, count in enumerate(self.blocks, start=1):
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                width = self.channels * 2 ** (stage - 1)
                x = self.block(width, stride, self.dtype, name=f"layer{stage}_{index}")(x, train)
            if embedding is not None:
                x = add_noise_level(x, embedding, f"dense_{stage}")
        features = x.astype(jnp.float32).mean((1, 2))
        logits = linear(self.num_classes, jnp.float32, "linear", "torch", fan_in=features.shape[-1])(features)
        return logits, features


# The judges of generated images see them clean, so they read no noise level. The published one (Na et al. 2024) is
# resnet50, with the stem for large images.
JUDGES: dict[str, Callable[..., ResNet]] = {
    "resnet18": functools.partial(ResNet, blocks=BLOCKS["resnet18"], embedding_channels=0),
    "resnet50": functools.partial(
        ResNet, blocks=BOTTLENECKS["resnet50"], block=Bottleneck, stem="imagenet", embedding_channels=0
    ),
}


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
