"""Optimisers by name, and clipping at a percentile of the gradient norms seen lately."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plain import PLAIN, assert_trees_equal
from tdsm_jax.errors import UserError
from tdsm_jax.training.optimisers import OPTIMISERS, clip_by_percentile
from tdsm_jax.training.state import initial_state, update

START = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array(0.5)}


def steps(optimisation, count, start=START):
    """Descends the square of the parameters."""
    state = initial_state(start, optimisation)
    for _ in range(count):
        state = update(state, jax.tree.map(lambda leaf: 2 * leaf, state.params), optimisation)
    return state


def test_adam_is_adamw_bit_for_bit():
    chosen = dataclasses.replace(PLAIN, weight_decay=0.1)
    reference = optax.chain(optax.identity(), optax.adamw(lambda step: jnp.float32(0.1), weight_decay=0.1))
    params, state = START, reference.init(START)
    for _ in range(5):
        change, state = reference.update(jax.tree.map(lambda leaf: 2 * leaf, params), state, params)
        params = optax.apply_updates(params, change)
    found = steps(chosen, 5)
    assert_trees_equal(found.params, params)
    assert jax.tree.structure(found.opt_state) == jax.tree.structure(state)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_descends_at_the_learning_rate_and_decays_weights_beside_it(name):
    chosen = dataclasses.replace(PLAIN, optimiser=name, learning_rate=0.01)
    first = steps(chosen, 20)
    assert (np.abs(first.params["w"]) < np.abs(START["w"])).all()
    moved = np.abs(START["w"] - steps(chosen, 2).params["w"])
    assert (moved <= 2 * 0.01 * 1.2 * (20 if name == "adabelief" else 1)).all() and moved.min() > 0
    decayed = dataclasses.replace(chosen, weight_decay=0.5)
    # Decay takes learning_rate * weight_decay * w away, outside the moments: exactly that much in the first step.
    difference = steps(chosen, 1).params["w"] - steps(decayed, 1).params["w"]
    np.testing.assert_allclose(difference, 0.01 * 0.5 * START["w"], rtol=1e-4)


def test_adopt_only_measures_at_first_and_then_scales_by_the_gradients_before():
    chosen = dataclasses.replace(PLAIN, optimiser="adopt", learning_rate=0.01)
    np.testing.assert_array_equal(steps(chosen, 1).params["w"], START["w"])
    # |g| / sqrt(v) = 1, of which the average takes a tenth: the bound at step 1 is 1 ** .25.
    np.testing.assert_allclose(steps(chosen, 2).params["w"], START["w"] - 0.01 * 0.1 * np.sign(START["w"]), rtol=1e-5)


def clipped_norms(norms, percentile, window):
    clip = clip_by_percentile(percentile, window)
    state, found = clip.init(START), []
    for norm in norms:
        gradient, state = clip.update({"w": jnp.array([0.6, 0.8]) * norm}, state)
        found.append(float(optax.tree.norm(gradient)))
    return found, state


def test_gradients_are_cut_to_the_percentile_of_the_last_ones():
    norms = [1.0, 3.0, 2.0, 100.0, 1.5, 0.0, 4.0]
    found, _ = clipped_norms(norms, 50.0, 4)
    expected = [min(norms[i], np.percentile(norms[max(i - 3, 0) : i + 1], 50)) for i in range(len(norms))]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(clipped_norms(norms, 100.0, 4)[0], norms, rtol=1e-5)


def test_the_history_is_of_one_shape_and_forgets():
    _, state = clipped_norms([1000.0, 1.0, 1.0, 1.0, 1.0], 90.0, 4)
    assert state.norms.shape == (4,) and int(state.count) == 5
    np.testing.assert_allclose(state.norms, 1, rtol=1e-6)


def test_percentile_clipping_goes_on_from_its_state_and_stands_beside_a_fixed_norm():
    chosen = dataclasses.replace(PLAIN, clip_percentile=60.0, clip_window=3, clip_norm=5.0)
    whole = steps(chosen, 6)
    half = steps(chosen, 3)
    for _ in range(3):
        half = update(half, jax.tree.map(lambda leaf: 2 * leaf, half.params), chosen)
    assert_trees_equal(half.opt_state, whole.opt_state)
    assert np.nanmax(whole.opt_state[0][1].norms) <= 5.0001


def test_a_name_that_is_none_is_refused():
    with pytest.raises(UserError, match="did you mean 'adabelief'"):
        dataclasses.replace(PLAIN, optimiser="adabelieve")
