"""Where the time of a step goes: the profiler's events by kind of operation."""

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from tdsm_jax.evaluation.table import grid

STEPS = 5
_NOT_OPERATIONS = ("ThunkExecutor", "end: ", "wait for")  # brackets around operations, which would count twice


class Cost(NamedTuple):
    """An operation's kind, its milliseconds and its calls in one step, summed over threads or streams."""

    kind: str
    milliseconds: float
    calls: float


def costs(take: Callable[[], Any]) -> list[Cost]:
    """Returns what one call of `take` spends by kind of operation, the costliest first; `take` is warm already."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                jax.block_until_ready(take())
        (written,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(written))
        spent: collections.Counter[str] = collections.Counter()
        calls: collections.Counter[str] = collections.Counter()
        for name, nanoseconds in _operations(profile):
            spent[kind_of(name)] += nanoseconds
            calls[kind_of(name)] += 1
    return [Cost(kind, total / 1e6 / STEPS, calls[kind] / STEPS) for kind, total in spent.most_common()]


def _operations(profile: Any) -> list[tuple[str, float]]:
    """Returns name and nanoseconds of each operation: the devices' own lines, or those of the CPU's threads."""
    on_device = [plane for plane in profile.planes if plane.name.startswith("/device:")]
    found = []
    for plane in on_device or profile.planes:
        for line in plane.lines:
            # Other lines of a device hold whole steps and modules, which are these operations again.
            if line.name.startswith(("XLA Ops", "Stream") if on_device else "tf_XLA"):
                found += [(event.name, event.duration_ns) for event in line.events]
    return [(name, time) for name, time in found if not any(word in name for word in _NOT_OPERATIONS)]


def kind_of(name: str) -> str:
    """Returns the name of an operation without its number: "convolution.34" is a "convolution"."""
    return re.sub(r"(\.\d+)+$", "", name)


def table(found: list[Cost], rows: int = 12) -> str:
    """Returns the costliest kinds as a Markdown table, and the rest in one row."""
    total = sum(cost.milliseconds for cost in found)
    rest = Cost("everything else", sum(c.milliseconds for c in found[rows:]), sum(c.calls for c in found[rows:]))
    shown = [*found[:rows], rest]
    lines = [(c.kind, f"{c.calls:.0f}", f"{c.milliseconds:.2f}", f"{c.milliseconds / total:.0%}") for c in shown]
    return grid(("operation", "calls a step", "ms a step", "share"), lines)
