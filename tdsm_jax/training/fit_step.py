"""One step of a classifier's fit: the loss, the examples it is taken on, the transition head."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tdsm_jax.diffusion.objectives import add_noise
from tdsm_jax.diffusion.process import EDM, per_example
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.labels.losses import LOSSES, check_parameters, elr, forward_corrected, make_loss, smallest
from tdsm_jax.labels.transition import log_volume, volmin_initial, volmin_matrix
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.mnist_cnn import MnistCNN
from tdsm_jax.networks.resnet import ResNet
from tdsm_jax.training import loop, parallel
from tdsm_jax.training.calibration import CRITERIA
from tdsm_jax.training.state import Optimisation, Params, TrainState, example_keys, normal_like, update

Network = Classifier | ResNet | MnistCNN
Augment = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]  # (keys [B], x0) -> (x0, augmentation label)

FIT_LOSSES = ("forward", "elr", *LOSSES)
STOPPING = ("nll", "accuracy")


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """How a classifier is fitted; hashable, so that fits of equal settings share what was compiled.

    `process` None fits clean images, else x_t at the process's noise levels. `augment` changes the images of a step
    before noise is added; its label goes unread, as published. `freeze_transition_images` holds the transition head
    still from there on (0: never).

    With `held_out` examples, measured on `held_out_draws` noise draws an image, the parameters of the evaluation
    that do best there are returned, the last ones without `stopping`: best by the noisy likelihood or, as the
    benchmarks of robust losses do, by the noisy accuracy (`stopping_by`, of `STOPPING`), the first of equals. The
    temperature is chosen by `calibration` (of `calibration.CRITERIA`), for each noise level or, without
    `temperature_per_sigma`, for all.

    `loss` is "forward" (forward-corrected cross-entropy), "elr" or one of `losses.LOSSES`, with `loss_parameters`;
    all but the first train on labels as given and distort the posterior. `forget_rate` leaves out that share of
    each batch, those of largest loss, rising to it over `forget_ramp_images`: small-loss selection, and with
    `co_teaching` by another network, which learns from this one's choice (Han et al. 2018). Settings that do not
    go together raise `UserError`.
    """

    network: Network
    optimisation: Optimisation
    schedule: loop.Schedule
    process: EDM | None
    held_out_draws: int = 4
    volume_weight: float = 1e-4
    transition_rate: float = 1.0  # learning rate of the transition head over the network's
    augment: Augment | None = None
    freeze_transition_images: int = 0
    stopping: bool = True
    stopping_by: str = "nll"
    calibration: str = "nll"
    temperature_per_sigma: bool = True
    loss: str = "forward"
    loss_parameters: tuple[tuple[str, float], ...] = ()
    forget_rate: float = 0.0
    forget_ramp_images: int = 0
    co_teaching: bool = False

    def __post_init__(self):
        if self.stopping_by not in STOPPING:
            raise UserError(
                f"unknown measure {self.stopping_by!r} to stop by{did_you_mean(self.stopping_by, STOPPING)}"
            )
        if self.calibration not in CRITERIA:
            raise UserError(f"unknown calibration {self.calibration!r}{did_you_mean(self.calibration, CRITERIA)}")
        if self.loss not in FIT_LOSSES:
            raise UserError(f"unknown loss {self.loss!r}{did_you_mean(self.loss, FIT_LOSSES)}")
        loss = {"forward": forward_corrected, "elr": elr}.get(self.loss) or LOSSES[self.loss]
        check_parameters(self.loss, loss, dict(self.loss_parameters))
        if not 0 <= self.forget_rate < 1:
            raise UserError(f"the forget rate is a share of the batch, from 0 to below 1, got {self.forget_rate}")
        if self.co_teaching and not self.forget_rate:
            raise UserError("co-teaching exchanges the examples of small loss: give it a forget rate above 0")
        if self.co_teaching and self.loss == "elr":
            raise UserError("co-teaching keeps no targets of two networks: use another loss than elr")

    @property
    def proper(self) -> bool:
        """Whether the minimiser is the clean posterior, as weights need it."""
        return self.loss == "forward" and not self.forget_rate


class FitState(NamedTuple):
    """Training state, the best parameters so far, their held-out loss or error, the targets [N,K] of "elr"."""

    train: TrainState
    best_params: Params
    best_loss: jax.Array
    targets: jax.Array | None = None


def classify(apply: Callable, process: EDM | None, x_t: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns logits of h(x_t, sigma) [B,K] and features, from `apply`(x, c_noise), the network with parameters.

    Without a process the image is clean: it goes in unscaled, with a constant noise level. Shapes: x_t [B,H,W,C],
    sigma [B].
    """
    if process is None:
        return apply(x_t, jnp.zeros_like(sigma))
    return apply(per_example(process.c_in(sigma), x_t) * x_t, process.c_noise(sigma))


def log_transition(params: Params, given: dict, rate: float) -> jax.Array:
    """Returns log S [K,K]: as given, or of the transition head, which starts at T_ii = 1/2.

    The head learns the shift of V in units of `rate`: Adam's step does not depend on the gradient's scale, so
    this is its learning rate relative to the network's.
    """
    if "transition" not in params:
        return given["log_S"]
    shift = params["transition"]
    return jnp.log(volmin_matrix(volmin_initial(shift.shape[0]) + rate * shift))


def make_fit_step(settings: FitSettings) -> Callable:
    """Returns the per-device step(state, batch, key, given) -> (state, metrics) of `classifier.fit`.

    batch: x0 [B,H,W,C], label int [B], position int [B] (in the global batch), index int [B] (of the example, where
    the loss is "elr"), clean bool [B] (of the label, where the loss is "forward" and some are known to be).
    """
    network, process = settings.network, settings.process
    names = ("network", "peer") if settings.co_teaching else ("network",)

    def step(state: FitState, batch: dict, key: jax.Array, given: dict) -> tuple[FitState, dict]:
        train, x_t, sigma = state.train, batch["x0"], jnp.zeros(batch["label"].shape)
        # The first three keys of four are those of three: what they draw does not depend on the augmentation.
        keys = jax.vmap(lambda k: jax.random.split(k, 4))(example_keys(key, train.step, batch["position"]))
        if settings.augment is not None:
            x_t, _ = settings.augment(keys[:, 3], x_t)
        if process is not None:
            sigma = process.sigma(normal_like(keys[:, 0], sigma))
            x_t = add_noise(x_t, sigma, normal_like(keys[:, 1], x_t))

        def logits_of(variables: Params) -> tuple[jax.Array, dict]:
            def apply(x: jax.Array, c_noise: jax.Array) -> tuple[jax.Array, dict]:
                return network.apply(
                    variables, x, c_noise, dropout_keys=keys[:, 2], train=True, mutable=["batch_stats"]
                )

            (logits, _), statistics = classify(apply, process, x_t, sigma)
            return logits, statistics

        def loss_fn(params: Params) -> tuple[jax.Array, tuple]:
            seen = {name: logits_of(params[name]) for name in names}
            log_S = log_transition(params, given, settings.transition_rate)
            losses, targets = {}, None
            for name, (logits, _) in seen.items():
                losses[name], targets = example_losses(settings, logits, batch, log_S, state.targets)
            loss = batch_loss(settings, losses, batch["position"], train.step)
            if "transition" in params:
                loss += settings.volume_weight * log_volume(jnp.exp(log_S))
            return loss, ({name: statistics for name, (_, statistics) in seen.items()}, targets)

        (loss, (statistics, targets)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(train.params)
        loss, gradient = jax.lax.pmean((loss, gradient), parallel.AXIS)
        new = with_statistics(update_until_frozen(train, gradient, settings), statistics)
        if targets is not None:
            state = state._replace(targets=remembered(state.targets, targets, batch["index"]))
        return state._replace(train=new), {"loss": loss}

    return step


def example_losses(
    settings: FitSettings, logits: jax.Array, batch: dict, log_S: jax.Array, targets: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the loss of each example [B] and, for "elr", the new targets of these examples [B,K]."""
    parameters = dict(settings.loss_parameters)
    if settings.loss == "forward":
        return forward_corrected(logits, batch["label"], log_S, batch.get("clean")), None
    if settings.loss == "elr":
        return elr(logits, batch["label"], targets[batch["index"]], **parameters)
    return make_loss(settings.loss, **parameters)(logits, batch["label"]), None


def batch_loss(settings: FitSettings, losses: dict[str, jax.Array], position: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the mean loss of the networks' losses [B], each over the examples that it is given to learn from.

    The examples of small loss are looked for in the whole batch, so the devices' number changes nothing.
    """
    if not settings.forget_rate:
        return sum(loss.mean() for loss in losses.values())
    batch_size = settings.optimisation.batch_size
    ramp = jnp.minimum(step * batch_size / max(settings.forget_ramp_images, 1), 1.0)
    kept = jnp.maximum(jnp.round((1 - settings.forget_rate * ramp) * batch_size), 1)

    def chosen(loss: jax.Array) -> jax.Array:
        everyone = jax.lax.all_gather(jax.lax.stop_gradient(loss), parallel.AXIS, tiled=True)
        return smallest(everyone, kept)[position]

    teacher = {"network": "peer", "peer": "network"} if settings.co_teaching else {"network": "network"}
    means = [jnp.where(chosen(losses[teacher[name]]), loss, 0.0).mean() for name, loss in losses.items()]
    return sum(means) * batch_size / kept


def remembered(targets: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    """Puts the new targets [B,K] of all devices in the place [B] of their examples in targets [N,K].

    An example that comes twice in a batch gets the mean.
    """
    new, index = jax.lax.all_gather((new, index), parallel.AXIS, tiled=True)
    times = jnp.zeros(len(targets)).at[index].add(1.0)[index]
    return targets.at[index].add((new - targets[index]) / times[:, None])


def update_until_frozen(train: TrainState, gradient: Params, settings: FitSettings) -> TrainState:
    """Updates all parameters, but once the transition head is to be frozen holds it, and its average at it."""
    optimisation = settings.optimisation
    if not settings.freeze_transition_images or "transition" not in gradient:
        return update(train, gradient, optimisation)
    moves = train.step * optimisation.batch_size < settings.freeze_transition_images
    new = update(train, gradient | {"transition": jnp.where(moves, gradient["transition"], 0)}, optimisation)
    # Adam's momentum would carry it on without a gradient.
    shift = jnp.where(moves, new.params["transition"], train.params["transition"])
    average = jnp.where(moves, new.ema_params["transition"], shift)
    return dataclasses.replace(
        new, params=new.params | {"transition": shift}, ema_params=new.ema_params | {"transition": average}
    )


def with_statistics(train: TrainState, statistics: dict[str, dict]) -> TrainState:
    """Puts the running statistics of a step's networks, if any, in their place; the average takes a copy, as published.

    The networks computed them over all devices.
    """
    params, average = (
        p | {name: p[name] | new for name, new in statistics.items()} for p in (train.params, train.ema_params)
    )
    return dataclasses.replace(train, params=params, ema_params=average)
