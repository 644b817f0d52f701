"""What must be said to XLA before its first computation."""

import ctypes
import os
import pathlib

import jax

from tdsm_jax import paths

# On jax 0.10 the CPU backend fuses dots, reductions and elementwise work into YNNPACK calls that make the
# training steps here 1.5 to 2 times slower and convolutions inside loops about 13 times (2 without).
_CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type="

# glibc's mallopt parameters (malloc.h). By default it hands each step's temporary arrays back to the kernel and takes
# them again, zeroed page by page: about a fifth of a training step of the digits.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT_BYTES = 2**30
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # a larger one is refused


def configure(compilation_cache: str | None = None) -> None:
    """Sets compiler options for this process; call it before any JAX computation.

    A flag that the user has set in XLA_FLAGS is left alone. `compilation_cache` is a folder where compiled
    programs are kept for later processes; JAX_COMPILATION_CACHE_DIR, where set, names another one.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.__version_info__[:2] == (0, 10) and _CPU_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_CPU_FLAG}".strip()
    keep_memory()
    if compilation_cache:
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            jax.config.update("jax_compilation_cache_dir", compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def cache_folder(workdir: str | os.PathLike) -> str:
    """Returns where the compiled programs of a run are kept: under its workdir, or on this machine for gs:// ones.

    JAX writes to buckets through other packages than the rest of a run, and would wait for the network at each
    program. What is lost with the machine is compiled again.
    """
    if not paths.is_remote(workdir):
        return str(pathlib.Path(workdir) / "compiled")
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return str(pathlib.Path(caches) / "tdsm_jax" / "compiled")


def keep_memory() -> None:
    """Lets the C library keep up to a gibibyte of freed memory for the next step; nothing happens without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_TOP_PAD, 2**26)
