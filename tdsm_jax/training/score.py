"""The training step of the score network."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tdsm_jax.data.augment import augment
from tdsm_jax.diffusion import mixture
from tdsm_jax.diffusion.objectives import SQUARED, add_noise, draw_labels, sampled_score_matching, score_matching
from tdsm_jax.diffusion.process import Denoise, Process, make_denoiser
from tdsm_jax.diffusion.residuals import Residual
from tdsm_jax.diffusion.weightings import balanced
from tdsm_jax.errors import UserError
from tdsm_jax.labels.weights import WEIGHTS, WeightTable
from tdsm_jax.networks.backbones import ScoreNetwork
from tdsm_jax.training.cross_fit import CrossFitted, Weigher, cross_fitted_logits
from tdsm_jax.training.parallel import AXIS
from tdsm_jax.training.state import (
    Optimisation,
    TrainState,
    accumulated,
    example_keys,
    normal_like,
    params_aside,
    update,
)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which mixture is trained, and how.

    `rule`, `tau`, `residual_slots` and `weights` (of `labels.weights.WEIGHTS`) make the plan; `capacity` packs its
    frozen slots; `own_gradient` lets only slot 0 learn (as published) instead of all. `label_dropout` is the share
    of examples without a label: they train the null label, or class 0 (as published) if `dropped_to_class_0`.
    `draws_labels` trains labels drawn from p(y | x0, y_tilde) in place of the given ones (posterior-sampled DSM).
    `augment` is the probability of each augmentation, 0 for images as they are. `residual` says what M - x0 costs and
    `weighting`, of `weightings.WEIGHTINGS`, how much each noise level counts; "uncertainty" learns it
    from parameters of its own, in a `StateWithAside`.
    """

    rule: str
    tau: float
    residual_slots: tuple[int, bool]
    capacity: float | None
    own_gradient: bool
    label_dropout: float
    weights: str = "bayes"
    dropped_to_class_0: bool = False
    draws_labels: bool = False
    augment: float = 0.0
    residual: Residual = SQUARED
    weighting: str = "own"

    def __post_init__(self):
        if self.rule == "sampled" and self.residual.kind != "squared":
            raise UserError(
                "the rule sampled multiplies two draws, which is right for the squared residual alone: set "
                "score.residual=squared, or another rule"
            )


class Given(NamedTuple):
    """What a step reads and never changes: the weight table and the cross-fitted classifiers."""

    table: WeightTable
    classifiers: CrossFitted


class Noised(NamedTuple):
    """A batch as the networks see it: x0, x_t [B,H,W,C], sigma [B], augment_label [B,9] or None."""

    x0: jax.Array
    x_t: jax.Array
    sigma: jax.Array
    augment_label: jax.Array | None


def make_step(
    network: ScoreNetwork,
    process: Process,
    objective: Objective,
    optimisation: Optimisation,
    weigher: Weigher,
    parts: int = 1,
) -> Callable[[TrainState, dict, jax.Array, Given], tuple[TrainState, dict]]:
    """Returns the per-device step(state, batch, key, given) -> (state, metrics), pure and not yet jitted.

    A device takes its share of the batch in `parts` equal parts, to need less memory for the same numbers.
    metrics["loss"] is that of the process's own or the chosen weighting; where the weighting is learnt, what is
    minimised stands beside it as "balanced_loss".
    batch: x0 [B,H,W,C] in [-1,1], label int [B] (as given), fold int [B] (the classifier that never saw the
    example), position int [B] (in the global batch), image_posterior [B,K] (p(y | x0, y_tilde), of clean images)
    where labels are drawn.
    """

    def gradient_of(state: TrainState, key: jax.Array, given: Given | None, batch: dict) -> tuple[Any, dict]:
        keys = step_keys(key, state.step, batch["position"])
        noised = make_noised(process, objective, batch["x0"], keys)
        dropped = jax.vmap(lambda k: jax.random.bernoulli(k, objective.label_dropout))(keys[:, 2])
        dropout_keys = keys[:, 3] if network.dropout_rate else None

        label = draw_labels(keys[:, 5], batch["image_posterior"]) if objective.draws_labels else batch["label"]
        if objective.dropped_to_class_0:
            label = mixture.dropped_to_class_0(label, dropped)
        slots = draw_plan(weigher, objective, given, noised, label, batch["fold"], keys[:, 5])
        if not objective.dropped_to_class_0:
            slots = mixture.drop_labels(slots, dropped, null=network.num_classes)

        def loss_fn(trained: tuple[Any, Any]) -> tuple[jax.Array, dict]:
            params, uncertainty = trained
            still = jax.lax.stop_gradient(params)
            denoise = make_denoiser(process, functools.partial(network.apply, params, dropout_keys=dropout_keys))
            frozen = make_denoiser(process, functools.partial(network.apply, still))
            loss, metrics = mixture_loss(process, objective, denoise, frozen, noised, slots)
            metrics = metrics | {"loss": loss.mean()}
            if uncertainty is None:
                return metrics["loss"], metrics
            # Beside the loss, which stays on one scale: this one moves with what is learnt, below zero in the end.
            balance = balanced(uncertainty, loss, noised.sigma).mean()
            return balance, metrics | {"balanced_loss": balance}

        both = state.params, params_aside(state)
        gradients, metrics = jax.grad(loss_fn, has_aux=True)(both)
        return gradients, metrics

    def step(state: TrainState, batch: dict, key: jax.Array, given: Given | None) -> tuple[TrainState, dict]:
        gradients, metrics = accumulated(functools.partial(gradient_of, state, key, given), batch, parts)
        total, devices = jax.lax.psum((gradients, metrics), AXIS), jax.lax.axis_size(AXIS)
        (gradient, aside), means = jax.tree.map(lambda leaf: leaf / devices, total)
        overflow = parts * total[1]["overflow"]  # slots, over all parts and devices
        return update(state, gradient, optimisation, aside), means | {"overflow": overflow}

    return step


def mixture_loss(
    process: Process, objective: Objective, denoise: Denoise, frozen: Denoise, noised: Noised, slots: mixture.Plan
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of each pixel, [B,H,W,C], and what to log of the mixture."""
    if objective.rule == "sampled":
        x0, x_t, sigma, augment_label = noised
        loss = sampled_score_matching(
            process, denoise, frozen, x0, x_t, sigma, slots, augment_label, objective.weighting
        )
        return loss, {"kept_mass": slots.weights.sum(axis=1).mean(), "overflow": jnp.zeros(())}
    loss, mixed = score_matching(
        process,
        denoise,
        frozen if objective.own_gradient else None,
        noised.x0,
        noised.x_t,
        noised.sigma,
        slots,
        objective.capacity,
        noised.augment_label,
        objective.residual,
        objective.weighting,
    )
    return loss, {"kept_mass": mixed.kept_mass, "overflow": mixed.overflow.astype(jnp.float32)}


def step_keys(key: jax.Array, step: jax.Array, position: jax.Array) -> jax.Array:
    """Returns six keys an example [B,6]: noise level, noise, label dropout, dropout, augmentation, drawn classes."""
    return jax.vmap(lambda k: jax.random.split(k, 6))(example_keys(key, step, position))


def make_noised(process: Process, objective: Objective, x0: jax.Array, keys: jax.Array) -> Noised:
    """Augments if asked, draws a noise level and noises each example. Shapes: x0 [B,H,W,C], keys [B,6]."""
    augment_label = None
    if objective.augment:
        x0, augment_label = augment(keys[:, 4], x0, objective.augment)
    sigma = process.sigma(normal_like(keys[:, 0], x0[:, 0, 0, 0]))
    return Noised(x0, add_noise(x0, sigma, normal_like(keys[:, 1], x0)), sigma, augment_label)


def draw_plan(
    weigher: Weigher,
    objective: Objective,
    given: Given | None,
    noised: Noised,
    y_tilde: jax.Array,
    fold: jax.Array,
    keys: jax.Array,
) -> mixture.Plan:
    """Returns the plan of a batch; table and classifiers are read only where the rule needs them."""
    rule = objective.rule
    if rule == "own":
        return mixture.plan(rule, y_tilde)
    if rule == "prior":
        return mixture.plan(rule, y_tilde, given.table)
    logits = cross_fitted_logits(weigher, given.classifiers, noised.x_t, noised.sigma, fold)
    return mixture.plan(
        rule,
        y_tilde,
        given.table,
        logits,
        tau=objective.tau,
        residual_slots=objective.residual_slots,
        weigh=WEIGHTS[objective.weights],
        keys=keys,
    )


def measure_capacity(
    weigher: Weigher,
    process: Process,
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
        keys = step_keys(key, jnp.int32(0), batch["position"])
        noised = make_noised(process, objective, batch["x0"], keys)
        slots = draw_plan(weigher, objective, given, noised, batch["label"], batch["fold"], keys[:, 5])
        return jnp.count_nonzero(slots.weights[:, 1:]) / len(batch["label"])

    return max(1, math.ceil(8 * max(float(occupied(batch)) for batch in batches))) / 8
