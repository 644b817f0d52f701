"""How good the classifier must be, and how methods fail: it is made worse on purpose, and label fidelity measured.

  python -m tdsm_jax.benchmark.stress --out=runs/stress
  python -m tdsm_jax.benchmark.stress --out=runs/stress --settings=none,temperature:4,S:0.2 --seeds=0,1,2

A setting is none, or one of these with how much of it: logit_noise (standard deviation of a fixed error in log h),
temperature (in place of the calibrated one), steps (of the classifiers' training, without choosing the best), share
(of the images that they see), S (relative L1 error of the transition matrix). A cell is one setting and one seed: a
run of tdsm_jax.main in a folder of its own; DSM and the clean ceiling, which read no classifier, are trained once a
seed. Stop it whenever you like; the same command goes on. Prints a Markdown table of what is finished and draws it in
OUT/stress.svg; --table_only runs nothing. The weight error is the mean of sum_i |w_i - 1{i=y}|, from 0 to 2; it and the
calibration error are means over noise levels. Arguments after -- go to tdsm_jax.main: -- --config.score.steps=2000
"""

import argparse
import pathlib
from typing import Any, NamedTuple

import numpy as np

from tdsm_jax import files
from tdsm_jax.benchmark.cells import measures, read_seeds, run_cell, with_arguments
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.data import label_files
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluation import charts, svg
from tdsm_jax.evaluation.statistics import recovery
from tdsm_jax.evaluation.table import grid, spread
from tdsm_jax.labels.stress import perturbed
from tdsm_jax.pipeline import STAGES

METHODS = ("tdsm_floor", "posterior")
SETTINGS = (
    "none,logit_noise:1,logit_noise:2,logit_noise:4,temperature:0.25,temperature:0.5,temperature:2,temperature:4,"
    "steps:25,steps:50,steps:100,share:0.05,share:0.1,share:0.3,S:0.1,S:0.2"
)
KINDS = {  # kind of degradation -> its name in the figure, and the config keys that make it
    "none": ("as configured", ()),
    "logit_noise": ("logit noise", ("stress.logit_noise={}",)),
    "temperature": ("temperature", ("classifier.temperature={}",)),
    "steps": ("early checkpoint", ("classifier.steps={}", "classifier.stopping=False")),
    "share": ("share of the images", ("stress.share={}",)),
    "S": ("wrong S", ("transition.estimator=file",)),
}
QUALITY = {  # what stands in the table and on the x axes of the figure
    "accuracy_clean": "accuracy at the lowest noise",
    "accuracy": "accuracy, mean over noise levels",
    "calibration_error": "calibration error",
    "weight_error": "weight error",
}


class Setting(NamedTuple):
    """One degradation: an entry of `KINDS` and how much of it (0 for none)."""

    kind: str
    amount: float

    @property
    def name(self) -> str:
        return f"{self.kind}{self.amount:g}" if self.amount else self.kind


def main(arguments: argparse.Namespace) -> None:
    """Runs the cells that are not finished, then prints the table and draws the figure."""
    out, seeds = pathlib.Path(arguments.out), read_seeds(arguments.seeds)
    settings = [parse_setting(text) for text in arguments.settings.split(",")]
    if not arguments.table_only:
        for seed in seeds:
            run(arguments, out, seed, None)
            for setting in settings:
                run(arguments, out, seed, setting)
    found = {setting: [row for seed in seeds if (row := read_cell(out, seed, setting))] for setting in settings}
    print(table(found))
    files.write_text(out / "stress.svg", figure(found))


def parse_setting(text: str) -> Setting:
    """Turns "temperature:4" into a setting; what is none is a `UserError`."""
    kind, _, amount = text.partition(":")
    if kind not in KINDS:
        raise UserError(f"--settings: {kind!r} is no degradation{did_you_mean(kind, KINDS)}")
    try:
        setting = Setting(kind, float(amount or 0))
    except ValueError:
        setting = Setting(kind, -1.0)
    if setting.amount < 0 or (setting.amount > 0) != (kind != "none"):
        raise UserError(f"--settings: {text} must be none, or a degradation and a positive amount: temperature:4,S:0.1")
    return setting


def folder_of(out: pathlib.Path, seed: int, setting: Setting | None) -> pathlib.Path:
    """Returns the folder of a cell; that of DSM and the clean ceiling is no setting's."""
    return out / (setting.name if setting else "references") / f"seed{seed}"


def run(arguments: argparse.Namespace, out: pathlib.Path, seed: int, setting: Setting | None) -> None:
    """Runs one cell. A wrong S is that of the references' labels, perturbed, in a file of the cell's own."""
    folder, overrides = folder_of(out, seed, setting), []
    if setting:
        overrides = [key.format(f"{setting.amount:g}") for key in KINDS[setting.kind][1]]
    if setting and setting.kind == "S":
        S = label_files.read(folder_of(out, seed, None) / "labels.json").S
        with files.atomic_write(folder / "S.npy") as file:
            np.save(file, perturbed(S, setting.amount, seed))
        overrides.append(f"transition.path={(folder / 'S.npy').absolute()}")
    methods = "+".join(METHODS if setting else ("dsm", "clean"))
    config = with_arguments(arguments.config, f"methods={methods},seed={seed}", "smoke" if arguments.smoke else "")
    left_out = ("report",) if setting else ("report", "noisy_classifier", "estimate", "classifier", "transition")
    run_cell(folder, config, ",".join(stage for stage in STAGES if stage not in left_out), overrides, arguments.rest)


def read_cell(out: pathlib.Path, seed: int, setting: Setting) -> dict[str, Any] | None:
    """Returns the classifiers' quality, and each method's fidelity and recovery; None where a cell is not finished."""
    folder = folder_of(out, seed, setting)
    found = {m: measures(folder, m) for m in METHODS}
    found |= {m: measures(folder_of(out, seed, None), m) for m in ("dsm", "clean")}
    if None in found.values():
        return None
    quality = files.read_json(folder / "transition.json")["classifier"]
    fidelity = {method: values["label_fidelity"] for method, values in found.items()}
    return {
        "accuracy_clean": quality["accuracy"][0],
        **{name: float(np.mean(quality[name])) for name in ("accuracy", "calibration_error", "weight_error")},
        **{method: fidelity[method] for method in METHODS},
        **{f"{m} recovery": recovery(fidelity["dsm"], fidelity[m], fidelity["clean"]) for m in METHODS},
    }


def table(found: dict[Setting, list[dict[str, Any]]]) -> str:
    """Returns the Markdown table: mean +- standard deviation (n - 1) over the finished seeds of each setting."""
    results = [column for method in METHODS for column in (method, f"{method} recovery")]
    headings = ["", "seeds", *QUALITY.values(), *(f"{c} fidelity" if c in METHODS else c for c in results)]
    lines = []
    for setting, rows in found.items():
        cells = [KINDS[setting.kind][0] + (f" {setting.amount:g}" if setting.amount else ""), str(len(rows))]
        for column in (*QUALITY, *results):
            values = [row[column] for row in rows]
            cells.append(spread(values, 3) if values and None not in values else "")
        lines.append(cells)
    return grid(headings, lines)


def figure(found: dict[Setting, list[dict[str, Any]]]) -> str:
    """Returns the SVG: a column of panels for each method, its recovery against each measure of the classifiers.

    Degradations of a kind are joined in the order of their amounts.
    """
    kinds = [kind for kind in KINDS if any(setting.kind == kind for setting in found)]
    return svg.tiled(
        [
            [
                charts.line_chart(
                    {KINDS[kind][0]: points(found, kind, quality, f"{method} recovery") for kind in kinds},
                    x_label=QUALITY[quality]
                    if quality == "accuracy"
                    else f"{QUALITY[quality]}, mean over noise levels",
                    y_label=f"{method}: recovery of label fidelity",
                    y_takes_in=(0, 1),
                    styles=[list(KINDS).index(kind) for kind in kinds],
                )
                for method in METHODS
            ]
            for quality in ("accuracy", "calibration_error", "weight_error")
        ]
    )


def points(found: dict[Setting, list[dict[str, Any]]], kind: str, x: str, y: str) -> tuple[list[float], list[float]]:
    """Returns the means over seeds of two columns, for the settings of a kind in the order of their amounts."""
    settings = sorted(setting for setting, rows in found.items() if setting.kind == kind and rows)
    finished = [found[setting] for setting in settings if all(row[y] is not None for row in found[setting])]
    xs, ys = ([float(np.mean([row[column] for row in rows])) for rows in finished] for column in (x, y))
    return xs, ys


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--out", required=True, help="folder of the cells")
    parser.add_argument("--config", default="configs/digits.py:rate=0.4", help="config of the cells (%(default)s)")
    parser.add_argument("--settings", default=SETTINGS, help="kind:amount, joined by commas (%(default)s)")
    parser.add_argument("--seeds", default="0", help="joined by commas (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="every stage cut to seconds")
    parser.add_argument("--table_only", action="store_true", help="print and draw what is finished, run nothing")
    parser.add_argument("rest", nargs="*", help="arguments of tdsm_jax.main, after --")
    run_command(parser, main)
