"""How fast images are sampled: images/s against solver steps and batch size, and how long the first image takes.

  python -m tdsm_jax.benchmark sampling
  python -m tdsm_jax.benchmark sampling --steps=18 --batches=1,64 --json=sampling.json --plot=sampling.svg
  python -m tdsm_jax.benchmark sampling --model=runs/digits/score/tdsm/ema.npz

Heun's solver evaluates the network 2 steps - 1 times, --solver=euler and dpmpp_2m once a step, --guidance twice as
often. Without --model the network is that of --config with its initial parameters, which cost what trained ones do. For
each batch size everything is compiled first, then all numbers of steps are timed in turn; each sampling waits for its
images. "First call" is what the first images of a batch size take in a running process, compilation included; of batch
size 1 it is the first image's latency.
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from tdsm_jax import config as configuration
from tdsm_jax import files, runtime
from tdsm_jax.benchmark.cells import with_arguments
from tdsm_jax.benchmark.timing import described, environment, seconds_of, spread_of, summary
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.diffusion.sampling import SOLVERS
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import charts
from tdsm_jax.evaluation.table import grid
from tdsm_jax.run import Run
from tdsm_jax.sampler import Sampler, Sampling
from tdsm_jax.training import model_file
from tdsm_jax.training.model_file import Model
from tdsm_jax.training.parallel import data_mesh
from tdsm_jax.validation import validate


def main(arguments: argparse.Namespace) -> None:
    """Times all batch sizes, prints and writes the records."""
    runtime.configure()  # without a cache of compiled programs: the first image is to be honest
    steps, batches = (counts(name, getattr(arguments, name)) for name in ("steps", "batches"))
    if arguments.rounds < 3:
        raise UserError(f"--rounds={arguments.rounds} must be at least 3")
    model = model_file.read(arguments.model) if arguments.model else untrained(arguments.config)
    about = environment() | {"image_shape": list(model.image_shape), "dtype": jnp.dtype(model.network.dtype).name}
    settings = Sampling(max(batches), solver=arguments.solver, guidance=arguments.guidance)
    records = [
        record | about
        for batch_size in batches
        for record in measure(model, batch_size, steps, arguments.rounds, settings)
    ]
    print(f"{described(about)}\n\n{table(records)}")
    if arguments.json:
        files.write_json(arguments.json, records)
    if arguments.plot:
        files.write_text(arguments.plot, plot(records))


def counts(name: str, text: str) -> list[int]:
    """Turns "4,18" into numbers of at least 1; what cannot be one is a `UserError`."""
    if not all(part.isdigit() and int(part) for part in text.split(",")):
        raise UserError(f"--{name}={text} must be whole numbers of at least 1, joined by commas")
    return [int(part) for part in text.split(",")]


def untrained(specification: str) -> Model:
    """Returns the score network of a config at its initial parameters."""
    config = configuration.load(with_arguments(specification, "methods=dsm"))
    validate(config)
    run = Run(FrozenConfigDict(config), pathlib.Path())
    return Model(run.network, run.initial_params(), run.process, run.train_set.image_shape)


def measure(
    model: Model, batch_size: int, steps: Sequence[int], rounds: int, settings: Sampling
) -> list[dict[str, Any]]:
    """Returns a record for each number of steps at one batch size."""
    draw = sampler(model, batch_size, settings)
    a_step = 1 if settings.guidance in (0, 1) else 2
    first = seconds_of(functools.partial(draw, steps[0]))  # compiles; the solver's steps share one denoiser
    seconds: dict[int, list[float]] = {n: [] for n in steps}
    for n in steps:
        draw(n)
    for _ in range(rounds):
        for n in steps:
            seconds[n].append(seconds_of(functools.partial(draw, n)))
    return [
        {
            "steps": n,
            "evaluations": a_step * SOLVERS[settings.solver].evaluations(n),
            "batch_size": batch_size,
            "rounds": rounds,
        }
        | summary(seconds[n], batch_size)
        | {"first_seconds": first if n == steps[0] else None}
        for n in steps
    ]


def sampler(model: Model, batch_size: int, settings: Sampling | None = None) -> Callable[[int], jax.Array]:
    """Returns what makes a batch of images with a number of solver steps, on one device."""
    mesh, settings = data_mesh(jax.devices()[:1]), settings or Sampling(batch_size)
    label = jnp.arange(batch_size) % max(model.network.num_classes, 1)
    latents = jax.random.normal(jax.random.key(0), (batch_size, *model.image_shape))
    made = functools.cache(lambda steps: Sampler(model, dataclasses.replace(settings, steps=steps), mesh))
    return lambda steps: made(steps).images(latents, label, None)


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the records as a Markdown table."""
    headings = ("batch", "steps", "evaluations", "ms, median (quartiles)", "images/s", "first call, s")
    rows = []
    for r in records:
        first = "" if r["first_seconds"] is None else f"{r['first_seconds']:.1f}"
        rows.append(
            (r["batch_size"], r["steps"], r["evaluations"], spread_of(r), f"{r['images_per_second']:.1f}", first)
        )
    return grid(headings, rows)


def plot(records: Sequence[dict[str, Any]]) -> str:
    """Returns the chart, as SVG, of images/s against solver steps, a line a batch size."""
    series = {}
    for size in dict.fromkeys(r["batch_size"] for r in records):
        own = [r for r in records if r["batch_size"] == size]
        series[f"batch {size}"] = ([r["steps"] for r in own], [r["images_per_second"] for r in own])
    return charts.line_chart(
        series, x_label="solver steps (log scale)", y_label="images/s (log scale)", log_x=True, log_y=True
    )


if __name__ == "__main__":
    parser = new_parser(__doc__)
    deterministic = tuple(name for name, solver in SOLVERS.items() if not solver.stochastic)
    parser.add_argument("--config", default="configs/digits.py", help="network and images (%(default)s)")
    parser.add_argument("--model", help="a model file (ema.npz), instead of --config")
    parser.add_argument("--steps", default="4,18,50", help="solver steps, joined by commas (%(default)s)")
    parser.add_argument("--solver", choices=deterministic, default="heun", help="(%(default)s)")
    parser.add_argument("--guidance", type=float, default=1.0, help="classifier-free; 1 is none (%(default)s)")
    parser.add_argument("--batches", default="1,16,128", help="batch sizes, joined by commas (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed samplings of each (%(default)s)")
    parser.add_argument("--json", help="where to write the records")
    parser.add_argument("--plot", help="where to draw images/s against steps, as SVG")
    run_command(parser, main)
