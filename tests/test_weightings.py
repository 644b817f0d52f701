"""Loss weightings in the parametrisation they were published for, and the one that is learnt."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from plain import PLAIN
from tdsm_jax.diffusion.process import EDM, PROCESSES
from tdsm_jax.diffusion.residuals import Residual
from tdsm_jax.diffusion.weightings import WEIGHTINGS, balanced, initial_uncertainty, log_loss
from tdsm_jax.errors import UserError
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.training import checkpoint, cross_fit, parallel, score
from tdsm_jax.training.state import initial_state, stream_key
from test_checkpoint import run_child

SIGMA = jnp.array([0.002, 0.1, 0.447, 1.0, 3.0, 80.0])
SNR = 1 / SIGMA**2


@pytest.mark.parametrize("name", PROCESSES)
def test_weights_are_the_published_ones_on_the_error_that_they_were_published_for(name):
    """||eps_theta - eps||^2 = SNR ||D - x0||^2, as eps = (x_t - x0)/sigma."""
    process = PROCESSES[name]()
    on_x0 = {key: np.asarray(weight(process, SIGMA)) for key, weight in WEIGHTINGS.items()}
    np.testing.assert_allclose(on_x0["p2"] / SNR, 1 / (1 + SNR), rtol=1e-5)
    np.testing.assert_allclose(on_x0["debiased"] / SNR, 1 / np.sqrt(SNR), rtol=1e-5)
    np.testing.assert_allclose(on_x0["min_snr"], np.minimum(SNR, 5), rtol=1e-5)
    for own in ("own", "uncertainty"):
        np.testing.assert_array_equal(on_x0[own], process.loss_weight(SIGMA))


def test_the_learnt_uncertainty_starts_at_the_loss_itself():
    loss = jnp.arange(24.0).reshape(6, 2, 2)
    np.testing.assert_array_equal(balanced(initial_uncertainty(), loss, SIGMA), loss)


def test_the_learnt_uncertainty_becomes_the_logarithm_of_the_loss():
    sigma = EDM().sigma(jax.random.normal(jax.random.key(0), (256,)))
    loss = (0.5 + jnp.tanh(jnp.log(sigma)) ** 2)[:, None]
    optimiser, u = optax.adam(0.05), initial_uncertainty()
    state = optimiser.init(u)

    @jax.jit
    def step(u, state):
        change, state = optimiser.update(jax.grad(lambda u: balanced(u, loss, sigma).mean())(u), state)
        return optax.apply_updates(u, change), state

    for _ in range(300):
        u, state = step(u, state)
    np.testing.assert_allclose(log_loss(u, sigma), jnp.log(loss[:, 0]), atol=0.1)


K, B = 3, 16


class Affine(nn.Module):
    """As much of a network as a step needs: a bias of every class and of the null label, a gain of the noise level."""

    num_classes: int = K
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x, c_noise, label, dropout_keys=None):
        gain = self.param("gain", nn.initializers.constant(0.3), (2,))
        bias = self.param("bias", nn.initializers.constant(0.1), (self.num_classes + 1,))
        of = (gain[0] + gain[1] * c_noise)[:, None, None, None]
        return of * x + bias[label][:, None, None, None]


NETWORK, CLASSIFIER = Affine(), Classifier(K, (8,), 16, 0.0)
OBJECTIVE = score.Objective("own", 0.0, (0, False), None, True, 0.2, weighting="uncertainty")
MOVES = dataclasses.replace(
    PLAIN, batch_size=B, learning_rate=1e-2, optimiser="adopt", clip_percentile=50.0, clip_window=4, weight_decay=0.1
)


def batch_of(step):
    rng = np.random.default_rng(step)
    x0 = rng.normal(size=(B, 8, 8, 1)).astype(np.float32)
    return {
        "x0": x0,
        "label": rng.integers(0, K, B).astype(np.int32),
        "position": np.arange(B),
        "fold": np.zeros(B, int),
    }


def fresh(objective=OBJECTIVE):
    x, zero = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1)
    params = NETWORK.init(jax.random.key(0), x, zero, zero.astype(int))
    return initial_state(params, MOVES, initial_uncertainty() if objective.weighting == "uncertainty" else None)


def stepper(devices, objective=OBJECTIVE, parts=1):
    mesh = parallel.data_mesh(jax.devices()[:devices])
    step = score.make_step(NETWORK, EDM(), objective, MOVES, cross_fit.Weigher(CLASSIFIER, EDM()), parts)
    run = parallel.data_parallel(step, mesh, None)

    def steps(state, first, last):
        state = parallel.replicate(state, mesh)
        for number in range(first, last):
            state, metrics = run(state, parallel.split(batch_of(number), mesh), stream_key(0, "score"))
        return jax.device_get((state, metrics))

    return steps


@pytest.fixture(scope="module")
def one():
    return stepper(1)


def kept(directory, step, state):
    """Writes a checkpoint, and returns the folder of checkpoints."""
    checkpoints = checkpoint.Checkpoints(directory)
    checkpoints.save(step, state)
    checkpoints.wait()
    return directory


ON_EIGHT = """
import sys, jax, numpy as np
import test_weightings as test
from tdsm_jax.training import checkpoint, parallel
half, whole, *losses = sys.argv[1:]
_, expected = checkpoint.Checkpoints(whole).restore(test.fresh())
first, restored = checkpoint.Checkpoints(half).restore(parallel.replicate(test.fresh(), parallel.data_mesh()))
assert len(restored.aside.params.bias.sharding.device_set) == 8 and first == 2
run = test.stepper(8, parts=2)
for state, start in ((test.fresh(), 0), (restored, first)):
    state, metrics = run(state, start, 4)
    assert int(state.aside.opt_state[1][0].count) == 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-3), state.params, expected.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), state.aside, expected.aside)
    np.testing.assert_allclose([metrics["loss"], metrics["balanced_loss"]], np.float32(losses), rtol=1e-3)
"""


def test_what_is_learnt_aside_is_the_same_on_eight_devices_in_parts_and_goes_on_there(one, tmp_path):
    state, metrics = one(fresh(), 0, 4)
    assert np.abs(state.aside.params.weights).max() > 1e-3 and int(state.aside.opt_state[1][0].count) == 4
    assert not np.isnan(state.opt_state[0][1].norms).any()
    half = kept(tmp_path / "half", 2, one(fresh(), 0, 2)[0])
    arguments = half, kept(tmp_path / "whole", 4, state), metrics["loss"], metrics["balanced_loss"]
    run_child(ON_EIGHT, *arguments, XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8")


def test_the_loss_that_is_logged_knows_nothing_of_what_is_learnt_aside(one):
    """So that it has a logarithm, and compares with other runs."""
    before, other = fresh(), fresh()
    low = other.aside.params._replace(bias=jnp.full((), -3.0))
    other = dataclasses.replace(other, aside=other.aside._replace(params=low))
    metrics = [one(state, 0, 1)[1] for state in (before, other)]
    assert metrics[0]["loss"] == metrics[1]["loss"] > 0
    np.testing.assert_allclose(metrics[0]["balanced_loss"], metrics[0]["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics[1]["balanced_loss"], metrics[0]["loss"] * np.exp(3) - 3, rtol=1e-5)


def test_a_resumed_run_goes_on_exactly_and_its_model_has_no_trace_of_the_uncertainty(one, tmp_path):
    whole, _ = one(fresh(), 0, 4)
    half, _ = one(fresh(), 0, 2)
    step, restored = checkpoint.Checkpoints(kept(tmp_path, 2, half)).restore(fresh())
    resumed, _ = one(restored, step, 4)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    ema = checkpoint.read_field(tmp_path / "00000002", "ema_params", half.ema_params)
    jax.tree.map(np.testing.assert_array_equal, ema, half.ema_params)
    assert set(resumed.ema_params) == {"params"}


def test_without_it_nothing_lies_aside(one):
    """The state has the form it always had, so that checkpoints of it stay readable."""
    state = fresh(dataclasses.replace(OBJECTIVE, weighting="own"))
    assert [field.name for field in dataclasses.fields(state)] == ["step", "params", "ema_params", "opt_state"]


def test_the_residual_of_the_step_is_the_one_asked_for(one):
    """Before the first update the uncertainty's loss is the squared one itself."""
    near = dataclasses.replace(OBJECTIVE, weighting="own", residual=Residual("huber", 0.01))
    squared, huber = one(fresh(), 0, 1)[1], stepper(1, near)(fresh(near), 0, 1)[1]
    assert 0 < huber["loss"] < 0.1 * squared["loss"]


def test_drawn_products_are_for_squares_alone():
    with pytest.raises(UserError, match="set score.residual=squared, or another rule"):
        dataclasses.replace(OBJECTIVE, rule="sampled", residual=Residual("huber"))
    unread = Residual("squared", 0.05, "example")  # delta and form say nothing of squares
    assert dataclasses.replace(OBJECTIVE, rule="sampled", residual=unread).residual == unread
