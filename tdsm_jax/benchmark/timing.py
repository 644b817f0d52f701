"""What every timed benchmark shares: seconds of calls that were waited for, their summary, and what they depend on."""

import contextlib
import datetime
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from tdsm_jax import pipeline


@contextlib.contextmanager
def compiling_afresh() -> Iterator[None]:
    """Compiles without the persistent cache inside, so that the seconds of compiling are those of a first time."""
    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX asks once whether there is a cache, and again only after this
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns the seconds of a call and of what it leaves running on the devices."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def summary(seconds: Sequence[float], images: int) -> dict[str, float]:
    """Returns median and quartiles of calls that made or took `images` images each, and images/s of the median."""
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return {
        "milliseconds": 1e3 * median,
        "quartile_1": 1e3 * low,
        "quartile_3": 1e3 * high,
        "images_per_second": images / median,
    }


def spread_of(record: dict[str, Any]) -> str:
    """Returns the times of a `summary` as "median (quartiles)", in milliseconds."""
    return f"{record['milliseconds']:.1f} ({record['quartile_1']:.1f}..{record['quartile_3']:.1f})"


def environment() -> dict[str, Any]:
    """Returns what a figure depends on: device, driver, clocks, versions, precision, compiler options, date."""
    on_gpu = jax.default_backend() == "gpu"
    return {
        "device": processor() if jax.default_backend() == "cpu" else jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "driver_and_clocks": gpu_state() if on_gpu else None,  # those of a CPU are not to be read on most machines
        "cores": len(os.sched_getaffinity(0)),
        "versions": pipeline.versions() | {"python": platform.python_version()},
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m tdsm_jax.benchmark", pathlib.Path(sys.argv[0]).stem, *sys.argv[1:]]),
    }


def described(about: dict[str, Any]) -> str:
    """Returns the line that stands above a table: where it was made, and with what."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"{about['devices']} x {about['device']} ({about['cores']} CPU cores), {versions}, {about['date']}"


def processor() -> str:
    """Returns the name of the CPU, as far as the system tells."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def gpu_state() -> str:
    """Returns name, driver and clocks of the GPUs."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout
