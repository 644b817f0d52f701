"""Fitting classifiers: h(x_t, sigma) on noisy labels, and plain ones on clean images."""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tdsm_jax import files
from tdsm_jax.data.batches import batch_indices
from tdsm_jax.data.sources import to_float
from tdsm_jax.diffusion.objectives import add_noise
from tdsm_jax.diffusion.process import EDM, per_example
from tdsm_jax.labels.losses import forward_corrected
from tdsm_jax.labels.transition import log_volume, volmin_initial, volmin_matrix
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.mnist_cnn import MnistCNN
from tdsm_jax.networks.resnet import ResNet
from tdsm_jax.training import loop, parallel
from tdsm_jax.training.state import (
    Optimisation,
    Params,
    TrainState,
    example_keys,
    flatten_params,
    initial_state,
    normal_like,
    unflatten_params,
    update,
)

Network = Classifier | ResNet | MnistCNN
Augment = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]  # (keys [B], x0) -> (x0, augmentation label)

TEMPERATURES = np.geomspace(0.5, 4.0, 43)


class Labelled(NamedTuple):
    """Images uint8 [N,H,W,C] and the labels int32 [N] that go with them."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """How a classifier is fitted.

    `process` None fits clean images, else x_t at the process's noise levels. With `held_out` examples the
    parameters of the evaluation with the lowest held-out loss are returned, measured on `held_out_draws`
    noise draws an image; otherwise the last ones. `augment` changes the images of a step before noise is added;
    its label goes unread, as published. `freeze_transition_images` holds the transition head still from there on
    (0: never).
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


class Fitted(NamedTuple):
    """A fitted classifier: averaged parameters, the temperature that h is softened by, S as given or learnt."""

    params: Params
    temperature: float
    S: np.ndarray
    held_out_nll: float


class FitState(NamedTuple):
    """Training state and the best parameters so far by the held-out loss."""

    train: TrainState
    best_params: Params
    best_nll: jax.Array


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


def fit(
    data: Labelled,
    key: jax.Array,
    *,
    label: str,
    settings: FitSettings,
    S: np.ndarray | None,  # [K,K]; None learns it (VolMinNet)
    mesh: Mesh,
    seed: int,
    held_out: Labelled | None = None,
    directory: pathlib.Path | None = None,
) -> Fitted:
    """Fits a classifier by forward-corrected cross-entropy: a pure function of its arguments.

    With S the identity this is ordinary training. `seed` orders the batches, `key` draws everything else. The
    optional `directory` makes it resumable and changes nothing else. Raises `loop.Diverged`.
    """
    network, K = settings.network, settings.network.num_classes
    example = jnp.zeros((1, *data.images.shape[1:]))
    init_key, step_key, held_key = jax.random.split(key, 3)
    params = {"network": network.init(init_key, example, jnp.zeros(1))}
    if S is None:
        params["transition"] = jnp.zeros((K, K))
    given = {} if S is None else {"log_S": jnp.log(jnp.asarray(S, jnp.float32))}
    log_S_of = functools.partial(log_transition, given=given, rate=settings.transition_rate)

    step = parallel.data_parallel(make_fit_step(settings), mesh, given)
    state = FitState(initial_state(params, settings.optimisation), jax.tree.map(jnp.copy, params), jnp.float32(jnp.inf))
    batch_size = settings.optimisation.batch_size
    images = to_float(data.images)

    def batches(number: int) -> dict[str, np.ndarray]:
        index = batch_indices(seed, number, batch_size, len(images))
        return {"x0": images[index], "label": data.labels[index], "position": np.arange(batch_size)}

    evaluate = held_logits = None
    if held_out is not None:
        held_logits, held_labels = make_held_out(settings, held_out, held_key)
        score = jax.jit(lambda p: forward_corrected(held_logits(p), held_labels, log_S_of(p)).mean())
        evaluate = functools.partial(keep_best, score)

    state = loop.run(
        label,
        step,
        state,
        batches,
        step_key,
        schedule=settings.schedule,
        mesh=mesh,
        directory=directory,
        evaluate=evaluate,
    )
    best = state.best_params if evaluate else state.train.ema_params
    log_S = log_S_of(best)
    temperature, nll = 1.0, math.nan
    if evaluate:
        temperature, nll = best_temperature(held_logits(best), held_labels, log_S)
    S = np.exp(np.asarray(log_S, np.float64)) if S is None else np.asarray(S, np.float64)
    return Fitted(jax.device_get(best["network"]), temperature, S, nll)


def make_fit_step(settings: FitSettings) -> Callable:
    """Returns the per-device step(state, batch, key, given) -> (state, metrics) of `fit`."""
    network, process = settings.network, settings.process

    def step(state: FitState, batch: dict, key: jax.Array, given: dict) -> tuple[FitState, dict]:
        train, x_t, sigma = state.train, batch["x0"], jnp.zeros(batch["label"].shape)
        # The first three keys of four are those of three: what they draw does not depend on the augmentation.
        keys = jax.vmap(lambda k: jax.random.split(k, 4))(example_keys(key, train.step, batch["position"]))
        if settings.augment is not None:
            x_t, _ = settings.augment(keys[:, 3], x_t)
        if process is not None:
            sigma = process.sigma(normal_like(keys[:, 0], sigma))
            x_t = add_noise(x_t, sigma, normal_like(keys[:, 1], x_t))

        def loss_fn(params: Params) -> tuple[jax.Array, dict]:
            def apply(x: jax.Array, c_noise: jax.Array) -> tuple[jax.Array, dict]:
                return network.apply(
                    params["network"], x, c_noise, dropout_keys=keys[:, 2], train=True, mutable=["batch_stats"]
                )

            (logits, _), statistics = classify(apply, process, x_t, sigma)
            log_S = log_transition(params, given, settings.transition_rate)
            loss = forward_corrected(logits, batch["label"], log_S).mean()
            if "transition" in params:
                loss += settings.volume_weight * log_volume(jnp.exp(log_S))
            return loss, statistics

        (loss, statistics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(train.params)
        loss, gradient = jax.lax.pmean((loss, gradient), parallel.AXIS)
        new = update_until_frozen(train, gradient, settings)
        return state._replace(train=with_statistics(new, statistics)), {"loss": loss}

    return step


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


def with_statistics(train: TrainState, statistics: dict) -> TrainState:
    """Puts the running statistics of a step, if any, in their place; the average takes a copy, as published.

    The network computed them over all devices.
    """
    params, average = (p | {"network": p["network"] | statistics} for p in (train.params, train.ema_params))
    return dataclasses.replace(train, params=params, ema_params=average)


def make_held_out(settings: FitSettings, held_out: Labelled, key: jax.Array) -> tuple[Callable, jax.Array]:
    """Returns a jitted params -> logits [D*N,K] of the held-out images at fixed noise, and their labels [D*N]."""
    x0 = jnp.asarray(to_float(held_out.images))
    draws = settings.held_out_draws if settings.process else 1

    @jax.jit
    def logits(params: Params) -> jax.Array:
        apply = functools.partial(settings.network.apply, params["network"])
        rows = []
        for draw in range(draws):
            sigma_key, noise_key = jax.random.split(jax.random.fold_in(key, draw))
            x_t, sigma = x0, jnp.zeros(len(x0))
            if settings.process:
                sigma = settings.process.sigma(jax.random.normal(sigma_key, sigma.shape))
                x_t = add_noise(x0, sigma, jax.random.normal(noise_key, x0.shape))
            rows.append(classify(apply, settings.process, x_t, sigma)[0])
        return jnp.concatenate(rows)

    return logits, jnp.tile(jnp.asarray(held_out.labels), draws)


def keep_best(held_out_nll: Callable[[Params], jax.Array], state: FitState) -> tuple[FitState, dict]:
    """Measures the averaged parameters on the held-out labels and remembers them where they are the best yet."""
    nll = held_out_nll(state.train.ema_params)
    better = bool(nll < state.best_nll)
    if better:
        state = state._replace(best_params=jax.tree.map(jnp.copy, state.train.ema_params), best_nll=nll)
    return state, {"held_out_nll": float(nll)}


def best_temperature(logits: jax.Array, y_tilde: jax.Array, log_S: jax.Array) -> tuple[float, float]:
    """Returns the temperature of `TEMPERATURES` with the lowest noisy negative log-likelihood, and that value.

    No clean label is read: at the right temperature softmax(logits / T) S predicts the noisy labels best.
    Shapes: logits [N,K], y_tilde int [N], log_S [K,K].
    """
    nll = jax.jit(jax.vmap(lambda T: forward_corrected(logits / T, y_tilde, log_S).mean()))(jnp.asarray(TEMPERATURES))
    best = int(jnp.argmin(nll))
    return float(TEMPERATURES[best]), float(nll[best])


def write_fitted(path: str | os.PathLike, fitted: Fitted) -> None:
    """Writes a fitted classifier as one .npz, atomically."""
    scalars = {"temperature": np.float64(fitted.temperature), "held_out_nll": np.float64(fitted.held_out_nll)}
    files.write_arrays(path, flatten_params({"network": fitted.params}) | scalars | {"S": fitted.S})


def read_fitted(path: str | os.PathLike) -> Fitted:
    """Reads what `write_fitted` wrote; a missing or damaged file is a `UserError`."""
    arrays = files.read_arrays(path)
    S, temperature, nll = (arrays.pop(name) for name in ("S", "temperature", "held_out_nll"))
    return Fitted(unflatten_params(arrays)["network"], float(temperature), S, float(nll))
