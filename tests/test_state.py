"""The state: the optimiser's step, the average, keys by example, parameters by name."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from plain import PLAIN, assert_trees_equal
from tdsm_jax.training.state import (
    example_keys,
    flatten_params,
    initial_state,
    normal_like,
    stream_key,
    unflatten_params,
    update,
)


def test_the_average_forgets_half_in_its_half_life():
    state = initial_state({"w": jnp.zeros(1)}, PLAIN)
    decays = [float(PLAIN.ema_decay(jnp.int32(step))) for step in range(5)]
    np.testing.assert_allclose(decays, [0.5, 0.5**0.5, 0.5**0.5, 0.5**0.5, 0.5**0.5], rtol=1e-6)
    new = update(state, {"w": jnp.ones(1)}, PLAIN)
    np.testing.assert_allclose(new.ema_params["w"], new.params["w"] * (1 - decays[0]), rtol=1e-6)


def test_the_learning_rate_ramps_over_images():
    ramped = dataclasses.replace(PLAIN, ramp_images=32)
    steps = []
    state = initial_state({"w": jnp.zeros(1)}, ramped)
    for _ in range(6):
        new = update(state, {"w": jnp.ones(1)}, ramped)
        steps.append(float(state.params["w"][0] - new.params["w"][0]))
        state = new
    # Adam's step for a constant gradient is the learning rate itself.
    np.testing.assert_allclose(steps, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-4)


def test_clipping_bounds_the_gradient_norm():
    clipped = dataclasses.replace(PLAIN, clip_norm=1.0)
    big, small = {"w": jnp.full(4, 50.0)}, {"w": jnp.full(4, 0.5)}
    state = initial_state({"w": jnp.zeros(4)}, clipped)
    assert_trees_equal(update(state, big, clipped).opt_state, update(state, small, clipped).opt_state)


def test_keys_of_examples_do_not_depend_on_the_batch():
    key, x = stream_key(0, "a"), jnp.zeros((6, 3))
    whole = normal_like(example_keys(key, jnp.int32(4), jnp.arange(6)), x)
    halves = [normal_like(example_keys(key, jnp.int32(4), jnp.arange(3) + s), x[:3]) for s in (0, 3)]
    assert_trees_equal(whole, jnp.concatenate(halves))
    others = [
        normal_like(example_keys(stream_key(0, "b"), jnp.int32(4), jnp.arange(6)), x),
        normal_like(example_keys(stream_key(1, "a"), jnp.int32(4), jnp.arange(6)), x),
        normal_like(example_keys(key, jnp.int32(5), jnp.arange(6)), x),
    ]
    for other in others:
        assert not np.any(other == whole)


def test_params_survive_flattening():
    params = {"a": {"b": np.ones(2), "c": {"d": np.zeros((1, 3))}}}
    assert set(flatten_params(params)) == {"a/b", "a/c/d"}
    assert_trees_equal(unflatten_params(flatten_params(params)), params)
