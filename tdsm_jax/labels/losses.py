"""Classification losses per example: proper ones for the clean posterior, robust ones for classification.

The robust losses tolerate wrong labels but are not proper: their minimiser is not the posterior, so they serve
classifiers whose decisions count, not those whose probabilities become weights.
"""

import functools
import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.labels.transition import log_volume

Loss = Callable[[jax.Array, jax.Array], jax.Array]  # (logits [B,K], y int [B]) -> [B]


def forward_corrected(
    logits: jax.Array, y_tilde: jax.Array, log_S: jax.Array, clean: jax.Array | None = None
) -> jax.Array:
    """Cross-entropy of the noisy labels under h S (Patrini et al. 2017); with log_S = log I plain cross-entropy.

    Proper: its minimiser is the clean posterior h wherever S is invertible. Examples that are `clean` are known to
    carry their clean label: I stands in for S, and they say nothing of it.
    Shapes: logits of h [B,K], y_tilde int [B], log_S [K,K], clean bool [B] -> [B].
    """
    evidence = log_S.T[y_tilde]
    if clean is not None:  # before the logarithm of a sum, whose gradient is none where S makes a label impossible
        evidence = jnp.where(clean[:, None], jnp.log(jnp.eye(len(log_S)))[y_tilde], evidence)
    return -jax.nn.logsumexp(jax.nn.log_softmax(logits) + evidence, axis=1)


def volmin(logits: jax.Array, y_tilde: jax.Array, log_S: jax.Array, volume_weight: float = 1e-4) -> jax.Array:
    """VolMinNet (Li et al. 2021): forward correction by a learnt S, of the least volume that explains the labels.

    Shapes: logits of h [B,K], y_tilde int [B], log_S [K,K] -> [B].
    """
    return forward_corrected(logits, y_tilde, log_S) + volume_weight * log_volume(jnp.exp(log_S))


def ce(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy. Shapes: logits [B,K], y int [B] -> [B], like all losses below."""
    return -_of_label(jax.nn.log_softmax(logits), y)


def fl(logits: jax.Array, y: jax.Array, *, gamma: float = 0.5) -> jax.Array:
    """Focal loss, -(1 - p_y)^gamma log p_y (Lin et al. 2017), no gradient through the factor; gamma 0 is CE."""
    return _of_label(_focal(logits, gamma), y)


def nce(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Normalised cross-entropy, log p_y / sum_k log p_k, in [0,1] (Ma et al. 2020, eq. 7)."""
    log_p = jax.nn.log_softmax(logits)
    return _of_label(log_p, y) / log_p.sum(axis=1)


def nfl(logits: jax.Array, y: jax.Array, *, gamma: float = 0.5) -> jax.Array:
    """Normalised focal loss, FL_y / sum_k FL_k, in [0,1] (Ma et al. 2020, eq. 9)."""
    focal = _focal(logits, gamma)
    return _of_label(focal, y) / focal.sum(axis=1)


def mae(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Mean absolute error over the simplex, halved: 1 - p_y, in [0,1] (Ghosh et al. 2017)."""
    return -jnp.expm1(_of_label(jax.nn.log_softmax(logits), y))


def rce(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Reverse cross-entropy, -sum_k p_k log max(1{k=y}, 1e-4) = -log(1e-4) (1 - p_y) (Wang et al. 2019)."""
    return -math.log(1e-4) * mae(logits, y)


def sce(logits: jax.Array, y: jax.Array, *, a: float = 0.1, b: float = 1.0) -> jax.Array:
    """Symmetric cross-entropy, a CE + b RCE (Wang et al. 2019)."""
    return a * ce(logits, y) + b * rce(logits, y)


def gce(logits: jax.Array, y: jax.Array, *, q: float = 0.7) -> jax.Array:
    """Generalised cross-entropy, (1 - p_y^q) / q: MAE at q = 1, CE as q falls to 0 (Zhang and Sabuncu 2018)."""
    return -jnp.expm1(q * _of_label(jax.nn.log_softmax(logits), y)) / q


def elr(
    logits: jax.Array,  # [B,K]
    y: jax.Array,  # int [B]
    targets: jax.Array,  # [B,K], the examples' own, zero at first
    *,
    momentum: float = 0.7,
    weight: float = 3.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns the early-learning regularised loss [B], CE + weight log(1 - <t, p>), and the new targets t [B,K].

    Targets are running means of the predictions, t <- momentum t + (1 - momentum) p, without gradient: what was
    learnt early is held on to when wrong labels begin to be memorised (Liu et al. 2020).
    """
    p = jax.nn.softmax(logits)
    targets = jax.lax.stop_gradient(momentum * targets + (1 - momentum) * p)
    left = jnp.maximum(1 - (targets * p).sum(axis=1), 1e-4)  # both near the same corner: nothing more to gain
    return ce(logits, y) + weight * jnp.log(left), targets


def smallest(losses: jax.Array, count: jax.Array | int) -> jax.Array:
    """Returns bool [B], true for the `count` smallest of losses [B]; of equal ones the first."""
    rank = jnp.argsort(jnp.argsort(losses, stable=True), stable=True)
    return rank < count


def _of_label(values: jax.Array, y: jax.Array) -> jax.Array:
    """Shapes: [B,K], int [B] -> [B]."""
    return jnp.take_along_axis(values, y[:, None], axis=1)[:, 0]


def _focal(logits: jax.Array, gamma: float) -> jax.Array:
    """The focal loss of every class [B,K]."""
    log_p = jax.nn.log_softmax(logits)
    return -(jax.lax.stop_gradient(-jnp.expm1(log_p)) ** gamma) * log_p


ACTIVE = {"nce": nce, "nfl": nfl}
PASSIVE = {"mae": mae, "rce": rce}


def _active_passive(
    logits: jax.Array, y: jax.Array, *, active: Loss, passive: Loss, a: float = 1.0, b: float = 1.0
) -> jax.Array:
    """a active + b passive: one raises p_y, the other lowers all else (Ma et al. 2020)."""
    return a * active(logits, y) + b * passive(logits, y)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "ce": ce,
    "fl": fl,
    "sce": sce,
    "gce": gce,
    **ACTIVE,
    **PASSIVE,
    **{
        f"{active}+{passive}": functools.partial(_active_passive, active=ACTIVE[active], passive=PASSIVE[passive])
        for active in ACTIVE
        for passive in PASSIVE
    },
}
# What `make_loss` accepts; at q below 1e-6 GCE is CE to the last digit of float32.
RANGES = {
    "gamma": (0.0, math.inf),
    "q": (1e-6, 1.0),
    "a": (0.0, math.inf),
    "b": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "weight": (0.0, math.inf),
}


def make_loss(name: str, **parameters: float) -> Loss:
    """Returns loss(logits [B,K], y int [B]) -> [B] of `LOSSES`, its parameters bound.

    Unknown names, parameters that the loss does not have and values outside their range raise `UserError`.
    """
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r}{did_you_mean(name, LOSSES)}")
    check_parameters(name, LOSSES[name], parameters)
    return functools.partial(LOSSES[name], **parameters)


def check_parameters(name: str, loss: Callable, parameters: dict[str, float]) -> None:
    """Raises `UserError` for a parameter that the loss called `name` does not have, or outside `RANGES`."""
    known = [parameter for parameter in RANGES if parameter in inspect.signature(loss).parameters]
    for parameter, value in parameters.items():
        if parameter not in known:
            raise UserError(f"the loss {name!r} has no parameter {parameter!r}; it has: {', '.join(known) or 'none'}")
        low, high = RANGES[parameter]
        if not (math.isfinite(value) and low <= value <= high):
            raise UserError(f"{parameter} of the loss {name!r} must be a number from {low:g} to {high:g}, got {value}")
