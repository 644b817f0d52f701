"""Grids of images, one row a class: cut to fit a page, as PNG bytes and as HTML figures."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.svg import escape

BUDGET = 1_500_000  # bytes of raw pixels of all grids together; keeps any page under 5 MB
_MOST_ROWS = 20
_MOST_COLUMNS = 8
_THUMBNAIL = 64  # pixels


class Grid(NamedTuple):
    """Images uint8 [K, columns, H, W, C], one row a class, with their name and what they are, both plain text."""

    name: str
    words: str
    images: np.ndarray


def side_by_side(shown: Sequence[Grid], class_names: Sequence[str], budget: int = BUDGET) -> str:
    """Returns grids as HTML, cut to the same rows and columns, of at most `budget` bytes of raw pixels together."""
    rows, columns = that_fit([grid.images for grid in shown], budget, _MOST_ROWS)
    names, K = [class_names[row] for row in rows], len(class_names)
    drawn = [figure(grid._replace(images=grid.images[rows, :columns]), names, "one class a row", 56) for grid in shown]
    subset = "" if len(rows) == K else f"<p>Shown: {len(rows)} of {K} classes.</p>"
    return f'{subset}<div class="figures grids">{"".join(drawn)}</div>'


def figure(grid: Grid, rows: Sequence[str], layout: str, pixels: int) -> str:
    """Returns an HTML figure of a grid whose `rows` have these names, small images enlarged to about `pixels` pixels.

    `layout` says in plain text what a row is, to those who cannot see it.
    """
    small = thumbnails(grid.images)
    png = base64.b64encode(image_grid_png(small, scale=max(1, pixels // small.shape[2]))).decode()
    labels = "".join(f"<span>{escape(row)}</span>" for row in rows)
    return (
        f"<figure><figcaption><b>{escape(grid.name)}</b> {escape(grid.words)}</figcaption>"
        f'<div class="grid"><div>{labels}</div><img alt="{escape(grid.name)}, {escape(layout)}" '
        f'src="data:image/png;base64,{png}"></div></figure>'
    )


def image_grid_png(images: np.ndarray, *, scale: int = 1) -> bytes:
    """Returns a PNG of `images` uint8 [rows, columns, H, W, C], C = 1 or 3, with thin grey gaps.

    Each pixel becomes a square of `scale` pixels. Raises `UserError` for another type, rank or channel count.
    """
    if images.dtype != np.uint8 or images.ndim != 5 or images.shape[-1] not in (1, 3) or images.size == 0:
        raise UserError(
            f"image grid got {images.dtype} {images.shape}; pass non-empty uint8 [rows, columns, H, W, 1 or 3]"
        )
    rows, columns, H, W, C = images.shape
    gap = max(1, scale * min(H, W) // 24)
    tiles = images.repeat(scale, axis=2).repeat(scale, axis=3)
    tiles = np.pad(tiles, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)], constant_values=128)
    grid = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * (H * scale + gap), columns * (W * scale + gap), C)
    grid = grid[:-gap, :-gap]
    png = io.BytesIO()
    Image.fromarray(grid[..., 0] if C == 1 else grid).save(png, "PNG", optimize=True)
    return png.getvalue()


def class_rows(images: np.ndarray, labels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Returns the first `columns` images of each of the first `rows` classes, uint8 [rows,columns,H,W,C].

    Fewer columns where every class has fewer images. Shapes: images uint8 [N,H,W,C], labels int [N].
    """
    chosen = [images[np.flatnonzero(labels == y)[:columns]] for y in range(rows)]
    width = max(len(row) for row in chosen)  # a class that nobody was given as a label leaves its row black
    return np.stack([np.pad(row, [(0, width - len(row)), (0, 0), (0, 0), (0, 0)]) for row in chosen])


def that_fit(grids: Sequence[np.ndarray], budget: int, most_rows: int) -> tuple[np.ndarray, int]:
    """Returns the rows (evenly spread) and the number of columns whose thumbnails are `budget` bytes together.

    `grids`: each [K, columns, H, W, C]; the rows are those that all have, the columns those of the narrowest at most.
    """
    K, columns = min(len(g) for g in grids), min(_MOST_COLUMNS, *(g.shape[1] for g in grids))
    affordable = max(1, budget // sum(thumbnails(g[:1, :1]).size for g in grids))
    rows = min(K, most_rows, max(1, affordable // min(columns, 4)))
    return np.linspace(0, K - 1, rows).round().astype(int), max(1, min(columns, affordable // rows))


def thumbnails(grid: np.ndarray) -> np.ndarray:
    """Returns `grid` uint8 [rows, columns, H, W, C] with images halved, by averaging, down to 64 pixels."""
    while max(grid.shape[2:4]) > _THUMBNAIL:
        rows, columns, H, W, C = grid.shape
        halved = grid[:, :, : H // 2 * 2, : W // 2 * 2].reshape(rows, columns, H // 2, 2, W // 2, 2, C)
        grid = halved.mean(axis=(3, 5)).round().astype(np.uint8)
    return grid
