"""The optimisers a config may choose, and gradient clipping at a percentile of the norms seen lately."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

Schedule = Callable[[jax.Array], jax.Array]  # step -> learning rate


def _decoupled(
    scale: optax.GradientTransformation, learning_rate: Schedule, weight_decay: float
) -> optax.GradientTransformation:
    """An optimiser whose weight decay does not pass through its moments, as AdamW's."""
    return optax.chain(scale, optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate))


# learning rate, weight decay -> optimiser, with the constants of its paper.
OPTIMISERS: dict[str, Callable[[Schedule, float], optax.GradientTransformation]] = {
    # Kingma and Ba 2015; Loshchilov and Hutter 2019
    "adam": lambda learning_rate, weight_decay: optax.adamw(learning_rate, weight_decay=weight_decay),
    # steps are large where gradients agree with their average; Zhuang et al. 2020, arXiv:2010.07468
    "adabelief": lambda learning_rate, weight_decay: _decoupled(optax.scale_by_belief(), learning_rate, weight_decay),
    # each gradient scaled by those before it alone, which converges for any beta2; Taniguchi et al. 2024,
    # arXiv:2411.02853. The first step only takes a measure.
    "adopt": lambda learning_rate, weight_decay: _decoupled(contrib.scale_by_adopt(), learning_rate, weight_decay),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NormHistory:
    """The norms of the last gradients before they were scaled here, float32 [window], NaN where there was none yet.

    After `clip_norm`, where that is set, too: it comes first. count int32 [], of all gradients.
    """

    norms: jax.Array
    count: jax.Array


def clip_by_percentile(percentile: float, window: int) -> optax.GradientTransformation:
    """Scales gradients down to a percentile of the norms of the last `window` of them, this one among them.

    No norm need be known beforehand, and a few outliers among examples move the parameters no further than others do.
    The first gradient is left as it is. Source: AutoClip, Seetharaman et al. 2020, arXiv:2007.14469, there over all
    gradients so far.
    """

    def init(params: optax.Params) -> NormHistory:
        return NormHistory(jnp.full(window, jnp.nan, jnp.float32), jnp.zeros((), jnp.int32))

    def update(
        gradient: optax.Updates, state: NormHistory, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NormHistory]:
        norm = optax.tree.norm(gradient)
        norms = state.norms.at[state.count % window].set(norm)
        most = jnp.nanpercentile(norms, percentile)
        scale = jnp.minimum(1.0, most / jnp.maximum(norm, 1e-30))
        return jax.tree.map(lambda leaf: leaf * scale, gradient), NormHistory(norms, state.count + 1)

    return optax.GradientTransformation(init, update)
