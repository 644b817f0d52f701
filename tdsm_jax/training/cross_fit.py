"""Cross-fitting: every example is weighted by the classifier that never saw it."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.data.batches import batch_indices
from tdsm_jax.diffusion.process import EDM
from tdsm_jax.training.classifier import Fitted, Network, classify
from tdsm_jax.training.state import Params

GROUP_SLACK = 1.3  # room of a fold's group in a batch, over its expected share


class Weigher(NamedTuple):
    """The classifiers' network, and the process whose preconditioning they were fitted with."""

    network: Network
    process: EDM


class CrossFitted(NamedTuple):
    """Classifiers of F folds, parameters stacked along a first axis, and their temperatures [F]."""

    params: Params
    temperature: jax.Array


def assign_folds(num_examples: int, folds: int, seed: int) -> np.ndarray:
    """Returns the fold int32 [N] of each example, sizes equal to within one: the classifier that never saw it."""
    order = batch_indices(seed, 0, num_examples, num_examples)
    fold = np.empty(num_examples, np.int32)
    fold[order] = np.arange(num_examples) % folds
    return fold


def stack_folds(fitted: list[Fitted]) -> CrossFitted:
    """Stacks the classifiers of all folds, in order."""
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[f.params for f in fitted])
    return CrossFitted(params, jnp.asarray([f.temperature for f in fitted], jnp.float32))


def cross_fitted_logits(
    weigher: Weigher,
    classifiers: CrossFitted,
    x_t: jax.Array,  # [B,H,W,C]
    sigma: jax.Array,  # [B]
    fold: jax.Array,  # int [B]
) -> jax.Array:  # [B,K]
    """Returns the logits / temperature of each example by the classifier of its fold, at the cost of about one.

    The examples are grouped by fold in groups of static size; a batch with a fuller group, which is rare, is
    sent through every classifier instead.
    """
    folds, B = len(classifiers.temperature), len(fold)

    def logits(f: int, rows: jax.Array) -> jax.Array:
        apply = functools.partial(weigher.network.apply, jax.tree.map(lambda leaf: leaf[f], classifiers.params))
        return classify(apply, weigher.process, x_t[rows], sigma[rows])[0] / classifiers.temperature[f]

    if folds == 1:
        return logits(0, jnp.arange(B))
    size = min(B, math.ceil(GROUP_SLACK * B / folds))
    member = fold[:, None] == jnp.arange(folds)
    rank = (jnp.cumsum(member, axis=0) - 1)[jnp.arange(B), fold]
    index = jnp.zeros((folds, size), jnp.int32).at[fold, rank].set(jnp.arange(B), mode="drop")

    def grouped() -> jax.Array:
        return jnp.stack([logits(f, index[f]) for f in range(folds)])[fold, rank]

    def every() -> jax.Array:
        return jnp.stack([logits(f, jnp.arange(B)) for f in range(folds)])[fold, jnp.arange(B)]

    return jax.lax.cond(rank.max() < size, grouped, every)
