"""Corrupted training images, alone and with noisy labels: what each residual makes of them.

  python -m tdsm_jax.benchmark corrupted_images --out=runs/corrupted
  python -m tdsm_jax.benchmark corrupted_images --out=runs/corrupted --kinds=off_topic_photos --rates=0,0.3 --seeds=0
  python -m tdsm_jax.benchmark corrupted_images --out=runs/corrupted --labels=sym:0.4 --rates=0,0.3 \\
      --residuals=squared,huber_snr
  python -m tdsm_jax.benchmark corrupted_images --out=runs/corrupted --table_only

A cell is one kind and rate of corruption, one kind of labels, one residual and one seed: a run in a folder of its own,
all at the same budget. With true labels it trains DSM, with noisy ones DSM and TDSM. Cells of rate 0 are shared by all
kinds, and what survives is measured against them: keep 0 among the rates. Start the command as often as there are
processors, with one --out on a disk of one machine: each takes the next cell that nobody is at, and the last one
collects. Stop any whenever you like; the same command goes on. It prints Markdown tables of what is finished and
writes them with their charts to OUT/corrupted_images.html, and all numbers to OUT/cells.json; --table_only runs
nothing. Config keys may follow and hold for all cells, score.steps=1200 score.huber_form=example; cells of other keys
are refused, so give the same ones each time, also with --table_only.
"""

import argparse
import contextlib
import fcntl
import itertools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from tdsm_jax import config as configuration
from tdsm_jax import files, judge_stages, pipeline, plan, runtime
from tdsm_jax.benchmark import corrupted_page
from tdsm_jax.benchmark.cells import (
    carry_out,
    config_with,
    measures,
    measuring_stages,
    read_keys,
    read_seeds,
    with_arguments,
)
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.data.image_corruption import CORRUPTIONS, ImageNoise, corrupted
from tdsm_jax.data.stream import Images
from tdsm_jax.diffusion.residuals import RESIDUALS
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluation.neighbours import nearest_squared
from tdsm_jax.run import Run
from tdsm_jax.validation import validate

SHORT = {  # the recipe of a cell: digits in a minute or two of one core
    "network.channels": 16,
    "score.steps": 800,
    "score.label_dropout": 0.1,
    "sampling.per_class": 100,
    "classifier.folds": 2,
    "classifier.steps": 400,
    "label_noise.kind": "sym",
}
TRUE = ("sym", 0.0)  # labels as they are
_FRESH = 1_000_003  # seeds of off-topic images that no model has seen: this far from those of training
METRICS = ("fd", "label_fidelity", "cas", "cw_coverage")


class Cell(NamedTuple):
    """One run: kind ("none" at rate 0) and rate of corrupted images, kind and rate of label noise, residual, seed."""

    kind: str
    rate: float
    labels: tuple[str, float]
    residual: str
    seed: int

    @property
    def methods(self) -> tuple[str, ...]:
        return ("dsm",) if self.labels[1] == 0 else ("dsm", "tdsm")

    def folder(self, out: pathlib.Path) -> pathlib.Path:
        labels = "true_labels" if self.labels[1] == 0 else f"{self.labels[0]}{self.labels[1]:g}"
        images = f"{self.kind}{self.rate:g}" if self.rate else self.kind
        return out / labels / images / self.residual / f"seed{self.seed}"


def main(arguments: argparse.Namespace) -> None:
    """Runs the cells that are not finished and that no other process is at, then collects."""
    runtime.configure(compilation_cache=runtime.cache_folder(arguments.out))
    out, cells, keys = pathlib.Path(arguments.out), planned(arguments), read_keys(arguments.keys)
    configs = {cell: config_of(cell, arguments, keys) for cell in cells}
    digests = {cell: digest_of(config) for cell, config in configs.items()}
    for cell in cells:  # before hours are spent on others
        finished(cell.folder(out), digests[cell])
    for cell in () if arguments.table_only else cells:
        with claimed(cell.folder(out)) as free:
            if free and not finished(cell.folder(out), digests[cell]):
                print(f"{cell.folder(out)}", file=sys.stderr, flush=True)
                carry_out_cell(configs[cell], cell, cell.folder(out))
    found = [values for cell in cells if (values := finished(cell.folder(out), digests[cell]))]
    files.write_json(out / "cells.json", found)
    print(corrupted_page.markdown(found))
    files.write_text(out / "corrupted_images.html", corrupted_page.render(found))


def planned(arguments: argparse.Namespace) -> list[Cell]:
    """Returns the cells that the arguments name; what cannot be one is a `UserError`."""
    kinds, residuals = choices(arguments, "kinds", CORRUPTIONS), choices(arguments, "residuals", RESIDUALS)
    labels = [TRUE if name == "true" else configuration.parse_noise(name) for name in arguments.labels.split(",")]
    try:
        rates = [float(rate) for rate in arguments.rates.split(",")]
    except ValueError:
        rates = [-1.0]
    if not all(0 <= rate <= 1 for rate in rates):
        raise UserError(f"--rates={arguments.rates} must be numbers in [0, 1] joined by commas")
    images = dict.fromkeys((kind if rate else "none", rate) for rate in rates for kind in kinds)
    grid = itertools.product(read_seeds(arguments.seeds), labels, images, residuals)
    return [Cell(kind, rate, label, residual, seed) for seed, label, (kind, rate), residual in grid]


def choices(arguments: argparse.Namespace, name: str, valid: Any) -> list[str]:
    """Returns the names that an argument joins by commas; one that is none is a `UserError`."""
    given = getattr(arguments, name).split(",")
    for one in given:
        if one not in valid:
            raise UserError(f"--{name}: {one!r} is not a choice{did_you_mean(one, valid)}")
    return given


def config_of(cell: Cell, arguments: argparse.Namespace, keys: dict[str, Any]) -> ml_collections.ConfigDict:
    """Returns the config of a cell: the file's, the short recipe, what the cell is, then the keys given."""
    specification = with_arguments(arguments.config, f"seed={cell.seed}", "smoke" if arguments.smoke else "")
    short = {} if arguments.smoke else SHORT
    own = {"label_noise.kind": cell.labels[0], "label_noise.rate": cell.labels[1], "score.residual": cell.residual}
    if cell.rate:
        own |= {"image_noise.kind": cell.kind, "image_noise.rate": cell.rate}
    config = config_with(specification, short | own | keys)
    if config.data.stream:  # clean cells, too, are compared with corrupted images
        raise UserError(
            "config key data.stream=True leaves images on disk, but they are corrupted in memory: leave it out"
        )
    config.methods = cell.methods
    return config


def digest_of(config: ml_collections.ConfigDict) -> str:
    """Returns the hash of all that a cell's numbers depend on; a config that cannot work is a `UserError`."""
    validate(config)
    units = plan.units(Run(ml_collections.FrozenConfigDict(config), pathlib.Path()))
    values = dict(zip((unit.name for unit in units), pipeline.values_of(units, config), strict=True))
    measured = {f"measure/{method}": values[f"measure/{method}"] for method in config.methods}
    return files.digest(measured | {"severity": config.image_noise.severity})  # which detectors read at rate 0, too


def finished(folder: pathlib.Path, digest: str) -> dict[str, Any] | None:
    """Returns the numbers of a cell, None where it is not finished; those of another config are a `UserError`."""
    path = folder / "cell.json"
    if not path.exists():
        return None
    values = files.read_json(path)
    if "digest" not in values:
        raise UserError(
            f"{path} is of an older form, which does not say by what config it was made: remove it, and the same "
            "command makes it again from what its run has"
        )
    if values["digest"] != digest:
        raise UserError(
            f"{path} was made by another --config, --smoke or keys: give those again, or another --out for these"
        )
    return values


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[bool]:
    """Yields whether the folder is this process's now; another one's claim ends with it, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".claim"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def carry_out_cell(config: ml_collections.ConfigDict, cell: Cell, folder: pathlib.Path) -> None:
    """Trains, samples and measures the methods of a cell, and writes cell.json when all is there."""
    run = carry_out(config, folder, measuring_stages(Run(ml_collections.FrozenConfigDict(config), folder)))
    detectors = {kind: Detector(run, kind) for kind in ((cell.kind,) if cell.rate else CORRUPTIONS)}
    found = {}
    for method in cell.methods:
        values, images = measures(folder, method), run.samples(method).images
        taken = {kind: detector.share(images) for kind, detector in detectors.items()}
        found[method] = {name: values[name] for name in METRICS} | {"taken_for": taken}
    worth = {kind: detector.worth() for kind, detector in detectors.items()}
    made = {"digest": digest_of(config), "methods": found, "detectors": worth}
    files.write_json(folder / "cell.json", cell._asdict() | made)


class Detector:
    """Which images are nearer to corrupted images than to clean ones, in the judge's features.

    An image counts as corrupted if its nearest neighbour among the clean training images and as many fully corrupted
    ones, drawn anew so that no model has seen them, is one of the latter. Both sets are the same for all cells of a
    seed, so that shares of different rates and residuals can be compared. What it is worth is asked of test images,
    as they are and corrupted: other corruptions of images that are in both sets would say nothing of new ones.
    """

    def __init__(self, run: Run, kind: str):
        self.run, self.kind = run, kind
        self.clean, self.bad = (
            judge_stages.reference_features(run, "judge"),
            self.features(self.fresh(run.train_set.images, 0)),
        )

    def fresh(self, images: Images, number: int) -> np.ndarray:
        """Returns images, all corrupted; each number draws other ones, none of those that models are trained on."""
        severity = self.run.config.image_noise.severity
        noise = ImageNoise(self.kind, 1.0, severity, self.run.config.seed + (number + 1) * _FRESH)
        return corrupted(images, np.arange(len(images)), noise)[0]

    def features(self, images: Images) -> np.ndarray:
        return judge_stages.look(self.run, images)[1]

    def share(self, images: Images) -> float:
        """Returns the share of uint8 images [N,H,W,C] that count as corrupted."""
        seen = self.features(images)
        return float(np.mean(nearest_squared(seen, self.bad) < nearest_squared(seen, self.clean)))

    def worth(self) -> dict[str, float]:
        """Returns what share of the test images it takes for corrupted, as they are and when all are corrupted."""
        images = self.run.test_set.images
        return {"false_alarms": self.share(images), "hits": self.share(self.fresh(images, 1))}


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--out", required=True, help="folder of the cells")
    parser.add_argument("--config", default="configs/digits.py", help="config of the cells (%(default)s)")
    parser.add_argument("--kinds", default="off_topic_photos,off_topic_symbols", help="joined by commas (%(default)s)")
    parser.add_argument("--rates", default="0,0.15,0.3,0.45", help="of corrupted images, by commas (%(default)s)")
    parser.add_argument("--residuals", default=",".join(RESIDUALS), help="joined by commas (%(default)s)")
    parser.add_argument("--labels", default="true", help="true, or kind:rate of noise, by commas (%(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="every stage cut to seconds")
    parser.add_argument("--table_only", action="store_true", help="collect what is finished, run nothing")
    parser.add_argument("keys", nargs="*", help="config keys of all cells, such as score.steps=1200")
    run_command(parser, main)
