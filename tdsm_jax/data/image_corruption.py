"""Training images that are wrong: replaced by off-topic ones, covered in part, or with dead and burning pixels.

Which images those are, and what becomes of each, depends on the seed and the image's index alone: the images corrupted
at a rate are among those of any higher one and look the same, whatever the other images are. Everything is drawn with
NumPy's PCG64, uint8 in and out. Off-topic symbols are strokes drawn here, at any size; off-topic photographs are crops
of the two that scikit-learn holds.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from tdsm_jax.data.stream import Images
from tdsm_jax.errors import UserError, did_you_mean

_STREAM = 7  # other random draws may use the same seed
_SMALLEST_CROP = 6  # of the shorter side of a photograph, at least a sixth


class ImageNoise(NamedTuple):
    """A kind, one of `CORRUPTIONS`; the share of images; how much of an image (occlusion, salt_pepper); a seed."""

    kind: str
    rate: float
    severity: float
    seed: int


def corrupted(images: Images, index: np.ndarray, noise: ImageNoise) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images, some of them corrupted, and which bool [N]. Others stay as they are, bit for bit.

    Shapes: images uint8 [N,H,W,C], C 1 or 3; `index` int [N] is what each image is known by, such as its place in the
    whole training set. Streamed images are a `UserError`.
    """
    if noise.kind not in CORRUPTIONS:
        raise UserError(f"unknown image noise {noise.kind!r}{did_you_mean(noise.kind, CORRUPTIONS)}")
    if images.shape[-1] not in (1, 3):
        raise UserError(f"image noise is for grey and RGB images, these have {images.shape[-1]} channels")
    images = np.asarray(images)  # streamed ones are refused
    made, chosen = images.copy(), np.zeros(len(images), bool)
    for place, known_by in enumerate(index.tolist()):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(noise.seed, spawn_key=(_STREAM, known_by))))
        if rng.random() < noise.rate:
            made[place] = CORRUPTIONS[noise.kind](images[place], rng, noise.severity)
            chosen[place] = True
    return made, chosen


def symbol(image: np.ndarray, rng: np.random.Generator, severity: float) -> np.ndarray:
    """Returns a stroke drawing, none of a digit, in the shape of `image` [H,W,C]: light on black or in colours."""
    H, W, C = image.shape
    strokes = _SYMBOLS[rng.integers(len(_SYMBOLS))]
    angle, size, shift = rng.uniform(-0.4, 0.4), rng.uniform(0.3, 0.42), rng.uniform(-0.06, 0.06, 2)
    turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    thickness = max(rng.uniform(0.05, 0.09), 0.6 / min(H, W))  # half of it, of an image's side
    y, x = np.mgrid[:H, :W]
    pixels = np.stack([(x + 0.5) / W, (y + 0.5) / H], axis=-1) - 0.5 - shift
    distance = np.full((H, W), np.inf)
    for line in strokes:
        points = np.asarray(line) @ turn.T
        for a, b in zip(points[:-1], points[1:], strict=True):
            along = ((pixels - a) @ (b - a) / max((b - a) @ (b - a), 1e-12)).clip(0, 1)[..., None]
            distance = np.minimum(distance, np.linalg.norm(pixels - a - along * (b - a), axis=-1))
    ink = ((thickness - distance) * min(H, W) + 0.5).clip(0, 1)[..., None]  # its edge is a pixel wide
    light, dark = rng.uniform(160, 255, C), np.zeros(C) if C == 1 else rng.uniform(0, 90, C)
    return np.rint(dark + ink * (light - dark)).astype(np.uint8)


def photo(image: np.ndarray, rng: np.random.Generator, severity: float) -> np.ndarray:
    """Returns a crop of a photograph (china, flower) in the shape of `image` [H,W,C], grey where C is 1."""
    H, W, C = image.shape
    photos = _photographs()
    whole = photos[rng.integers(len(photos))]
    most = min(whole.width / W, whole.height / H)  # pixels of the photograph to one of the image
    scale = most * rng.uniform(1 / _SMALLEST_CROP, 1)
    left, top = rng.uniform(0, whole.width - scale * W), rng.uniform(0, whole.height - scale * H)
    box = (left, top, min(left + scale * W, whole.width), min(top + scale * H, whole.height))
    crop = whole.convert("L" if C == 1 else "RGB").resize((W, H), Image.Resampling.BILINEAR, box)
    return np.asarray(crop, np.uint8).reshape(H, W, C)


def occlusion(image: np.ndarray, rng: np.random.Generator, severity: float) -> np.ndarray:
    """Returns the image behind a rectangle of one colour, which covers about `severity` of it, 1 all."""
    H, W, C = image.shape
    stretch = 2 ** rng.uniform(-0.5, 0.5)
    height = int(np.clip(round(H * np.sqrt(severity) * stretch), max(np.ceil(H * severity), 1), H))
    width = int(np.clip(round(severity * H * W / height), 1, W))
    top, left = rng.integers(H - height + 1), rng.integers(W - width + 1)
    made = image.copy()
    made[top : top + height, left : left + width] = rng.integers(0, 256, C)
    return made


def salt_pepper(image: np.ndarray, rng: np.random.Generator, severity: float) -> np.ndarray:
    """Returns the image with `severity` of its pixels black or white, by chance, all channels alike."""
    H, W, _ = image.shape
    hit, white = rng.random((H, W, 1)) < severity, rng.random((H, W, 1)) < 0.5
    return np.where(hit, np.where(white, 255, 0), image).astype(np.uint8)


CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator, float], np.ndarray]] = {
    "off_topic_symbols": symbol,
    "off_topic_photos": photo,
    "occlusion": occlusion,
    "salt_pepper": salt_pepper,
}


@functools.cache
def _photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images  # a slow import that only this kind needs

    return [Image.fromarray(photograph) for photograph in load_sample_images().images]


def _polygon(corners: int, radii: tuple[float, ...] = (1.0,)) -> list[tuple[float, float]]:
    """A closed line through corners at these radii in turn, the first one on top."""
    angles = np.linspace(0, 2 * np.pi, corners + 1)
    return [(r * np.sin(a), -r * np.cos(a)) for r, a in zip(np.resize(radii, corners + 1), angles, strict=True)]


# Lines through points in [-1, 1]^2, x to the right and y down.
_SYMBOLS: tuple[tuple[list[tuple[float, float]], ...], ...] = (
    ([(-1, 0), (1, 0)], [(0, -1), (0, 1)]),  # plus
    ([(-0.8, -0.8), (0.8, 0.8)], [(-0.8, 0.8), (0.8, -0.8)]),  # cross
    ([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8), (-0.8, -0.8)],),  # square
    (_polygon(3),),  # triangle
    (_polygon(10, (1.0, 0.42)),),  # star
    ([(-1, 0), (1, 0)], [(0.3, -0.7), (1, 0), (0.3, 0.7)]),  # arrow
    ([(-0.8, 0), (0, -1), (0.8, 0)], [(-0.6, -0.2), (-0.6, 0.9), (0.6, 0.9), (0.6, -0.2)]),  # house
    ([(-0.4, -1), (-0.4, 1)], [(0.4, -1), (0.4, 1)], [(-1, -0.4), (1, -0.4)], [(-1, 0.4), (1, 0.4)]),  # hash
    ([(-1, 0.6), (-0.5, -0.6), (0, 0.6), (0.5, -0.6), (1, 0.6)],),  # zigzag
)
