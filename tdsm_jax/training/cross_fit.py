"""Cross-fitting: every example is weighted by the classifiers that never saw it."""

import functools
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.data.batches import batch_indices
from tdsm_jax.diffusion.process import EDM, per_example
from tdsm_jax.labels.stress import fixed_error
from tdsm_jax.training import classifier
from tdsm_jax.training.calibration import SIGMAS, softened
from tdsm_jax.training.classifier import Fitted, Labelled
from tdsm_jax.training.fit_step import FitSettings, Network, classify
from tdsm_jax.training.parallel import DataMesh
from tdsm_jax.training.state import Params

GROUP_SLACK = 1.3  # room of a fold's group in a batch, over its expected share
_MEMBER_SEEDS = 2**32  # between the seeds of an ensemble's members: other runs' seeds are far smaller


class Weigher(NamedTuple):
    """The classifiers' network, and the process whose preconditioning they were fitted with.

    `logit_noise` is the standard deviation of a fixed error added to log h, to see what worse classifiers do.
    """

    network: Network
    process: EDM
    logit_noise: float = 0.0


class CrossFitted(NamedTuple):
    """Ensembles of m classifiers for F folds: parameters stacked along two axes [F,m], temperatures [F,G]."""

    params: Params
    temperature: jax.Array


def assign_folds(num_examples: int, folds: int, seed: int) -> np.ndarray:
    """Returns the fold int32 [N] of each example, sizes equal to within one: the classifier that never saw it."""
    order = batch_indices(seed, 0, num_examples, num_examples)
    fold = np.empty(num_examples, np.int32)
    fold[order] = np.arange(num_examples) % folds
    return fold


def fit_fold(
    data: Labelled,
    key: jax.Array,
    *,
    label: str,
    settings: FitSettings,
    S: np.ndarray | None,
    mesh: DataMesh,
    seed: int,
    members: int = 1,
    held_out: Labelled | None = None,
    directory: pathlib.Path | None = None,
) -> list[Fitted]:
    """Fits the ensemble of one fold: `members` classifiers that differ by initial weights, noise and batch order.

    Arguments of `classifier.fit`, to which one member alone comes down. Several share the temperature of their mean
    probability and its held-out loss.
    """
    fitted = []
    for member in range(members):
        again = f"member{member}" if member else ""
        fitted.append(
            classifier.fit(
                data,
                jax.random.fold_in(key, member) if member else key,
                label=f"{label}/{again}".rstrip("/"),
                settings=settings,
                S=S,
                mesh=mesh,
                seed=seed + member * _MEMBER_SEEDS,
                held_out=held_out,
                directory=directory and directory / again,
            )
        )
    if members == 1 or held_out is None:
        return fitted
    seen = classifier.make_held_out(settings, held_out, jax.random.fold_in(key, members), mesh)
    logits = mean_logits(jnp.stack([seen.logits({"network": f.params}) for f in fitted]))
    log_S = jnp.log(jnp.asarray(np.mean([f.S for f in fitted], axis=0), jnp.float32))
    temperature, nll, _ = classifier.calibrated(settings, logits, seen, log_S)
    return [f._replace(temperature=temperature, held_out_nll=nll) for f in fitted]


def mean_logits(logits: jax.Array) -> jax.Array:
    """Returns the log of the members' mean probability [B,K] of their logits [m,B,K]; of one member as they are."""
    if len(logits) == 1:
        return logits[0]
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - math.log(len(logits))


def stack_folds(fitted: Sequence[Fitted | Sequence[Fitted]]) -> CrossFitted:
    """Stacks the classifiers of all folds, in order: one a fold, or as many members for each; the first's T holds."""
    groups = [[fold] if isinstance(fold, Fitted) else list(fold) for fold in fitted]
    members = len(groups[0])
    params = jax.tree.map(
        lambda *leaves: jnp.stack(leaves).reshape(len(groups), members, *leaves[0].shape),
        *[f.params for group in groups for f in group],
    )
    temperature = [np.broadcast_to(group[0].temperature, SIGMAS.shape) for group in groups]
    return CrossFitted(params, jnp.asarray(np.stack(temperature), jnp.float32))


def group_size(batch_size: int, folds: int) -> int:
    """Returns how many examples of a batch go through each of several folds' classifiers."""
    return min(batch_size, math.ceil(GROUP_SLACK * batch_size / folds))


def fold_logits(weigher: Weigher, classifiers: CrossFitted, f: int, x_t: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns log h / T(sigma) by the ensemble of fold f. Shapes: x_t [B,H,W,C], sigma [B] -> [B,K]."""

    def one(member: int) -> jax.Array:
        params = jax.tree.map(lambda leaf: leaf[f, member], classifiers.params)
        return classify(functools.partial(weigher.network.apply, params), weigher.process, x_t, sigma)[0]

    members = jax.tree.leaves(classifiers.params)[0].shape[1]
    mean = mean_logits(jnp.stack([one(member) for member in range(members)]))
    log_h = softened(mean, classifiers.temperature[f], sigma)
    if weigher.logit_noise:
        x_in = per_example(weigher.process.c_in(sigma), x_t) * x_t
        log_h += weigher.logit_noise * fixed_error(x_in, log_h.shape[1])
    return log_h


def averaged_logits(weigher: Weigher, classifiers: CrossFitted, x_t: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns the log of the mean probability of all folds' ensembles, each at its own temperature, [B,K].

    For images that no classifier has seen, such as those being generated: they belong to no fold. It costs as many
    classifiers as there are. Shapes: x_t [B,H,W,C], sigma [B].
    """
    folds = len(classifiers.temperature)
    return mean_logits(jnp.stack([fold_logits(weigher, classifiers, f, x_t, sigma) for f in range(folds)]))


def cross_fitted_logits(
    weigher: Weigher,
    classifiers: CrossFitted,
    x_t: jax.Array,  # [B,H,W,C]
    sigma: jax.Array,  # [B]
    fold: jax.Array,  # int [B]
) -> jax.Array:  # [B,K]
    """Returns log h / T(sigma) of each example by the ensemble of its fold, at the cost of about one a member.

    The examples are grouped by fold in groups of static size; a batch with a fuller group, which is rare, is
    sent through every classifier instead.
    """
    folds, B = len(classifiers.temperature), len(fold)

    def logits(f: int, rows: jax.Array) -> jax.Array:
        return fold_logits(weigher, classifiers, f, x_t[rows], sigma[rows])

    if folds == 1:
        return logits(0, jnp.arange(B))
    size = group_size(B, folds)
    member = fold[:, None] == jnp.arange(folds)
    rank = (jnp.cumsum(member, axis=0) - 1)[jnp.arange(B), fold]
    index = jnp.zeros((folds, size), jnp.int32).at[fold, rank].set(jnp.arange(B), mode="drop")

    def grouped() -> jax.Array:
        return jnp.stack([logits(f, index[f]) for f in range(folds)])[fold, rank]

    def every() -> jax.Array:
        return jnp.stack([logits(f, jnp.arange(B)) for f in range(folds)])[fold, jnp.arange(B)]

    return jax.lax.cond(rank.max() < size, grouped, every)
