"""The arrays of the official implementations, and how closely ours must agree with them."""

import os
import pathlib

import numpy as np

from tdsm_jax.labels.corruption import transition_matrix

GOLDEN = pathlib.Path(os.environ.get("TDSM_GOLDEN", pathlib.Path(__file__).parent / "golden"))
TDSM_CASES = sorted(path.stem.removeprefix("tdsm_") for path in GOLDEN.glob("tdsm_*.npz"))


def load(name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of one file."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays)


def transition_of(case: str, num_classes: int, rate: float) -> np.ndarray:
    """Returns S of a case named like sym10_40 or asym_cifar10_40; the rate comes from its file."""
    kind, *rest = case.split("_")
    if kind == "asym":
        return transition_matrix(kind, num_classes, rate, rest[0])
    return transition_matrix("sym", num_classes, rate)


def tdsm(case: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns S and the arrays of one run of the official TDSM loss; S is stored where it was learnt."""
    arrays = load(f"tdsm_{case}")
    if "transition" in arrays:
        return arrays["transition"], arrays
    return transition_of(case, arrays["logits"].shape[1], float(arrays["noise_rate"])), arrays


def relative_error(got, want) -> float:
    """Returns the largest difference over the largest entry."""
    want = np.asarray(want, np.float64)
    return float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())
