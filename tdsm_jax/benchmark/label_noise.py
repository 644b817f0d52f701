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
from tdsm_jax.evaluation.table import HEADINGS, cells, grid, spread

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
    """Returns the Markdown table of one kind of noise: mean +- standard deviation (n - 1) over each row's seeds.

    A row takes the seeds that are finished for its method; its recovery those that have DSM and the ceiling too.
    """
    found = {m: {s: row for s in seeds if (row := measures(Cell(noise, s).folder(out), m))} for m in methods}
    clean = {s: row for s in seeds if (row := measures(Cell(None, s).folder(out), "clean"))}
    lines = []
    for method, rows in (found | {"clean": clean}).items():
        if rows:
            won = "" if method in ("dsm", "clean") else recovered(found.get("dsm", {}), rows, clean)
            lines.append([method, ", ".join(map(str, rows)), *cells(list(rows.values())), won])
    return f"### {noise[0]} {noise[1]:.0%}\n\n{grid(('', 'seeds', *HEADINGS), lines)}"


def recovered(dsm: dict[int, dict], rows: dict[int, dict], clean: dict[int, dict]) -> str:
    """Returns the recovery of label fidelity over the seeds that all three have, "" where it says nothing."""
    common = [seed for seed in rows if seed in dsm and seed in clean]
    shares = [recovery(*(of[seed]["label_fidelity"] for of in (dsm, rows, clean))) for seed in common]
    return "" if not shares or None in shares else spread(shares, 3)


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
