"""A transition matrix as a picture: a heat map, with its percentages where they can be read."""

import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tdsm_jax import files

_NUMBERED = 20  # classes; more are too many for a number in each cell
_MARGIN = 44  # pixels
_DARK, _LIGHT, _ABSENT = (8, 48, 107), (255, 255, 255), (200, 200, 200)


def write_matrix_picture(path: str | os.PathLike, matrix: np.ndarray) -> None:
    """Writes a row-stochastic matrix [K, K] as a PNG file: rows are clean classes, columns given labels.

    White is 0 and dark blue is 1; up to 20 classes have their percentages written in. A NaN row is grey.
    """
    picture = _draw(np.asarray(matrix, np.float64))
    with files.atomic_write(path) as file:
        picture.save(file, "PNG")


def _draw(matrix: np.ndarray) -> Image.Image:
    num_classes = len(matrix)
    numbered = num_classes <= _NUMBERED
    cell = 36 if numbered else max(6, 800 // num_classes)
    side = _MARGIN + num_classes * cell + 8
    picture = Image.new("RGB", (side, side), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    for (i, j), p in np.ndenumerate(matrix):
        left, top = _MARGIN + j * cell, _MARGIN + i * cell
        draw.rectangle((left, top, left + cell - 1, top + cell - 1), _colour(p))
        if numbered and p > 0:
            _centred(draw, font, left + cell // 2, top + cell // 2, _percent(p), "white" if p > 0.5 else "black")
    end = _MARGIN + num_classes * cell
    draw.rectangle((_MARGIN - 1, _MARGIN - 1, end, end), outline="black")
    for k in range(0, num_classes, 1 if numbered else 10):
        middle = _MARGIN + k * cell + cell // 2
        _centred(draw, font, middle, _MARGIN - 10, str(k), "black")
        _centred(draw, font, _MARGIN - 12, middle, str(k), "black")
    draw.text((_MARGIN, 8), "given label (columns), clean class (rows), %", "black", font)
    return picture


def _colour(p: float) -> tuple[int, int, int]:
    if np.isnan(p):
        return _ABSENT
    return tuple(round(light + p * (dark - light)) for light, dark in zip(_LIGHT, _DARK, strict=True))


def _percent(p: float) -> str:
    return f"{100 * p:.0f}" if p >= 0.0995 else f"{100 * p:.1f}"


def _centred(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, x: int, y: int, text: str, colour: str) -> None:
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    draw.text((x - (left + right) / 2, y - (top + bottom) / 2), text, colour, font)
