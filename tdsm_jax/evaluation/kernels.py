"""Maximum mean discrepancies: KID's of a cubic kernel over subsets, CMMD's of a Gaussian one."""

from collections.abc import Iterator

import numpy as np

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.pairs import Watch, blocks, row_of_tiles, unwatched

SUBSETS, SUBSET_SIZE = 100, 1000  # of KID as it is published (Binkowski et al. 2018)
KID_SEED = 2020  # that of torch-fidelity


def kid(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = KID_SEED,
    watch: Watch = unwatched,
) -> tuple[float, float]:
    """Returns mean and standard deviation over subsets of the kernel distance KID (Binkowski et al. 2018).

    The unbiased estimate of the squared discrepancy with the kernel (a.b / D + 1)^3, between `subset_size` examples
    of either set: all of the smaller set where it has fewer. Subsets are drawn as torch-fidelity draws them, so that
    both give the same number. Shapes: [N,D], [M,D] with N, M >= 2.
    """
    size = min(subset_size, len(real), len(fake))
    if size < 2:
        raise UserError(f"the kernel distance needs at least 2 examples of either set, got {len(real)} and {len(fake)}")
    random = np.random.RandomState(seed)
    values = [
        _unbiased(*(x[random.choice(len(x), size, replace=False)] for x in (fake, real)))
        for _ in watch(range(subsets), "kernel distance", subsets, size)
    ]
    return float(np.mean(values)), float(np.std(values))


def _unbiased(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared discrepancy of equally many examples, [n,D] each."""
    a, b, n = a.astype(np.float64), b.astype(np.float64), len(a)
    within = 0.0
    for x in (a, b):
        kernel = _cubic(x, x)
        within += kernel.sum() - np.trace(kernel)  # an example beside itself says nothing of the distribution
    return float(within / (n * (n - 1)) - 2 * _cubic(a, b).sum() / n**2)


def _cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    kernel = a @ b.T / a.shape[1] + 1
    return kernel * kernel * kernel  # ** 3 would take ten times as long


def cmmd(real: np.ndarray, fake: np.ndarray, bandwidth: float = 10.0, watch: Watch = unwatched) -> float:
    """Returns 1000 times the squared maximum mean discrepancy of L2-normalised embeddings (Jayasumana et al. 2024).

    Gaussian kernel exp(-||a-b||^2 / (2 bandwidth^2)); the means include each example's kernel with itself, so that
    equal sets give 0 and finite samples of one distribution a little more. Shapes: [N,D], [M,D].
    """
    real, fake = _normalised(real), _normalised(fake)
    pairs = ((real, real), (fake, fake), (real, fake))
    real_real, fake_fake, real_fake = (_mean_kernel_less_one(a, b, bandwidth, watch) for a, b in pairs)
    return 1000 * (real_real + fake_fake - 2 * real_fake)


def _normalised(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if not (length > 0).all():
        raise UserError("an embedding is zero or not a number, so it has no direction; check the images and features")
    return x / length


def _mean_kernel_less_one(a: np.ndarray, b: np.ndarray, bandwidth: float, watch: Watch) -> float:
    """Unit vectors are close beside the bandwidth: kernel - 1 keeps the digits that the ones would swallow."""

    def sums() -> Iterator[float]:
        for rows in blocks(a, watch, "pairs of embeddings"):
            for _, distances in row_of_tiles(rows, b):
                distances /= -2 * bandwidth**2
                yield np.expm1(distances, out=distances).sum()

    return float(sum(sums()) / (len(a) * len(b)))
