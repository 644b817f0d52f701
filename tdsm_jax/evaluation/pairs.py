"""All pairs of two sets of feature vectors, a tile of their distances at a time: float64 with bounded memory."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from tdsm_jax.errors import UserError

ROWS, COLUMNS = 1024, 8192  # of a tile of distances: 64 MiB, however many examples there are

# (items, what is done with them, how many there are, images an item stands for) -> the same items: a caller may show
# in between how far things are.
Watch = Callable[[Iterable, str, int, int], Iterable]


def unwatched(items: Iterable, label: str, total: int, images: int) -> Iterable:
    """Returns `items` as they are: nobody is told of progress."""
    return items


def check_features(*sets: np.ndarray) -> None:
    """Raises `UserError` unless all sets [N,D] hold finite numbers, one example at least and equally many features."""
    for x in sets:
        if x.ndim != 2 or not x.size:
            raise UserError(f"features must be [N, D] with N, D >= 1, got {list(x.shape)}")
        if x.shape[1] != sets[0].shape[1]:
            raise UserError(
                f"features of {sets[0].shape[1]} and {x.shape[1]} numbers cannot be compared; use one extractor"
            )
        for rows in blocks(x):
            if not np.isfinite(rows).all():
                raise UserError("a feature is infinite or not a number; check the images and the feature extractor")


def blocks(x: np.ndarray, watch: Watch = unwatched, label: str = "") -> Iterable[np.ndarray]:
    """Returns x [N,...] in order, `ROWS` of them at a time."""
    starts = range(0, len(x), ROWS)
    return watch((x[start : start + ROWS] for start in starts), label, len(starts), ROWS)


def row_of_tiles(rows: np.ndarray, x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the squared Euclidean distances float64 [B,C] of `rows` [B,D] to x [M,D], C of its rows at a time."""
    rows = np.asarray(rows, np.float64)
    for start in range(0, len(x), COLUMNS):
        chosen = slice(start, start + COLUMNS)
        yield chosen, squared_distances(rows, x[chosen])


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns squared Euclidean distances, float64 [N,M], of a [N,D] to b [M,D]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    distances = 2 * a @ b.T
    np.subtract((a**2).sum(1)[:, None] + (b**2).sum(1)[None], distances, out=distances)
    return np.clip(distances, 0, None, out=distances)
