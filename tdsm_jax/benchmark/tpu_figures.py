"""What a compiled TPU program says of itself, and the published peaks of the chips it is held against."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluation.table import grid

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
CHIPS_A_HOST = (2, 2, 1)  # what the compiler takes a host for where it is not told


class Chip(NamedTuple):
    """Published peaks of one chip: bfloat16 FLOP/s, bytes/s of HBM and bytes of HBM.

    `layout` is the compiler's name for both cores of a chip as one device, where that is not its default.
    """

    flops: float
    bandwidth: float
    memory: float
    layout: str = ""


# Source: docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e.
CHIPS = {
    "v4": Chip(275e12, 1228e9, 32e9, layout="megacore"),
    "v5e": Chip(197e12, 819e9, 16e9),
    "v5p": Chip(459e12, 2765e9, 95e9),
    "v6e": Chip(918e12, 1638e9, 32e9),
}


class Topology(NamedTuple):
    """A slice of a pod: its name as given, the chip's name and the chips along each axis."""

    name: str
    chip: str
    shape: tuple[int, ...]

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler needs to hear beside the name: how a chip is one device, and hosts of fewer chips."""
        layout = CHIPS[self.chip].layout
        options = {"chip_config_name": layout} if layout else {}
        filled = (*self.shape, 1, 1)[:3]
        if any(size < most for size, most in zip(filled, CHIPS_A_HOST, strict=True)):
            options["chips_per_host_bounds"] = tuple(map(min, filled, CHIPS_A_HOST))
        return options


def read_topologies(text: str) -> list[Topology]:
    """Turns "v5e:2x4,v4:2x2x1" into topologies; unknown chips and shapes that are none are `UserError`s."""
    topologies = []
    for name in text.split(","):
        chip, _, shape = name.partition(":")
        if chip not in CHIPS:
            raise UserError(f"--topologies: unknown TPU {chip!r}{did_you_mean(chip, CHIPS)}")
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
            raise UserError(f"--topologies: {name!r} must be a TPU and its chips along each axis, such as {chip}:2x2")
        topologies.append(Topology(name, chip, tuple(map(int, shape.split("x")))))
    return topologies


class Cost(NamedTuple):
    """FLOPs and bytes accessed, a chip."""

    flops: float
    bytes: float


def branch_that_runs(counted: Cost, one: Cost, folds: int, share: float) -> Cost:
    """Returns the cost of a step in which each fold's classifiers see their share of the examples.

    XLA counts the rare branch instead, in which all folds see every example, at the cost `one` each. Exact for
    FLOPs; for bytes as far as those of parameters are few beside those of activations.
    """
    saved = folds * (1 - share)
    return Cost(counted.flops - saved * one.flops, counted.bytes - saved * one.bytes)


def roofline(cost: Cost, chip: Chip) -> dict[str, Any]:
    """Returns the time that published peaks allow at best, in ms, what bounds it, and FLOPs a byte."""
    compute, memory = cost.flops / chip.flops, cost.bytes / chip.bandwidth
    return {
        "roofline_ms": 1e3 * max(compute, memory),
        "bound": "compute" if compute >= memory else "memory",
        "intensity": cost.flops / cost.bytes,
        "ridge": chip.flops / chip.bandwidth,  # the intensity from which compute bounds
    }


def count_collectives(hlo: str) -> dict[str, int]:
    """Returns how often each kind of collective stands in the text of a program; one in two halves counts once."""
    kinds = "|".join(COLLECTIVES)
    found = re.findall(rf"^[^\n=]*= .*?(?<![\w%.-])({kinds})(?:-start)?\(", hlo, re.MULTILINE)
    return {kind: found.count(kind) for kind in COLLECTIVES if kind in found}


def memory_of(stats: Any, chip: Chip) -> dict[str, float]:
    """Returns the bytes a chip of a program's `memory_analysis()`; `share` is of the published HBM."""
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,  # outputs that take the place of arguments
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    total = sum(parts.values()) - 2 * parts["aliased"]
    return parts | {"total": total, "share": total / chip.memory}


def with_ratios(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records, each training rule with its FLOPs and bytes over those of DSM beside it."""
    place = ("topology", "classes")
    dsm = {tuple(r[key] for key in place): r for r in records if r["program"] == "dsm" and "flops" in r}
    completed = []
    for r in records:
        base = dsm.get(tuple(r[key] for key in place))
        if base and "flops" in r and r["program"] != "sampling":
            names = ("flops", "bytes", "counted_flops", "counted_bytes", "roofline_ms")
            r = r | {f"{name}_ratio": r[name] / base[name] for name in names}
        completed.append(r)
    return completed


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the records as a Markdown table."""
    heads = ("topology", "chips", "classes", "program", "FLOPs / DSM (counted)", "bytes / DSM (counted)", "TFLOP")
    heads += ("GB accessed", "FLOP/byte (ridge)", "roofline, ms", "arguments + temporaries + code = total, GB (of HBM)")
    heads += ("collectives", "compile, s")
    lines = []
    for r in records:
        cells = [r["topology"], r["chips"], r["classes"], r["program"]]
        cells += [r["failure"], *[""] * 7, f"{r['compile_seconds']:.0f}"] if "failure" in r else _figures(r)
        lines.append(cells)
    return grid(heads, lines)


def _figures(r: dict[str, Any]) -> list[str]:
    memory = r["memory"]
    ratios = [
        f"{r[f'{name}_ratio']:.2f} ({r[f'counted_{name}_ratio']:.2f})" if "flops_ratio" in r else ""
        for name in ("flops", "bytes")
    ]
    *parts, total = (f"{memory[part] / 1e9:.2f}" for part in ("arguments", "temporaries", "code", "total"))
    return [
        *ratios,
        f"{r['flops'] / 1e12:.2f}",
        f"{r['bytes'] / 1e9:.1f}",
        f"{r['intensity']:.0f} ({r['ridge']:.0f})",
        f"{r['roofline_ms']:.1f}, {r['bound']}",
        f"{' + '.join(parts)} = {total} ({memory['share']:.0%})",
        ", ".join(f"{count} {kind}" for kind, count in r["collectives"].items()) or "none",
        f"{r['compile_seconds']:.0f}",
    ]
