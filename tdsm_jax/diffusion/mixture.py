"""Mixtures of class-conditional denoisers: a plan of slots (class, weight) for each example, and its evaluation.

Every objective is a plan. Slot 0 is the label the example trains; the others complete the mixture
M = sum_e weights[:,e] D(x_t, sigma, classes[:,e]) that is compared with x0.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.diffusion.process import Denoise, per_example
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.labels.weights import Weigh, WeightTable, posterior

RULES = ("own", "prior", "all", "threshold", "floor", "sampled")


class Plan(NamedTuple):
    """Slots of each example: classes int [B,E] (K = null label) and weights float32 [B,E]."""

    classes: jax.Array
    weights: jax.Array


def plan(
    rule: str,
    y_tilde: jax.Array,  # int [B]
    table: WeightTable | None = None,
    logits: jax.Array | None = None,  # of h [B,K]; not read by `own` and `prior`
    *,
    tau: float = 0.0,
    residual_slots: tuple[int, bool] = (0, True),
    weigh: Weigh = posterior,
    keys: jax.Array | None = None,  # [B], read by `sampled`
) -> Plan:
    """Returns the slots of `rule`:

    own        the given label alone (DSM)
    prior      all classes, weights p(y | y_tilde) (S-weighted DSM)
    all        all classes, weights w = p(y | x_t, y_tilde) (TDSM)
    threshold  the same without the weights <= tau, the own label kept, not renormalised (TDSM as published)
    floor      the same mixture through the null label, see `floor_plan`
    sampled    two classes drawn from w independently, for `objectives.sampled_score_matching`

    `weigh` computes w: an entry of `labels.weights.WEIGHTS`, its temperature bound.
    """
    if rule == "own":
        return Plan(y_tilde[:, None], jnp.ones((y_tilde.shape[0], 1)))
    if rule == "prior":
        return _class_plan(table.label_posterior[y_tilde], y_tilde)
    if rule not in RULES:
        raise UserError(f"unknown mixture rule {rule!r}{did_you_mean(rule, RULES)}")
    w = weigh(table, logits, y_tilde)
    if rule == "sampled":
        return sampled_plan(keys, w)
    if rule == "floor":
        return floor_plan(table, w, y_tilde, residual_slots)
    return _class_plan(w, y_tilde, tau if rule == "threshold" else 0.0)


def _class_plan(w: jax.Array, y_tilde: jax.Array, tau: float = 0.0) -> Plan:
    """One slot a class, the own label first; other weights <= tau become zero."""
    K = w.shape[1]
    classes = (y_tilde[:, None] + jnp.arange(K)) % K
    weights = jnp.take_along_axis(w, classes, axis=1)
    others = jnp.where(weights[:, 1:] > tau, weights[:, 1:], 0.0)
    return Plan(classes, jnp.concatenate([weights[:, :1], others], axis=1))


def sampled_plan(keys: jax.Array, w: jax.Array) -> Plan:
    """Draws two classes of each example from w [B,K] independently, at half weight each. keys [B]."""
    draw = jax.vmap(lambda key, log_w: jax.random.categorical(key, log_w, shape=(2,)))
    classes = draw(keys, jnp.log(w)).astype(jnp.int32)
    return Plan(classes, jnp.full(classes.shape, 0.5))


def floor_plan(table: WeightTable, w: jax.Array, y_tilde: jax.Array, residual_slots: tuple[int, bool]) -> Plan:
    """Returns the mixture with the column floor of S moved onto the null label.

    With a_j = min_i S_ij, sum_i a_j h_i D_i = a_j D_null, so that M_j = sum_{S_ij > a_j} w_i (1 - a_j/S_ij) D_i
    + (the rest) D_null: two slots for symmetric noise of any K. `residual_slots` = (m, null) from
    `floor_slots`: the own label, the m heaviest other classes, and the null label with what remains.
    Shapes: w [B,K], y_tilde int [B] -> E = 1 + m + null.
    """
    m, null = residual_slots
    K = table.num_classes
    above_floor = w * table.residual.T[y_tilde]  # [B,K]
    is_own = jax.nn.one_hot(y_tilde, K, dtype=bool)
    own = jnp.sum(jnp.where(is_own, above_floor, 0.0), axis=1, keepdims=True)
    others, classes = jax.lax.top_k(jnp.where(is_own, -1.0, above_floor), m)
    classes = jnp.concatenate([y_tilde[:, None], classes], axis=1)
    weights = jnp.concatenate([own, others], axis=1)
    if null:
        rest = jnp.maximum(1 - weights.sum(axis=1, keepdims=True), 0.0)
        classes = jnp.concatenate([classes, jnp.full_like(classes[:, :1], K)], axis=1)
        weights = jnp.concatenate([weights, rest], axis=1)
    return Plan(classes, weights)


def floor_slots(S: np.ndarray, most: int) -> tuple[int, bool]:
    """Returns (m, null), the static shape of `floor_plan` for this S [K,K].

    m classes beside the own one rise above their column's floor, at most `most` of them get a slot; `null` says
    whether anything is left for the null label, be it only the mixture of a label that S makes impossible.
    """
    above = S - S.min(axis=0) > 1e-6  # a float32 matrix still has equal entries
    np.fill_diagonal(above, False)
    needed = int(above.sum(axis=0).max())
    return min(needed, most), bool(needed > most or S.min(axis=0).max() > 0 or S.max(axis=0).min() == 0)


def dropped_to_class_0(y_tilde: jax.Array, dropped: jax.Array) -> jax.Array:
    """Returns the labels [B] with class 0 where `dropped` [B] is set, to be planned for like any other.

    What TDSM as published does to a dropped label: its one-hot vector of zeros is read back by argmax. The null
    label is then never trained; `drop_labels` is the remedy.
    """
    return jnp.where(dropped, 0, y_tilde)


def drop_labels(slots: Plan, dropped: jax.Array, null: int) -> Plan:
    """Makes the examples where `dropped` [B] is set train the null label alone, outside the mixture."""
    only_first = jnp.arange(slots.weights.shape[1]) == 0
    classes = slots.classes.at[:, 0].set(jnp.where(dropped, null, slots.classes[:, 0]))
    return Plan(classes, jnp.where(dropped[:, None], only_first.astype(jnp.float32), slots.weights))


class Mixture(NamedTuple):
    """M [B,...] and how it came about: `kept_mass` mean weight sum, `overflow` slots beyond the first pass."""

    M: jax.Array
    kept_mass: jax.Array
    overflow: jax.Array


def evaluate(
    denoise: Denoise,
    frozen: Denoise | None,
    x_t: jax.Array,  # [B,...]
    sigma: jax.Array,  # [B]
    slots: Plan,
    capacity: float | None = None,
    augment_label: jax.Array | None = None,  # [B,A]
) -> Mixture:
    """Evaluates a plan: slot 0 by `denoise`, the other slots by `frozen` (the same network, no gradient).

    `frozen` None sends every slot through `denoise` (gradient through all of them). A `capacity` packs the
    frozen slots of non-zero weight into batches of capacity * B; what overflows takes further passes, so the
    result never depends on it. Denoisers receive `augment_label` as fourth argument where there is one.
    """
    extra = () if augment_label is None else (augment_label,)
    kept_mass = slots.weights.sum(axis=1).mean()
    nothing = jnp.zeros((), jnp.int32)
    if frozen is None:
        return Mixture(_every_slot(denoise, x_t, sigma, slots, extra), kept_mass, nothing)
    own = denoise(x_t, sigma, slots.classes[:, 0], *extra)
    M = per_example(slots.weights[:, 0], own) * own
    rest = Plan(slots.classes[:, 1:], slots.weights[:, 1:])
    if rest.classes.shape[1] == 0:
        return Mixture(M, kept_mass, nothing)
    if capacity is None or capacity >= rest.classes.shape[1]:
        return Mixture(M + _every_slot(frozen, x_t, sigma, rest, extra), kept_mass, nothing)
    packed, overflow = _packed(frozen, x_t, sigma, rest, extra, math.ceil(capacity * x_t.shape[0]))
    return Mixture(M + packed, kept_mass, overflow)


def _every_slot(
    denoise: Denoise, x_t: jax.Array, sigma: jax.Array, slots: Plan, extra: tuple[jax.Array, ...]
) -> jax.Array:
    D = jax.vmap(lambda label: denoise(x_t, sigma, label, *extra), in_axes=1, out_axes=1)(slots.classes)  # [B,E,...]
    # Not in TF32: where sigma is small, lambda turns the third digit of M into a loss of thousands.
    return jnp.einsum("be,be...->b...", slots.weights, D, precision="highest")


def _packed(
    denoise: Denoise, x_t: jax.Array, sigma: jax.Array, slots: Plan, extra: tuple[jax.Array, ...], size: int
) -> tuple[jax.Array, jax.Array]:
    """Sums the slots of non-zero weight, `size` of them a pass; returns the sum and the count past one pass."""
    E = slots.classes.shape[1]
    weights, classes = slots.weights.reshape(-1), slots.classes.reshape(-1)
    count = jnp.count_nonzero(weights)
    passes = -(-weights.size // size)
    index = jnp.nonzero(weights, size=passes * size, fill_value=0)[0].reshape(passes, size)
    used = (jnp.arange(passes * size) < count).reshape(passes, size)

    def add_pass(number: jax.Array | int, M: jax.Array) -> jax.Array:
        chosen, row = index[number], index[number] // E
        D = denoise(x_t[row], sigma[row], classes[chosen], *(values[row] for values in extra))
        weight = jnp.where(used[number], weights[chosen], 0.0)
        return M.at[row].add(per_example(weight, D) * D)

    M = add_pass(0, jnp.zeros_like(x_t))
    M = jax.lax.fori_loop(1, (count + size - 1) // size, add_pass, M)  # runs on overflow only
    return M, jnp.maximum(count - size, 0)
