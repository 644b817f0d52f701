"""Clean-label denoisers out of those that a model has learnt from noisy labels: no training, a classifier alone.

M_j = E[x0 | x_t, y_tilde=j] mixes the clean D_y: p_j M_j = sum_i S_ij h_i D_i with p = h S. Where S has an inverse V,

  D_y = D_null + h_y^-1 sum_j V_jy p_j (M_j - D_null),

and since sum_j p_j (M_j - D_null) = 0 any number may be subtracted from a column of V. For symmetric noise that leaves
the own label alone: D_y = D_null + (1 + a / (b h_y)) (M_y - D_null) with S = a + b I. D_null, which label dropout
trains, is what no label noise can hurt.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.diffusion.process import Denoise, NoiseLevels, per_example
from tdsm_jax.errors import UserError
from tdsm_jax.labels.transition import condition_number
from tdsm_jax.labels.weights import INVERSE_LIMIT

_EQUAL = 1e-6  # of a column's largest entry: a float32 matrix still has equal ones


class Terms(NamedTuple):
    """For each class y the noisy labels whose M_j its D_y is made of, the own one first, and their coefficients.

    classes int [K,E], coefficients [K,E], 0 where a class needs fewer; S [K,K].
    """

    classes: np.ndarray
    coefficients: np.ndarray
    S: np.ndarray


def unmixing_terms(S: np.ndarray, most: int) -> Terms:
    """Returns the terms for S [K,K]: the own label and at most `most` others, those of the largest coefficients.

    From each column of S^-1 its median is taken away, which leaves the fewest and the smallest, or nothing where that
    leaves fewer. Exact unless there are more than `most`. A singular S is a `UserError`.
    """
    S = np.asarray(S, np.float64)
    if condition_number(S) >= INVERSE_LIMIT:
        raise UserError("the noisy labels cannot be undone: S is singular, and several clean denoisers explain a model")
    columns = [_without_median(column, y) for y, column in enumerate(np.linalg.inv(S).T)]
    needed = min(most, max(int(np.count_nonzero(np.delete(column, y))) for y, column in enumerate(columns)))
    order = [
        np.argsort(-np.where(np.arange(len(S)) == y, np.inf, abs(c)), kind="stable") for y, c in enumerate(columns)
    ]
    classes = np.stack(order)[:, : 1 + needed].astype(np.int32)
    return Terms(classes, np.take_along_axis(np.stack(columns), classes, axis=1), S)


def _without_median(column: np.ndarray, y: int) -> np.ndarray:
    """The column y of S^-1 less a number, [K]: what is nearly 0 is 0."""
    tried = [column - floor for floor in (0.0, np.median(np.delete(column, y)))]
    tried = [np.where(abs(rest) > _EQUAL * abs(column).max(), rest, 0.0) for rest in tried]
    return min(tried, key=lambda rest: np.count_nonzero(np.delete(rest, y)))


@jax.jit
def factors(terms: Terms, log_h: jax.Array, label: jax.Array, limit: float) -> jax.Array:
    """Returns what multiplies M_j - D_null of each term of each example, [B,E].

    None exceeds `limit`: where the image looks like another class h_y is small, and errors of M_j and D_null would be
    magnified without end; all terms of an example are scaled alike. Shapes: log_h [B,K], label int [B].
    """
    h = jax.nn.softmax(log_h)
    p = jnp.matmul(h, jnp.asarray(terms.S, h.dtype), precision="highest")
    of_label = jnp.asarray(terms.classes)[label]  # [B,E]
    shares = jnp.asarray(terms.coefficients, h.dtype)[label] * jnp.take_along_axis(p, of_label, axis=1)
    largest = jnp.abs(shares).max(axis=1, keepdims=True)
    own = jnp.take_along_axis(h, label[:, None], axis=1)
    return shares / jnp.maximum(own, largest / limit)


def unmixed(
    M: Denoise,
    D_null: Denoise,
    log_posterior: Callable[[jax.Array, NoiseLevels], jax.Array],  # (x_t [B,...], sigma [B]) -> log h [B,K]
    terms: Terms,
    limit: float,
) -> Denoise:
    """Returns the clean-label denoiser of a model `M` of noisy labels: an evaluation a term, and one of `D_null`."""
    classes = jnp.asarray(terms.classes)

    def denoise(x: jax.Array, sigma: NoiseLevels, label: jax.Array, *extra: jax.Array) -> jax.Array:
        u = D_null(x, sigma, label, *extra)
        factor, D = factors(terms, log_posterior(x, sigma), label, limit), u
        for e in range(classes.shape[1]):
            D = _with_term(D, factor[:, e], M(x, sigma, classes[label, e], *extra), u)
        return D

    return denoise


@jax.jit
def _with_term(D: jax.Array, factor: jax.Array, M_j: jax.Array, u: jax.Array) -> jax.Array:
    return D + per_example(factor, D) * (M_j - u)
