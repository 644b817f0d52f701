"""How a trained model draws under other guidance, steps and solvers: image grids and curves, judged by a finished run.

  python -m tdsm_jax.sweep --checkpoint=runs/digits/score/tdsm --run=runs/digits --out=runs/digits/sweep
  python -m tdsm_jax.sweep --checkpoint=runs/digits/score/dsm --run=runs/digits --corrected --out=runs/corrected
  python -m tdsm_jax.sweep --checkpoint=runs/digits/score/tdsm --run=runs/digits --out=runs/quick --per_class=20 \\
      --guidance=0,1,2 --steps=4,18 --solvers=euler,heun,dpmpp_2m --no_cas

--checkpoint is any model of the run's classes and image shape: a model file (ema.npz), a training's folder or one
checkpoint. --run lends its judge, its reference features and test images (and for --corrected the classifiers and S
that undo label noise): a folder of tdsm_jax.main whose judge is fitted. It is read and left as it is.

For each solver guidance is swept at --at_steps and steps at --at_guidance. Image i has the same seed and class in all
cells: look down a column of a grid. w = 0 asks for no class, 1 for the class alone; label fidelity rises with w while
the distances, which also see variety, have a minimum. Fewer evaluations are cheaper, never better: heun's 18 steps cost
35, dpmpp_2m's 18.

OUT/sweep.json holds everything, OUT/sweep.md the table, OUT/sweep.html curves and images. What is finished is kept: the
same command goes on, and one that asks for more adds to it.
"""

import argparse
import dataclasses
import functools
import json
from typing import Any, NamedTuple

import numpy as np
from ml_collections import FrozenConfigDict

from tdsm_jax import config as configuration
from tdsm_jax import files, hosts, judge_stages, paths, pipeline, runtime
from tdsm_jax.command import add_host_options, new_parser, run_on_hosts
from tdsm_jax.diffusion.sampling import SOLVERS
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluate import check_same, sampling_settings
from tdsm_jax.evaluation import sweep_page
from tdsm_jax.run import Run
from tdsm_jax.sampler import Correction, Sampler, Sampling, check_sampling, drawn
from tdsm_jax.sampling_options import add_sampling_options, given_sampling, model_identity
from tdsm_jax.training import model_file
from tdsm_jax.training.classifier import Labelled
from tdsm_jax.training.model_file import Model
from tdsm_jax.training.state import stream_key

GUIDANCE = "0,1,1.5,2,4,10"
STEPS = "4,8,18,50,250,500"
_SHOWN = 20  # images of each cell that are kept


class Cell(NamedTuple):
    """One setting."""

    solver: str
    guidance: float
    steps: int

    @property
    def name(self) -> str:
        return f"{self.solver}-w{sweep_page.exact(self.guidance)}-{self.steps}steps"

    def sampling(self, others: Sampling) -> Sampling:
        """Returns the settings of the cell: of `others` those that mean something to its solver and guidance."""
        unread: dict[str, Any] = {}
        if not SOLVERS[self.solver].stochastic:
            unread |= {"churn": 0.0, "churn_interval": (), "churn_noise": 1.0}
        if self.guidance in (0, 1):
            unread |= {"guidance_rescale": 0.0, "adaptive_guidance": 0.0}
        if self.guidance == 1:
            unread |= {"guidance_interval": (), "autoguidance": ""}
        return dataclasses.replace(others, **self._asdict(), **unread)


class Sweep(NamedTuple):
    """What is the same in all cells."""

    run: Run
    model: Model
    others: Sampling
    labels: np.ndarray  # int32 [N]
    arguments: argparse.Namespace
    out: paths.Path


def main(arguments: argparse.Namespace) -> None:
    """Draws and measures the cells that are not there yet, and writes what is there of all."""
    cells, others = asked_cells(arguments), given_sampling(arguments)
    for cell in cells:
        check_sampling(cell.sampling(others), "--")
    if arguments.per_class < 2 or arguments.seed < 0:
        raise UserError("--per_class must be at least 2 and --seed at least 0")
    if arguments.limit is not None and not (arguments.corrected and 1 <= arguments.limit < np.inf):
        raise UserError("--limit must be at least 1, and belongs to --corrected")
    out, path = paths.absolute(arguments.out), model_file.find(arguments.checkpoint, "--checkpoint")
    runtime.configure(compilation_cache=runtime.cache_folder(out))
    run, model = finished_run(arguments.run, arguments.corrected), model_file.read(path)
    if model.network.num_classes != run.num_classes or model.image_shape != run.train_set.image_shape:
        raise UserError(f"--checkpoint={arguments.checkpoint} draws other images or classes than --run={arguments.run}")
    labels = np.arange(arguments.per_class * run.num_classes, dtype=np.int32) % run.num_classes
    sweep = Sweep(run, model, others, labels, arguments, out)
    about = settings(sweep, path)
    check_same(out, about)
    files.write_json(out / "settings.json", about)
    for left in paths.children(out / "cells") if hosts.is_writer() else ():
        if left.suffix == ".parts" and paths.exists(left.with_suffix(".json")):
            paths.remove(left)  # a process has ended just before it removed them
    for number, cell in enumerate(cells, start=1):
        if not paths.exists(_result(out, cell)):
            if hosts.is_writer():
                print(f"[{number}/{len(cells)}] {cell.name}")
            measure(sweep, cell)
    write(sweep, about)


def asked_cells(arguments: argparse.Namespace) -> list[Cell]:
    """Returns the cells that the options ask for, each once, solver by solver."""
    scales = numbers("guidance", arguments.guidances, float, 0)
    steps = numbers("steps", arguments.step_counts, int, 1)
    solvers = arguments.solvers.split(",")
    for solver in solvers:
        if solver not in SOLVERS:
            raise UserError(f"--solvers: there is no {solver!r}{did_you_mean(solver, SOLVERS)}")
    at = asked_place(arguments)
    found = [
        cell
        for solver in solvers
        for cell in (
            *(Cell(solver, scale, at["steps"]) for scale in scales),
            *(Cell(solver, at["guidance"], n) for n in steps),
        )
    ]
    return list(dict.fromkeys(found))


def asked_place(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the guidance at which steps are swept and the steps at which guidance is."""
    steps = numbers("at_steps", arguments.at_steps, int, 1)
    guidance = numbers("at_guidance", arguments.at_guidance, float, 0)
    for axis, found in (("steps", steps), ("guidance", guidance)):
        if len(found) > 1:
            given = getattr(arguments, f"at_{axis}")
            raise UserError(f"--at_{axis}={given} must be one number; --{axis} takes those to sweep")
    return {"guidance": guidance[0], "steps": steps[0]}


def numbers(name: str, text: str, kind: type, least: float) -> list:
    """Turns "4,18" into numbers of a type; what cannot be one, or is below `least`, is a `UserError`."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = [np.nan]
    if not all(least <= number < np.inf for number in found):
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"--{name}={text} must be {what} of at least {least}, joined by commas")
    return found


def finished_run(workdir: str, corrected: bool = False) -> Run:
    """Returns the run of a workdir whose judge is fitted, its config as its page or, without one, its judge read it.

    Of a run without a page `corrected` asks also for what its classifiers and its corrected samples read.
    """
    folder, base = paths.absolute(workdir), configuration.default_config()
    manifests = pipeline.vouched(folder, "report")
    if "judge" not in manifests:  # the page is not made, or not of this judge
        manifests = pipeline.vouched(folder, "judge")
        if not manifests:
            raise UserError(
                f"--run={workdir} is no folder of a run whose small judge is fitted; run its stage judge first"
            )
        for name in ("transition", "sample/corrected") if corrected else ():
            manifests |= pipeline.vouched(folder, name)
    flat = configuration.flatten(base)
    for key, value in pipeline.config_read(manifests).items():
        if key in flat:
            section, _, name = key.rpartition(".")
            at = functools.reduce(lambda config, part: config[part], filter(None, section.split(".")), base)
            at[name] = tuple(value) if isinstance(value, list) else value
    return Run(FrozenConfigDict(base), folder)


def settings(sweep: Sweep, path: paths.Path) -> dict[str, Any]:
    """What every cell depends on: a folder holds cells of one of each."""
    asked, run = sweep.arguments, sweep.run
    others = {k: v for k, v in sampling_settings(sweep.others).items() if k not in ("solver", "guidance", "steps")}
    correction = [
        "weight_table.npz",
        *(name for f in range(run.config.classifier.folds) for name in run.classifier_files(f)),
    ]
    read = ["judge/judge.npz", "references/judge.npz", *(correction if asked.corrected else ())]
    return {
        "model": model_identity(path),
        "run": {"path": str(run.workdir), **{name: files.file_digest(run.workdir / name) for name in read}},
        "corrected": asked.corrected and {"limit": correction_of(sweep).limit, "slots": run.config.correction.slots},
        "per_class": asked.per_class,
        "seed": asked.seed,
        "cas": not asked.no_cas,
        **others,
    }


def correction_of(sweep: Sweep) -> Correction:
    """Returns what undoes label noise: the run's, with the limit that --limit names."""
    limit = sweep.arguments.limit
    return sweep.run.correction if limit is None else sweep.run.correction._replace(limit=limit)


def measure(sweep: Sweep, cell: Cell) -> None:
    """Draws the images of a cell and judges them; its record is written last and says that it is finished."""
    run, parts = sweep.run, sweep.out / "cells" / f"{cell.name}.parts"
    correction = correction_of(sweep) if sweep.arguments.corrected else None
    sampler = Sampler(sweep.model, cell.sampling(sweep.others), run.mesh, correction)
    key = stream_key(sweep.arguments.seed, "sample")
    images, cost = drawn(sampler, sweep.labels, key, parts, cell.name)
    made = Labelled(images, sweep.labels)
    values = judge_stages.judged(run, made, f"CAS of {cell.name}", cas=not sweep.arguments.no_cas, kept=False)
    files.write_arrays(_images(sweep.out, cell), {"images": images[:_SHOWN]})
    record = cell._asdict() | dataclasses.asdict(cost) | {"metrics": values}
    files.write_json(_result(sweep.out, cell), record)
    hosts.barrier(cell.name)  # nobody reads the parts any more
    if hosts.is_writer():
        paths.remove(parts)


def _result(out: paths.Path, cell: Cell) -> paths.Path:
    return out / "cells" / f"{cell.name}.json"


def _images(out: paths.Path, cell: Cell) -> paths.Path:
    return out / "cells" / f"{cell.name}.npz"


def write(sweep: Sweep, about: dict[str, Any]) -> None:
    """Writes sweep.json, sweep.md and sweep.html of every finished cell, those of earlier commands too."""
    out, asked = sweep.out, sweep.arguments
    records = [files.read_json(path) for path in sorted(paths.children(out / "cells")) if path.suffix == ".json"]
    records.sort(key=lambda r: (list(SOLVERS).index(r["solver"]), r["steps"], r["guidance"]))
    images = [files.read_arrays(_images(out, Cell(r["solver"], r["guidance"], r["steps"])))["images"] for r in records]
    report = sweep.run.workdir / "metrics.json"
    real = files.read_json(report)["real"] if paths.exists(report) else {}
    at = asked_place(asked)
    content = {"settings": about, "at": at, "cells": records, "real": real, "versions": pipeline.versions()}
    files.write_json(out / "sweep.json", content)
    text = sweep_page.markdown(records)
    files.write_text(out / "sweep.md", text)
    shown = {name: json.dumps(value) for name, value in about.items()}
    title = f"Sweep of {asked.checkpoint}{', corrected' if asked.corrected else ''}"
    files.write_text(out / "sweep.html", sweep_page.render(title, records, at, images, real, shown))
    if hosts.is_writer():
        print(f"{text}\n{out / 'sweep.html'}")


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a model file, a checkpoint, or WORKDIR/score/METHOD")
    parser.add_argument("--run", required=True, help="workdir of a finished run: the judge")
    parser.add_argument("--out", required=True, help="folder of the results; the same goes on")
    parser.add_argument("--guidance", dest="guidances", default=GUIDANCE, help="scales, joined by commas (%(default)s)")
    parser.add_argument("--steps", dest="step_counts", default=STEPS, help="joined by commas (%(default)s)")
    parser.add_argument("--solvers", default="heun", help=f"of {', '.join(SOLVERS)}, joined by commas (%(default)s)")
    parser.add_argument("--at_steps", default="18", help="where guidance is swept (%(default)s)")
    parser.add_argument("--at_guidance", default="1", help="where steps are swept (%(default)s)")
    parser.add_argument("--per_class", type=int, default=50, help="images of each class in a cell (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the images (%(default)s)")
    parser.add_argument("--corrected", action="store_true", help="undo label noise by the run's classifiers and S")
    parser.add_argument("--limit", type=float, help="the correction's, in place of the run's correction.limit")
    parser.add_argument("--no_cas", action="store_true", help="train no classifier on each cell's images")
    add_sampling_options(parser, left_out=("solver", "steps", "guidance"))
    parser.set_defaults(solver="heun", steps=18, guidance=1.0)  # each cell has its own
    add_host_options(parser)
    run_on_hosts(parser, main)
