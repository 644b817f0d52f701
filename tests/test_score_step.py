"""The training step of the score network: what may change how it runs, and not what it computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plain import PLAIN
from tdsm_jax.diffusion.process import EDM
from tdsm_jax.labels.corruption import symmetric
from tdsm_jax.labels.weights import make_table
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.unet import UNet
from tdsm_jax.training import cross_fit, parallel, score
from tdsm_jax.training.classifier import Fitted
from tdsm_jax.training.state import initial_state, stream_key

K, B = 4, 16
OPTIMISATION = dataclasses.replace(PLAIN, batch_size=B, learning_rate=1e-3)
NETWORK = UNet(K, 8, (1,), 1, (), 0.1)  # with attention at its lowest resolution, as always
CLASSIFIER = Classifier(K, (8,), 16, 0.0)
OBJECTIVE = score.Objective("threshold", 0.05, (0, False), 0.5, True, 0.2)  # a capacity that overflows


@pytest.fixture(scope="module")
def given():
    x, one = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1)
    fitted = [Fitted(CLASSIFIER.init(jax.random.key(f), x, one), 1.0, np.eye(K), 0.0) for f in range(2)]
    return score.Given(make_table(symmetric(K, 0.4), np.full(K, 1 / K)), cross_fit.stack_folds(fitted))


def batch_of(step):
    rng = np.random.default_rng(step)
    return {
        "x0": rng.normal(size=(B, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(0, K, B).astype(np.int32),
        "fold": rng.integers(0, 2, B).astype(np.int32),
        "position": np.arange(B),
    }


def start(network):
    """Parameters of order 1: fresh ones make most gradients vanish."""
    x, zero = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, zero, zero.astype(int))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.1, shapes)
    return initial_state(params, OPTIMISATION)


def make(network, given, parts=1, steps=1, traces=None):
    step = score.make_step(network, EDM(), OBJECTIVE, OPTIMISATION, cross_fit.Weigher(CLASSIFIER, EDM()), parts)

    def counted(*arguments):
        if traces is not None:
            traces.append(1)
        return step(*arguments)

    return parallel.data_parallel(counted, parallel.data_mesh(), given, steps)


def after(network, given, **how):
    """State and metrics after two steps, the second with other labels."""
    state, run, mesh = (
        parallel.replicate(start(network), parallel.data_mesh()),
        make(network, given, **how),
        parallel.data_mesh(),
    )
    for number in range(2):
        state, metrics = run(state, parallel.split(batch_of(number), mesh), stream_key(0, "score"))
    return jax.device_get((state, metrics))


TRACES = []


@pytest.fixture(scope="module")
def plain(given):
    return after(NETWORK, given, traces=TRACES)


def assert_same(a, b):
    (state_a, metrics_a), (state_b, metrics_b) = a, b
    for name in ("loss", "kept_mass"):
        np.testing.assert_allclose(metrics_a[name], metrics_b[name], rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), state_a.params, state_b.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), state_a.ema_params, state_b.ema_params)


def test_one_compilation_serves_all_steps(plain):
    assert len(TRACES) == 1


def test_a_batch_in_parts_gives_the_step_of_the_whole(given, plain):
    in_parts = after(NETWORK, given, parts=2)
    assert plain[1]["overflow"] > 0
    assert_same(in_parts, plain)


def test_overflow_is_counted_over_all_parts(given):
    mesh, first, batch = parallel.data_mesh(), start(NETWORK), batch_of(0)

    def overflow(rows, parts):
        state = parallel.replicate(jax.tree.map(jnp.copy, first), mesh)  # the step donates it
        _, metrics = make(NETWORK, given, parts=parts)(state, parallel.split(rows, mesh), stream_key(0, "score"))
        return float(metrics["overflow"])

    halves = [{name: values[half] for name, values in batch.items()} for half in (slice(B // 2), slice(B // 2, B))]
    alone = [overflow(half, 1) for half in halves]
    assert min(alone) > 0 and overflow(batch, 2) == sum(alone)


def test_activations_computed_again_change_nothing(given, plain):
    again = NETWORK.clone(remat=True)
    assert jax.tree.structure(start(again)) == jax.tree.structure(start(NETWORK))
    assert_same(after(again, given), plain)


def test_several_steps_a_call_are_the_steps_one_by_one(given, plain):
    run = make(NETWORK, given, steps=2)
    stacked = {name: np.stack([batch_of(0)[name], batch_of(1)[name]]) for name in batch_of(0)}
    state, metrics = jax.device_get(run(start(NETWORK), stacked, stream_key(0, "score")))
    assert metrics["loss"].shape == (2,)
    assert_same((state, {name: values[-1] for name, values in metrics.items()}), plain)
