"""Both sides of the comparison with PyTorch, timed in turn, and what is told of it."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax import config as configuration
from tdsm_jax.benchmark import torch_handover
from tdsm_jax.benchmark.timing import environment, seconds_of, spread_of, summary
from tdsm_jax.benchmark.torch_handover import METHODS
from tdsm_jax.benchmark.torch_process import Variant
from tdsm_jax.evaluation.table import grid
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
            state, _ = begin.step(state, parallel.feed(next(endless), run.mesh), begin.key)
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
            seconds.append(seconds_of(self._takes[task]))
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
    median = float(np.median(seconds))
    return {
        "task": task,
        "side": name,
        **summary(seconds, batch_size),
        "ratio": float(np.median(eager)) / median,
        "compile_seconds": max(first - median, 0.0),
        "seconds": seconds,
    }


def table(records: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown, and below it our cheapest TDSM step against the published loop."""
    lines = []
    for r in records:
        speed = (f"{r['images_per_second']:.0f}", f"{r['ratio']:.2f}", f"{r['compile_seconds']:.1f}")
        lines.append((TASKS[r["task"]], r["side"], spread_of(r), *speed))
    headings = ("task", "side", "ms, median (quartiles)", "images/s", "ratio to eager", "compile, s")
    median = {(r["task"], r["side"]): r["milliseconds"] for r in records}
    others = [name for name in (EAGER, COMPILED) if ("published", name) in median]
    ratios = [f"{median['published', name] / median['floor', JAX]:.2f} of {name}" for name in others]
    last = f"TDSM step, JAX's floor over PyTorch's published loop: {', '.join(ratios)}"
    return f"{grid(headings, lines)}\n\n{last}"


def about(run: Run) -> dict[str, Any]:
    """Returns what the figures depend on: `timing.environment`, and precision, sizes and config of the networks."""
    return environment() | {
        "dtype": run.config.network.dtype,
        "batch_size": run.config.score.batch_size,
        "sampling_steps": run.config.sampling.steps,
        "image_shape": list(run.train_set.images.shape[1:]),
        "num_classes": run.num_classes,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.initial_params())),
        "config": configuration.resolved(run.config),
    }
