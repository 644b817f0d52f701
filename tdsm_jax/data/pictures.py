"""Image files as people and cameras make them, brought to one form: colours, orientation, square crop, size."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from tdsm_jax.data import png
from tdsm_jax.data.stream import Corrupt

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_FILE_BYTES = 2**28
MAX_PIXELS = 2**27  # a larger header is a mistake or a decompression bomb
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # told by content: names of images from the web are often wrong
_MODES = {1: "L", 3: "RGB"}
_DEEP = ("I", "F")  # modes of more than 8 bits a channel begin with these
_ORIENTATION = 0x0112  # the tag of EXIF that says how a camera was held
_UPRIGHT = {  # its values but 1, upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Form(NamedTuple):
    """What every image is brought to: height and width (0: as it is) and channels, 1 (grey) or 3 (RGB)."""

    size: int
    channels: int


def decode(content: bytes, form: Form) -> np.ndarray:
    """Returns the image of a PNG, JPEG, WebP or BMP file, uint8 [H, W, C], in that form.

    The camera's orientation is applied; transparent pixels are laid on white; grey becomes RGB by repetition, RGB
    grey by the luma of ITU-R 601. With a size, the middle of the longer side is cut to the shorter one and the
    square resized by Pillow's Lanczos filter, which is antialiased when it shrinks. What is no whole image of 8 bits
    a channel raises `Corrupt`, whose message goes on from the name of the file.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Corrupt(f"claims {image.width} x {image.height} pixels; at most {MAX_PIXELS} are read")
            if image.mode.startswith(_DEEP) or png.depth_of(content) > 8:  # of 16-bit RGB Pillow would cut half
                raise Corrupt("has more than 8 bits a channel; convert it to 8-bit grey or RGB")
            if image.format == "PNG":
                image.verify()  # the checksums, which decoding alone passes over
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            image.load()
            upright = _upright(image)
        pixels = np.asarray(_sized(_coloured(upright, _MODES[form.channels]), form.size))
    except Corrupt:
        raise
    except png.DAMAGE as error:
        reason = " ".join(str(error).split()).removesuffix(".").replace("cannot identify image file", "no image")
        raise Corrupt(f"is damaged or no PNG, JPEG, WebP or BMP file ({reason.partition(' <')[0]})") from None
    return pixels.reshape(*pixels.shape[:2], form.channels)


def _upright(image: Image.Image) -> Image.Image:
    """The image as its camera was held; without a turn where what the camera noted is damaged, which no pixel is."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  Pillow's parsers of EXIF raise whatever they stumble on
        return image
    return image if turn is None else image.transpose(turn)


def _coloured(image: Image.Image, mode: str) -> Image.Image:
    if "A" in image.getbands() or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    if mode == "L" and image.mode != "L":
        image = image.convert("RGB")  # on which the luma is defined
    return image.convert(mode)


def _sized(image: Image.Image, size: int) -> Image.Image:
    if not size:
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)
