"""Every estimator of the transition matrix on every kind of label noise: how far it ends from the truth.

  python -m tdsm_jax.benchmark.estimators --out=runs/estimators
  python -m tdsm_jax.benchmark.estimators --out=runs/estimators --noise=sym:0.4,sym:0.4:0.1 --seeds=0

Noise is kind:rate or kind:rate:imbalance. A cell is one kind of noise and one seed: classifiers of the noisy labels
are fitted in a folder of its own, and every estimator reads their out-of-fold posteriors; volmin fits its own. Stop
it whenever you like; the same command goes on. Prints, in Markdown, the relative L1 error of S and what that error
does to the weights of the clean images.
"""

import argparse
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from tdsm_jax import config as configuration
from tdsm_jax import label_stages, runtime
from tdsm_jax.benchmark.cells import carry_out, read_seeds, with_arguments
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluation.table import grid, spread
from tdsm_jax.labels.em import em_posterior
from tdsm_jax.labels.estimators import ESTIMATORS, estimate, weight_error
from tdsm_jax.labels.evidence import Evidence
from tdsm_jax.labels.transition import check_invertible, relative_l1
from tdsm_jax.run import Run

NOISES = "sym:0.2,sym:0.4,sym:0.6,asym:0.4,pair:0.4,sym:0.4:0.1"
KNOWN = (*ESTIMATORS, "volmin")
READS_ALL = "em"  # the estimator whose run fits all that the others read


class Errors(NamedTuple):
    """Of an estimated S: its relative L1 distance from the truth, and that of the weights it makes."""

    S: float
    weights: float


def main(arguments: argparse.Namespace) -> None:
    """Fits what is not fitted yet, then prints both tables."""
    runtime.configure(compilation_cache=str(pathlib.Path(arguments.out) / "compiled"))
    names = arguments.estimators.split(",")
    for name in names:
        if name not in KNOWN:
            raise UserError(f"--estimators: unknown estimator {name!r}{did_you_mean(name, KNOWN)}")
    noises = {text: parse_noise(text) for text in arguments.noise.split(",")}
    seeds = read_seeds(arguments.seeds)
    found = {
        text: [cell(arguments, f"{keys},seed={seed}", f"{text}/seed{seed}".replace(":", "_"), names) for seed in seeds]
        for text, keys in noises.items()
    }
    for field, heading in (("S", "relative L1 error of S"), ("weights", "mean |w(estimated S) - w(true S)|")):
        print(f"### {heading}, seeds {arguments.seeds}\n\n{table(found, names, field)}\n")


def parse_noise(text: str) -> str:
    """Turns "sym:0.4:0.1" into config arguments."""
    values = text.split(":")
    if len(values) not in (2, 3):
        raise UserError(f"--noise={text} must be kind:rate or kind:rate:imbalance, such as sym:0.4,sym:0.4:0.1")
    return ",".join(f"{key}={value}" for key, value in zip(("noise", "rate", "imbalance"), values, strict=False))


def cell(arguments: argparse.Namespace, keys: str, folder: str, names: list[str]) -> dict[str, Errors | str]:
    """Returns the errors of every estimator in one cell, or why it stopped."""
    smoke = "smoke" if arguments.smoke else ""

    def run_stages(estimator: str, *stages: str) -> Run:
        specification = with_arguments(arguments.config, keys, f"transition={estimator}", "methods=dsm", smoke)
        config = configuration.load(specification)
        return carry_out(config, pathlib.Path(arguments.out) / folder / estimator, stages)

    run = run_stages(READS_ALL, "labels", "noisy_classifier")
    known = label_stages.evidence(run)
    prior = np.bincount(run.train_set.labels, minlength=run.num_classes) / len(run.y_tilde)
    h = em_posterior(known.noisy_posterior, run.known_S, prior)
    found: dict[str, Errors | str] = {}
    for name in names:
        try:
            S = learnt(run_stages) if name == "volmin" else estimated(name, known)
            found[name] = Errors(relative_l1(S, run.known_S), weight_error(S, run.known_S, h, run.y_tilde))
        except UserError as error:
            found[name] = str(error).partition(" (condition number")[0]
    return found


def estimated(name: str, known: Evidence) -> np.ndarray:
    """Returns the S of one estimator; one that is singular raises `UserError`."""
    S = estimate(name, known).S
    check_invertible(S)
    return S


def learnt(run_stages: Callable[..., Run]) -> np.ndarray:
    """Returns the S that VolMinNet's classifiers learn, the mean over folds."""
    run = run_stages("volmin", "labels", "classifier")
    return np.mean([member.S for fold in run.fitted for member in fold], axis=0)


def table(found: dict[str, list[dict[str, Errors | str]]], names: list[str], field: str) -> str:
    """Returns mean +- standard deviation (n - 1) over the seeds, a row an estimator, the reasons of stops below."""
    rows: list[list[str]] = []
    reasons: dict[str, int] = {}
    for name in names:
        row = [name]
        for cells in found.values():
            stops = [errors[name] for errors in cells if isinstance(errors[name], str)]
            values = [getattr(errors[name], field) for errors in cells if not isinstance(errors[name], str)]
            notes = [f"({reasons.setdefault(reason, len(reasons) + 1)})" for reason in stops]
            row.append(" ".join([*([spread(values, 3)] if values else []), *notes]))
        rows.append(row)
    return "\n".join([grid(("", *found), rows), *_footnotes(reasons)])


def _footnotes(reasons: dict[str, int]) -> Iterator[str]:
    if reasons:
        yield "\nStopped, one mark a seed:"
    for reason, number in reasons.items():
        yield f"({number}) {reason}"


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--out", required=True, help="folder of the cells")
    parser.add_argument("--config", default="configs/digits.py", help="config of the cells (%(default)s)")
    parser.add_argument("--noise", default=NOISES, help="kind:rate or kind:rate:imbalance (%(default)s)")
    parser.add_argument("--estimators", default=",".join(KNOWN), help="(%(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="every stage cut to seconds")
    run_command(parser, main)
