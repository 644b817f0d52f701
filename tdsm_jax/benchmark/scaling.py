"""What to expect of training on many chips, by published peaks and link speeds: nothing is compiled or run.

  python -m tdsm_jax.benchmark scaling
  python -m tdsm_jax.benchmark scaling --compiled=tpu.json --program=floor     figures that `benchmark tpu` wrote
  python -m tdsm_jax.benchmark scaling --machines=v5e,h200 --chips=8,16 --batches=512 --json=scaling.json

A step takes the longer of its FLOPs over a chip's peak and its bytes over the bandwidth, and then the all-reduce of
the gradient over the links. FLOPs and bytes are those of one compiled step: of --compiled, of each machine its own
where the file has it, else the flags', whose defaults are the TPU compiler's figures for the DSM step of CIFAR-10 on
v5e. Then: what data loading must deliver, and how long checkpoints take. No chip reaches its peaks, so steps take
longer than printed; the all-reduce, the loader and the checkpoints then weigh less.
"""

import argparse
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from tdsm_jax import config as configuration
from tdsm_jax import files
from tdsm_jax.benchmark import scaling_figures as figures
from tdsm_jax.benchmark.sampling import counts
from tdsm_jax.benchmark.scaling_figures import MACHINES, Step
from tdsm_jax.benchmark.step import with_classes
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.run import Run
from tdsm_jax.validation import validate

LOADING = {"gather": "gathered", "convert": "gathered and made floats", "stream": "streamed"}
PLACES = ("disk", "bucket")
ABOVE_0 = ("flops", "bytes", "temporaries", "images", "save_every", *LOADING, *PLACES)


def main(arguments: argparse.Namespace) -> None:
    """Prints the tables and writes the records."""
    for name in ABOVE_0:
        if not 0 < getattr(arguments, name) < math.inf:
            raise UserError(f"--{name}={getattr(arguments, name):g} must be a number above 0")
    machines = read_machines(arguments.machines)
    chips, batches = counts("chips", arguments.chips), counts("batches", arguments.batches)
    image_bytes = arguments.image_size**2 * arguments.image_channels
    given = compiled_steps(arguments.compiled, arguments.program) if arguments.compiled else {}
    if not given:
        flags = (arguments.flops, arguments.bytes, arguments.temporaries, arguments.images)
        given = {"v5e": Step(*flags, count_parameters(arguments))}
    any_step = next(iter(given.values()))
    print("expectations from published peaks and compiler figures; nothing ran here")
    print(f"all-reduced in a step: {figures.all_reduced(any_step) / 1e6:.0f} MB, the float32 gradient")
    records: list[dict[str, Any]] = []
    for name in machines:
        step = given.get(name, any_step)
        found = expectations(name, step, chips, batches)
        print(f"\n{described(name, step, name in given)}\n\n{figures.step_table(found, batches)}")
        records += found
    print_limits(arguments, records, any_step, image_bytes)
    if arguments.json:
        files.write_json(arguments.json, records)


def print_limits(
    arguments: argparse.Namespace, records: Sequence[dict[str, Any]], step: Step, image_bytes: int
) -> None:
    """Prints what loading and saving mean where they weigh most: the busiest host, the shortest step of a machine."""
    groups = [[r for r in records if r["machine"] == name] for name in dict.fromkeys(r["machine"] for r in records)]
    busiest = [max(group, key=lambda r: r["images_per_second_a_host"]) for group in groups]
    shortest = [min(group, key=lambda r: r["step"]) for group in groups]
    rates = {
        f"of {getattr(arguments, name):,.0f}/s {words}": getattr(arguments, name) for name, words in LOADING.items()
    }
    size = figures.checkpoint_bytes(step)
    places = {f"{name} of {getattr(arguments, name) / 1e9:g} GB/s": getattr(arguments, name) for name in PLACES}
    print(f"\ndata loading, the busiest host of each machine\n\n{figures.loading_table(busiest, image_bytes, rates)}")
    print(f"\ncheckpoints of {size / 1e9:.2f} GB, the shortest step of each machine\n")
    print(figures.saving_table(shortest, size, arguments.save_every, places))


def read_machines(text: str) -> list[str]:
    """Turns "v5e,h200" into names of machines; unknown ones are a `UserError`."""
    names = text.split(",")
    for name in names:
        if name not in MACHINES:
            raise UserError(f"--machines: unknown machine {name!r}{did_you_mean(name, MACHINES)}")
    return names


def expectations(name: str, step: Step, chips: Sequence[int], batches: Sequence[int]) -> list[dict[str, Any]]:
    """Returns what to expect of one machine, for each number of chips and each batch that they share equally."""
    machine, found = MACHINES[name], []
    for n in chips:
        if not figures.reachable(machine, n):
            raise UserError(f"--chips={n}: {name} joins {machine.domain} chips, or whole multiples if it has a network")
        shared = [batch for batch in batches if batch % n == 0]
        if not shared:
            raise UserError(f"--chips={n} share none of --batches={','.join(map(str, batches))} equally")
        found += [{"machine": name} | figures.expectation(step, machine, n, batch) for batch in shared]
    return found


def described(name: str, step: Step, own: bool) -> str:
    """Returns what the table of a machine rests on, in words."""
    source = f"compiled for {name}" if own else "compiled for another chip"
    return (
        f"{name}: {step.flops / 1e12:.2f} TFLOP and {step.bytes / 1e9:.1f} GB for {step.images} images, {source}; "
        "step, efficiency (with the all-reduce overlapped)"
    )


def compiled_steps(path: str, program: str) -> dict[str, Step]:
    """Returns the steps of a program in what `benchmark tpu` wrote, by chip, of each chip the first."""
    steps: dict[str, Step] = {}
    records = files.read_json(path)
    try:
        for r in records:
            if r["program"] == program and "failure" not in r:
                of_step = (r["flops"], r["bytes"], r["memory"]["temporaries"], r["images_per_chip"], r["parameters"])
                steps.setdefault(r["topology"].partition(":")[0], Step(*of_step))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} holds no records of `benchmark tpu`") from None
    if not steps:
        raise UserError(f"{path} has no compiled step of --program={program}")
    return steps


def count_parameters(arguments: argparse.Namespace) -> int:
    """Returns the number of parameters of the score network of a config, from shapes alone."""
    config = configuration.load(arguments.config)
    config.methods = ("dsm",)
    config = with_classes(config, arguments.classes, arguments.image_size, arguments.image_channels)
    validate(config)
    shapes = jax.eval_shape(Run(FrozenConfigDict(config), pathlib.Path()).initial_params)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--config", default="configs/cifar10.py", help="whose parameters are counted (%(default)s)")
    parser.add_argument("--classes", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--image_size", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--image_channels", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--machines", default=",".join(MACHINES), help="joined by commas (%(default)s)")
    parser.add_argument("--chips", default="8,16,32,64,128,256", help="joined by commas (%(default)s)")
    parser.add_argument("--batches", default="512,1024,2048,4096,8192", help="joined by commas (%(default)s)")
    parser.add_argument("--compiled", help="what `benchmark tpu --json` wrote, instead of the next four")
    parser.add_argument("--program", default="dsm", help="of --compiled (%(default)s)")
    parser.add_argument("--flops", type=float, default=7.79e12, help="of a chip's step; v5e's compiler (%(default)s)")
    parser.add_argument("--bytes", type=float, default=45.2e9, help="accessed, v5e's compiler (%(default)s)")
    parser.add_argument("--temporaries", type=float, default=1.97e9, help="bytes, v5e's compiler (%(default)s)")
    parser.add_argument("--images", type=int, default=64, help="a chip, of the compiled step (%(default)s)")
    parser.add_argument("--gather", type=float, default=3.7e6, help="images/s from memory, measured (%(default)s)")
    parser.add_argument("--convert", type=float, default=1.1e5, help="images/s of a core, measured (%(default)s)")
    parser.add_argument("--stream", type=float, default=5.5e3, help="images/s decoded, measured (%(default)s)")
    parser.add_argument("--disk", type=float, default=1e9, help="bytes/s, assumed (%(default)s)")
    parser.add_argument("--bucket", type=float, default=0.2e9, help="bytes/s, assumed (%(default)s)")
    parser.add_argument("--save_every", type=int, default=5000, help="steps between checkpoints (%(default)s)")
    parser.add_argument("--json", help="where to write the records")
    run_command(parser, main)
