"""The training step of the score network."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tdsm_jax.diffusion import mixture
from tdsm_jax.diffusion.objectives import add_noise, score_matching
from tdsm_jax.diffusion.process import EDM, make_denoiser
from tdsm_jax.labels.weights import WeightTable
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.unet import UNet
from tdsm_jax.training.classifier import CrossFitted, cross_fitted_logits
from tdsm_jax.training.parallel import AXIS
from tdsm_jax.training.state import Optimisation, TrainState, example_keys, normal_like, update


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which mixture is trained, and how.

    `rule`, `tau` and `residual_slots` make the plan; `capacity` packs its frozen slots; `own_gradient` lets
    only slot 0 learn (as published) instead of all; `label_dropout` is the share of null-label examples.
    """

    rule: str
    tau: float
    residual_slots: tuple[int, bool]
    capacity: float | None
    own_gradient: bool
    label_dropout: float


class Given(NamedTuple):
    """What a step reads and never changes: the weight table and the cross-fitted classifiers."""

    table: WeightTable
    classifiers: CrossFitted


def make_step(
    network: UNet,
    process: EDM,
    objective: Objective,
    optimisation: Optimisation,
    classifier: Classifier,
) -> Callable[[TrainState, dict, jax.Array, Given], tuple[TrainState, dict]]:
    """Returns the per-device step(state, batch, key, given) -> (state, metrics), pure and not yet jitted.

    batch: x0 [B,H,W,C] in [-1,1], label int [B] (as given), fold int [B] (the classifier that never saw the
    example), position int [B] (in the global batch).
    """
    K = network.num_classes

    def step(state: TrainState, batch: dict, key: jax.Array, given: Given | None) -> tuple[TrainState, dict]:
        keys = jax.vmap(lambda k: jax.random.split(k, 4))(example_keys(key, state.step, batch["position"]))
        x0, y_tilde = batch["x0"], batch["label"]
        sigma = process.sigma(normal_like(keys[:, 0], y_tilde))
        x_t = add_noise(x0, sigma, normal_like(keys[:, 1], x0))
        dropped = jax.vmap(lambda k: jax.random.bernoulli(k, objective.label_dropout))(keys[:, 2])
        dropout_keys = keys[:, 3] if network.dropout_rate else None

        slots = draw_plan(classifier, process, objective, given, x_t, sigma, y_tilde, batch["fold"])
        slots = mixture.drop_labels(slots, dropped, null=K)

        def loss_fn(params: Any) -> tuple[jax.Array, mixture.Mixture]:
            still = jax.lax.stop_gradient(params)
            denoise = make_denoiser(process, functools.partial(network.apply, params, dropout_keys=dropout_keys))
            frozen = make_denoiser(process, functools.partial(network.apply, still))
            others = frozen if objective.own_gradient else None
            loss, mixed = score_matching(process, denoise, others, x0, x_t, sigma, slots, objective.capacity)
            return loss.mean(), mixed

        (loss, mixed), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        gradient, metrics = jax.lax.pmean((gradient, {"loss": loss, "kept_mass": mixed.kept_mass}), AXIS)
        metrics["overflow"] = jax.lax.psum(mixed.overflow.astype(jnp.float32), AXIS)  # slots, over all devices
        return update(state, gradient, optimisation), metrics

    return step


def draw_plan(
    classifier: Classifier,
    process: EDM,
    objective: Objective,
    given: Given | None,
    x_t: jax.Array,
    sigma: jax.Array,
    y_tilde: jax.Array,
    fold: jax.Array,
) -> mixture.Plan:
    """Returns the plan of a batch; table and classifiers are read only where the rule needs them."""
    rule = objective.rule
    if rule == "own":
        return mixture.plan(rule, y_tilde)
    if rule == "prior":
        return mixture.plan(rule, y_tilde, given.table)
    logits = cross_fitted_logits(classifier, process, given.classifiers, x_t, sigma, fold)
    return mixture.plan(rule, y_tilde, given.table, logits, tau=objective.tau, residual_slots=objective.residual_slots)


def measure_capacity(
    network: Classifier,
    process: EDM,
    objective: Objective,
    given: Given,
    batches: Iterable[dict],
    key: jax.Array,
) -> float:
    """Returns the packed capacity, in slots per example, that the weights of probe batches ask for.

    The fullest batch's count of non-zero frozen slots is rounded up to an eighth: overflow is then rare, and it
    is exact anyway.
    """

    @jax.jit
    def occupied(batch: dict) -> jax.Array:
        keys = jax.vmap(jax.random.split)(example_keys(key, jnp.int32(0), batch["position"]))
        sigma = process.sigma(normal_like(keys[:, 0], batch["label"]))
        x_t = add_noise(batch["x0"], sigma, normal_like(keys[:, 1], batch["x0"]))
        slots = draw_plan(network, process, objective, given, x_t, sigma, batch["label"], batch["fold"])
        return jnp.count_nonzero(slots.weights[:, 1:]) / len(sigma)

    return max(1, math.ceil(8 * max(float(occupied(batch)) for batch in batches))) / 8
