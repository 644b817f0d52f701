"""The state of a training run and one update of it; random keys derived from (seed, stream, step, example)."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.training.optimisers import OPTIMISERS, clip_by_percentile

Params = Any  # a pytree of float32 arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a resumed run needs: step int32 [], parameters, their average, optimiser state."""

    step: jax.Array
    params: Params
    ema_params: Params
    opt_state: optax.OptState


class Aside(NamedTuple):
    """Parameters trained along with others, and the state of their own optimiser."""

    params: Params
    opt_state: optax.OptState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StateWithAside(TrainState):
    """A state with parameters that are trained along and thrown away in the end, no part of the model."""

    aside: Aside


@dataclasses.dataclass(frozen=True)
class Optimisation:
    """How parameters move. Lengths are counted in images, so that they survive a change of batch size.

    `learning_rate` rises linearly over `ramp_images` and is multiplied by `decay_factors[i]`, not cumulatively,
    from `decay_images[i]` on; the average forgets half in `ema_half_life` images, less at the start: at most
    `ema_ramp` of the images seen (Karras et al. 2022). `clip_norm` 0 means no clipping; `clip_percentile` clips at that
    percentile of the norms of the last `clip_window` gradients, 0 not. `optimiser` is one of `OPTIMISERS`. Decays that
    do not pair up, in rising order, raise `UserError`.
    """

    batch_size: int
    learning_rate: float
    ramp_images: int
    ema_half_life: int
    ema_ramp: float
    weight_decay: float
    clip_norm: float
    decay_images: tuple[int, ...] = ()
    decay_factors: tuple[float, ...] = ()
    optimiser: str = "adam"
    clip_percentile: float = 0.0
    clip_window: int = 128

    def __post_init__(self):
        if self.optimiser not in OPTIMISERS:
            raise UserError(f"unknown optimiser {self.optimiser!r}{did_you_mean(self.optimiser, OPTIMISERS)}")
        if len(self.decay_images) != len(self.decay_factors):
            raise UserError(
                f"decay_images={self.decay_images} and decay_factors={self.decay_factors} must be of equal length"
            )
        if list(self.decay_images) != sorted(set(self.decay_images)):
            raise UserError(f"decay_images={self.decay_images} must rise strictly")

    def transformation(self) -> optax.GradientTransformation:
        """Returns the optimiser with the ramp, decoupled weight decay and clipping as asked."""

        def learning_rate(step: jax.Array) -> jax.Array:
            ramp = jnp.minimum((step + 1) * self.batch_size / max(self.ramp_images, 1), 1.0)
            decays = jnp.count_nonzero(step * self.batch_size >= jnp.asarray(self.decay_images, jnp.int32))
            return self.learning_rate * ramp * jnp.asarray((1.0, *self.decay_factors))[decays]

        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        if self.clip_percentile:
            clip = optax.chain(clip, clip_by_percentile(self.clip_percentile, self.clip_window))
        return optax.chain(clip, OPTIMISERS[self.optimiser](learning_rate, self.weight_decay))

    def ema_decay(self, step: jax.Array) -> jax.Array:
        """Returns the decay of the parameter average after `step` updates."""
        seen = (step + 1) * self.batch_size
        half_life = jnp.minimum(self.ema_half_life, seen * self.ema_ramp)
        return 0.5 ** (self.batch_size / jnp.maximum(half_life, 1e-8))


@functools.partial(jax.jit, static_argnums=0)
def initial_variables(network: nn.Module, key: jax.Array, *example: jax.Array) -> Params:
    """Returns the variables of a network for inputs like `example`, drawn in one program.

    Drawn operation by operation, compiling them takes longer than everything else before the first step.
    """
    return network.init(key, *example)


def initial_state(params: Params, optimisation: Optimisation, aside: Params | None = None) -> TrainState:
    """Returns the state before the first update; the average starts at the parameters themselves."""
    average = jax.tree.map(jnp.copy, params)  # a copy: the step donates both
    opt_state = optimisation.transformation().init(params)
    state = TrainState(jnp.zeros((), jnp.int32), params, average, opt_state)
    if aside is None:
        return state
    beside = Aside(aside, _of_aside(optimisation).init(aside))
    return StateWithAside(state.step, state.params, state.ema_params, state.opt_state, beside)


def params_aside(state: TrainState) -> Params | None:
    """Returns the parameters trained along, None where there are none."""
    return state.aside.params if isinstance(state, StateWithAside) else None


def _of_aside(optimisation: Optimisation) -> optax.GradientTransformation:
    """Adam at the same learning rates: neither weight decay nor clipping is meant for the parameters aside."""
    plain = dataclasses.replace(optimisation, optimiser="adam", weight_decay=0.0, clip_norm=0.0, clip_percentile=0.0)
    return plain.transformation()


def update(
    state: TrainState, gradient: Params, optimisation: Optimisation, aside_gradient: Params | None = None
) -> TrainState:
    """One step of the optimiser and of the parameter average; collections other than "params" stay as they are."""
    change, opt_state = optimisation.transformation().update(trained(gradient), state.opt_state, state.params)
    params = optax.apply_updates(state.params, trained(change))  # again: weight decay knows no collections
    decay = optimisation.ema_decay(state.step)
    ema_params = jax.tree.map(lambda average, new: new + decay * (average - new), state.ema_params, params)
    new = {"step": state.step + 1, "params": params, "ema_params": ema_params, "opt_state": opt_state}
    if isinstance(state, StateWithAside):
        move, aside_state = _of_aside(optimisation).update(aside_gradient, state.aside.opt_state, state.aside.params)
        new["aside"] = Aside(optax.apply_updates(state.aside.params, move), aside_state)
    return dataclasses.replace(state, **new)


def accumulated(gradient_of: Callable[[dict], tuple[Params, dict]], batch: dict, parts: int) -> tuple[Params, dict]:
    """Returns gradient and metrics of a batch taken in equal parts, one after the other: their means.

    `gradient_of`(rows of the batch) returns the means of its rows, whose memory is all that is needed at a time.
    """
    if parts == 1:
        return gradient_of(batch)
    split = jax.tree.map(lambda rows: rows.reshape(parts, -1, *rows.shape[1:]), batch)
    shapes = jax.eval_shape(gradient_of, jax.tree.map(lambda rows: rows[0], split))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, gradient_of(part)), None), nothing, split)
    return jax.tree.map(lambda leaf: leaf / parts, total)


def trained(tree: Params) -> Params:
    """Returns `tree` with zeros for what is not trained: wherever Flax variables lie, all collections but "params".

    Running statistics and stored constants keep a place in gradient and optimiser state, so that these have the
    form of the parameters.
    """
    if not isinstance(tree, dict):
        return tree
    still = {name for name in tree if "params" in tree and name != "params"}
    return {n: jax.tree.map(jnp.zeros_like, sub) if n in still else trained(sub) for n, sub in tree.items()}


def stream_key(seed: int, stream: str) -> jax.Array:
    """Returns the key of a named stream of randomness: independent for each name."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))


def example_keys(key: jax.Array, step: jax.Array, position: jax.Array) -> jax.Array:
    """Returns one key per example [B] from the stream's key, the step and the position in the global batch."""
    at_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.fold_in(at_step, i))(position)


def normal_like(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Draws unit normals of x's shape [B,...], example b from keys[b] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)


def flatten_params(params: Params) -> dict[str, np.ndarray]:
    """Returns parameters by "module/submodule/name", on the host: what is stored in an .npz."""
    return jax.device_get(traverse_util.flatten_dict(params, sep="/"))


def unflatten_params(arrays: dict[str, np.ndarray]) -> Params:
    """The inverse of `flatten_params`."""
    return traverse_util.unflatten_dict(arrays, sep="/")
