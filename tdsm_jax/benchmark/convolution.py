"""What the convolutions of a network cost: forward, gradient of the input, gradient of the kernel, in three forms.

  python -m tdsm_jax.benchmark convolution
  python -m tdsm_jax.benchmark convolution --config=configs/digits.py --batch=64 --json=convolution.json

Every distinct convolution of the network of --config is timed by itself: as the compiler does it, as one matrix
product over patches, and as a sum of products over shifted images. All forms are the same function. Prints GFLOP/s,
beside those of a large matrix product in the same process, and what all convolutions of a training step take in each
form.
"""

import argparse
import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tdsm_jax import files, runtime
from tdsm_jax.benchmark.sampling import untrained
from tdsm_jax.benchmark.step import matmul_flops
from tdsm_jax.benchmark.timing import described, environment, seconds_of
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.table import grid
from tdsm_jax.training.model_file import Model


class Shape(NamedTuple):
    """A convolution of stride 1 that keeps the image's size: image side, kernel side, channels in and out."""

    side: int
    size: int
    channels: int
    features: int


def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The compiler's own. Shapes: x [B,H,W,C], kernel [k,k,C,F] -> [B,H,W,F]."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def shifted(x: jax.Array, size: int) -> Iterator[jax.Array]:
    """Yields the zero-padded image seen by each entry of a kernel of this side, row by row: [B,H,W,C] each."""
    _, H, W, _ = x.shape
    margin = size // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    for i in range(size):
        for j in range(size):
            yield padded[:, i : i + H, j : j + W]


def patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One product of all patches [B H W, k k C] with the kernel as a matrix; shapes of `convolution`."""
    size, _, C, F = kernel.shape
    rows = jnp.concatenate(list(shifted(x, size)), axis=-1)
    return rows @ kernel.reshape(size * size * C, F)


def shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A sum of k k products of shifted images; shapes of `convolution`."""
    entries = kernel.reshape(-1, *kernel.shape[2:])
    return sum(image @ entry for image, entry in zip(shifted(x, kernel.shape[0]), entries, strict=True))


FORMS: dict[str, Callable] = {"convolution": convolution, "patches": patches, "shifts": shifts}
PARTS = ("forward", "input gradient", "kernel gradient")


def main(arguments: argparse.Namespace) -> None:
    """Finds the convolutions, times all forms, prints and writes the records."""
    runtime.configure()
    if min(arguments.batch, arguments.rounds) < 1:
        raise UserError("--batch and --rounds must be at least 1")
    shapes = convolutions(untrained(arguments.config))
    about = environment()
    records = [
        {**shape._asdict(), "times_in_network": times, "batch_size": arguments.batch, **found, **about}
        for shape, times in shapes.items()
        for found in measure(shape, arguments.batch, arguments.rounds)
    ]
    print(f"{described(about)}\nmatrix product, float32: {matmul_flops() / 1e9:.0f} GFLOP/s\n")
    print(f"{table(records)}\n\n{totals(records)}")
    if arguments.json:
        files.write_json(arguments.json, records)


def convolutions(model: Model) -> collections.Counter[Shape]:
    """Returns how often each convolution of stride 1 occurs in one evaluation of a network."""
    x, zero = jnp.zeros((1, *model.image_shape)), jnp.zeros(1)
    traced = jax.make_jaxpr(model.network.apply)(model.params, x, zero, zero.astype(jnp.int32))
    found: collections.Counter[Shape] = collections.Counter()
    for equation in traced.eqns:
        if equation.primitive is lax.conv_general_dilated_p:
            image, kernel = (variable.aval.shape for variable in equation.invars)
            found[Shape(image[1], *kernel[1:])] += 1
    return found


def measure(shape: Shape, batch_size: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yields the GFLOP/s and milliseconds of each form and part of one convolution, timed in turn."""
    x_key, kernel_key, g_key = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(x_key, (batch_size, shape.side, shape.side, shape.channels))
    kernel = jax.random.normal(kernel_key, (shape.size, shape.size, shape.channels, shape.features))
    g = jax.random.normal(g_key, (batch_size, shape.side, shape.side, shape.features))
    calls = {
        (form, part): functools.partial(jax.jit(of_part), x, kernel, g)
        for form, function in FORMS.items()
        for part, of_part in parts(function).items()
    }
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())  # compiles
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(seconds_of(call))
    flops = 2 * g.size * shape.size**2 * shape.channels
    for (form, part), taken in seconds.items():
        median = float(np.median(taken))
        yield {"form": form, "part": part, "milliseconds": 1e3 * median, "gflops": flops / median / 1e9}


def parts(function: Callable) -> dict[str, Callable]:
    """Returns the three parts of a convolution f, each of (x, kernel, g): its value, and its gradients along g."""
    return {
        "forward": lambda x, kernel, g: function(x, kernel),
        "input gradient": lambda x, kernel, g: jax.vjp(lambda x: function(x, kernel), x)[1](g),
        "kernel gradient": lambda x, kernel, g: jax.vjp(lambda kernel: function(x, kernel), kernel)[1](g),
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns GFLOP/s of each convolution in Markdown, a row a convolution, a column a form and part."""
    speeds: dict[tuple, list[str]] = {}
    for r in records:
        shape = (f"{r['side']}x{r['side']}", f"{r['size']}x{r['size']}", r["channels"], r["features"])
        speeds.setdefault((*shape, r["times_in_network"]), []).append(f"{r['gflops']:.0f}")
    forms = [f"{form}, {part}" for form in FORMS for part in PARTS]
    return grid(
        ("image", "kernel", "channels in", "out", "times", *forms), [(*shape, *row) for shape, row in speeds.items()]
    )


def totals(records: Sequence[dict[str, Any]]) -> str:
    """Returns, in Markdown, the milliseconds that all convolutions of one training step take in each form."""
    sums: collections.Counter[tuple[str, str]] = collections.Counter()
    for r in records:
        sums[r["form"], r["part"]] += r["times_in_network"] * r["milliseconds"]
    rows = [(form, *(f"{sums[form, part]:.1f}" for part in PARTS)) for form in FORMS]
    return grid(("all convolutions, ms", *PARTS), rows)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--config", default="configs/digits.py", help="network and images (%(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="timed calls of each (%(default)s)")
    parser.add_argument("--json", help="where to write the records")
    run_command(parser, main)
