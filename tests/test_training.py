"""The loop, the state and the classifier's fit: averages, resume, best step, folds, devices."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax.data import sources
from tdsm_jax.diffusion.process import EDM
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import corrupt, symmetric
from tdsm_jax.labels.transition import relative_l1
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training import cross_fit, loop, parallel
from tdsm_jax.training.classifier import FitSettings, Labelled
from tdsm_jax.training.logs import read_metrics
from tdsm_jax.training.state import (
    Optimisation,
    TrainState,
    example_keys,
    flatten_params,
    initial_state,
    normal_like,
    stream_key,
    unflatten_params,
    update,
)

PLAIN = Optimisation(
    batch_size=8,
    learning_rate=0.1,
    ramp_images=0,
    ema_half_life=16,
    ema_ramp=1.0,
    weight_decay=0.0,
    clip_norm=0.0,
)


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# -- state --------------------------------------------------------------------------------------------------


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


# -- loop ---------------------------------------------------------------------------------------------------


def quadratic(state: TrainState, batch, key):
    """Draws the parameter towards noise: every step depends on batch and key."""
    noise = normal_like(example_keys(key, state.step, batch["position"]), batch["x"])
    target = (batch["x"] + noise).mean(0)
    loss, gradient = jax.value_and_grad(lambda p: ((p["w"] - target) ** 2).sum())(state.params)
    return update(state, gradient, PLAIN), {"loss": loss}


def batches(step):
    return {"x": np.full((8, 3), np.sin(step), np.float32), "position": np.arange(8)}


def run(directory, steps, step_fn=None, **options):
    schedule = loop.Schedule(steps, log_every=3, save_every=6, **options.pop("schedule", {}))
    return loop.run(
        "toy",
        step_fn or jax.jit(quadratic, donate_argnums=0),
        initial_state({"w": jnp.zeros(3)}, PLAIN),
        batches,
        stream_key(0, "toy"),
        schedule=schedule,
        mesh=parallel.data_mesh(),
        directory=directory,
        **options,
    )


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 7, 13, 19])
def test_a_resumed_run_is_the_straight_run(tmp_path, killed_at):
    step_fn = jax.jit(quadratic, donate_argnums=0)

    def fragile(state, batch, key):
        if int(state.step) == killed_at:
            raise Killed
        return step_fn(state, batch, key)

    with pytest.raises(Killed):
        run(tmp_path / "killed", 20, fragile)
    resumed, straight = run(tmp_path / "killed", 20), run(tmp_path / "straight", 20)
    assert_trees_equal(resumed, straight)
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "straight")
    assert [r["step"] for r in read_metrics(tmp_path / "straight")] == [3, 6, 9, 12, 15, 18, 20]


def test_files_change_nothing(tmp_path):
    assert_trees_equal(run(None, 7), run(tmp_path, 7))


def test_a_finished_run_does_no_step(tmp_path):
    done = run(tmp_path, 6)

    def never(state, batch, key):
        raise AssertionError("a step was taken")

    assert_trees_equal(run(tmp_path, 6, never), done)


def test_one_compilation(tmp_path):
    traces = []

    @functools.partial(jax.jit, donate_argnums=0)
    def counted(state, batch, key):
        traces.append(1)
        return quadratic(state, batch, key)

    run(tmp_path, 6, counted)
    run(tmp_path, 12, counted)  # a restored state has the same types and placement
    assert len(traces) == 1


def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path):
    def breaking(state, batch, key):
        state, metrics = quadratic(state, batch, key)
        return state, {"loss": jnp.where(state.step == 8, jnp.nan, metrics["loss"])}

    with pytest.raises(loop.Diverged, match="nan at step 8"):
        run(tmp_path, 20, jax.jit(breaking))
    assert [r["step"] for r in read_metrics(tmp_path)] == [3, 6]


def test_bad_schedules_are_refused():
    with pytest.raises(UserError, match="multiple of log_every"):
        loop.Schedule(10, log_every=3, save_every=4)
    with pytest.raises(UserError, match="at least 1"):
        loop.Schedule(0, log_every=1, save_every=1)


# -- classifier ---------------------------------------------------------------------------------------------

NETWORK = Classifier(num_classes=3, widths=(8,), hidden=16, dropout_rate=0.0)
FAST = Optimisation(
    batch_size=32,
    learning_rate=3e-3,
    ramp_images=64,
    ema_half_life=200,
    ema_ramp=0.1,
    weight_decay=0.0,
    clip_norm=0.0,
)


@functools.cache
def bars():
    """Three kinds of 4x4 images: a bright row, a bright column, neither."""
    rng = np.random.default_rng(0)
    labels = np.arange(240, dtype=np.int32) % 3
    images = rng.integers(0, 60, (240, 4, 4, 1)).astype(np.uint8)
    place = rng.integers(0, 4, 240)
    for i, (y, p) in enumerate(zip(labels, place, strict=True)):
        if y == 0:
            images[i, p] = 255
        elif y == 1:
            images[i, :, p] = 255
    return images, labels


def fit(labels, *, steps=60, S=None, process=None, held_out=None, directory=None, **changed):
    settings = FitSettings(NETWORK, FAST, loop.Schedule(steps, 10, 10, 10), process, **changed)
    return classifiers.fit(
        Labelled(bars()[0], labels),
        stream_key(0, "fit"),
        label="fit",
        settings=settings,
        S=S,
        mesh=parallel.data_mesh(),
        seed=0,
        held_out=held_out,
        directory=directory,
    )


def predict(fitted):
    x = jnp.asarray(sources.to_float(bars()[0]))
    logits, _ = classifiers.classify(functools.partial(NETWORK.apply, fitted.params), None, x, jnp.zeros(len(x)))
    return np.asarray(logits).argmax(1)


def test_fit_learns_clean_labels_from_noisy_ones():
    labels = bars()[1]
    S = symmetric(3, 0.4)
    y_tilde = corrupt(labels, S, seed=0)
    fitted = fit(y_tilde, S=S, steps=100)
    assert np.mean(predict(fitted) == labels) > 0.9 > 0.7 > np.mean(predict(fitted) == y_tilde)


def test_fit_is_pure_and_files_change_nothing(tmp_path):
    first, second = (
        fit(bars()[1], S=np.eye(3), steps=20),
        fit(bars()[1], S=np.eye(3), steps=20, directory=tmp_path),
    )
    assert_trees_equal(first.params, second.params)


def test_the_best_held_out_step_is_kept():
    """Noisy labels held out: the loss there rises again once the training labels are memorised."""
    y_tilde = corrupt(bars()[1], symmetric(3, 0.4), seed=1)
    held_out = Labelled(bars()[0][::2], corrupt(bars()[1], symmetric(3, 0.4), seed=2)[::2])
    best = fit(y_tilde, S=np.eye(3), steps=200, held_out=held_out)
    settings = FitSettings(NETWORK, FAST, loop.Schedule(1, 1, 1), None)
    logits, labels = classifiers.make_held_out(settings, held_out, stream_key(0, "any"))
    log_S = jnp.log(jnp.eye(3))
    last = fit(y_tilde, S=np.eye(3), steps=200)
    nll_best, nll_last = (
        float(classifiers.forward_corrected(logits({"network": f.params}), labels, log_S).mean()) for f in (best, last)
    )
    assert nll_best < nll_last
    assert best.held_out_nll <= nll_best + 1e-6  # after its temperature


def test_temperature_mends_overconfident_logits():
    key = jax.random.key(0)
    logits = jax.random.normal(key, (4000, 5))
    labels = jax.random.categorical(jax.random.fold_in(key, 1), logits)
    S = symmetric(5, 0.2)
    noisy = jnp.asarray(corrupt(np.asarray(labels), S, seed=0))
    temperature, nll = classifiers.best_temperature(2 * logits, noisy, jnp.log(jnp.asarray(S)))
    assert temperature == pytest.approx(2, rel=0.12)
    assert nll < float(classifiers.forward_corrected(2 * logits, noisy, jnp.log(jnp.asarray(S))).mean())


def test_the_transition_head_finds_the_noise():
    S = symmetric(3, 0.3)
    y_tilde = corrupt(bars()[1], S, seed=0)
    fitted = fit(y_tilde, S=None, steps=300, transition_rate=10.0)
    start = np.full((3, 3), 0.25) + 0.25 * np.eye(3)
    assert relative_l1(fitted.S, S) < 0.2 < relative_l1(start, S)
    np.testing.assert_allclose(fitted.S.sum(1), 1, atol=1e-6)


def test_fitted_classifiers_survive_their_file(tmp_path):
    fitted = fit(bars()[1], S=np.eye(3), steps=10)
    classifiers.write_fitted(tmp_path / "f.npz", fitted)
    read = classifiers.read_fitted(tmp_path / "f.npz")
    assert_trees_equal(read.params, fitted.params)
    assert read.temperature == fitted.temperature
    (tmp_path / "f.npz").write_bytes((tmp_path / "f.npz").read_bytes()[:200])
    with pytest.raises(UserError, match="not a readable array file"):
        classifiers.read_fitted(tmp_path / "f.npz")


def test_folds_are_even_and_seeded():
    fold = cross_fit.assign_folds(100, 3, seed=0)
    assert sorted(np.bincount(fold)) == [33, 33, 34]
    np.testing.assert_array_equal(fold, cross_fit.assign_folds(100, 3, seed=0))
    assert np.any(fold != cross_fit.assign_folds(100, 3, seed=1))


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


# -- devices ------------------------------------------------------------------------------------------------

EIGHT_DEVICES = """
import dataclasses, os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
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
for count in (1, 8):
    mesh = parallel.data_mesh(jax.devices()[:count])
    run = parallel.data_parallel(step, mesh, given)
    params = unet.init(jax.random.key(0), x, one, jnp.zeros(1, jnp.int32))
    state = parallel.replicate(initial_state(params, optimisation), mesh)
    for _ in range(3):
        state, metrics = run(state, parallel.split(batch, mesh), stream_key(0, "score"))
    ends.append(jax.device_get((state, metrics)))
(one_state, one_metrics), (eight_state, eight_metrics) = ends
assert one_metrics["overflow"] > 0, one_metrics
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
    monkeypatch.setattr(jax, "local_device_count", lambda: 8)
    parallel.check_divisible("score.batch_size", 128)
    with pytest.raises(UserError, match=r"score.batch_size=100 does not split over 8 devices; .* such as 104"):
        parallel.check_divisible("score.batch_size", 100)
