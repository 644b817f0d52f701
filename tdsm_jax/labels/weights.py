"""Weights of the clean classes, p(y | x_t, y_tilde), and the immutable table they are made from."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.errors import UserError
from tdsm_jax.labels.transition import check_stochastic, condition_number

INVERSE_LIMIT = 1 / float(np.finfo(np.float32).eps)  # condition number from which float32 holds no inverse


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightTable:
    """All that the weights need to know of the label noise: float32 arrays, a pytree, never changed.

    S[i,j] = p(y_tilde=j | y=i) and its logarithm; `residual` [K,K] is the share of S[i,j] above its column's
    floor min_i S[i,j]; `label_posterior` [K,K] is R[j,y] = p(y | y_tilde=j); `inverse` [K,K] is that of S, None
    where S is singular.
    """

    S: jax.Array
    log_S: jax.Array
    residual: jax.Array
    label_posterior: jax.Array
    inverse: jax.Array | None

    @property
    def num_classes(self) -> int:
        return self.S.shape[0]


def make_table(S: np.ndarray, prior: np.ndarray) -> WeightTable:
    """Returns the table of S [K,K] and the clean class prior [K]; both are validated (`UserError`)."""
    check_stochastic(S)
    S, prior = np.asarray(S, np.float64), np.asarray(prior, np.float64)
    if prior.shape != S.shape[:1] or (prior < 0).any() or not np.isclose(prior.sum(), 1):
        raise UserError(f"the class prior must be {len(S)} probabilities that sum to 1, got {prior.tolist()}")
    with np.errstate(divide="ignore"):
        log_S = np.log(S)
    residual = np.divide(S - S.min(axis=0), S, out=np.zeros_like(S), where=S > 0)
    joint = (prior[:, None] * S).T  # [y_tilde, y]
    # A label that never occurs has no posterior; the prior stands in, and no example ever reads it.
    label_posterior = np.where(joint.sum(1, keepdims=True) > 0, joint, prior)
    label_posterior /= label_posterior.sum(1, keepdims=True)
    inverse = np.linalg.inv(S) if condition_number(S) < INVERSE_LIMIT else None
    return WeightTable(
        *(None if a is None else jnp.asarray(a, jnp.float32) for a in (S, log_S, residual, label_posterior, inverse))
    )


def clean_prior(S: np.ndarray, y_tilde: np.ndarray, steps: int = 1000) -> np.ndarray:
    """Estimates p(y) [K] from the noisy labels [N]: maximum likelihood under p(y_tilde) = p(y) S, by EM."""
    noisy = np.bincount(y_tilde, minlength=len(S)) / len(y_tilde)
    prior = np.full(len(S), 1 / len(S))
    for _ in range(steps):
        mixed = prior @ S
        prior = prior * (S @ np.divide(noisy, mixed, out=np.zeros_like(noisy), where=mixed > 0))
        prior /= prior.sum()
    return prior


def posterior(table: WeightTable, logits: jax.Array, y_tilde: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Returns w[b,i] = p(y=i | x_t, y_tilde[b]) by Bayes' rule: softmax(log S[:,y_tilde].T + log h).

    Any class prior cancels (TDSM, Na et al. 2024, theorem 1, through h instead of the inverse of S).
    Shapes: logits [B,K] with h = softmax(logits / temperature), y_tilde int [B] -> [B,K], rows sum to 1. A label
    that S makes impossible carries no information: w = h there.
    """
    evidence = table.log_S.T[y_tilde]  # [B,K], -inf where S is 0
    possible = jnp.isfinite(evidence).any(axis=1, keepdims=True)
    return jax.nn.softmax(jax.nn.log_softmax(logits / temperature) + jnp.where(possible, evidence, 0.0))


def inverse_posterior(table: WeightTable, logits: jax.Array, y_tilde: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Returns the weights as published: the noisy posterior h S, taken back through the inverse of S.

    Arguments and shapes of `posterior`, which it equals up to rounding where labels are possible.
    """
    h = jax.nn.softmax(logits / temperature)
    return weights_of_noisy(table, jnp.matmul(h, table.S, precision="highest"), y_tilde)


def weights_of_noisy(table: WeightTable, noisy: jax.Array, y_tilde: jax.Array) -> jax.Array:
    """Returns w of the noisy posterior p(y_tilde | x_t), such as a classifier of the noisy labels gives it.

    w_y = R_jy r_y / (R r)_j with R_jy = p(y | y_tilde=j) and R r = p(y_tilde | x_t) / p(y_tilde) (Na et al. 2024),
    in which any class prior cancels: w_y = S_yj h_y / noisy_j with h = noisy S^-1. Where no clean posterior
    explains `noisy`, h has negative entries: w is clamped to [0,1] and normalised, and zero where nothing is left.
    Shapes: noisy [B,K], rows sum to 1, y_tilde int [B] -> [B,K]. A singular S raises `UserError`.
    """
    if table.inverse is None:
        raise UserError("weights through the inverse need an invertible S and this one is singular; use Bayes' rule")
    h = jnp.matmul(noisy, table.inverse, precision="highest")
    own = jnp.take_along_axis(noisy, y_tilde[:, None], axis=1)
    w = jnp.where(own > 0, jnp.clip(table.S.T[y_tilde] * h / jnp.where(own > 0, own, 1.0), 0, 1), 0.0)
    total = w.sum(axis=1, keepdims=True)
    return w / jnp.where(total > 0, total, 1.0)


Weigh = Callable[..., jax.Array]  # (table, logits [B,K], y_tilde [B], temperature=1) -> w [B,K]
WEIGHTS: dict[str, Weigh] = {"bayes": posterior, "inverse": inverse_posterior}
