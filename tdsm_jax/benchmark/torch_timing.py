"""Both sides of the comparison with PyTorch, timed in turn, and what is told of it."""

import itertools
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax import config as configuration
from tdsm_jax import pipeline
from tdsm_jax.benchmark import torch_handover
from tdsm_jax.benchmark.torch_handover import METHODS
from tdsm_jax.benchmark.torch_process import Variant
from tdsm_jax.run import Run, optimisation
from tdsm_jax.training import parallel
from tdsm_jax.training.state import Params, initial_state

TASKS = {
    "dsm": "DSM step",
    "floor": "TDSM step, floor",
    "published": "TDSM step, threshold",
    "sampling": "sampling",
}
JAX, EAGER, COMPILED = "JAX", "PyTorch eager", "PyTorch compile"


class JaxTasks:
    """Our side: one unit of each task at a time, each waited for. `capacity` holds what the steps pack."""

    def __init__(self, run: Run, params: Params, batches: list[dict], probe: torch_handover.Probe):
        self.capacity: dict[str, float | None] = {}
        placed = parallel.replicate(params, run.mesh)
        sample = torch_handover.sampler(run, run.network, placed, probe)
        self._takes: dict[str, Callable[[], Any]] = {"sampling": sample}
        for task, method in METHODS.items():
            self._takes[task] = self._training(run, task, method, params, batches)

    def _training(self, run: Run, task: str, method: str, params: Params, batches: list[dict]) -> Callable[[], Any]:
        begin = run.score_step(method)
        self.capacity[task] = begin.objective.capacity
        copied = jax.tree.map(jnp.copy, params)  # the step donates its state
        state = parallel.replicate(initial_state(copied, optimisation(run.config.score)), run.mesh)
        endless = itertools.cycle(batches)

        def take() -> Any:
            nonlocal state
            state, _ = begin.step(state, parallel.split(next(endless), run.mesh), begin.key)
            return state

        return take

    def warm(self, task: str) -> float:
        """Returns the seconds of the first unit, compilation included, and takes another."""
        first, _ = self.time(task, 2)
        return first

    def time(self, task: str, units: int) -> list[float]:
        """Returns the seconds of some units of a task."""
        seconds = []
        for _ in range(units):
            start = time.perf_counter()
            jax.block_until_ready(self._takes[task]())
            seconds.append(time.perf_counter() - start)
        return seconds


def measure(sides: dict[str, JaxTasks | Variant], batch_size: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Returns a record of each task on each side; all are compiled first, then timed in turn."""
    first = {name: {task: side.warm(task) for task in TASKS} for name, side in sides.items()}
    seconds: dict[str, dict[str, list[float]]] = {name: {task: [] for task in TASKS} for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            for task in TASKS:
                seconds[name][task] += side.time(task, 1 if task == "sampling" else steps)
    return [
        record(task, name, seconds[name][task], first[name][task], seconds[EAGER][task], batch_size)
        for task in TASKS
        for name in sides
    ]


def record(
    task: str, name: str, seconds: list[float], first: float, eager: list[float], batch_size: int
) -> dict[str, Any]:
    """Returns the figures of a task on one side; the ratio is of images/s to PyTorch eager."""
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return {
        "task": task,
        "side": name,
        "milliseconds": 1e3 * median,
        "quartile_1": 1e3 * low,
        "quartile_3": 1e3 * high,
        "images_per_second": batch_size / median,
        "ratio": float(np.median(eager)) / median,
        "compile_seconds": max(first - median, 0.0),
        "seconds": seconds,
    }


def table(records: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown, and below it our cheapest TDSM step against the published loop."""
    lines = [
        "| task | side | ms | quartiles | images/s | ratio to eager | compile s |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        quartiles = f"{r['quartile_1']:.1f}..{r['quartile_3']:.1f}"
        speed = f"{r['images_per_second']:.0f} | {r['ratio']:.2f} | {r['compile_seconds']:.1f}"
        lines.append(f"| {TASKS[r['task']]} | {r['side']} | {r['milliseconds']:.1f} | {quartiles} | {speed} |")
    median = {(r["task"], r["side"]): r["milliseconds"] for r in records}
    ratios = [f"{median['published', name] / median['floor', JAX]:.2f} of {name}" for name in (EAGER, COMPILED)]
    return "\n".join([*lines, "", f"TDSM step, JAX's floor over PyTorch's published loop: {', '.join(ratios)}"])


def environment(run: Run, device: str) -> dict[str, Any]:
    """Returns what the figures depend on: device, driver, clocks, versions, threads, precision, networks."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.initial_params()))
    return {
        "device": jax.devices()[0].device_kind if device == "cuda" else processor(),
        "gpu": gpu_state() if device == "cuda" else None,
        "versions": pipeline.versions(),
        "cores": len(os.sched_getaffinity(0)),
        "dtype": run.config.network.dtype,
        "jax_matmul_precision": jax.config.jax_default_matmul_precision or "default",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "batch_size": run.config.score.batch_size,
        "sampling_steps": run.config.sampling.steps,
        "image_shape": list(run.train_set.images.shape[1:]),
        "num_classes": run.num_classes,
        "parameters": parameters,
        "config": configuration.resolved(run.config),
    }


def processor() -> str:
    """Returns the name of the CPU, as far as the system tells."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def gpu_state() -> str:
    """Returns name, driver and clocks of the GPU."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout
