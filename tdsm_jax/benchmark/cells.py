"""Cells of a comparison: runs in folders of their own, which go on where they stopped."""

import ast
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from tdsm_jax import config as configuration
from tdsm_jax import files, job, paths, pipeline, plan
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.run import Run
from tdsm_jax.validation import validate


def with_arguments(config: str, *arguments: str) -> str:
    """Returns "path.py:arguments" with more arguments, the later of one name in force; empty ones are left out."""
    path, _, given = config.partition(":")
    return ":".join(filter(None, (path, ",".join(filter(None, (given, *arguments))))))


def read_keys(texts: Sequence[str]) -> dict[str, Any]:
    """Turns ["score.steps=1200"] into {"score.steps": 1200}; what is no key with its value is a `UserError`."""
    keys = {}
    for text in texts:
        key, given, value = text.partition("=")
        if not given:
            raise UserError(f"{text!r} is no config key with its value, such as score.steps=1200")
        try:
            keys[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            keys[key] = value
    return keys


def config_with(specification: str, keys: Mapping[str, Any]) -> ConfigDict:
    """Returns the config of "path.py:arguments" with some keys changed; those it cannot have are a `UserError`."""
    config = configuration.load(specification)
    valid = configuration.flatten(config)
    for key, value in keys.items():
        if key not in valid:
            raise UserError(f"unknown config key {key!r}{did_you_mean(key, valid)}")
        try:
            if value is None and valid[key] is not None:
                raise TypeError
            config.update_from_flattened_dict({key: value})
        except TypeError:
            raise UserError(f"config key {key}={value!r} is not of type {type(valid[key]).__name__}") from None
    return config


def measuring_stages(run: Run) -> list[str]:
    """Returns the stages that a run's measures build on, theirs included, in order: all that a comparison needs."""
    units = {unit.name: unit for unit in plan.units(run)}
    needed = [name for name, unit in units.items() if unit.stage == "measure"]
    stages = set()
    while needed:
        unit = units[needed.pop()]
        stages.add(unit.stage)
        needed += unit.needs
    return [stage for stage in pipeline.STAGES if stage in stages]


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
    """Carries out some stages of a run in this process, or finds them done; returns the run.

    As `job.run`, but that the compiler is left as the benchmark set it up, for all of its cells.
    """
    validate(config)
    one = job.planned_job(Run(FrozenConfigDict(config), paths.absolute(folder)), stages)
    job.execute(one)
    return one.run


def measures(folder: pathlib.Path, method: str) -> dict[str, Any] | None:
    """Returns the metrics of a method in a cell, None where it is not finished."""
    path = folder / "measures" / method / "metrics.json"
    return files.read_json(path) if path.exists() else None


def read_seeds(text: str) -> list[int]:
    """Turns "0,1,2" into numbers, each once; what cannot be one is a `UserError`."""
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise UserError(f"--seeds={text} must be whole numbers joined by commas") from None
