"""Cross-fitting: folds, each example's own classifiers, ensembles, devices."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax.diffusion.process import EDM
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import corrupt, symmetric
from tdsm_jax.labels.stress import fixed_error
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training import cross_fit, loop, parallel
from tdsm_jax.training.calibration import temperature_at
from tdsm_jax.training.classifier import FitSettings, Fitted, Labelled
from tdsm_jax.training.state import stream_key
from test_classifier_fit import FAST, NETWORK, assert_trees_equal, bars


def test_folds_are_even_and_seeded():
    fold = cross_fit.assign_folds(100, 3, seed=0)
    assert sorted(np.bincount(fold)) == [33, 33, 34]
    np.testing.assert_array_equal(fold, cross_fit.assign_folds(100, 3, seed=0))
    assert np.any(fold != cross_fit.assign_folds(100, 3, seed=1))


def random_classifier(seed, temperature=1.0):
    params = NETWORK.init(jax.random.key(seed), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))
    return Fitted(params, temperature, np.eye(3), 0.0)


@pytest.mark.parametrize("uneven", [False, True])
def test_each_example_is_seen_by_the_classifier_of_its_fold(uneven):
    """Grouped evaluation equals asking each example's classifier alone, also when one fold fills the batch."""
    x = jax.random.normal(jax.random.key(0), (24, 4, 4, 1))
    sigma = jnp.linspace(0.1, 2, 24)
    fold = jnp.full(24, 2) if uneven else jnp.arange(24) * 7 % 3
    params = [NETWORK.init(jax.random.key(f), x, sigma) for f in range(3)]
    fitted = [classifiers.Fitted(p, 1.0 + f, np.eye(3), 0.0) for f, p in enumerate(params)]
    logits = jax.jit(cross_fit.cross_fitted_logits, static_argnums=0)(
        cross_fit.Weigher(NETWORK, EDM()), cross_fit.stack_folds(fitted), x, sigma, fold
    )
    for b in range(24):
        apply = functools.partial(NETWORK.apply, params[fold[b]])
        alone = classifiers.classify(apply, EDM(), x[b : b + 1], sigma[b : b + 1])[0][0] / (1.0 + fold[b])
        np.testing.assert_allclose(logits[b], alone, atol=1e-5)


def test_logit_noise_is_a_fixed_error_of_what_the_network_sees():
    x, sigma, fold = jax.random.normal(jax.random.key(0), (24, 4, 4, 1)), jnp.linspace(0.1, 2, 24), jnp.arange(24) % 3
    stacked = cross_fit.stack_folds([random_classifier(f, temperature=2.0) for f in range(3)])
    exact, worse = (
        cross_fit.cross_fitted_logits(cross_fit.Weigher(NETWORK, EDM(), noise), stacked, x, sigma, fold)
        for noise in (0.0, 3.0)
    )
    x_in = x * EDM().c_in(sigma)[:, None, None, None]
    np.testing.assert_allclose(worse - exact, 3 * fixed_error(x_in, 3), atol=1e-4)


def test_identical_members_are_one_classifier():
    x, sigma = jax.random.normal(jax.random.key(0), (12, 4, 4, 1)), jnp.linspace(0.1, 2, 12)
    ensemble = [[random_classifier(f, temperature=1.0 + f)] * 3 for f in range(2)]
    single = [members[0] for members in ensemble]
    fold, weigher = jnp.arange(12) % 2, cross_fit.Weigher(NETWORK, EDM())
    of_three, of_one = (
        cross_fit.cross_fitted_logits(weigher, cross_fit.stack_folds(fitted), x, sigma, fold)
        for fitted in (ensemble, single)
    )
    np.testing.assert_allclose(jax.nn.softmax(of_three), jax.nn.softmax(of_one), atol=1e-6)


def test_an_ensemble_speaks_by_its_mean_probability():
    x, sigma = jax.random.normal(jax.random.key(0), (12, 4, 4, 1)), jnp.linspace(0.1, 2, 12)
    temperature = np.geomspace(0.5, 3, 7)
    ensemble = [[random_classifier(10 * f + m, temperature) for m in range(2)] for f in range(2)]
    stacked = cross_fit.stack_folds(ensemble)
    assert jax.tree.leaves(stacked.params)[0].shape[:2] == (2, 2)
    logits = cross_fit.cross_fitted_logits(cross_fit.Weigher(NETWORK, EDM()), stacked, x, sigma, jnp.arange(12) % 2)
    for b in range(12):
        one = x[b : b + 1], sigma[b : b + 1]
        asked = [functools.partial(NETWORK.apply, f.params) for f in ensemble[b % 2]]
        h = [jax.nn.softmax(classifiers.classify(apply, EDM(), *one)[0]) for apply in asked]
        expected = jnp.log(jnp.mean(jnp.stack(h), axis=0))[0] / temperature_at(temperature, one[1])
        np.testing.assert_allclose(logits[b], expected, atol=1e-5)


def fit_ensemble(members, directory=None):
    y_tilde = corrupt(bars()[1], symmetric(3, 0.4), seed=0)
    held = np.arange(240) % 4 == 0
    return cross_fit.fit_fold(
        Labelled(bars()[0][~held], y_tilde[~held]),
        stream_key(0, "fold"),
        label="fold",
        settings=FitSettings(NETWORK, FAST, loop.Schedule(10, 5, 5, 5), EDM()),
        S=symmetric(3, 0.4),
        mesh=parallel.data_mesh(),
        seed=0,
        members=members,
        held_out=Labelled(bars()[0][held], y_tilde[held]),
        directory=directory,
    )


def test_members_differ_and_share_a_temperature(tmp_path):
    first, second = fit_ensemble(2, tmp_path)
    (alone,) = fit_ensemble(1)
    assert_trees_equal(first.params, alone.params)
    kernels = [f.params["params"]["logits"]["kernel"] for f in (first, second)]
    assert np.all(kernels[0] != kernels[1])
    np.testing.assert_array_equal(first.temperature, second.temperature)
    assert np.any(first.temperature != alone.temperature)
    assert first.held_out_nll == second.held_out_nll != alone.held_out_nll
    assert {"checkpoints", "member1"} <= {path.name for path in tmp_path.iterdir()}


# -- devices ------------------------------------------------------------------------------------------------

EIGHT_DEVICES = """
import dataclasses, os, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
from tdsm_jax import runtime
runtime.configure(sys.argv[1])
import jax, jax.numpy as jnp, numpy as np
from tdsm_jax.diffusion.process import EDM
from tdsm_jax.labels.corruption import symmetric
from tdsm_jax.labels.weights import make_table
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.unet import UNet
from tdsm_jax.training import classifier, cross_fit, parallel, score
from tdsm_jax.training.state import Optimisation, initial_state, stream_key

unet = UNet(10, 8, (1, 1), 1, (), 0.1, augment_dim=9)
small = Classifier(10, (8,), 16, 0.0)
optimisation = Optimisation(32, 1e-3, 64, 500, 0.1, 0.0, 0.0)
x = jnp.zeros((1, 8, 8, 1))
one = jnp.zeros(1)
fitted = [classifier.Fitted(small.init(jax.random.key(f), x, one), 1.0, np.eye(10), 0.0) for f in range(2)]
given = score.Given(make_table(symmetric(10, 0.4), np.full(10, 0.1)), cross_fit.stack_folds(fitted))
rng = np.random.default_rng(0)
batch = {
    "x0": rng.normal(size=(32, 8, 8, 1)).astype(np.float32),
    "label": rng.integers(0, 10, 32).astype(np.int32),
    "fold": rng.integers(0, 2, 32).astype(np.int32),
    "position": np.arange(32),
}
objective = score.Objective("threshold", 0.05, (0, False), 1.0, True, 0.2, augment=0.3)  # a capacity that overflows
step = score.make_step(unet, EDM(), objective, optimisation, cross_fit.Weigher(small, EDM()))
ends = []
for count, backend in ((1, "shard_map"), (8, "shard_map"), (8, "pmap")):
    mesh = parallel.data_mesh(jax.devices()[:count], backend)
    run = parallel.data_parallel(step, mesh, given)
    params = unet.init(jax.random.key(0), x, one, jnp.zeros(1, jnp.int32))
    state = parallel.replicate(initial_state(params, optimisation), mesh)
    for _ in range(3):
        state, metrics = run(state, parallel.feed(batch, mesh), stream_key(0, "score"))
    ends.append(jax.device_get((state, metrics)))
(one_state, one_metrics), *others = ends
assert one_metrics["overflow"] > 0, one_metrics
for eight_state, eight_metrics in others:
    np.testing.assert_allclose(one_metrics["loss"], eight_metrics["loss"], rtol=1e-5)
    # Adam divides by the root of the second moment: where that is tiny, rounding shows.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one_state.ema_params, eight_state.ema_params)
print("same")
"""


def test_eight_devices_give_the_numbers_of_one(pytestconfig):
    cache = str(pytestconfig.rootpath / ".cache" / "jax")
    done = subprocess.run([sys.executable, "-c", EIGHT_DEVICES, cache], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stderr[-3000:]


def test_a_batch_that_does_not_split_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    parallel.check_divisible("score.batch_size", 128)
    with pytest.raises(UserError, match=r"score.batch_size=100 does not split over 8 devices; .* such as 104"):
        parallel.check_divisible("score.batch_size", 100)
