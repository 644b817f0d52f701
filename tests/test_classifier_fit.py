"""The classifier's fit: learning under noise, the best step, robust losses, selection, resume."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax.data.dataset import to_float
from tdsm_jax.diffusion.process import EDM
from tdsm_jax.errors import UserError
from tdsm_jax.labels import losses
from tdsm_jax.labels.corruption import corrupt, symmetric
from tdsm_jax.labels.transition import relative_l1
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training import fit_step, loop, parallel
from tdsm_jax.training.classifier import FitSettings, Labelled
from tdsm_jax.training.logs import read_metrics
from tdsm_jax.training.state import Optimisation, initial_state, stream_key


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


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


PROCESS = EDM()


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
    x = jnp.asarray(to_float(bars()[0]))
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
    seen = classifiers.make_held_out(settings, held_out, stream_key(0, "any"), parallel.data_mesh())
    log_S = jnp.log(jnp.eye(3))
    last = fit(y_tilde, S=np.eye(3), steps=200, held_out=held_out, stopping=False)
    nll_best, nll_last = (
        float(losses.forward_corrected(seen.logits({"network": f.params}), seen.labels, log_S).mean())
        for f in (best, last)
    )
    assert nll_best < nll_last
    assert best.held_out_nll <= nll_best + 1e-6  # after its temperature


def test_one_training_gives_the_last_and_the_most_accurate_parameters():
    """Few images, half of them wrongly labelled: what is right is learnt first, the rest is memorised later."""
    images, labels = bars()
    y_tilde = corrupt(labels[1::2], symmetric(3, 0.5), seed=1)
    held_out = Labelled(images[::2], labels[::2])
    settings = FitSettings(NETWORK, FAST, loop.Schedule(200, 10, 10, 10), None, stopping_by="accuracy")
    state, seen, log_S = classifiers.train(
        Labelled(images[1::2], y_tilde),
        stream_key(0, "fit"),
        label="fit",
        settings=settings,
        S=np.eye(3),
        mesh=parallel.data_mesh(),
        seed=0,
        held_out=held_out,
    )
    best, last = (
        np.mean(np.asarray(seen.logits(p)).argmax(axis=1) != held_out.labels)
        for p in (state.best_params, state.train.ema_params)
    )
    assert best == pytest.approx(float(state.best_loss)) and best < last - 0.1
    assert state.train.step == 200


def test_accuracy_and_likelihood_can_disagree():
    y_tilde, log_S = jnp.array([0, 1, 2]), jnp.log(jnp.asarray(symmetric(3, 0.3), jnp.float32))
    sure = 9.0 * jnp.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])  # two right
    shy = 0.1 * jnp.array([[1.0, 0, 0], [1, 0, 0], [1, 0, 0]])  # one right, without much ado
    plain = jnp.log(jnp.eye(3))
    assert classifiers.held_out_nll(shy, y_tilde, plain) < classifiers.held_out_nll(sure, y_tilde, plain)
    assert classifiers.held_out_error(sure, y_tilde, plain) == pytest.approx(1 / 3)
    assert classifiers.held_out_error(shy, y_tilde, log_S) == pytest.approx(2 / 3)
    swap = jnp.log(jnp.asarray([[0.2, 0.8, 0], [0.8, 0.2, 0], [0, 0, 1.0]]))  # noise that turns the likeliest label
    assert classifiers.held_out_error(sure, y_tilde, swap) == 1


def test_the_first_of_equally_good_steps_is_kept():
    state = fit_step.FitState(initial_state({"w": jnp.zeros(())}, FAST), {"w": jnp.float32(-1)}, jnp.float32(jnp.inf))
    for w, loss in enumerate((0.5, 0.3, 0.3, 0.4)):
        now = dataclasses.replace(state.train, ema_params={"w": jnp.float32(w)})
        state, shown = classifiers.keep_best("error", lambda p, loss=loss: jnp.float32(loss), state._replace(train=now))
        assert shown == {"error": pytest.approx(loss)}
    assert state.best_params["w"] == 1 and state.best_loss == pytest.approx(0.3)


def test_fits_of_equal_settings_share_what_was_compiled(monkeypatch):
    traces, original = [], fit_step.example_losses
    monkeypatch.setattr(fit_step, "example_losses", lambda *rest: traces.append(rest[0].loss) or original(*rest))
    classifiers.compiled_step.cache_clear()
    fit(corrupt(bars()[1], symmetric(3, 0.2), seed=0), S=symmetric(3, 0.2), steps=2)
    count = len(traces)
    fit(corrupt(bars()[1], symmetric(3, 0.4), seed=1), S=symmetric(3, 0.4), steps=2)
    assert len(traces) == count > 0
    fit(bars()[1], S=np.eye(3), steps=2, loss="gce")
    assert len(traces) > count


def test_calibration_is_switched_by_the_settings():
    """Over-confident logits, by more at low noise; of clean images there is one temperature at most."""
    rng = np.random.default_rng(0)
    logits, sigma = rng.normal(size=(2000, 3)), np.geomspace(0.02, 20, 2000)
    y = np.asarray(jax.random.categorical(jax.random.key(0), jnp.asarray(logits)), np.int32)
    y_tilde, S = corrupt(y, symmetric(3, 0.2), seed=1), symmetric(3, 0.1)
    seen = classifiers.HeldOut(None, jnp.asarray(sigma, jnp.float32), jnp.asarray(y_tilde), 1)
    logits = jnp.asarray(logits * np.linspace(3, 1, 2000)[:, None], jnp.float32)

    def temperature(process=PROCESS, **changed):
        settings = FitSettings(NETWORK, FAST, loop.Schedule(1, 1, 1), process, **changed)
        return classifiers.calibrated(settings, logits, seen, jnp.log(jnp.asarray(S))).temperature

    np.testing.assert_array_equal(temperature(calibration="off"), 1)
    assert np.ptp(temperature()) > 0 == np.ptp(temperature(temperature_per_sigma=False)) == np.ptp(temperature(None))
    assert np.any(temperature(calibration="own_weight") != temperature())


def test_the_transition_head_finds_the_noise():
    S = symmetric(3, 0.3)
    y_tilde = corrupt(bars()[1], S, seed=0)
    fitted = fit(y_tilde, S=None, steps=300, transition_rate=10.0)
    start = np.full((3, 3), 0.25) + 0.25 * np.eye(3)
    assert relative_l1(fitted.S, S) < 0.2 < relative_l1(start, S)
    np.testing.assert_allclose(fitted.S.sum(1), 1, atol=1e-6)


def test_fitted_classifiers_survive_their_file(tmp_path):
    fitted = fit(bars()[1], S=np.eye(3), steps=10)._replace(temperature=np.geomspace(0.5, 2, 7))
    classifiers.write_fitted(tmp_path / "f.npz", fitted)
    read = classifiers.read_fitted(tmp_path / "f.npz")
    assert_trees_equal(read.params, fitted.params)
    np.testing.assert_array_equal(read.temperature, fitted.temperature)
    classifiers.write_fitted(tmp_path / "number.npz", fitted._replace(temperature=1.5))  # as files once were
    assert classifiers.read_fitted(tmp_path / "number.npz").temperature == 1.5
    (tmp_path / "f.npz").write_bytes((tmp_path / "f.npz").read_bytes()[:200])
    with pytest.raises(UserError, match="not a readable array file"):
        classifiers.read_fitted(tmp_path / "f.npz")


# -- other losses -------------------------------------------------------------------------------------------

SELECTION = {"loss": "ce", "forget_rate": 0.4, "forget_ramp_images": 640}


def test_plain_cross_entropy_is_the_forward_correction_without_noise():
    plain, corrected = (fit(bars()[1], S=np.eye(3), steps=5, loss=loss) for loss in ("ce", "forward"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), plain.params, corrected.params)


def test_elr_and_co_teaching_do_not_memorise():
    labels = bars()[1]
    y_tilde = corrupt(labels, symmetric(3, 0.4), seed=0)
    fit_noisy = functools.partial(fit, y_tilde, S=np.eye(3))
    plain, elr = fit_noisy(steps=200), fit_noisy(steps=100, loss="elr")
    taught = fit_noisy(steps=200, co_teaching=True, **SELECTION)
    right = [np.mean(predict(fitted) == labels) for fitted in (plain, elr, taught)]
    assert right[0] < 0.94 < min(right[1:])


@pytest.mark.parametrize(
    "changed", [{"loss": "elr"}, SELECTION, SELECTION | {"co_teaching": True}], ids=["elr", "selection", "co_teaching"]
)
def test_a_resumed_fit_is_the_straight_fit(tmp_path, changed):
    fit(bars()[1], S=np.eye(3), steps=10, directory=tmp_path, **changed)
    resumed = fit(bars()[1], S=np.eye(3), steps=20, directory=tmp_path, **changed)
    assert_trees_equal(resumed.params, fit(bars()[1], S=np.eye(3), steps=20, **changed).params)
    assert [r["step"] for r in read_metrics(tmp_path)] == [10, 20]


def test_targets_follow_the_predictions_of_their_own_example():
    index = np.arange(32) % 31 + 5  # one example comes twice, under other noise
    settings = FitSettings(
        NETWORK, FAST, loop.Schedule(1, 1, 1), PROCESS, loss="elr", loss_parameters=(("momentum", 0.9),)
    )
    params = classifiers.initial_params(settings, (4, 4, 1), jax.random.key(0))
    best = jax.tree.map(jnp.copy, params)
    state = fit_step.FitState(initial_state(params, FAST), best, jnp.float32(0), jnp.zeros((240, 3)))
    batch = {"x0": to_float(bars()[0][index]), "label": bars()[1][index], "index": index}
    step = parallel.data_parallel(fit_step.make_fit_step(settings), parallel.data_mesh(), {"log_S": jnp.zeros((3, 3))})
    state, _ = step(state, batch | {"position": np.arange(32)}, stream_key(0, "step"))
    targets = np.asarray(state.targets)
    np.testing.assert_allclose(targets[5:36].sum(axis=1), 0.1, rtol=1e-5)  # a tenth of probabilities
    assert not targets[:5].any() and not targets[36:].any()
    assert len(np.unique(targets[5:36], axis=0)) == 31


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_targets_of_all_devices_are_remembered_and_those_of_one_example_averaged(devices):
    targets = jnp.asarray(np.random.default_rng(0).normal(size=(10, 3)), jnp.float32)
    new = jnp.asarray(np.random.default_rng(1).normal(size=(8, 3)), jnp.float32)
    index = jnp.array([7, 1, 7, 2, 0, 9, 4, 7])
    kept = jax.vmap(fit_step.remembered, in_axes=(None, 0, 0), axis_name=parallel.AXIS)(
        targets, new.reshape(devices, -1, 3), index.reshape(devices, -1)
    )
    expected = np.array(targets)
    expected[np.asarray(index)] = new
    expected[7] = np.asarray(new)[[0, 2, 7]].mean(axis=0)
    for on_device in kept:
        np.testing.assert_allclose(on_device, expected, atol=1e-6)


def selected(losses_of, devices=2, step=100, **changed):
    settings = FitSettings(
        NETWORK, dataclasses.replace(FAST, batch_size=8), loop.Schedule(1, 1, 1), None, **(SELECTION | changed)
    )
    split = {name: jnp.asarray(loss, jnp.float32).reshape(devices, -1) for name, loss in losses_of.items()}
    mean = jax.vmap(functools.partial(fit_step.batch_loss, settings), in_axes=(0, 0, None), axis_name=parallel.AXIS)
    return float(mean(split, jnp.arange(8).reshape(devices, -1), jnp.int32(step)).mean())


def test_selection_takes_the_mean_of_the_small_losses():
    own = [7, 1, 6, 2, 3, 8, 5, 4]
    for devices in (1, 2, 4):  # of eight, .6 are five
        assert selected({"network": own}, devices) == pytest.approx(np.mean([1, 2, 3, 4, 5]))
    assert selected({"network": own}, step=0) == pytest.approx(np.mean(own))  # nothing is forgotten at first
    assert selected({"network": own}, step=40) == pytest.approx(np.mean([1, 2, 3, 4, 5, 6]))  # half the ramp
    peer = own[::-1]
    taught = {"network": own, "peer": peer}
    by_peer = np.mean([own[i] for i in np.argsort(peer)[:5]])
    assert selected(taught, co_teaching=True) == pytest.approx(2 * by_peer)  # the two are mirrored


def test_losses_that_distort_weights_are_warned_of(monkeypatch):
    warnings = []
    monkeypatch.setattr(classifiers.logging, "warning", lambda message, *rest: warnings.append(message % rest))
    fit(bars()[1], S=np.eye(3), steps=1)
    assert not warnings
    fit(bars()[1], S=np.eye(3), steps=1, loss="gce")
    assert len(warnings) == 1 and "not proper" in warnings[0]
    with pytest.raises(UserError, match="only the loss 'forward' on all examples learns S"):
        fit(bars()[1], S=None, steps=1, loss="gce")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "foward"}, "unknown loss 'foward'; did you mean 'forward'"),
        ({"loss": "gce", "loss_parameters": (("gamma", 1.0),)}, "'gce' has no parameter 'gamma'; it has: q"),
        ({"loss": "elr", "loss_parameters": (("momentum", 2.0),)}, "momentum of the loss 'elr' must be"),
        ({"forget_rate": 1.0}, "the forget rate is a share"),
        ({"co_teaching": True}, "give it a forget rate above 0"),
        (SELECTION | {"co_teaching": True, "loss": "elr"}, "use another loss than elr"),
        ({"calibration": "own"}, "unknown calibration 'own'"),
        ({"stopping_by": "acuracy"}, "unknown measure 'acuracy' to stop by; did you mean 'accuracy'"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        FitSettings(NETWORK, FAST, loop.Schedule(1, 1, 1), None, **changed)
