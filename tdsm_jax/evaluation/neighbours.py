"""Metrics of nearest neighbours: precision, recall, density and coverage, over tiles of distances.

Of 50000 real and 50000 generated examples no [N,M] matrix is ever held: one tile of distances, and a few numbers an
example.
"""

from collections.abc import Sequence

import numpy as np

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.pairs import Watch, blocks, row_of_tiles, unwatched


def density_coverage(real: np.ndarray, fake: np.ndarray, nearest: int) -> tuple[float, float]:
    """Returns density and coverage (Naeem et al. 2020) with balls up to the `nearest`-th real neighbour.

    Density: mean number of real balls a fake example lies in, over `nearest` (about 1 where the sets agree, can
    exceed it). Coverage: share of the real balls that hold a fake example. Shapes: [N,D] with N > nearest, [M,D].
    """
    radii = squared_radii(real, (nearest,))
    hits, filled, _, _ = _meetings(real, fake, radii, None, unwatched)
    return float(hits[0] / (len(fake) * nearest)), float(filled[0].mean())


def neighbour_metrics(
    real: np.ndarray, fake: np.ndarray, nearest: Sequence[int], watch: Watch = unwatched
) -> dict[str, float]:
    """Returns precision_k3, recall_k3, density_k3, coverage_k3 and so on for each of `nearest`, in three passes.

    Precision: share of fake examples inside a real ball; recall: share of real ones inside a fake ball (Kynkaanniemi et
    al. 2019). Density and coverage: see `density_coverage`. Shapes: [N,D], [M,D] with N, M > max(nearest).
    """
    balls = squared_radii(real, nearest, watch), squared_radii(fake, nearest, watch)
    hits, filled, met, found = _meetings(real, fake, *balls, watch)
    values = {}
    for i, k in enumerate(nearest):
        values[f"precision_k{k}"] = float(met[i].mean())
        values[f"recall_k{k}"] = float(found[i].mean())
        values[f"density_k{k}"] = float(hits[i] / (len(fake) * k))
        values[f"coverage_k{k}"] = float(filled[i].mean())
    return values


def squared_radii(x: np.ndarray, nearest: Sequence[int], watch: Watch = unwatched) -> np.ndarray:
    """Returns the squared distance of every example to its k-th nearest other one, float64 [k,N] for k of `nearest`.

    Shape: x [N,D] with N > max(nearest).
    """
    most = max(nearest)
    if len(x) <= most:
        raise UserError(f"balls up to neighbour {most} need more than {most} examples, got {len(x)}")
    found = []
    for rows in blocks(x, watch, "nearest neighbours"):
        smallest = np.full((len(rows), most + 1), np.inf)  # of the columns so far; place 0 is the example itself
        for _, distances in row_of_tiles(rows, x):
            kept = min(most, distances.shape[1] - 1)
            distances.partition(kept, axis=1)
            smallest = np.concatenate([smallest, distances[:, : kept + 1]], axis=1)
            smallest = np.partition(smallest, most, axis=1)[:, : most + 1]
        found.append(np.sort(smallest, axis=1)[:, list(nearest)])
    return np.concatenate(found).T


def nearest_squared(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the squared distance of each example to its nearest of the others, float64 [N]. Shapes: [N,D], [M,D]."""
    return np.concatenate(
        [np.min([tile.min(axis=1) for _, tile in row_of_tiles(rows, others)], axis=0) for rows in blocks(x)]
    )


def _meetings(
    real: np.ndarray, fake: np.ndarray, real_radii: np.ndarray, fake_radii: np.ndarray | None, watch: Watch
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Who lies in whose balls, for each row of the squared radii [k,N] and [k,M] (None: fake balls are not asked of).

    Returns the number of pairs with the fake one inside the real ball [k], which real balls hold a fake example
    [k,N], which fake examples are inside a real ball [k,M], and which real ones inside a fake ball [k,N].
    """
    k = len(real_radii)
    hits, met = np.zeros(k, np.int64), np.zeros((k, len(fake)), bool)
    filled, found = (np.zeros((k, len(real)), bool) for _ in range(2))
    start = 0
    for rows in blocks(real, watch, "pairs of neighbours"):
        own = slice(start, start + len(rows))
        start = own.stop
        for columns, distances in row_of_tiles(rows, fake):
            for i in range(k):
                inside = distances < real_radii[i, own, None]
                hits[i] += np.count_nonzero(inside)
                filled[i, own] |= inside.any(axis=1)
                met[i, columns] |= inside.any(axis=0)
                if fake_radii is not None:
                    found[i, own] |= (distances < fake_radii[i, columns]).any(axis=1)
    return hits, filled, met, found
