"""The temperature of a classifier at each noise level, chosen by noisy labels alone."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.labels.losses import forward_corrected
from tdsm_jax.labels.weights import clean_prior

SIGMAS = np.geomspace(0.02, 20.0, 7)  # the knots of T(sigma), half a decade apart
TEMPERATURES = np.geomspace(0.5, 4.0, 43)
CRITERIA = ("nll", "own_weight", "off")

# Standard deviations, in ln T, of what is believed before any label is seen: neighbouring knots differ little, and
# own weights correct the likelihood's choice, not replace it. A knot with few examples follows its neighbours.
NEIGHBOUR_STD = 0.3
CORRECTION_STD = 0.5
SWEEPS = 20


class Calibration(NamedTuple):
    """A chosen temperature at each of `SIGMAS` [G] and what it does to held-out examples.

    `nll` is their mean noisy negative log-likelihood; `own_weight` [2,G] is E[w_own] near each of `SIGMAS` at T = 1
    and at the temperature, NaN where no example lies.
    """

    temperature: np.ndarray
    nll: float
    own_weight: np.ndarray


def temperature_at(temperature: jax.Array | float, sigma: jax.Array) -> jax.Array:
    """Returns T(sigma), linear in ln sigma between `SIGMAS` and constant beyond.

    Shapes: temperature [G], or a scalar for all noise levels, sigma [B] -> [B].
    """
    values = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), SIGMAS.shape)
    inside = jnp.clip(sigma, SIGMAS[0], SIGMAS[-1])
    return jnp.interp(jnp.log(inside), jnp.log(SIGMAS), values)


def softened(logits: jax.Array, temperature: jax.Array | float, sigma: jax.Array) -> jax.Array:
    """Returns logits / T(sigma). Shapes: logits [B,K], temperature [G] or scalar, sigma [B] -> [B,K]."""
    return logits / temperature_at(temperature, sigma)[:, None]


def own_weights(logits: jax.Array, y_tilde: jax.Array, log_S: jax.Array) -> jax.Array:
    """Returns w_own = p(y = y_tilde | x_t, y_tilde). Shapes: logits [B,K], y_tilde int [B], log_S [K,K] -> [B]."""
    own = jnp.take_along_axis(jax.nn.log_softmax(logits), y_tilde[:, None], axis=1)[:, 0]
    return jnp.exp(own + jnp.diag(log_S)[y_tilde] + forward_corrected(logits, y_tilde, log_S))


def expected_own_weight(S: np.ndarray, prior: np.ndarray) -> float:
    """Returns p(y = y_tilde), the mean own weight of a calibrated classifier at any noise level.

    Shapes: S [K,K], clean class prior [K].
    """
    return float(np.asarray(prior, np.float64) @ np.diag(np.asarray(S, np.float64)))


def calibrate(
    logits: jax.Array,  # [D*N,K]
    sigma: jax.Array,  # [D*N]
    y_tilde: jax.Array,  # int [D*N]
    log_S: jax.Array,  # [K,K]
    *,
    criterion: str = "nll",
    per_sigma: bool = True,
    draws: int = 1,
) -> Calibration:
    """Chooses the temperature of h = softmax(logits / T(sigma)) by held-out noisy labels; no clean one is read.

    The `criterion` "nll" takes the lowest noisy negative log-likelihood, since at the right temperature h S predicts
    the noisy labels best; "own_weight" then moves it so that the mean own weight is what S and the labels imply,
    as far as so many examples tell; "off" is T = 1. With `per_sigma` False one value serves all noise levels. N
    images under D = `draws` noise draws each count as N observations. Other criteria raise `UserError`.
    """
    if criterion not in CRITERIA:
        raise UserError(f"unknown criterion of calibration {criterion!r}{did_you_mean(criterion, CRITERIA)}")
    data = tuple(map(jnp.asarray, (logits, sigma, y_tilde, log_S)))
    temperature = np.ones(len(SIGMAS))
    if criterion != "off":
        costs = functools.partial(_costs, _nll_cost, (data, draws))
        temperature = _constant(costs)
        if per_sigma:
            temperature = _descend(costs, temperature)
    if criterion == "own_weight":
        S = np.exp(np.asarray(log_S, np.float64))
        target = expected_own_weight(S, clean_prior(S, np.asarray(y_tilde)))
        costs = functools.partial(_costs, _own_cost, (data, draws, target, jnp.asarray(temperature)))
        temperature = _descend(costs, temperature) if per_sigma else _constant(costs)
    means = np.stack([_own_moments(data, T)[0] for T in (np.ones(len(SIGMAS)), temperature)])
    return Calibration(temperature, float(_nll(data, temperature).mean()), means)


def _nll(data: tuple, temperature: jax.Array) -> jax.Array:
    logits, sigma, y_tilde, log_S = data
    return forward_corrected(softened(logits, temperature, sigma), y_tilde, log_S)


def _nll_cost(data: tuple, draws: int, temperature: jax.Array) -> jax.Array:
    """Minus the log posterior of temperatures [G], in nats."""
    return _nll(data, temperature).sum() / draws + _roughness(jnp.log(temperature))


def _own_cost(data: tuple, draws: int, target: float, start: jax.Array, temperature: jax.Array) -> jax.Array:
    """The same by the mean own weights, normal about `target`, and correcting the temperatures `start` [G]."""
    mean, variance, count = _own_moments(data, temperature)
    misfit = jnp.where(count > 0, count * (mean - target) ** 2 / jnp.maximum(variance, 1e-6), 0.0)
    correction = jnp.log(temperature / start)
    pull = jnp.mean(correction) ** 2 / (2 * CORRECTION_STD**2)
    return misfit.sum() / (2 * draws) + _roughness(correction) + pull


def _own_moments(data: tuple, temperature: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns mean, variance and number of the own weights near each knot, each [G].

    An example between two knots counts for both, in parts that sum to one.
    """
    logits, sigma, y_tilde, log_S = data
    own = own_weights(softened(logits, temperature, sigma), y_tilde, log_S)
    share = jax.vmap(temperature_at, in_axes=(0, None))(jnp.eye(len(SIGMAS)), sigma)  # [G,M]
    count = share.sum(axis=1)
    mean = (share @ own) / count
    return mean, (share * (own - mean[:, None]) ** 2).sum(axis=1) / count, count


def _roughness(values: jax.Array) -> jax.Array:
    return (jnp.diff(values) ** 2).sum() / (2 * NEIGHBOUR_STD**2)


def _constant(costs: Callable[[jax.Array], jax.Array]) -> np.ndarray:
    """Returns the best of `TEMPERATURES`, the same at all knots [G]."""
    tried = np.repeat(TEMPERATURES[:, None], len(SIGMAS), axis=1)
    return tried[int(jnp.argmin(costs(jnp.asarray(tried, jnp.float32))))]


def _descend(costs: Callable[[jax.Array], jax.Array], start: np.ndarray) -> np.ndarray:
    """Returns the temperatures [G] that no change of a single knot to another of `TEMPERATURES` improves."""
    best, lowest = start, np.inf
    for _ in range(SWEEPS):
        before = lowest
        for knot in range(len(SIGMAS)):
            tried = np.repeat(best[None], len(TEMPERATURES), axis=0)
            tried[:, knot] = TEMPERATURES
            values = costs(jnp.asarray(tried, jnp.float32))
            if values.min() < lowest:
                best, lowest = tried[int(jnp.argmin(values))], float(values.min())
        if lowest == before:
            break
    return best


@functools.partial(jax.jit, static_argnums=0)
def _costs(cost: Callable[..., jax.Array], given: tuple, rows: jax.Array) -> jax.Array:
    """Returns cost(*given, row) of rows of temperatures [T,G], as [T], one at a time to spare memory.

    What is given is an argument of the program, so that all folds of a run share one.
    """
    return jax.lax.map(functools.partial(cost, *given), rows)
