"""What a training step of each mixture costs beside plain DSM, for any number of classes.

  python -m tdsm_jax.benchmark step
  python -m tdsm_jax.benchmark step --classes=10,100 --rounds=15 --json=step.json --plot=step.svg
  python -m tdsm_jax.benchmark step --workdir=runs/digits      a finished run's own labels and classifiers

For each number of classes, classifiers are fitted on made-up images (gratings) with symmetric label noise, once and
for 600 steps at most: they stay in --out. Network, batch and noise rate are those of --config. Then all rules are
compiled, and timed in turn, step by step, in one process, so that whatever else the machine does falls on all of
them; each step waits for its result. Prints medians, quartiles and ratios of medians to DSM. FLOPs and memory are the
compiler's figures for one step; utilisation is their rate over that of a matrix product measured in the same process.
--profile also prints what each rule's step spends by kind of operation.
"""

import argparse
import math
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from tdsm_jax import config as configuration
from tdsm_jax import files, runtime
from tdsm_jax.benchmark import profile
from tdsm_jax.benchmark.cells import carry_out, with_arguments
from tdsm_jax.benchmark.timing import compiling_afresh, described, environment, seconds_of, spread_of, summary
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import charts
from tdsm_jax.evaluation.table import grid
from tdsm_jax.run import Run, ScoreStep
from tdsm_jax.training.state import TrainState

RULES = ("dsm", "floor", "threshold", "sampled", "all")
MOST_SLOTS = 16  # `all` has K slots an example: beyond this many it would take the time of all others together
IMAGES_A_CLASS, FEWEST_IMAGES = 20, 2000
MATMUL_SIZE = 2048
CLASSIFIER_STEPS = 600  # at most: enough to tell gratings apart, where a published recipe's classifiers take hours


def main(arguments: argparse.Namespace) -> None:
    """Prepares one run a number of classes, times its steps, prints and writes the records."""
    runtime.configure(compilation_cache=str(pathlib.Path(arguments.out) / "compiled"))
    if arguments.rounds < 3:
        raise UserError(f"--rounds={arguments.rounds} must be at least 3")
    rules = arguments.rules.split(",")
    if "dsm" not in rules or not set(rules) <= set(RULES):
        raise UserError(f"--rules={arguments.rules} must hold dsm and otherwise some of {', '.join(RULES)}")
    peak = matmul_flops()
    records = []
    for run in prepared(arguments):
        steps = compiled_steps(run, rules)
        records += measure(run, steps, arguments.rounds, peak)
        for rule, step in steps.items() if arguments.profile else ():
            print(f"{rule}, {run.num_classes} classes:\n\n{profile.table(profile.costs(step.advance))}\n")
    print(described(records[0]))
    print(f"matrix product of size {MATMUL_SIZE}, float32 as configured: {peak / 1e9:.0f} GFLOP/s\n")
    print(table(records))
    if arguments.json:
        files.write_json(arguments.json, records)
    if arguments.plot:
        files.write_text(arguments.plot, plot(records))


def prepared(arguments: argparse.Namespace) -> Iterator[Run]:
    """Yields a run with classifiers for each number of classes, or the finished one of --workdir."""
    config = configuration.load(with_arguments(arguments.config, "methods=dsm"))
    config.compute.steps_a_call = 1
    config.transition.estimator = "known"
    if arguments.workdir:
        if not (pathlib.Path(arguments.workdir) / "weight_table.npz").is_file():
            raise UserError(
                f"--workdir={arguments.workdir} holds no finished classifiers; run tdsm_jax.main there first"
            )
        yield Run(FrozenConfigDict(config), pathlib.Path(arguments.workdir).absolute())
        return
    counts = arguments.classes.split(",")
    if not all(K.isdigit() and int(K) >= 2 for K in counts):
        raise UserError(f"--classes={arguments.classes} must be numbers of at least 2, joined by commas")
    for K in counts:
        changed = with_classes(config, int(K), arguments.image_size, arguments.channels)
        yield carry_out(changed, pathlib.Path(arguments.out) / f"classes{K}", ("labels", "classifier", "transition"))


def with_classes(config: ConfigDict, K: int, image_size: int, channels: int) -> ConfigDict:
    """Returns the config on made-up images of K classes with symmetric label noise."""
    config = config.copy_and_resolve_references()
    images = max(FEWEST_IMAGES, IMAGES_A_CLASS * K)
    config.data.update(name="synthetic", num_classes=K, image_size=image_size, channels=channels, num_images=images)
    config.label_noise.kind = "sym"
    config.evaluation.nearest = 1
    config.classifier.steps = min(config.classifier.steps, CLASSIFIER_STEPS)
    return config


def compiled_steps(run: Run, rules: Sequence[str]) -> dict[str, "TimedStep"]:
    """Returns the warm step of each rule, of those that this number of classes is measured for."""
    chosen = [rule for rule in rules if rule != "all" or run.num_classes <= MOST_SLOTS]
    return {rule: TimedStep(run.score_step(rule if rule == "dsm" else f"tdsm_{rule}")) for rule in chosen}


def measure(run: Run, steps: dict[str, "TimedStep"], rounds: int, peak: float) -> list[dict[str, Any]]:
    """Returns the record of each rule for one run, timed in turn."""
    for _ in range(rounds):
        for step in steps.values():
            step.take()
    batch_size = run.config.score.batch_size
    shape = run.train_set.images.shape[1:]
    fixed = {"classes": run.num_classes, "batch_size": batch_size, "image_shape": list(shape), "rounds": rounds}
    fixed |= {"dtype": run.config.network.dtype, "channels": run.config.network.channels, **environment()}
    return [{"rule": rule} | step.record(steps["dsm"], batch_size, peak) | fixed for rule, step in steps.items()]


class TimedStep:
    """A training step with its state and the seconds its calls took."""

    def __init__(self, score: ScoreStep):
        self._given, self._batch, self._key, self._state = score.step.given, score.batch, score.key, score.state
        self.capacity = score.objective.capacity
        with compiling_afresh():
            start = time.perf_counter()
            self._compiled = score.step.lower(score.state, score.batch(0), score.key).compile()
            self.compile_seconds = time.perf_counter() - start
        self.seconds: list[float] = []
        self.take()  # warms up
        self.seconds.clear()

    def take(self) -> None:
        """Takes one step and waits for it."""
        self.seconds.append(seconds_of(self.advance))

    def advance(self) -> TrainState:
        """Starts one step and returns its state."""
        batch = self._batch(len(self.seconds))
        self._state, _ = self._compiled(self._state, batch, self._key, self._given)
        return self._state

    def record(self, dsm: "TimedStep", batch_size: int, peak: float) -> dict[str, Any]:
        """Returns the figures of this rule, with the ratio of medians to DSM."""
        median = float(np.median(self.seconds))
        flops = self._compiled.cost_analysis()["flops"]
        memory = self._compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return {
            "ratio": median / float(np.median(dsm.seconds)),
            **summary(self.seconds, batch_size),
            "compile_seconds": self.compile_seconds,
            "capacity": self.capacity,
            "flops": flops,
            "utilisation": flops / median / peak,
            "peak_bytes": held + memory.temp_size_in_bytes,
        }


def matmul_flops(repeats: int = 5) -> float:
    """Returns the best rate, in FLOP/s, of a float32 matrix product under the precision in force."""
    x = jnp.ones((MATMUL_SIZE, MATMUL_SIZE), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best = math.inf
    for _ in range(repeats):
        best = min(best, seconds_of(lambda: product(x, x)))
    return 2 * MATMUL_SIZE**3 / best


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the records as a Markdown table."""
    heads = ("classes", "rule", "ratio to DSM", "ms/step, median (quartiles)", "images/s", "GFLOP", "utilisation")
    heads += ("peak memory, MB", "compile, s", "slots packed")
    lines = []
    for r in records:
        cells = [r["classes"], r["rule"], f"{r['ratio']:.2f}", spread_of(r), f"{r['images_per_second']:.0f}"]
        cells += [f"{r['flops'] / 1e9:.1f}", f"{r['utilisation']:.0%}", f"{r['peak_bytes'] / 1e6:.0f}"]
        cells += [f"{r['compile_seconds']:.1f}", r["capacity"] or ""]
        lines.append(cells)
    return grid(heads, lines)


def plot(records: Sequence[dict[str, Any]]) -> str:
    """Returns the chart, as SVG, of the cost of a step against the number of classes."""
    rules = dict.fromkeys(r["rule"] for r in records)
    series = {
        rule: tuple(np.array([(r["classes"], r["ratio"]) for r in records if r["rule"] == rule]).T) for rule in rules
    }
    return charts.line_chart(series, x_label="classes (log scale)", y_label="time of a step over DSM's", log_x=True)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--config", default="configs/digits.py", help="network, batch and rate (%(default)s)")
    parser.add_argument("--classes", default="10,100,1000", help="joined by commas (%(default)s)")
    parser.add_argument("--rules", default=",".join(RULES), help=f"(%(default)s); all only up to K={MOST_SLOTS}")
    parser.add_argument("--workdir", help="a finished run, instead of made-up images")
    parser.add_argument("--image_size", type=int, default=8, help="of the made-up images (%(default)s)")
    parser.add_argument("--channels", type=int, default=1, help="of the made-up images (%(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each rule (%(default)s)")
    parser.add_argument("--out", default="runs/benchmark_step", help="folder of the classifiers (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="print the costliest operations of each rule")
    parser.add_argument("--json", help="where to write the records")
    parser.add_argument("--plot", help="where to draw cost against classes, as SVG")
    run_command(parser, main)
