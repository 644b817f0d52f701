"""8-bit grey and RGB PNG files as arrays; the header is judged before a single pixel is decoded."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tdsm_jax.errors import UserError

MAX_SIDE = 4096  # pixels; a larger header is a mistake or a decompression bomb
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
_CHANNELS = {"grey": 1, "RGB": 3}
# What Pillow raises, between them, for bytes that are no whole image file.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def shape_of(content: bytes) -> tuple[int, int, int]:
    """Returns (H, W, C) as the header of a PNG file states it, C being 1 (grey) or 3 (RGB).

    Anything but square images of 8 bits a channel raises a `UserError` that says what it is instead.
    """
    if len(content) < 26 or content[:8] != _SIGNATURE or content[12:16] != b"IHDR":
        raise UserError("is not a PNG file")
    width, height, depth, colour_type = struct.unpack(">IIBB", content[16:26])
    colour = _COLOURS.get(colour_type, f"colour type {colour_type}")
    if depth != 8 or colour not in _CHANNELS:
        raise UserError(f"is stored as {depth}-bit {colour}; convert it to 8-bit grey or RGB")
    if width != height:
        raise UserError(f"is {width} pixels wide and {height} high; crop it to a square")
    if not 1 <= width <= MAX_SIDE:
        raise UserError(f"claims {width} x {height} pixels; sides from 1 to {MAX_SIDE} are read")
    return height, width, _CHANNELS[colour]


def depth_of(content: bytes) -> int:
    """Returns the bits a channel that the header of a PNG file states, 0 for other bytes."""
    is_png = len(content) > 24 and content[:8] == _SIGNATURE and content[12:16] == b"IHDR"
    return content[24] if is_png else 0


def decode(content: bytes) -> np.ndarray:
    """Returns the image of a PNG file, uint8 [H, W, C]; a damaged or unsupported one raises `UserError`."""
    shape = shape_of(content)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.verify()  # the checksums, which decoding alone passes over
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            pixels = image.tobytes()
        return np.frombuffer(pixels, np.uint8).reshape(shape)
    except DAMAGE as error:
        raise UserError(f"is a damaged PNG file ({error})") from None


def encode(image: np.ndarray) -> bytes:
    """Returns the PNG file of a uint8 image [H, W, C], C being 1 or 3."""
    file = io.BytesIO()
    # Uncompressed, as the official datasets are: quick to read, and the same bytes with every zlib.
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG", compress_level=0)
    return file.getvalue()
