"""Set up before any test: the CPU backend unless asked otherwise, compiled programs kept between runs."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of what the tests do; without optimisation it takes half the time, by the older way of emitting
# fusions a quarter less. Processes they start inherit it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

import jax  # noqa: E402
import pytest  # noqa: E402

import official  # noqa: E402
from tdsm_jax import runtime  # noqa: E402

TESTS = pathlib.Path(__file__).parent
runtime.configure(compilation_cache=str(TESTS.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # tests compile many small programs


@pytest.fixture(scope="session")
def golden():
    """Returns name -> arrays of the official implementation, from $TDSM_GOLDEN or else from the copies here."""
    return official.load


def pytest_make_parametrize_id(val):
    """Names a test by how many bytes it gets: zips among them hold the time, on which test processes must agree."""
    return f"{len(val)}bytes" if isinstance(val, bytes) else None
