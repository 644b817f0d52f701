"""Cells of a comparison: runs in folders of their own, which go on where they stopped."""

import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from tdsm_jax import checks, files, paths, pipeline, plan
from tdsm_jax.errors import UserError
from tdsm_jax.run import Run
from tdsm_jax.validation import validate


def with_arguments(config: str, *arguments: str) -> str:
    """Returns "path.py:arguments" with more arguments, the later of one name in force; empty ones are left out."""
    path, _, given = config.partition(":")
    return ":".join(filter(None, (path, ",".join(filter(None, (given, *arguments))))))


def run_cell(
    folder: pathlib.Path, config: str, stages: str, overrides: Sequence[str] = (), rest: Sequence[str] = ()
) -> None:
    """Runs tdsm_jax.main for one cell; what is finished is not done again.

    `config` is "path.py:arguments", `stages` are joined by commas, `overrides` are config keys with their values
    ("score.steps=20"), `rest` are arguments of tdsm_jax.main as they are and have the last word. A run that fails
    has printed its error and raises `UserError`.
    """
    command = [sys.executable, "-m", "tdsm_jax.main", f"--config={config}", f"--workdir={folder}", f"--stages={stages}"]
    keys = [f"--config.{override}" for override in overrides]
    print(f"{folder}: {' '.join([config, *overrides])}", file=sys.stderr, flush=True)
    done = subprocess.run([*command, *keys, *rest], check=False)
    if done.returncode:
        raise UserError(f"{folder} ended with exit code {done.returncode}; its error stands above")


def carry_out(config: ConfigDict, folder: paths.Path, stages: Sequence[str]) -> Run:
    """Carries out some stages of a run in this process, or finds them done; returns the run."""
    validate(config)
    frozen, folder = FrozenConfigDict(config), paths.absolute(folder)
    run = Run(frozen, folder)
    planned = pipeline.plan(plan.units(run), frozen, folder)
    todo = pipeline.select(planned, tuple(stages))
    checks.check(run)
    pipeline.check_undamaged(planned, folder)
    pipeline.check_unchanged(todo, folder)
    pipeline.tidy(planned, folder)
    pipeline.execute(todo, folder)
    return run


def measures(folder: pathlib.Path, method: str) -> dict[str, Any] | None:
    """Returns the metrics of a method in a cell, None where it is not finished."""
    path = folder / "measures" / method / "metrics.json"
    return files.read_json(path) if path.exists() else None


def read_seeds(text: str) -> list[int]:
    """Turns "0,1,2" into numbers; what cannot be one is a `UserError`."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds={text} must be whole numbers joined by commas") from None
