"""What published peaks, published link speeds and a compiled step let expect of many chips: formulas and tables."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tdsm_jax.benchmark.tpu_figures import CHIPS, Chip, Cost
from tdsm_jax.evaluation.table import grid

FLOAT32 = 4  # bytes; parameters, gradients, moments and averages are float32
STATE_COPIES = 4  # parameters, their average and Adam's two moments
# The update reads parameters, gradient, average and moments and writes all but the gradient.
UPDATE_PASSES = 9
USABLE_MEMORY = 0.9  # of a chip's


class Machine(NamedTuple):
    """A kind of accelerator: published peaks of a chip, and bytes/s that it can send.

    `send` is to the `domain` of chips that fast links join: a TPU's pod, the GPUs of a host. `between` is to the other
    domains, 0 where there is no way to them. On fewer chips than `torus` the links close to no rings, and a chip in a
    corner has half of them.
    """

    chip: Chip
    send: float
    domain: int
    a_host: int
    torus: int = 1
    between: float = 0.0


# Sources. TPUs: docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e. "All-reduce bandwidth per Pod" over the chips of a
# pod: 1.1 PB/s, 51.2 TB/s and 102.4 TB/s. For v5e and v6e that is half of the "bidirectional ICI bandwidth per chip"
# (400 and 800 GB/s); v5p states that alone (1200 GB/s). H200, as others quote NVIDIA: 989 TFLOP/s in bfloat16 without
# sparsity, 4.8 TB/s, 141 GB, NVLink 900 GB/s, both directions together; one 400 Gbit/s InfiniBand adapter a GPU.
MACHINES = {
    "v4": Machine(CHIPS["v4"], 1.1e15 / 4096, 4096, a_host=4, torus=64),
    "v5e": Machine(CHIPS["v5e"], 51.2e12 / 256, 256, a_host=8, torus=256),
    "v5p": Machine(CHIPS["v5p"], 1200e9 / 2, 8960, a_host=4, torus=64),
    "v6e": Machine(CHIPS["v6e"], 102.4e12 / 256, 256, a_host=8, torus=256),
    "h200": Machine(Chip(989e12, 4.8e12, 141e9), 900e9 / 2, 8, a_host=8, between=400e9 / 8),
}


class Step(NamedTuple):
    """A compiled training step: FLOPs, bytes accessed and bytes of temporaries of a chip that takes `images`."""

    flops: float
    bytes: float
    temporaries: float
    images: int
    parameters: int


def reachable(machine: Machine, chips: int) -> bool:
    """Says whether a run can have so many chips: a part of a domain, or whole ones with a way between them."""
    return chips <= machine.domain or (machine.between > 0 and chips % machine.domain == 0)


def all_reduced(step: Step) -> int:
    """Returns the bytes of the gradient, which one all-reduce averages in every step."""
    return FLOAT32 * step.parameters


def sent(size: float, chips: int) -> float:
    """Returns the bytes that each chip sends, and receives, in an all-reduce of `size` bytes over a ring."""
    return 2 * (chips - 1) / chips * size


def all_reduce_seconds(size: float, chips: int, machine: Machine) -> float:
    """Returns the time that the links allow at best; of several domains, each chip carries its part between them."""
    inner = min(chips, machine.domain)
    send = machine.send if chips >= machine.torus else machine.send / 2
    seconds = sent(size, inner) / send
    outer = chips // inner
    return seconds + sent(size / inner, outer) / machine.between if outer > 1 else seconds


def growing(step: Step) -> Cost:
    """Returns what one more image costs: what the step does beside the update of the parameters."""
    fixed = UPDATE_PASSES * FLOAT32 * step.parameters
    return Cost(step.flops / step.images, (step.bytes - fixed) / step.images)


def share_of(step: Step, images: int) -> Cost:
    """Returns the cost of a chip that takes `images`: FLOPs grow with them, bytes but for the update's."""
    one = growing(step)
    return Cost(images * one.flops, images * one.bytes + UPDATE_PASSES * FLOAT32 * step.parameters)


def seconds(cost: Cost, chip: Chip) -> float:
    """Returns the roofline time, the longer of computing and reading."""
    return max(cost.flops / chip.flops, cost.bytes / chip.bandwidth)


def parts_needed(step: Step, images: int, chip: Chip) -> int:
    """Returns into how many parts (compute.parts) a chip must cut its images to hold one; 0 where none would fit."""
    room = USABLE_MEMORY * chip.memory - STATE_COPIES * FLOAT32 * step.parameters
    a_part = math.floor(room * step.images / step.temporaries)
    fitting = (parts for parts in range(1, images + 1) if images % parts == 0 and images // parts <= a_part)
    return next(fitting, 0)


def expectation(step: Step, machine: Machine, chips: int, batch_size: int) -> dict[str, Any]:
    """Returns what to expect of a batch on so many chips, times in seconds.

    `efficiency` is the share of a step that goes into work that grows with the images: what is missing goes into
    updating parameters and waiting for the all-reduce, all of it, or with `overlapped` what outlasts the computation.
    """
    images = batch_size // chips
    compute = seconds(share_of(step, images), machine.chip)
    reduce = all_reduce_seconds(all_reduced(step), chips, machine)
    one = seconds(growing(step), machine.chip)
    total, overlapped = compute + reduce, max(compute, reduce)
    return {
        "chips": chips,
        "batch_size": batch_size,
        "images_a_chip": images,
        "parts": parts_needed(step, images, machine.chip),
        "compute": compute,
        "all_reduce": reduce,
        "step": total,
        "step_overlapped": overlapped,
        "efficiency": images * one / total,
        "efficiency_overlapped": images * one / overlapped,
        "images_per_second": batch_size / total,
        "images_per_second_a_host": batch_size / overlapped / math.ceil(chips / machine.a_host),
    }


def checkpoint_bytes(step: Step) -> int:
    """Returns the bytes of a saved state."""
    return STATE_COPIES * FLOAT32 * step.parameters


def saving_share(save: float, step_seconds: float, save_every: int) -> float:
    """Returns the share of the time that saves would take if training waited for them."""
    return save / (save + save_every * step_seconds)


def step_table(found: Sequence[dict[str, Any]], batches: Sequence[int]) -> str:
    """Returns the expectations of one machine, a row a number of chips and a column a batch size."""
    rows = []
    for chips in dict.fromkeys(r["chips"] for r in found):
        row = {r["batch_size"]: r for r in found if r["chips"] == chips}
        reduce = f"{1e3 * next(iter(row.values()))['all_reduce']:.1f}"
        rows.append([chips, reduce, *(_cell(row[batch]) if batch in row else "" for batch in batches)])
    return grid(("chips", "all-reduce, ms", *(f"batch {batch}" for batch in batches)), rows)


def _cell(r: dict[str, Any]) -> str:
    if not r["parts"]:
        return "does not fit"
    parts = f", {r['parts']} parts" if r["parts"] > 1 else ""
    return f"{1e3 * r['step']:.1f} ms, {r['efficiency']:.0%} ({r['efficiency_overlapped']:.0%}){parts}"


def loading_table(fastest: Sequence[dict[str, Any]], image_bytes: int, rates: dict[str, float]) -> str:
    """Returns what each host must deliver at most, and how much of each way of loading that is."""
    heads = ("machine", "chips", "batch", "images/s of a host", "uint8, MB/s", "float32 to its chips, MB/s", *rates)
    rows = []
    for r in fastest:
        rate = r["images_per_second_a_host"]
        sizes = (f"{rate * image_bytes * width / 1e6:.0f}" for width in (1, FLOAT32))
        shares = (f"{rate / limit:.1%}{', the limit' if rate > limit else ''}" for limit in rates.values())
        rows.append([r["machine"], r["chips"], r["batch_size"], f"{rate:,.0f}", *sizes, *shares])
    return grid(heads, rows)


def saving_table(steps: Sequence[dict[str, Any]], size: int, save_every: int, speeds: dict[str, float]) -> str:
    """Returns how the time of a save compares with the time between two, for each place to save to."""
    heads = ("machine", "chips", "batch", f"{save_every} steps, s")
    heads += tuple(f"{place}: {size / speed:.1f} s a save, share if waited for" for place, speed in speeds.items())
    rows = []
    for r in steps:
        between = save_every * r["step"]
        shares = (f"{saving_share(size / speed, r['step'], save_every):.2%}" for speed in speeds.values())
        late = (", the limit" if size / speed > between else "" for speed in speeds.values())
        cells = (share + word for share, word in zip(shares, late, strict=True))
        rows.append([r["machine"], r["chips"], r["batch_size"], f"{between:.0f}", *cells])
    return grid(heads, rows)
