"""Every method on every kind of label noise: the table that says what to use.

  python -m tdsm_jax.benchmark.label_noise --out=runs/noise
  python -m tdsm_jax.benchmark.label_noise --out=runs/noise --noise=sym:0.4 --methods=dsm,tdsm,posterior --seeds=0,1,2
  python -m tdsm_jax.benchmark.label_noise --out=runs/noise --methods=dsm,corrected,tdsm,posterior --noise=sym:0.4 \\
      --seeds=1 --ceiling=without

A cell is one kind of noise and one seed: a run of tdsm_jax.main in a folder of its own, all its methods with the same
networks, batches and steps. Stop it whenever you like; the same command goes on. The clean ceiling is trained once a
seed. Prints, from what is finished, the recovery of every method under every noise and two Markdown tables per kind of
noise, of quality and of cost; --table_only runs nothing. Cells of other noises and seeds may run at the same time, each
in a command of its own: the ceilings in one with --ceiling=only, the others with --ceiling=without.
Arguments after -- go to tdsm_jax.main: -- --config.score.steps=2000
"""

import argparse
import pathlib
from typing import NamedTuple

from tdsm_jax import config as configuration
from tdsm_jax import files, pipeline
from tdsm_jax.benchmark.cells import measures, read_seeds, run_cell, with_arguments
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.evaluation.statistics import recovery
from tdsm_jax.evaluation.table import HEADINGS, cells, grid, spread

NOISES = "sym:0.2,sym:0.4,sym:0.6,sym:0.8,asym:0.4,pair:0.4,instance:0.4"
METHODS = "dsm,s_weighted,posterior,relabel,relabel_tdsm,tdsm_floor,tdsm_threshold,tdsm_all,tdsm_sampled"
TRAINED_BEFORE = {"refined": ("score/posterior", "refine"), "corrected": ("score/dsm",)}  # what a method goes on from
Results = dict[str, dict[int, dict]]  # method -> seed -> metrics
STAGES = ",".join(stage for stage in pipeline.STAGES if stage != "report")


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
            ceiling, others = arguments.ceiling != "without", arguments.ceiling != "only"
            for noise in (*((None,) if ceiling else ()), *(noises if others else ())):
                run(arguments, Cell(noise, seed), out, methods)
    found = {noise: results(out, noise, methods, seeds) for noise in noises}
    tables = [text for noise, rows in found.items() for text in (table(noise, rows), cost_table(out, noise, rows))]
    print("\n\n".join([overview(found), *tables]))


def run(arguments: argparse.Namespace, cell: Cell, out: pathlib.Path, methods: tuple[str, ...]) -> None:
    """Runs one cell: all methods, or the clean ceiling."""
    noise = "" if cell.noise is None else f"noise={cell.noise[0]},rate={cell.noise[1]}"
    chosen = "clean" if cell.noise is None else "+".join(methods)
    smoke = "smoke" if arguments.smoke else ""
    config = with_arguments(arguments.config, noise, f"methods={chosen},seed={cell.seed}", smoke)
    stages = "score,sample,judge,measure" if cell.noise is None else STAGES
    run_cell(cell.folder(out), config, stages, rest=arguments.rest)


def results(out: pathlib.Path, noise: tuple[str, float], methods: tuple[str, ...], seeds: list[int]) -> Results:
    """Returns what is finished of one kind of noise, the ceiling last."""
    cells_of = {method: noise for method in methods} | {"clean": None}
    return {m: {s: row for s in seeds if (row := measures(Cell(n, s).folder(out), m))} for m, n in cells_of.items()}


def overview(found: dict[tuple[str, float], Results]) -> str:
    """Returns the Markdown table of all recoveries of label fidelity, a row a method and a column a kind of noise."""
    methods = [m for m in next(iter(found.values())) if m not in ("dsm", "clean")]
    rows = [(m, *(recovered(of, m) for of in found.values())) for m in methods]
    return f"### recovery of label fidelity\n\n{grid(('', *map(title, found)), rows)}"


def table(noise: tuple[str, float], found: Results) -> str:
    """Returns the Markdown table of one kind of noise: mean +- standard deviation (n - 1) over each row's seeds.

    A row takes the seeds that are finished for its method; its recovery those that have DSM and the ceiling too.
    """
    lines = [
        [method, ", ".join(map(str, rows)), *cells(list(rows.values())), recovered(found, method)]
        for method, rows in found.items()
        if rows
    ]
    return f"### {title(noise)}\n\n{grid(('', 'seeds', *HEADINGS), lines)}"


def cost_table(out: pathlib.Path, noise: tuple[str, float], found: Results) -> str:
    """Returns the Markdown table of what each method costs beside DSM, over the seeds that are finished for both.

    Training is that of the score network, and of all that `TRAINED_BEFORE` it; the classifiers, which all but dsm and
    clean read, have a row of their own. Seconds are those of the last process where one was interrupted; of samples
    that an earlier process began, no rate is known.
    """
    lines: list[tuple[str, ...]] = []
    classifiers: list[float] = []
    for method, rows in found.items():
        of = [(Cell(noise if method != "clean" else None, s).folder(out), Cell(noise, s).folder(out)) for s in rows]
        pairs = [(cost(own, method), cost(dsm, "dsm")) for own, dsm in of]
        pairs = [(a, b) for a, b in pairs if a and b]
        if not pairs:
            continue
        rates = [(a["images_per_second"], b["images_per_second"]) for a, b in pairs]
        ratios = [own / dsm for own, dsm in rates if own and dsm]
        lines.append(
            (
                method,
                spread([own["training"] for own, _ in pairs], 0),
                spread([own["evaluations"] for own, _ in pairs], 0),
                spread([own["classifier_evaluations"] for own, _ in pairs], 0),
                spread(ratios, 2) if ratios else "",
            )
        )
        classifiers = classifiers or [dsm["classifiers"] for _, dsm in pairs]
    headings = ("", "training in all, s", "evaluations an image", "of classifiers", "images/s over dsm's")
    beside = [("classifiers", spread(classifiers, 0), "", "", "")] if classifiers else []
    return f"### {title(noise)}: cost\n\n{grid(headings, [*lines, *beside])}"


def cost(folder: pathlib.Path, method: str) -> dict[str, float] | None:
    """Returns what sampling and training of a method took in a cell, None where it is not finished."""
    path = folder / "samples" / f"{method}.json"
    if not path.exists():
        return None
    seconds = pipeline.seconds(folder)
    training = sum(seconds.get(unit, 0.0) for unit in (f"score/{method}", *TRAINED_BEFORE.get(method, ())))
    return files.read_json(path) | {"training": training, "classifiers": seconds.get("classifier", 0.0)}


def title(noise: tuple[str, float]) -> str:
    return f"{noise[0]} {noise[1]:.0%}"


def recovered(found: Results, method: str) -> str:
    """Returns a method's recovery of label fidelity over the seeds that have DSM and the ceiling, "" without any."""
    if method in ("dsm", "clean"):
        return ""
    three = [found.get("dsm", {}), found[method], found["clean"]]
    common = [seed for seed in found[method] if all(seed in rows for rows in three)]
    shares = [recovery(*(rows[seed]["label_fidelity"] for rows in three)) for seed in common]
    return "" if not shares or None in shares else spread(shares, 3)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--out", required=True, help="folder of the cells")
    parser.add_argument("--config", default="configs/digits.py", help="config of the cells (%(default)s)")
    parser.add_argument("--noise", default=NOISES, help="kind:rate, joined by commas (%(default)s)")
    parser.add_argument("--methods", default=METHODS, help="joined by commas (%(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas (%(default)s)")
    ceilings = ("with", "without", "only")
    parser.add_argument("--ceiling", choices=ceilings, default="with", help="the runs on clean labels (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="every stage cut to seconds")
    parser.add_argument("--table_only", action="store_true", help="print what is finished, run nothing")
    parser.add_argument("rest", nargs="*", help="arguments of tdsm_jax.main, after --")
    run_command(parser, main)
