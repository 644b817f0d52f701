"""Classifiers that also train on generated images, whose labels are taken for clean: the loss, the folds, the file."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from tdsm_jax import checks, files, label_stages, pipeline, plan
from tdsm_jax import config as configuration
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import symmetric
from tdsm_jax.labels.losses import forward_corrected
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.run import Run
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training import fit_step, loop, parallel
from tdsm_jax.training.classifier import FitSettings, Labelled
from tdsm_jax.training.state import Optimisation, stream_key
from tdsm_jax.validation import validate

DIGITS = configuration.load_module(pathlib.Path(__file__).parents[1] / "configs" / "digits.py")
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
SETTINGS = FitSettings(NETWORK, FAST, loop.Schedule(8, 8, 8), None)


def examples(count, seed):
    rng = np.random.default_rng(seed)
    return Labelled(rng.integers(0, 256, (count, 4, 4, 1)).astype(np.uint8), rng.integers(0, 3, count).astype(np.int32))


def fit(data, S, settings=SETTINGS):
    key, mesh = stream_key(0, "fit"), parallel.data_mesh()
    return classifiers.fit(data, key, label="fit", settings=settings, S=S, mesh=mesh, seed=0).params


def assert_trees_close(a, b, atol=0.0):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=atol), a, b)


def test_a_clean_example_is_charged_plain_cross_entropy_and_a_noisy_one_is_not():
    z, y = np.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), jnp.array([1, 1])
    p = np.exp(z[0]) / np.exp(z[0]).sum()
    S = symmetric(3, 0.4)  # .6 and twice .2
    found = forward_corrected(jnp.asarray(z), y, jnp.log(jnp.asarray(S)), jnp.array([True, False]))
    expected = [-np.log(p[1]), -np.log(0.2 * p[0] + 0.6 * p[1] + 0.2 * p[2])]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_clean_examples_say_nothing_of_s_and_do_not_ask_it():
    """Also where S makes their label impossible, which would else leave no gradient at all."""
    z, y = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([2])

    def loss(z, log_S, clean):
        return forward_corrected(z, y, log_S, jnp.array([clean]))[0]

    some = jnp.log(jnp.asarray(symmetric(3, 0.4)))
    assert not jax.grad(loss, argnums=1)(z, some, True).any() and jax.grad(loss, argnums=1)(z, some, False).any()
    impossible = jnp.log(jnp.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    expected = jax.nn.softmax(z) - jax.nn.one_hot(y, 3)
    np.testing.assert_allclose(jax.grad(loss)(z, impossible, True), expected, atol=1e-6)


def test_what_is_flagged_decides_how_a_fit_goes():
    data, S = examples(96, 0), symmetric(3, 0.4)
    all_of, none_of = (data._replace(clean=np.full(96, flag)) for flag in (True, False))
    assert_trees_close(fit(all_of, S), fit(data, np.eye(3)), atol=1e-6)
    assert_trees_close(fit(none_of, S), fit(data, S), atol=1e-6)
    distances = [
        max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), fit(data, S), fit(other, S))))
        for other in (all_of, none_of)
    ]
    assert distances[0] > 1e-3 > distances[1]


def test_without_clean_labels_no_batch_carries_a_flag(monkeypatch):
    seen, original = [], fit_step.example_losses
    monkeypatch.setattr(fit_step, "example_losses", lambda *rest: seen.append(set(rest[2])) or original(*rest))
    classifiers.compiled_step.cache_clear()
    fit(examples(40, 0), np.eye(3))
    fit(classifiers.with_clean(examples(40, 0), examples(20, 1)), np.eye(3))
    assert seen[0] == {"x0", "label", "position"} and seen[-1] == seen[0] | {"clean"}
    classifiers.compiled_step.cache_clear()


def test_both_sets_are_joined_in_order():
    real, made = examples(5, 0), examples(3, 1)
    both = classifiers.with_clean(real, made)
    np.testing.assert_array_equal(both.images[5:], made.images)
    np.testing.assert_array_equal(both.labels, [*real.labels, *made.labels])
    assert both.clean.tolist() == [False] * 5 + [True] * 3


def test_losses_that_do_not_read_s_are_refused():
    data = classifiers.with_clean(examples(40, 0), examples(20, 1))
    for changed in ({"loss": "gce"}, {"loss": "elr"}, {"forget_rate": 0.2}):
        with pytest.raises(UserError, match="only the loss 'forward' on all examples tells clean labels"):
            fit(data, np.eye(3), FitSettings(NETWORK, FAST, loop.Schedule(1, 1, 1), None, **changed))


# -- the run -------------------------------------------------------------------------------------------------


def write_samples(path, images=None, labels=None):
    images = np.zeros((20, 8, 8, 1), np.uint8) if images is None else images
    labels = np.arange(len(images)) % 10 if labels is None else labels
    files.write_arrays(path, {"images": images, "labels": labels})
    return path


def run_of(workdir, arguments="", generated=""):
    config = DIGITS.get_config(f"smoke,methods=dsm,{arguments}")
    config.generated = str(generated)
    return Run(FrozenConfigDict(config), workdir)


def test_generated_images_join_every_fold_of_the_weights_and_none_that_is_held_out(tmp_path, monkeypatch):
    path = write_samples(tmp_path / "samples.npz")
    run = run_of(tmp_path / "run", "transition=anchor", path)
    label_stages.make_labels(run)
    fitted = []

    def fit_fold(data, key, **rest):
        fitted.append((data, rest["held_out"]))
        x = jnp.zeros((1, *data.images.shape[1:]))
        variables = run.classifier.init(jax.random.key(0), x, jnp.zeros(1))
        return [classifiers.Fitted(variables, np.ones(7), np.eye(10), 0.0)]

    monkeypatch.setattr(label_stages, "fit_fold", fit_fold)
    label_stages.fit_noisy_classifier(run)  # p(y_tilde | x0): labels that are clean are none of those
    files.write_json(run.workdir / "estimate.json", {"S": symmetric(10, 0.4).tolist()})
    label_stages.fit_classifier(run)
    sizes = np.bincount(run.fold).tolist()
    assert [len(data.labels) for data, _ in fitted] == [sizes[1], sizes[0], sizes[1] + 20, sizes[0] + 20]
    assert [len(held_out.labels) for _, held_out in fitted] == [*sizes, *sizes]
    for data, held_out in fitted:
        assert held_out.clean is None
        assert data.clean is None or data.clean.sum() == 20 and not data.images[data.clean].any()
    assert [data.clean is None for data, _ in fitted] == [True, True, False, False]


def test_the_classifiers_depend_on_the_content_of_the_file(tmp_path):
    path = write_samples(tmp_path / "samples.npz")

    def hashes(generated):
        run = run_of(tmp_path / "run", generated=generated)
        return {p.unit.name: p.hash for p in pipeline.plan(plan.units(run), run.config, tmp_path / "run")}

    without, before = hashes(""), hashes(path)
    write_samples(path, labels=np.zeros(20, int))
    after = hashes(path)
    assert len({h["classifier"] for h in (without, before, after)}) == 3
    assert len({h["labels"] for h in (without, before, after)}) == 1


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((4, 8, 8, 1), np.uint8)}, "holds no samples"),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, r"images of uint8 \(8, 8, 3\); the training images are uint8"),
        ({"images": np.zeros((4, 8, 8, 1))}, "images of float64"),
        ({"labels": np.array([0, 1, 2, 10])}, "its labels must be whole numbers below 10"),
        ({"labels": np.array([0, 1, 2, -1])}, "its labels must be whole numbers below 10"),
        ({"labels": np.zeros(3, int)}, "one an image"),
        ({"labels": np.zeros(4)}, "whole numbers"),
        ({"images": np.zeros((0, 8, 8, 1), np.uint8), "labels": np.zeros(0, int)}, "at least one"),
    ],
)
def test_files_that_hold_no_samples_for_these_data_are_refused(arrays, said, tmp_path):
    whole = {"images": np.zeros((4, 8, 8, 1), np.uint8), "labels": np.arange(4)}
    files.write_arrays(tmp_path / "s.npz", arrays if said == "holds no samples" else whole | arrays)
    with pytest.raises(UserError, match=said) as error:
        checks.check(run_of(tmp_path / "run", generated=tmp_path / "s.npz"))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_said_before_anything_is_planned(tmp_path):
    with pytest.raises(UserError, match=r"none.npz: no such file .*generated"):
        plan.units(run_of(tmp_path, generated=tmp_path / "none.npz"))


@pytest.mark.parametrize(
    "changed", [{"loss": "gce"}, {"forget_rate": 0.2}, {"init_from": "classifier.npz", "folds": 1}]
)
def test_settings_that_cannot_tell_clean_labels_are_refused(changed):
    config = DIGITS.get_config()
    config.classifier.update(changed)
    validate(config)
    config.generated = "samples.npz"
    with pytest.raises(UserError, match="config key generated") as error:
        validate(config)
    assert "\n" not in str(error.value)
