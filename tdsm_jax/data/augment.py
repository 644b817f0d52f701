"""The EDM augmentation: random flips and one random affine map per image, and the label that names them.

Conventions: x runs right along the width, y down along the height, angles turn counter-clockwise as seen, and
positive shifts move the content right and down. An image ends in mirrors through the centres of its border pixels.
Source: Karras et al. 2022 (EDM), appendix F.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jax.scipy.special import ndtr

from tdsm_jax.errors import UserError

LABEL_SIZE = 9
SCALE_STD = 0.2  # in octaves; also of the stretch
SHIFT_STD = 0.125  # in image sizes

# Low-pass filter of the least asymmetric orthonormal wavelet with 6 vanishing moments (Daubechies 1992).
SYM6 = np.array(
    [
        0.015404109327044783, 0.003490712084222088, -0.11799011114851972, -0.048311742585697516,
        0.4910559419279741, 0.7876411410286506, 0.3379294217281654, -0.07263752278637645,
        -0.021060292512370772, 0.04472490177078135, 0.0017677118642539763, -0.007800708325032381,
    ]
)  # fmt: skip
# The filter is not symmetric: its delay is this first moment, not the middle tap. Placing the fine samples by it,
# linear images come out of every map exactly.
_DELAY = float(SYM6 @ np.arange(len(SYM6)) / SYM6.sum())
# (x, y) -> (y, -x) is a quarter turn counter-clockwise; entry q turns q times.
_QUARTER_TURNS = np.stack([np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), q) for q in range(4)]).astype(np.float32)


class Parameters(NamedTuple):
    """What was drawn for one example; zero or False where a transform was not drawn. Scalars, but for `shift`."""

    x_flip: jax.Array  # bool
    y_flip: jax.Array  # bool
    scale: jax.Array  # w of the isotropic scale 2^(.2 w)
    rotation: jax.Array  # angle in (-pi, pi)
    stretch: jax.Array  # w of the anisotropic scale: 2^(.2 w) along `axis`, 2^(-.2 w) across it
    axis: jax.Array  # angle in (-pi, pi)
    shift: jax.Array  # (w_x, w_y) of the translation by .125 size w pixels


def augment(keys: jax.Array, x0: jax.Array, probability: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns augmented images and their labels, each a function of its own key and image alone.

    Shapes: keys [B], x0 float32 [B,H,H,C] -> images like x0, augment_label float32 [B,9] (zero: untouched). The
    x-flip is a fair coin, each of the other five transforms comes with `probability`; flips come first. An image
    that is at most flipped is not resampled. Images that are not square are a `UserError`.
    """
    _require_square(x0.shape[1:])

    def one(key: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        parameters = draw(key, probability)
        label = label_of(parameters)
        flipped = flip(image, parameters)
        warped = warp(flipped, affine_of(parameters, image.shape[0]))
        return jnp.where(jnp.any(label[2:] != 0), warped, flipped), label

    return jax.vmap(one)(keys, x0)


def light(keys: jax.Array, x0: jax.Array, shift: float, rotation: float, scale: float) -> tuple[jax.Array, jax.Array]:
    """Returns images a little shifted, turned and scaled, none flipped, and their labels: for small data sets.

    `shift` is in image sizes, `rotation` in radians, `scale` in octaves: standard deviations of normals drawn for
    every image, by its own key alone. Shapes and errors of `augment`; standard deviations that are not finite
    numbers from 0 are a `UserError`.
    """
    _require_square(x0.shape[1:])
    if not all(0 <= std < np.inf for std in (shift, rotation, scale)):
        raise UserError(f"light augmentation takes finite numbers from 0, got {shift=}, {rotation=}, {scale=}")

    def one(key: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        w = jax.random.normal(key, (4,))
        still, no = jnp.float32(0), jnp.bool_(False)
        parameters = Parameters(
            no, no, scale / SCALE_STD * w[0], rotation * w[1], still, still, shift / SHIFT_STD * w[2:]
        )
        return warp(image, affine_of(parameters, image.shape[0])), label_of(parameters)

    return jax.vmap(one)(keys, x0)


def draw(key: jax.Array, probability: float | jax.Array) -> Parameters:
    """Returns the random parameters of one example; w is standard normal, angles and flips are uniform."""
    # One call for all: each random call adds a second to compilation on CPU.
    normals = jax.random.normal(key, (14,))
    w, u = normals[:4], ndtr(normals[4:])
    has_y_flip, has_scale, has_rotation, has_stretch, has_shift = u[:5] < probability
    x_flip, y_flip, has_axis = u[5:8] < 0.5
    rotation, axis = jnp.pi * (2 * u[8:] - 1)
    return Parameters(
        x_flip=x_flip,
        y_flip=has_y_flip & y_flip,
        scale=jnp.where(has_scale, w[0], 0.0),
        rotation=jnp.where(has_rotation, rotation, 0.0),
        stretch=jnp.where(has_stretch, w[1], 0.0),
        axis=jnp.where(has_stretch & has_axis, axis, 0.0),
        shift=jnp.where(has_shift, w[2:], 0.0),
    )


def label_of(parameters: Parameters) -> jax.Array:
    """Returns the float32 label [9] of one example: what the network is told, in the order of the map."""
    p = parameters
    entries = [
        p.x_flip,
        p.y_flip,
        p.scale,
        jnp.cos(p.rotation) - 1,
        jnp.sin(p.rotation),
        p.stretch * jnp.cos(p.axis),
        p.stretch * jnp.sin(p.axis),
        p.shift[0],
        p.shift[1],
    ]
    return jnp.stack([jnp.asarray(entry, jnp.float32) for entry in entries])


def affine_of(parameters: Parameters, size: int) -> jax.Array:
    """Returns the affine map [3,3] of one example of `size` pixels a side, without its flips.

    It takes (x, y, 1), in pixels from the centre of the image, to where that point goes: scaled, then turned,
    stretched, shifted. Exactly the identity where nothing was drawn.
    """
    p = parameters
    cos, sin = jnp.cos(p.rotation), jnp.sin(p.rotation)
    turn = jnp.array([[cos, sin], [-sin, cos]])
    # R(r) diag(s, 1/s) R(-r) by the double angle, which is the identity to the last bit where s = 1.
    s = jnp.exp2(SCALE_STD * p.stretch)
    mean, half, cos_2r, sin_2r = (s + 1 / s) / 2, (s - 1 / s) / 2, jnp.cos(2 * p.axis), jnp.sin(2 * p.axis)
    stretch = jnp.array([[mean + half * cos_2r, -half * sin_2r], [-half * sin_2r, mean - half * cos_2r]])
    linear = jnp.matmul(stretch, turn, precision="highest") * jnp.exp2(SCALE_STD * p.scale)
    matrix = jnp.eye(3).at[:2, :2].set(linear)
    return matrix.at[:2, 2].set(SHIFT_STD * size * p.shift)


def flip(image: jax.Array, parameters: Parameters) -> jax.Array:
    """Mirrors one image [H,W,C] left to right and top to bottom as drawn, by indices."""
    image = jnp.where(parameters.x_flip, image[:, ::-1], image)
    return jnp.where(parameters.y_flip, image[::-1], image)


def warp(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Resamples one image through an affine map: band-limited to a grid twice as fine, bilinear there, and back.

    Shapes: image float [H,H,C], matrix [3,3] as from `affine_of`, invertible -> [H,H,C]. The mirrors at the border
    repeat without end. Quarter turns with shifts by whole pixels are exact to rounding: the nearest quarter turn is
    done by indices, and the filter is orthonormal, so that down-sampling inverts up-sampling.
    """
    size = _require_square(image.shape)
    linear, shift = matrix[:2, :2], matrix[:2, 2]
    quarters = _nearest_quarter_turn(linear)
    planes = _turned(image, quarters).transpose(2, 0, 1)
    fine = _both_ways(_upsampling(size), planes)  # [C,P,P], one period

    # Where each fine sample of the result lies in `fine`, as a displacement: exactly zero for the identity.
    back = jnp.matmul(jnp.asarray(_QUARTER_TURNS)[quarters], _inverse(linear), precision="highest")
    shift_x, shift_y = jnp.matmul(back, 2 * shift, precision="highest")  # the fine grid has two steps a pixel
    (xx, xy), (yx, yy) = back - jnp.eye(2)
    index = jnp.arange(2 * size + len(SYM6) - 2, dtype=jnp.float32)
    x, y = jnp.meshgrid(index, index)
    x_c, y_c = x - (size - 1 + _DELAY), y - (size - 1 + _DELAY)  # from the centre of the image
    at = (y + (yx * x_c + yy * y_c - shift_y), x + (xx * x_c + xy * y_c - shift_x))
    moved = jax.vmap(lambda plane: map_coordinates(plane, at, order=1, mode="wrap"))(fine)

    return _both_ways(_downsampling(size), moved).transpose(1, 2, 0)


def _nearest_quarter_turn(linear: jax.Array) -> jax.Array:
    """Returns the number of counter-clockwise quarter turns, 0 to 3, nearest to a linear map [2,2]."""
    angle = jnp.arctan2(linear[0, 1] - linear[1, 0], linear[0, 0] + linear[1, 1])
    return jnp.round(angle / (jnp.pi / 2)).astype(jnp.int32) % 4


def _turned(image: jax.Array, quarters: jax.Array) -> jax.Array:
    image = jnp.where(quarters % 2 == 1, jnp.rot90(image), image)
    return jnp.where(quarters >= 2, image[::-1, ::-1], image)


def _inverse(linear: jax.Array) -> jax.Array:
    """Inverts [2,2] in closed form, which keeps the identity exact."""
    (a, b), (c, d) = linear
    return jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)


def _both_ways(matrix: np.ndarray, planes: jax.Array) -> jax.Array:
    """Applies a matrix [M,N] to the rows and to the columns of planes [C,N,N] -> [C,M,M]."""
    # Dense products: XLA runs grouped convolutions slowly on CPU.
    return jnp.matmul(jnp.matmul(matrix, planes, precision="highest"), matrix.T, precision="highest")


def _upsampling(size: int) -> np.ndarray:
    """Returns the matrix float32 [P,size] from pixels to the fine samples of one period of the mirrored signal.

    Mirrored through its border pixels without end, the signal repeats after 2 size - 2 pixels, P = 4 size - 4
    samples; so a wrapped index reaches any point of the plane, however far outside. Pixel i is spread over samples
    2i .. 2i + 11.
    """
    pixels = 2 * size - 2
    matrix = np.zeros((2 * pixels, size))
    for i in range(pixels):
        for tap, weight in enumerate(SYM6):
            matrix[(2 * i + tap) % (2 * pixels), min(i, pixels - i)] += weight
    return matrix.astype(np.float32)


def _downsampling(size: int) -> np.ndarray:
    """Returns the matrix float32 [size,2 size + 10], the transpose of up-sampling without a border."""
    matrix = np.zeros((size, 2 * size + len(SYM6) - 2), np.float32)
    for i in range(size):
        matrix[i, 2 * i : 2 * i + len(SYM6)] = SYM6
    return matrix


def _require_square(shape: tuple[int, ...]) -> int:
    """Returns the side of an image [H,H,C]."""
    height, width, _ = shape
    if height != width or height < 2:
        raise UserError(
            f"augmentation needs square images of 2 pixels or more, got {height}x{width}; crop or turn it off"
        )
    return height
