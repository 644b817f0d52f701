"""Every method on every kind of label noise: the table that says what to use.

  python -m tdsm_jax.benchmark.label_noise --out=runs/noise
  python -m tdsm_jax.benchmark.label_noise --out=runs/noise --noise=sym:0.4 --methods=dsm,tdsm,posterior --seeds=0,1,2

A cell is one kind of noise and one seed: a run of tdsm_jax.main in a folder of its own, all its methods with the same
networks, batches and steps. Stop it whenever you like; the same command goes on. The clean ceiling is trained once a
seed. Prints one Markdown table per kind of noise from the cells that are finished; --table_only runs nothing.
Arguments after -- go to tdsm_jax.main: -- --config.score.steps=2000
"""

import argparse
import pathlib
from typing import NamedTuple

from tdsm_jax import config as configuration
from tdsm_jax.benchmark.cells import measures, read_seeds, run_cell, with_arguments
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.evaluation.statistics import recovery
from tdsm_jax.evaluation.table import COLUMNS, spread

NOISES = "sym:0.2,sym:0.4,sym:0.6,sym:0.8,asym:0.4,pair:0.4,instance:0.4"
METHODS = "dsm,s_weighted,posterior,relabel,relabel_tdsm,tdsm_floor,tdsm_threshold,tdsm_all,tdsm_sampled"
STAGES = "labels,noisy_classifier,estimate,classifier,transition,posterior,score,sample,judge,measure"


class Cell(NamedTuple):
    """One run: kind and rate of the noise (None for the clean ceiling), seed."""

    noise: tuple[str, float] | None
    seed: int

    def folder(self, out: pathlib.Path) -> pathlib.Path:
        name = "clean" if self.noise is None else f"{self.noise[0]}{self.noise[1]:g}"
        return out / name / f"seed{self.seed}"


def main(arguments: argparse.Namespace) -> None:
    """Runs the cells that are not finished, then prints the tables."""
    out = pathlib.Path(arguments.out)
    noises = [configuration.parse_noise(text) for text in arguments.noise.split(",")]
    methods = tuple(arguments.methods.split(","))
    seeds = read_seeds(arguments.seeds)
    if not arguments.table_only:
        for seed in seeds:
            for noise in (None, *noises):
                run(arguments, Cell(noise, seed), out, methods)
    print("\n\n".join(table(out, noise, methods, seeds) for noise in noises))


def run(arguments: argparse.Namespace, cell: Cell, out: pathlib.Path, methods: tuple[str, ...]) -> None:
    """Runs one cell: all methods, or the clean ceiling."""
    noise = "" if cell.noise is None else f"noise={cell.noise[0]},rate={cell.noise[1]}"
    chosen = "clean" if cell.noise is None else "+".join(methods)
    smoke = "smoke" if arguments.smoke else ""
    config = with_arguments(arguments.config, noise, f"methods={chosen},seed={cell.seed}", smoke)
    stages = "score,sample,judge,measure" if cell.noise is None else STAGES
    run_cell(cell.folder(out), config, stages, rest=arguments.rest)


def table(out: pathlib.Path, noise: tuple[str, float], methods: tuple[str, ...], seeds: list[int]) -> str:
    """Returns the Markdown table of one kind of noise: mean +- standard deviation (n - 1) over its finished seeds."""
    rows = {m: [measures(Cell(noise, seed).folder(out), m) for seed in seeds] for m in methods}
    rows["clean"] = [measures(Cell(None, seed).folder(out), "clean") for seed in seeds]
    finished = [i for i in range(len(seeds)) if all(rows[m][i] is not None for m in rows)]
    heading = f"### {noise[0]} {noise[1]:.0%}, seeds {', '.join(str(seeds[i]) for i in finished) or 'none finished'}"
    lines = [heading, "", "| | " + " | ".join(h for h, _ in COLUMNS.values()) + " | recovery of label fidelity |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for method in rows if finished else ():
        cells = [spread([rows[method][i][metric] for i in finished], digits) for metric, (_, digits) in COLUMNS.items()]
        won = ""
        if method not in ("dsm", "clean") and "dsm" in rows:
            fidelity = [[rows[m][i]["label_fidelity"] for m in ("dsm", method, "clean")] for i in finished]
            shares = [recovery(*values) for values in fidelity]
            won = "" if None in shares else spread(shares, 3)
        lines.append(f"| {method} | " + " | ".join([*cells, won]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--out", required=True, help="folder of the cells")
    parser.add_argument("--config", default="configs/digits.py", help="config of the cells (%(default)s)")
    parser.add_argument("--noise", default=NOISES, help="kind:rate, joined by commas (%(default)s)")
    parser.add_argument("--methods", default=METHODS, help="joined by commas (%(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="every stage cut to seconds")
    parser.add_argument("--table_only", action="store_true", help="print what is finished, run nothing")
    parser.add_argument("rest", nargs="*", help="arguments of tdsm_jax.main, after --")
    run_command(parser, main)
