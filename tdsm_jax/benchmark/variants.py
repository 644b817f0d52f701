"""What one change of the config makes of the images: models trained alike but for it, and measured, over seeds.

  python -m tdsm_jax.benchmark variants --out=runs/weightings score.steps=500 \\
      --variant=score.weighting=p2 --variant=score.weighting=min_snr --variant=score.optimiser=adopt
  python -m tdsm_jax.benchmark variants --out=runs/windows --config=configs/digits.py:network=dit --jobs=4 \\
      --variant="dit.attention=window dit.window=9" --variant=dit.attention=neighbourhood
  python -m tdsm_jax.benchmark variants --out=runs/photos --method=dsm --seeds=0 --variant=score.clip_percentile=10 \\
      label_noise.rate=0.0 image_noise.kind=off_topic_photos image_noise.rate=0.3
  python -m tdsm_jax.benchmark variants --out=runs/weightings --variant=score.weighting=p2 score.steps=500 --table_only

A cell is one variant and one seed: a run of tdsm_jax.main in a folder of its own, with the same images, labels,
batches, steps and noise as the others of its seed. A variant is a config key with its value, or several in quotes; the
config as it is comes first of itself. Keys that stand alone, in one place, hold for all cells. --jobs runs that many
cells at a time and shares the cores among them (on a machine with an accelerator set JAX_PLATFORMS=cpu, or leave it at
1). Commands with other --seeds or variants may also work on the same --out at the same time: their cells are other
folders. Stop it whenever you like; the same command goes on. Cells of other keys are refused. Prints a Markdown table
of what is finished, and writes it with the first seed's images side by side into OUT/variants.html; --table_only runs
nothing: give the same keys then, too.
"""

import argparse
import os
import pathlib
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from ml_collections import FrozenConfigDict

from tdsm_jax import checks, files, pipeline, plan
from tdsm_jax.benchmark.cells import (
    config_with,
    measures,
    measuring_stages,
    read_keys,
    read_seeds,
    run_cell,
    with_arguments,
)
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import grids, page
from tdsm_jax.evaluation import table as tables
from tdsm_jax.evaluation.table import COLUMNS
from tdsm_jax.run import Run
from tdsm_jax.validation import validate

AS_IT_IS = "as_configured"  # the variant that changes nothing
SHOWN = {"label_fidelity": COLUMNS["label_fidelity"], "cas": COLUMNS["cas"], "fd": ("FD", 2)}
SHOWN |= {name: COLUMNS[name] for name in ("cw_fd", "cw_density", "cw_coverage")}
ROWS, PIXELS = 10, 32  # classes of a picture, and about how many pixels an image is enlarged to
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]  # variant -> seed -> metrics


class Cell(NamedTuple):
    """One run: the name of its variant, its seed, its folder, what its config is made of."""

    variant: str
    seed: int
    folder: pathlib.Path
    specification: str
    keys: Mapping[str, Any]


def main(arguments: argparse.Namespace) -> None:
    """Runs the cells that are not finished, then prints the table and writes the page."""
    if arguments.jobs < 1:
        raise UserError("--jobs must be at least 1")
    cells = planned(arguments)
    for cell in cells:  # before hours are spent on others
        check(cell, arguments.method)
    try:
        if not arguments.table_only:
            run_all(cells, arguments.jobs)
    finally:
        found = results(cells, arguments.method)
        print(tables.grid(headings(), rows_of(found)))
        files.write_text(pathlib.Path(arguments.out) / "variants.html", web_page(cells, found, arguments.method))


def planned(arguments: argparse.Namespace) -> list[Cell]:
    """Returns the cells that the arguments name, by seed and variant; what cannot be one is a `UserError`."""
    variants: dict[str, dict[str, Any]] = {AS_IT_IS: {}}
    for given in arguments.variant:
        keys = read_keys(given.split())
        if not keys:
            raise UserError("--variant is empty; give it a config key with its value, such as score.weighting=p2")
        if keys not in variants.values():
            variants[" ".join(given.split())] = keys
    common, out = read_keys(arguments.keys), pathlib.Path(arguments.out)
    cells = []
    for seed in read_seeds(arguments.seeds):
        smoke = "smoke" if arguments.smoke else ""
        specification = with_arguments(arguments.config, f"methods={arguments.method},seed={seed}", smoke)
        for name, keys in variants.items():
            cells.append(Cell(name, seed, folder_of(out, name, seed), specification, common | keys))
    if len({cell.folder for cell in cells}) < len(cells):
        raise UserError("two variants would have one folder: they differ in / and _ alone; rename what they point to")
    return cells


def folder_of(out: pathlib.Path, variant: str, seed: int) -> pathlib.Path:
    """Returns the folder of a cell, named by its keys: "dit.attention=window,dit.window=9/seed0"."""
    return out / variant.replace(" ", ",").replace("/", "_") / f"seed{seed}"


def run_of(cell: Cell) -> Run:
    """Returns the run of a cell, with the config that tdsm_jax.main will give it."""
    return Run(FrozenConfigDict(config_with(cell.specification, cell.keys)), cell.folder)


def check(cell: Cell, method: str) -> None:
    """Raises `UserError` where a cell cannot run, is no run of the method and seed, or holds work of other keys."""
    run = run_of(cell)
    config = run.config
    if (tuple(config.methods), config.seed, config.task) != ((method,), cell.seed, "generation"):
        raise UserError(
            f"{cell.variant}, --method={method}: variants share one method, the seeds and the task; name one method "
            "and leave the keys methods, seed and task as they are"
        )
    validate(config)
    checks.check(run)
    planned = pipeline.plan(plan.units(run), config, cell.folder)
    try:
        pipeline.check_unchanged([p for p in planned if not p.done], cell.folder)
    except UserError as error:
        raise UserError(f"{str(error).partition(';')[0]}; give its keys again, or another --out") from None


def run_all(cells: Sequence[Cell], jobs: int) -> None:
    """Runs cells, `jobs` at a time, each on its share of the cores; of those that fail the first one's error is raised.

    A process takes over the cores that the thread which starts it may use; where threads have none of their own
    (macOS), the system shares all cores out.
    """
    pinned = hasattr(os, "sched_setaffinity")
    cores = sorted(os.sched_getaffinity(0)) if pinned else range(os.cpu_count() or 1)
    shares: queue.SimpleQueue = queue.SimpleQueue()
    for job in range(jobs):
        shares.put(set(cores[job::jobs]) or {cores[job % len(cores)]})

    def take_share() -> None:
        if pinned:
            os.sched_setaffinity(0, shares.get())

    with ThreadPoolExecutor(jobs, initializer=take_share) as pool:
        try:
            for done in [pool.submit(run, cell) for cell in cells]:
                done.result()
        except KeyboardInterrupt:  # the cells at work have had it, too
            pool.shutdown(cancel_futures=True)
            raise


def run(cell: Cell) -> None:
    """Runs one cell; cells differ by the keys of their variant alone."""
    keys = [f"{key}={value}" for key, value in cell.keys.items()]
    run_cell(cell.folder, cell.specification, ",".join(measuring_stages(run_of(cell))), keys)


def results(cells: Sequence[Cell], method: str) -> Results:
    """Returns the metrics of what is finished, by variant and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {cell.variant: {} for cell in cells}
    for cell in cells:
        if row := measures(cell.folder, method):
            found[cell.variant][cell.seed] = row
    return found


def rows_of(found: Results) -> list[list[str]]:
    """Returns a row for each variant that has finished seeds: mean +- standard deviation (n - 1) over them."""
    return [
        [name, ", ".join(map(str, rows)), *tables.cells(list(rows.values()), SHOWN)]
        for name, rows in found.items()
        if rows
    ]


def headings() -> list[str]:
    return ["variant", "seeds", *(heading for heading, _ in SHOWN.values())]


def web_page(cells: Sequence[Cell], found: Results, method: str) -> str:
    """Returns the page: the table, and the images of the first seed that all variants have."""
    numbers = (
        "<p>Mean ± standard deviation over the seeds. Higher is better, but for the distances FD and class-wise FD.</p>"
        f"{page.table(headings(), rows_of(found))}"
    )
    common = sorted(set.intersection(*(set(rows) for rows in found.values())))
    sections = {"Measures": numbers}
    if common:
        drawn = "".join(figure(cell, method) for cell in cells if cell.seed == common[0])
        said = f"<p>Seed {common[0]}, one class a row; an image starts from the same noise in every picture.</p>"
        sections["Images"] = f'{said}<div class="figures grids">{drawn}</div>'
    title = "Trained alike but for one thing"
    lead = f"What a change of the config makes of the images; method {method}."
    return page.page(title, page.header(title, lead), sections)


def figure(cell: Cell, method: str) -> str:
    """Returns the samples of a cell as an HTML figure."""
    arrays = files.read_arrays(cell.folder / "samples" / f"{method}.npz")
    rows = min(ROWS, int(arrays["labels"].max()) + 1)
    images = grids.class_rows(arrays["images"], arrays["labels"], rows, columns=8)
    return grids.figure(grids.Grid(cell.variant, "", images), list(map(str, range(rows))), "one class a row", PIXELS)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--out", required=True, help="folder of the cells")
    parser.add_argument("--config", default="configs/digits.py", help="config of the cells (%(default)s)")
    parser.add_argument("--variant", action="append", required=True, help="key=value, or several in quotes; repeatable")
    parser.add_argument("--method", default="clean", help="what trains them (%(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="every stage cut to seconds")
    parser.add_argument("--table_only", action="store_true", help="print and draw what is finished, run nothing")
    parser.add_argument("keys", nargs="*", help="config keys of all cells, such as score.steps=1200")
    run_command(parser, main)
