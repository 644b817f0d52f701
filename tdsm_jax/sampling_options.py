"""The options that commands share which draw images from a model: the model, and how it is sampled."""

import argparse
from collections.abc import Collection
from typing import Any

import numpy as np

from tdsm_jax import paths
from tdsm_jax.diffusion.sampling import LEAST_RHO, SCHEDULES, SOLVERS
from tdsm_jax.errors import UserError
from tdsm_jax.sampler import Sampling, check_sampling, sampling_of
from tdsm_jax.training import model_file
from tdsm_jax.training.parallel import round_up


def model_identity(path: paths.Path) -> dict[str, str]:
    """Returns where a model, or a checkpoint, lies and the hash that says which one it is."""
    return {"path": str(path), "sha256": model_file.identity(path)}


def add_sampling_options(parser: argparse.ArgumentParser, left_out: Collection[str] = ()) -> None:
    """Adds the options that say how images are drawn from a model, those of config section `sampling`."""
    group = parser.add_argument_group("sampling")

    def add(name: str, default: Any, words: str, **options: Any) -> None:
        if name in left_out:
            return
        shown = f"{words} (%(default)s)" if default not in ("", ()) else words
        group.add_argument(f"--{name}", default=default, help=shown, **{"type": type(default)} | options)

    add("solver", "heun", "heun: 2 steps - 1 evaluations, euler and dpmpp_2m as many as steps", choices=tuple(SOLVERS))
    add("steps", 18, "of the solver")
    add("schedule", "edm", "of noise levels", choices=SCHEDULES)
    add("rho", 7.0, "of schedule edm: how they gather at small noise")
    add("churn", 0.0, "of stochastic_heun: noise added over all steps, S_churn")
    add("churn_interval", (), "LOW,HIGH noise levels at which, S_min and S_max", type=_interval)
    add("churn_noise", 1.0, "its standard deviation, S_noise")
    add("guidance", 1.0, "classifier-free; 1 is none")
    add("guidance_interval", (), "LOW,HIGH noise levels that are guided", type=_interval)
    add("guidance_rescale", 0.0, "share of the contrast guidance adds that is taken back, such as 0.7")
    add("adaptive_guidance", 0.0, "an image's guidance ends once cos(D, D_null) is above it; 0: never")
    add("autoguidance", "", "a weaker model, or a checkpoint of the training, to guide from")
    add("batch_size", 512, "images at a time on all devices")


def _interval(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",")) if text else ()


def asked_sampling(arguments: argparse.Namespace) -> Sampling:
    """Returns the settings of `add_sampling_options`; what cannot be, or does not go together, is a `UserError`."""
    sampling = given_sampling(arguments)
    check_sampling(sampling, "--")
    return sampling


def given_sampling(arguments: argparse.Namespace) -> Sampling:
    """Returns the settings of `add_sampling_options`, each checked by itself."""
    for name in ("steps", "batch_size"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if not LEAST_RHO <= arguments.rho < np.inf:
        raise UserError(f"--rho must be a number of at least {LEAST_RHO:g}, got {arguments.rho}")
    if not 0 < arguments.churn_noise < np.inf:
        raise UserError(f"--churn_noise must be a positive number, got {arguments.churn_noise}")
    if not np.isfinite(arguments.guidance):
        raise UserError(f"--guidance must be a number, got {arguments.guidance}")
    if not 0 <= arguments.churn < np.inf:
        raise UserError(f"--churn must be at least 0, got {arguments.churn}")
    for name in ("guidance_rescale", "adaptive_guidance"):
        if not 0 <= getattr(arguments, name) <= 1:
            raise UserError(f"--{name} must lie in [0, 1], got {getattr(arguments, name)}")
    weak = str(model_file.find(arguments.autoguidance, "--autoguidance")) if arguments.autoguidance else ""
    return sampling_of(arguments, batch_size=round_up(arguments.batch_size), autoguidance=weak)
