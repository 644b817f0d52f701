"""What a transformer loses when its tokens see a window or a neighbourhood only: trained alike on digits and measured.

  python -m tdsm_jax.benchmark.windows --out=runs/windows
  python -m tdsm_jax.benchmark.windows --out=runs/windows --seeds=0,1,2,3,4 --jobs=15
  python -m tdsm_jax.benchmark.windows --out=runs/windows --attentions=full,neighbourhood --method=tdsm
  python -m tdsm_jax.benchmark.windows --out=runs/windows --table_only

A cell is one attention and one seed: a run of tdsm_jax.main in a folder of its own, with the same images, labels,
network, batches, steps and noise as the others of its seed. A neighbourhood is --window tokens along each axis; a
window, in the row of all tokens, is as many as such a neighbourhood has. --jobs runs that many cells at a time and
shares the cores among them (on a machine with an accelerator set JAX_PLATFORMS=cpu, or leave it at 1). Commands with
other --seeds or --attentions may also work on the same --out at the same time: their cells are other folders. Stop it
whenever you like; the same command goes on. Prints a Markdown table of what is finished, and writes it with the first
seed's images side by side into OUT/windows.html; --table_only runs nothing.
Arguments after -- go to tdsm_jax.main: -- --config.score.steps=2000
"""

import argparse
import os
import pathlib
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tdsm_jax import files
from tdsm_jax.benchmark.cells import measures, read_seeds, run_cell, with_arguments
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluation import grids, page
from tdsm_jax.evaluation.table import COLUMNS, cells, grid
from tdsm_jax.networks.attention import PATTERNS
from tdsm_jax.pipeline import STAGES

CLEAN_STAGES = "score,sample,judge,measure"  # that need no classifier of noisy labels
SHOWN = {"label_fidelity": COLUMNS["label_fidelity"], "cas": COLUMNS["cas"], "fd": ("FD", 2)}
SHOWN |= {name: COLUMNS[name] for name in ("cw_fd", "cw_density", "cw_coverage")}
ROWS, PIXELS = 10, 32  # classes of a picture, and about how many pixels an image is enlarged to
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]  # attention -> seed -> metrics


def main(arguments: argparse.Namespace) -> None:
    """Runs the cells that are not finished, then prints the table and writes the page."""
    out, seeds = pathlib.Path(arguments.out), read_seeds(arguments.seeds)
    attentions = arguments.attentions.split(",")
    for name in attentions:
        if name not in PATTERNS:
            raise UserError(f"--attentions: unknown attention {name!r}{did_you_mean(name, PATTERNS)}")
    if min(arguments.jobs, arguments.window) < 1:
        raise UserError("--jobs and --window must be at least 1")
    if not arguments.table_only:
        run_all([(arguments, out, name, seed) for seed in seeds for name in attentions], arguments.jobs)
    found = {name: results(out, name, seeds, arguments.method) for name in attentions}
    print(table(found))
    files.write_text(out / "windows.html", web_page(out, found, arguments.method))


def run_all(cells: Sequence[tuple], jobs: int) -> None:
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
        for done in [pool.submit(run, *cell) for cell in cells]:
            done.result()


def folder_of(out: pathlib.Path, attention: str, seed: int) -> pathlib.Path:
    return out / attention / f"seed{seed}"


def run(arguments: argparse.Namespace, out: pathlib.Path, attention: str, seed: int) -> None:
    """Runs one cell; cells differ by the attention alone."""
    given = f"network=dit,attention={attention},methods={arguments.method},seed={seed}"
    config = with_arguments(arguments.config, given, "smoke" if arguments.smoke else "")
    window = arguments.window ** (2 if attention == "window" else 1)
    stages = CLEAN_STAGES if arguments.method == "clean" else ",".join(stage for stage in STAGES if stage != "report")
    run_cell(folder_of(out, attention, seed), config, stages, [f"dit.window={window}"], arguments.rest)


def results(out: pathlib.Path, attention: str, seeds: Sequence[int], method: str) -> dict[int, dict[str, Any]]:
    """Returns the metrics of what is finished, by seed."""
    return {s: row for s in seeds if (row := measures(folder_of(out, attention, s), method))}


def rows_of(found: Results) -> list[list[str]]:
    """Returns a row for each attention: mean +- standard deviation (n - 1) over its finished seeds."""
    return [[name, ", ".join(map(str, rows)), *cells(list(rows.values()), SHOWN)] for name, rows in found.items()]


def headings() -> list[str]:
    return ["attention", "seeds", *(heading for heading, _ in SHOWN.values())]


def table(found: Results) -> str:
    """Returns the Markdown table of the results."""
    return grid(headings(), rows_of(found))


def web_page(out: pathlib.Path, found: Results, method: str) -> str:
    """Returns the page: the table, and the images of the first seed that all attentions have."""
    numbers = (
        "<p>Mean ± standard deviation over the seeds. Higher is better, but for the distances FD and class-wise FD.</p>"
        f"{page.table(headings(), rows_of(found))}"
    )
    lead = f"A small diffusion transformer, method {method}, trained alike but for which tokens see which."
    common = sorted(set.intersection(*(set(rows) for rows in found.values())))
    sections = {"Measures": numbers}
    if common:
        drawn = "".join(figure(folder_of(out, name, common[0]), name, method) for name in found)
        said = f"<p>Seed {common[0]}, one class a row; an image starts from the same noise in every picture.</p>"
        sections["Images"] = f'{said}<div class="figures grids">{drawn}</div>'
    title = "Attention to everything, to a window, to a neighbourhood"
    return page.page(title, page.header(title, lead), sections)


def figure(folder: pathlib.Path, name: str, method: str) -> str:
    """Returns the samples of a cell as an HTML figure."""
    arrays = files.read_arrays(folder / "samples" / f"{method}.npz")
    rows = min(ROWS, int(arrays["labels"].max()) + 1)
    images = grids.class_rows(arrays["images"], arrays["labels"], rows, columns=8)
    return grids.figure(grids.Grid(name, "", images), list(map(str, range(rows))), "one class a row", PIXELS)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--out", required=True, help="folder of the cells")
    parser.add_argument("--config", default="configs/digits.py", help="config of the cells (%(default)s)")
    parser.add_argument("--attentions", default=",".join(PATTERNS), help="joined by commas (%(default)s)")
    parser.add_argument("--window", type=int, default=3, help="tokens that each sees along an axis (%(default)s)")
    parser.add_argument("--method", default="clean", help="what trains them (%(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="every stage cut to seconds")
    parser.add_argument("--table_only", action="store_true", help="print and draw what is finished, run nothing")
    parser.add_argument("rest", nargs="*", help="arguments of tdsm_jax.main, after --")
    run_command(parser, main)
