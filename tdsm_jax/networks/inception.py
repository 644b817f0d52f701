"""InceptionV3 of the graph that FID is defined by (TensorFlow's, of 2015-12-05), as a network that only evaluates.

Szegedy et al. 2016, with what that graph does otherwise: average pools leave the padding out of the mean, the last
block pools by maximum, there are 1008 logits. Batch norm is folded into the convolutions, whose parameters keep the
names of PyTorch's ports. float32 at the highest precision throughout.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tdsm_jax.networks.layers import kernel_init

SIDE = 299  # pixels of the square images that the network sees
WIDTH = 2048  # of the features that FID compares
NUM_LOGITS = 1008
BATCH_NORM_EPS = 1e-3


class Activations(NamedTuple):
    """Means over all pixels after the two first max pools, before the last reduction and at the end, and the logits.

    Shapes: [B,64], [B,192], [B,768], [B,2048] and [B,1008], float32. What a jitted caller does not use is not computed.
    """

    first: jax.Array
    second: jax.Array
    middle: jax.Array
    features: jax.Array
    logits: jax.Array  # without the bias of the last layer, as the graph's node that the inception score reads


class InceptionV3(nn.Module):
    """uint8 or float images [B,H,W,C] of values 0 to 255 -> `Activations`; one channel counts for all three."""

    @nn.compact
    def __call__(self, images: jax.Array) -> Activations:
        x = scaled(images)  # [B,299,299,3]
        x = Convolution(32, stride=2, name="Conv2d_1a_3x3")(x)
        x = Convolution(32, name="Conv2d_2a_3x3")(x)
        x = Convolution(64, padding=(1, 1), name="Conv2d_2b_3x3")(x)
        x = max_pool(x, stride=2)  # [B,73,73,64]
        first = x.mean((1, 2))
        x = nn.relu(pointwise(x, {"Conv2d_3b_1x1": 80})[0])
        x = Convolution(192, name="Conv2d_4a_3x3")(x)
        x = max_pool(x, stride=2)  # [B,35,35,192]
        second = x.mean((1, 2))
        for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
            x = BlockA(pooled, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)  # [B,17,17,768]
        for letter, narrow in zip("bcde", (128, 160, 160, 192), strict=True):
            x = BlockC(narrow, name=f"Mixed_6{letter}")(x)
        middle = x.mean((1, 2))
        x = BlockD(name="Mixed_7a")(x)  # [B,8,8,1280]
        x = BlockE(average=True, name="Mixed_7b")(x)
        x = BlockE(average=False, name="Mixed_7c")(x)
        features = x.mean((1, 2))
        logits = nn.Dense(NUM_LOGITS, use_bias=False, precision=lax.Precision.HIGHEST, name="fc")(features)
        return Activations(first, second, middle, features, logits)


class BlockA(nn.Module):
    """[B,35,35,C] -> [B,35,35,224+pooled]."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        widths = {"branch1x1": 64, "branch5x5_1": 48, "branch3x3dbl_1": 64, "branch_pool": self.pooled}
        plain, five, three, pool = pointwise(x, widths)
        five = Convolution(64, (5, 5), padding=(2, 2), name="branch5x5_2")(nn.relu(five))
        three = Convolution(96, padding=(1, 1), name="branch3x3dbl_2")(nn.relu(three))
        three = Convolution(96, padding=(1, 1), name="branch3x3dbl_3")(three)
        return jnp.concatenate([nn.relu(plain), five, three, nn.relu(average_pool(pool))], axis=-1)


class BlockB(nn.Module):
    """[B,35,35,C] -> [B,17,17,480+C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = Convolution(384, stride=2, name="branch3x3")(x)
        double = nn.relu(pointwise(x, {"branch3x3dbl_1": 64})[0])
        double = Convolution(96, padding=(1, 1), name="branch3x3dbl_2")(double)
        double = Convolution(96, stride=2, name="branch3x3dbl_3")(double)
        return jnp.concatenate([single, double, max_pool(x, stride=2)], axis=-1)


class BlockC(nn.Module):
    """[B,17,17,768] -> [B,17,17,768], by convolutions along one axis."""

    narrow: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n = self.narrow
        widths = {"branch1x1": 192, "branch7x7_1": n, "branch7x7dbl_1": n, "branch_pool": 192}
        plain, single, double, pool = pointwise(x, widths)
        single = along_width(n, 7, "branch7x7_2")(nn.relu(single))
        single = along_height(192, 7, "branch7x7_3")(single)
        double = along_height(n, 7, "branch7x7dbl_2")(nn.relu(double))
        double = along_width(n, 7, "branch7x7dbl_3")(double)
        double = along_height(n, 7, "branch7x7dbl_4")(double)
        double = along_width(192, 7, "branch7x7dbl_5")(double)
        return jnp.concatenate([nn.relu(plain), single, double, nn.relu(average_pool(pool))], axis=-1)


class BlockD(nn.Module):
    """[B,17,17,C] -> [B,8,8,512+C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three, seven = map(nn.relu, pointwise(x, {"branch3x3_1": 192, "branch7x7x3_1": 192}))
        three = Convolution(320, stride=2, name="branch3x3_2")(three)
        seven = along_width(192, 7, "branch7x7x3_2")(seven)
        seven = along_height(192, 7, "branch7x7x3_3")(seven)
        seven = Convolution(192, stride=2, name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, max_pool(x, stride=2)], axis=-1)


class BlockE(nn.Module):
    """[B,8,8,C] -> [B,8,8,2048]; the pool is an average, or in the last block a maximum."""

    average: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        widths = {"branch1x1": 320, "branch3x3_1": 384, "branch3x3dbl_1": 448}
        if self.average:
            plain, single, double, pool = pointwise(x, widths | {"branch_pool": 192})
            pool = average_pool(pool)
        else:
            plain, single, double = pointwise(x, widths)
            (pool,) = pointwise(max_pool(x, stride=1), {"branch_pool": 192})
        single = nn.relu(single)
        double = Convolution(384, padding=(1, 1), name="branch3x3dbl_2")(nn.relu(double))
        spread = [
            along_width(384, 3, "branch3x3_2a")(single),
            along_height(384, 3, "branch3x3_2b")(single),
            along_width(384, 3, "branch3x3dbl_3a")(double),
            along_height(384, 3, "branch3x3dbl_3b")(double),
        ]
        return jnp.concatenate([nn.relu(plain), *spread, nn.relu(pool)], axis=-1)


class Pointwise(nn.Module):
    """Kernel [1,1,inputs,features] and bias [features] of a 1x1 convolution into which batch norm is folded."""

    features: int

    @nn.compact
    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", kernel_init("torch"), (1, 1, inputs, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class Convolution(nn.Module):
    """Convolution, batch norm and ReLU. Shapes: [B,H,W,C] -> [B,H',W',features]."""

    features: int
    size: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", kernel_init("torch"), (*self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        convolved = lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(pad, pad) for pad in self.padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return nn.relu(convolved + bias)


def along_height(features: int, length: int, name: str) -> Convolution:
    return Convolution(features, (length, 1), padding=(length // 2, 0), name=name)


def along_width(features: int, length: int, name: str) -> Convolution:
    return Convolution(features, (1, length), padding=(0, length // 2), name=name)


def pointwise(x: jax.Array, widths: dict[str, int]) -> list[jax.Array]:
    """Returns the 1x1 convolutions of x with batch norm, before the ReLU, one for each name; they belong to the caller.

    One product of matrices for all. An average pool is linear and its weights sum to 1, so it may follow its
    convolution, on fewer channels, instead of preceding it. Shapes: [B,H,W,C] -> [B,H,W,width] each.
    """
    kernels, biases = zip(*(Pointwise(width, name=name)(x.shape[-1]) for name, width in widths.items()), strict=True)
    kernel, bias = jnp.concatenate(kernels, axis=-1)[0, 0], jnp.concatenate(biases)
    product = jnp.matmul(x, kernel, precision=lax.Precision.HIGHEST) + bias
    return jnp.split(product, np.cumsum(list(widths.values()))[:-1], axis=-1)


def max_pool(x: jax.Array, stride: int) -> jax.Array:
    """3x3 maxima; inside the image with stride 2, of as many pixels as the image has with stride 1."""
    if stride == 1:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        x = functools.reduce(jnp.maximum, _shifted(x, axis, stride))
    return x


def average_pool(x: jax.Array) -> jax.Array:
    """3x3 means of those pixels that are inside the image. Shapes: [B,H,W,C] -> [B,H,W,C]."""
    counts = np.multiply.outer(*(_neighbours(side) for side in x.shape[1:3])).astype(np.float32)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for axis in (1, 2):
        x = sum(_shifted(x, axis, stride=1))
    return x / counts[:, :, None]


def _shifted(x: jax.Array, axis: int, stride: int) -> list[jax.Array]:
    """Returns the first, second and third pixel of each window of three along an axis.

    On CPU what is made of them by elementwise operations takes a third of the time of `lax.reduce_window`.
    """
    last = x.shape[axis] - 3
    return [lax.slice_in_dim(x, k, k + last + 1, stride, axis) for k in range(3)]


def _neighbours(side: int) -> np.ndarray:
    """How many of itself and the pixels beside it there are along one axis."""
    return np.convolve(np.ones(side), np.ones(3), mode="same")


def scaled(images: jax.Array) -> jax.Array:
    """Returns images [B,H,W,1 or 3] of values 0 to 255 as the graph sees them: [B,299,299,3], about -1 to 1."""
    x = resized(images.astype(jnp.float32), SIDE)
    x = (x - 128) / 128
    return jnp.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x


def resized(images: jax.Array, side: int) -> jax.Array:
    """Resizes to side x side as TensorFlow 1 does by default: bilinear, corners not aligned, no antialiasing.

    Output pixel i lies at i * H / side of the input, not at the centres' (i + 1/2) * H / side - 1/2.
    Shapes: float32 [B,H,W,C] -> [B,side,side,C].
    """
    rows, columns = (interpolation(length, side) for length in images.shape[1:3])
    wide = jnp.einsum("pw,bhwc->bhpc", columns, images, precision=lax.Precision.HIGHEST)
    return jnp.einsum("oh,bhpc->bopc", rows, wide, precision=lax.Precision.HIGHEST)


def interpolation(length: int, side: int) -> np.ndarray:
    """Returns the matrix [side,length] that resizes one axis; its places are rounded to float32 as in TensorFlow."""
    place = np.arange(side, dtype=np.float32) * np.float32(length / side)
    below = place.astype(np.int64)
    above = np.minimum(below + 1, length - 1)
    share = place - below.astype(np.float32)
    matrix = np.zeros((side, length), np.float32)
    np.add.at(matrix, (np.arange(side), below), 1 - share)
    np.add.at(matrix, (np.arange(side), above), share)
    return matrix
