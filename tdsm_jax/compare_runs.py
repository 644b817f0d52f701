"""Puts finished runs side by side on one page: what differs in their configs, metrics, samples and training curves.

  python -m tdsm_jax.compare_runs runs/sym40 runs/asym40
  python -m tdsm_jax.compare_runs runs/seed0 runs/seed1 runs/seed2 --methods=dsm,tdsm --out=seeds.html

A run is the --workdir of tdsm_jax.main. Runs that differ by their seeds alone get a column with mean and standard
deviation, and so does the table that is printed.
"""

import argparse
import os
from collections.abc import Sequence

from tdsm_jax import files, paths, pipeline
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluation import comparison, grids, table
from tdsm_jax.evaluation.comparison import Finished
from tdsm_jax.training.logs import read_metrics

_ROWS, _COLUMNS = 20, 8  # of the grids of samples, at most


def main(arguments: argparse.Namespace) -> None:
    """Reads the runs, writes the page and, of repeats, prints the table."""
    if len(arguments.runs) < 2:
        raise UserError("name two finished runs or more; of one alone its report.html tells everything")
    methods = tuple(filter(None, arguments.methods.split(",")))
    runs = [read(folder, name, methods) for folder, name in zip(arguments.runs, names_of(arguments.runs), strict=True)]
    files.write_text(arguments.out, comparison.render(runs))
    if comparison.repeats(runs):
        print(table.markdown([run.metrics for run in runs]) + "\n")
    print(f"written: {arguments.out}")


def names_of(folders: Sequence[str]) -> list[str]:
    """Returns short names of workdirs: what is left without the folders that all lie in."""
    whole = [os.fspath(paths.absolute(folder)).rstrip("/") for folder in folders]
    for folder, one in zip(folders, whole, strict=True):
        if whole.count(one) > 1:
            raise UserError(f"{folder} is named twice")
    if len({paths.is_remote(one) for one in whole}) > 1:  # a bucket and this machine have no folder in common
        return whole
    shared = os.path.commonpath([os.path.dirname(one) for one in whole])
    return [os.path.relpath(one, shared) for one in whole]


def read(folder: str, name: str, methods: Sequence[str] = ()) -> Finished:
    """Reads a finished run, of `methods` alone where some are named; what is none is a `UserError`."""
    workdir = paths.path_of(folder)
    if not paths.is_file(workdir / "metrics.json"):
        raise UserError(f"{folder} holds no finished run: it lacks metrics.json; end it by the command that began it")
    metrics = files.read_json(workdir / "metrics.json")
    if not isinstance(metrics, dict) or not isinstance(metrics.get("methods"), dict):
        raise UserError(f"{folder} is no run that trained diffusion models; there is nothing to compare")
    manifests = pipeline.vouched(workdir, "report")
    if not manifests:
        raise UserError(
            f"{folder} holds no finished run: some of what its page was made of is gone or was made again; end it by "
            "the command that began it"
        )
    for method in methods:
        if method not in metrics["methods"]:
            raise UserError(f"{folder} has no method {method!r}{did_you_mean(method, metrics['methods'])}")
    chosen = {m: values for m, values in metrics["methods"].items() if not methods or m in methods}
    metrics["methods"] = chosen
    images, curves = {}, {}
    for method in chosen:
        samples = files.read_arrays(workdir / "samples" / f"{method}.npz")
        K = min(_ROWS, int(samples["labels"].max()) + 1)
        images[method] = grids.class_rows(samples["images"], samples["labels"], K, _COLUMNS)
        curves[method] = read_metrics(workdir / "score" / method)
    return Finished(name, pipeline.config_read(manifests), metrics, images, curves)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="WORKDIR", help="the folders of finished runs")
    parser.add_argument("--methods", default="", help="dsm,tdsm,...: these alone (all that a run has)")
    parser.add_argument("--out", default="comparison.html", help="the page that is written (%(default)s)")
    run_command(parser, main)
