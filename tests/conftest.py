"""Set up before any test: the CPU backend unless asked otherwise, compiled programs kept between runs."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tdsm_jax import runtime  # noqa: E402
from tdsm_jax.labels.corruption import transition_matrix  # noqa: E402

TESTS = pathlib.Path(__file__).parent
runtime.configure(compilation_cache=str(TESTS.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # tests compile many small programs


@pytest.fixture(scope="session")
def golden():
    """Returns name -> arrays of the official implementation, from $TDSM_GOLDEN or else from the copies here."""
    folder = pathlib.Path(os.environ.get("TDSM_GOLDEN", TESTS / "golden"))

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(folder / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


OFFICIAL_CASES = {
    "sym10_40": ("sym", 10, 0.4),
    "asym_cifar10_40": ("asym", 10, 0.4, "cifar10"),
    "asym_mnist_20": ("asym", 10, 0.2, "mnist"),
    "asym_cifar100_40": ("asym", 100, 0.4, "cifar100"),
    "sym10_80": ("sym", 10, 0.8),
    "sym100_40": ("sym", 100, 0.4),
    "learn10": None,
}
NOT_COPIED = ("sym10_80", "sym100_40", "learn10")


@pytest.fixture(
    params=[
        pytest.param(
            case,
            marks=pytest.mark.skipif(
                case in NOT_COPIED and "TDSM_GOLDEN" not in os.environ, reason="set TDSM_GOLDEN to the full set"
            ),
        )
        for case in OFFICIAL_CASES
    ]
)
def official_tdsm(request, golden) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns S and the arrays of one run of the official TDSM loss."""
    arrays = golden(f"tdsm_{request.param}")
    model = OFFICIAL_CASES[request.param]
    return transition_matrix(*model) if model else arrays["transition"], arrays
