"""Fitting classifiers: h(x_t, sigma) on noisy labels, and plain ones on clean images."""

import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tdsm_jax import files
from tdsm_jax.data import stream
from tdsm_jax.data.batches import batch_indices, evenly
from tdsm_jax.data.dataset import to_float
from tdsm_jax.diffusion.objectives import add_noise
from tdsm_jax.diffusion.process import EDM
from tdsm_jax.errors import UserError
from tdsm_jax.labels.losses import forward_corrected
from tdsm_jax.training import loop, parallel
from tdsm_jax.training.calibration import SIGMAS, Calibration, calibrate
from tdsm_jax.training.fit_step import FitSettings, FitState, Network, classify, log_transition, make_fit_step
from tdsm_jax.training.parallel import DataMesh
from tdsm_jax.training.state import Params, flatten_params, initial_state, initial_variables, unflatten_params

HELD_OUT_BATCH = 1024  # bounds the memory of a look at the held-out images
HELD_OUT_BYTES = 2**32  # of held-out images under noise; of more images an even share is looked at
KEPT_STEPS = 32  # compiled steps that wait for another fit of the same settings


class Labelled(NamedTuple):
    """Images uint8 [N,H,W,C], the labels int32 [N] that go with them, which of these are known to be clean, bool [N].

    None: no label is.
    """

    images: stream.Images
    labels: np.ndarray
    clean: np.ndarray | None = None


class Fitted(NamedTuple):
    """A fitted classifier: averaged parameters, the temperature that h is softened by, S as given or learnt.

    The temperature is T at `calibration.SIGMAS` [G], or a number for all noise levels.
    """

    params: Params
    temperature: np.ndarray | float
    S: np.ndarray
    held_out_nll: float


class HeldOut(NamedTuple):
    """Held-out images under D draws of noise: `logits`(params) -> [D*N,K], sigma and labels [D*N]."""

    logits: Callable[[Params], jax.Array]
    sigma: jax.Array
    labels: jax.Array
    draws: int


class Trained(NamedTuple):
    """Where training ended: the state with the last and the best parameters, and what judged them, if anything did.

    `log_S`(parameters) is log S [K,K] as given or learnt.
    """

    state: FitState
    held_out: HeldOut | None
    log_S: Callable[[Params], jax.Array]


def fit(
    data: Labelled,
    key: jax.Array,
    *,
    label: str,
    settings: FitSettings,
    S: np.ndarray | None,  # [K,K]; None learns it (VolMinNet)
    mesh: DataMesh,
    seed: int,
    held_out: Labelled | None = None,
    directory: pathlib.Path | None = None,
) -> Fitted:
    """Fits a classifier, by forward-corrected cross-entropy unless asked otherwise: a pure function of its arguments.

    With S the identity this is ordinary training. `seed` orders the batches, `key` draws everything else. The
    optional `directory` makes it resumable and changes nothing else. Raises `loop.Diverged`, and `UserError` for a
    loss that cannot learn S or tell clean labels from noisy ones.
    """
    if not settings.proper:
        logging.warning("%s: its loss is not proper: decisions may gain by it, but weights need calibration", label)
    state, seen, log_S_of = train(
        data,
        key,
        label=label,
        settings=settings,
        S=S,
        mesh=mesh,
        seed=seed,
        held_out=held_out,
        directory=directory,
    )
    best = state.best_params if seen and settings.stopping else state.train.ema_params
    log_S = log_S_of(best)
    temperature, nll = np.ones(len(SIGMAS)), math.nan
    if seen:
        temperature, nll, _ = calibrated(settings, seen.logits(best), seen, log_S)
    S = np.exp(np.asarray(log_S, np.float64)) if S is None else np.asarray(S, np.float64)
    return Fitted(jax.device_get(best["network"]), temperature, S, nll)


def train(
    data: Labelled,
    key: jax.Array,
    *,
    label: str,
    settings: FitSettings,
    S: np.ndarray | None,
    mesh: DataMesh,
    seed: int,
    held_out: Labelled | None = None,
    directory: pathlib.Path | None = None,
) -> Trained:
    """Does the training of `fit`, whose arguments and errors it has; all parameters are kept, none is chosen."""
    if S is None and not settings.proper:
        raise UserError("only the loss 'forward' on all examples learns S: use it, or give S")
    if data.clean is not None and not settings.proper:
        raise UserError("only the loss 'forward' on all examples tells clean labels from noisy ones")
    K = settings.network.num_classes
    init_key, step_key, held_key = jax.random.split(key, 3)
    params = initial_params(settings, data.images.shape[1:], init_key)
    if S is None:
        params["transition"] = jnp.zeros((K, K))
    given = {} if S is None else {"log_S": jnp.log(jnp.asarray(S, jnp.float32))}
    log_S_of = functools.partial(log_transition, given=given, rate=settings.transition_rate)

    step, everywhere = compiled_step(settings, mesh), parallel.replicate(given, mesh)
    targets = jnp.zeros((len(data.labels), K)) if settings.loss == "elr" else None
    best = jax.tree.map(jnp.copy, params)
    state = FitState(initial_state(params, settings.optimisation), best, jnp.float32(jnp.inf), targets)
    batch_size = settings.optimisation.batch_size

    def batches(number: int, position: np.ndarray) -> dict[str, np.ndarray]:
        index = batch_indices(seed, number, batch_size, len(data.images))[position]
        batch = {"x0": to_float(data.images[index]), "label": data.labels[index], "position": position}
        if data.clean is not None:
            batch["clean"] = data.clean[index]
        return batch if targets is None else batch | {"index": index}

    evaluate = seen = None
    if held_out is not None:
        seen = make_held_out(settings, held_out, held_key, mesh)
        name, measure = HELD_OUT_MEASURES[settings.stopping_by]
        evaluate = functools.partial(keep_best, name, lambda p: measure(seen.logits(p), seen.labels, log_S_of(p)))

    state = loop.run(
        label,
        lambda state, batch, key: step(state, batch, key, everywhere),
        state,
        batches,
        step_key,
        batch_size=batch_size,
        schedule=settings.schedule,
        mesh=mesh,
        directory=directory,
        evaluate=evaluate,
        ahead=stream.is_streamed(data.images),
    )
    return Trained(state, seen, log_S_of)


@functools.lru_cache(maxsize=KEPT_STEPS)
def compiled_step(settings: FitSettings, mesh: DataMesh) -> Callable:
    """Returns the jitted step of all fits of these settings: labels, S and keys are data, so it is compiled once."""
    return parallel.compiled(make_fit_step(settings), mesh)


def initial_params(settings: FitSettings, image_shape: tuple[int, ...], key: jax.Array) -> dict[str, Params]:
    """Returns the variables of the network, and of its peer where two teach each other."""
    example = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    params = {"network": initial_variables(settings.network, key, *example)}
    if settings.co_teaching:
        params["peer"] = initial_variables(settings.network, jax.random.fold_in(key, 1), *example)
    return params


def make_held_out(settings: FitSettings, held_out: Labelled, key: jax.Array, mesh: DataMesh) -> HeldOut:
    """Returns the held-out images at fixed noise, ready to be looked at with any parameters, a batch at a time."""
    draws = settings.held_out_draws if settings.process else 1
    held_out = even_share(held_out, HELD_OUT_BYTES // (4 * draws))
    x0, N = to_float(held_out.images), len(held_out.images)
    x_t, sigma = [x0], [np.zeros(N, np.float32)]
    if settings.process is not None:
        keys = [jax.random.split(jax.random.fold_in(key, draw)) for draw in range(draws)]
        sigma = [settings.process.sigma(jax.random.normal(sigma_key, (N,))) for sigma_key, _ in keys]
        normal = (jax.random.normal(noise_key, x0.shape) for _, noise_key in keys)
        x_t = [np.asarray(add_noise(jnp.asarray(x0), s, n)) for s, n in zip(sigma, normal, strict=True)]
    x_t, sigma = np.concatenate(x_t), np.concatenate(sigma)

    look = functools.partial(logits_of, settings.network, settings.process)

    def logits(params: Params) -> jax.Array:
        def see(batch: dict) -> jax.Array:
            return look(params["network"], batch["x_t"], batch["sigma"])

        def rows_of(index: np.ndarray) -> dict[str, np.ndarray]:
            return {"x_t": x_t[index], "sigma": sigma[index]}

        # Not to be stopped: within training a stop waits for the save that follows the look.
        return jnp.asarray(parallel.in_batches(see, rows_of, mesh, len(x_t), HELD_OUT_BATCH, stoppable=False))

    return HeldOut(logits, jnp.asarray(sigma), jnp.tile(jnp.asarray(held_out.labels), draws), draws)


def even_share(data: Labelled, most_values: int) -> Labelled:
    """Returns the examples, in memory; where they hold more than `most_values` pixel values, evenly spread ones."""
    index = evenly(len(data.images), max(1, most_values // math.prod(data.images.shape[1:])))
    return Labelled(data.images[index], data.labels[index])


@functools.partial(jax.jit, static_argnums=(0, 1))
def logits_of(network: Network, process: EDM | None, variables: Params, x_t: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns the logits [B,K] of a network's variables on x_t [B,H,W,C] at sigma [B]."""
    return classify(functools.partial(network.apply, variables), process, x_t, sigma)[0]


@jax.jit
def held_out_nll(logits: jax.Array, y_tilde: jax.Array, log_S: jax.Array) -> jax.Array:
    """Returns the mean noisy negative log-likelihood. Shapes: logits of h [B,K], y_tilde int [B], log_S [K,K]."""
    return forward_corrected(logits, y_tilde, log_S).mean()


@jax.jit
def held_out_error(logits: jax.Array, y_tilde: jax.Array, log_S: jax.Array) -> jax.Array:
    """Returns the share of noisy labels that h S does not think likeliest; shapes as in `held_out_nll`."""
    p_noisy = jnp.matmul(jax.nn.softmax(logits), jnp.exp(log_S), precision="highest")
    return jnp.mean(p_noisy.argmax(axis=1) != y_tilde)


HELD_OUT_MEASURES = {"nll": ("held_out_nll", held_out_nll), "accuracy": ("held_out_error", held_out_error)}


def keep_best(name: str, measure: Callable[[Params], jax.Array], state: FitState) -> tuple[FitState, dict]:
    """Measures the averaged parameters on the held-out labels and remembers them where they are the best yet."""
    loss = measure(state.train.ema_params)
    if bool(loss < state.best_loss):
        state = state._replace(best_params=jax.tree.map(jnp.copy, state.train.ema_params), best_loss=loss)
    return state, {name: float(loss)}


def calibrated(settings: FitSettings, logits: jax.Array, seen: HeldOut, log_S: jax.Array) -> Calibration:
    """Chooses the temperature of logits [D*N,K] of the held-out images as the settings say. log_S: [K,K]."""
    return calibrate(
        logits,
        seen.sigma,
        seen.labels,
        log_S,
        criterion=settings.calibration,
        per_sigma=settings.temperature_per_sigma and settings.process is not None,
        draws=seen.draws,
    )


def with_clean(data: Labelled, more: Labelled) -> Labelled:
    """Returns both sets as one, in which the labels of `more` are known to be clean."""
    clean = np.arange(len(data.labels) + len(more.labels)) >= len(data.labels)
    return Labelled(stream.joined(data.images, more.images), np.concatenate((data.labels, more.labels)), clean)


def read_samples(path: str | os.PathLike, image_shape: tuple[int, ...], num_classes: int) -> Labelled:
    """Reads the samples of a run (samples/<method>.npz), to be examples of these shapes; else raises `UserError`."""
    arrays = files.read_arrays(path)
    if not {"images", "labels"} <= arrays.keys():
        raise UserError(f"{path} holds no samples; give a samples/posterior.npz of a run")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.shape[1:] != tuple(image_shape):
        raise UserError(
            f"{path} holds images of {images.dtype} {images.shape[1:]}; the training images are uint8 {image_shape}"
        )
    whole = labels.shape == images.shape[:1] and np.issubdtype(labels.dtype, np.integer)
    if not whole or not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"{path}: its labels must be whole numbers below {num_classes}, one an image, at least one")
    return Labelled(images, labels.astype(np.int32))


def write_fitted(path: str | os.PathLike, fitted: Fitted) -> None:
    """Writes a fitted classifier as one .npz, atomically."""
    numbers = {"temperature": np.float64(fitted.temperature), "held_out_nll": np.float64(fitted.held_out_nll)}
    files.write_arrays(path, flatten_params({"network": fitted.params}) | numbers | {"S": fitted.S})


def read_fitted(path: str | os.PathLike) -> Fitted:
    """Reads what `write_fitted` wrote; a missing or damaged file is a `UserError`."""
    arrays = files.read_arrays(path)
    missing = {"S", "temperature", "held_out_nll"} - arrays.keys()
    if missing or not any(name.startswith("network/") for name in arrays):
        raise UserError(f"{path} is not a fitted classifier; give a classifier.npz, or a fold0.npz of a run")
    S, temperature, nll = (arrays.pop(name) for name in ("S", "temperature", "held_out_nll"))
    return Fitted(unflatten_params(arrays)["network"], temperature, S, float(nll))
