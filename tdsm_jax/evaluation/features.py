"""What an extractor sees in images, a batch at a time."""

from typing import Any, NamedTuple

import numpy as np

from tdsm_jax import files, hosts, paths
from tdsm_jax.training.logs import Progress

BATCH_SIZE = 256


class Seen(NamedTuple):
    """Features float32 [N,D] of images, and their class probabilities float32 [N,L], None of no classifier."""

    features: np.ndarray
    probabilities: np.ndarray | None


def extract(extractor: Any, images: Any, *, label: str, parts: paths.Path | None = None) -> Seen:
    """Returns what an extractor sees in images uint8 [N,H,W,C], which are read a batch at a time.

    `label` says what is going on; batches are kept in the folder `parts` where one is given, and not seen again.
    """
    found = []
    with Progress(label, -(-len(images) // BATCH_SIZE), BATCH_SIZE) as progress:
        for start in range(0, len(images), BATCH_SIZE):
            hosts.stop_if_asked()
            found.append(_batch(extractor, images[start : start + BATCH_SIZE], parts and parts / f"{start:08d}.npz"))
            progress.update()
    features, probabilities = zip(*found, strict=True)
    return Seen(np.concatenate(features), None if probabilities[0] is None else np.concatenate(probabilities))


def _batch(extractor: Any, images: np.ndarray, part: paths.Path | None) -> tuple[np.ndarray, np.ndarray | None]:
    if part is not None and paths.exists(part):
        stored = files.read_arrays(part)
        return stored["features"], stored.get("probabilities")
    features, probabilities = extractor.see(images)
    if part is not None:
        kept = {"features": features} | ({} if probabilities is None else {"probabilities": probabilities})
        files.write_arrays(part, kept)
    return features, probabilities
