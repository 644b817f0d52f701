"""Transition matrices S[i, j] = p(y_tilde=j | y=i): rows are clean classes, columns noisy ones."""

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.errors import UserError

ROW_SUM_TOLERANCE = 1e-5  # a float32 row of a hundred classes still passes
CONDITION_LIMIT = 1e3


def check_stochastic(S: np.ndarray) -> None:
    """Raises `UserError` unless S [K, K], K >= 2, is finite, non-negative and each row sums to 1."""
    S = np.asarray(S)
    if S.ndim != 2 or S.shape[0] != S.shape[1] or S.shape[0] < 2:
        raise UserError(f"a transition matrix must be K x K with K >= 2, got shape {S.shape}")
    if S.dtype.kind not in "fiu" or not np.isfinite(S).all():
        raise UserError("the transition matrix has entries that are not finite numbers; give probabilities")
    if S.min() < 0:
        i, j = np.argwhere(S < 0)[0]
        raise UserError(f"the transition matrix has a negative entry: S[{i}, {j}] = {S[i, j]:.6g}")
    sums = S.sum(axis=1, dtype=np.float64)
    worst = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[worst] - 1) > ROW_SUM_TOLERANCE:
        raise UserError(
            f"row {worst} of the transition matrix sums to {sums[worst]:.6g}, not 1; "
            "rows are clean classes, columns noisy ones: is it transposed?"
        )


def check_invertible(S: np.ndarray, limit: float = CONDITION_LIMIT) -> None:
    """Raises `UserError` where S [K, K] is not stochastic or its condition number exceeds `limit`.

    With a singular S several clean-label models explain the same noisy labels, so no amount of data
    identifies the clean one; close to singular, estimation errors grow by the condition number.
    `limit=math.inf` lets every stochastic S pass.
    """
    check_stochastic(S)
    condition = condition_number(S)
    if condition <= limit:
        return
    num_classes = len(S)
    raise UserError(
        f"clean labels cannot be identified from these noisy ones: {_dependence(np.asarray(S))} "
        f"(condition number of S {condition:.3g}, limit {limit:.3g}; symmetric noise is singular at rate "
        f"{(num_classes - 1) / num_classes:.4g} for K={num_classes}, pair flips at 0.5 for even K); "
        "lower the rate, merge the classes, train without correction, or raise the limit to insist"
    )


def _dependence(S: np.ndarray) -> str:
    """Says which clean classes a (nearly) singular S [K, K] cannot tell apart."""
    distance = np.abs(S[:, None] - S[None]).sum(axis=-1)  # [K, K]
    same = np.argwhere(np.triu(distance < 2 / CONDITION_LIMIT, k=1))
    if len(same) == 0:
        return "the rows of S are linearly dependent, or nearly so"
    if len(same) == len(S) * (len(S) - 1) // 2:
        return "every clean class has (nearly) the same row of S"
    i, j = same[0]
    return f"clean classes {i} and {j} have (nearly) the same row of S"


def condition_number(S: np.ndarray) -> float:
    """Returns the ratio of the largest to the smallest singular value of S [K, K]; inf where singular."""
    return float(np.linalg.cond(np.asarray(S, np.float64)))


def relative_l1(S_hat: np.ndarray, S: np.ndarray) -> float:
    """Returns sum |S_hat - S| / sum |S|, the usual error of an estimated S_hat [K, K] against S [K, K]."""
    S_hat, S = np.asarray(S_hat, np.float64), np.asarray(S, np.float64)
    if S_hat.shape != S.shape:
        raise UserError(f"cannot compare transition matrices of shapes {S_hat.shape} and {S.shape}")
    return float(np.abs(S_hat - S).sum() / np.abs(S).sum())


def volmin_matrix(V: jax.Array) -> jax.Array:
    """Returns VolMinNet's row-stochastic T [K, K] of free parameters V [K, K].

    T = row-normalise(I + (1 - I) * sigmoid(V)): the diagonal is the largest entry of each row, so T stays
    diagonally anchored and cannot permute the classes. The diagonal of V has no effect.
    Source: Li et al., ICML 2021, "Provably end-to-end label-noise learning without anchor points".
    """
    unnormalised = jnp.where(jnp.eye(V.shape[0], dtype=bool), 1.0, jax.nn.sigmoid(V))
    return unnormalised / unnormalised.sum(axis=1, keepdims=True)


def volmin_initial(num_classes: int, diagonal: float = 0.5) -> jax.Array:
    """Returns float32 V [K, K] with T_ii = `diagonal` and equal off-diagonal entries in `volmin_matrix(V)`.

    The parametrisation reaches diagonals strictly between 1/K and 1 only; others raise `UserError`.
    """
    if num_classes < 2:
        raise UserError(f"labels need at least 2 classes, got {num_classes}")
    if not 1 / num_classes < diagonal < 1:
        raise UserError(
            f"the first diagonal must lie strictly between 1/K = {1 / num_classes:.4g} and 1, got {diagonal}"
        )
    off_diagonal = (1 / diagonal - 1) / (num_classes - 1)
    logit = np.log(off_diagonal) - np.log1p(-off_diagonal)
    return jnp.full((num_classes, num_classes), logit, jnp.float32)


def log_volume(T: jax.Array) -> jax.Array:
    """Returns log |det T| of T [K, K], a scalar; -inf where T is singular."""
    return jnp.linalg.slogdet(T)[1]
