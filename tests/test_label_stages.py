"""The stages between noisy labels and S: who judges which image, what an estimator gets to read, what stops."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from tdsm_jax import config as configuration
from tdsm_jax import files, label_stages, plan
from tdsm_jax.data.dataset import to_float
from tdsm_jax.errors import UserError
from tdsm_jax.labels.hoc import nearest_neighbours
from tdsm_jax.run import Run
from tdsm_jax.training.classifier import Fitted

DIGITS = configuration.load_module(pathlib.Path(__file__).parents[1] / "configs" / "digits.py")


def run_of(workdir, arguments="", **transition):
    config = DIGITS.get_config(f"smoke,methods=dsm,{arguments}")
    config.transition.update(transition)
    return Run(FrozenConfigDict(config), workdir)


def with_labels(run):
    label_stages.make_labels(run)
    return run


def units(run):
    return {unit.name: unit.needs for unit in plan.units(run)}


@pytest.mark.parametrize(
    ("transition", "fits", "estimates"),
    [
        ({"estimator": "known"}, False, False),
        ({"estimator": "volmin"}, False, False),
        ({"estimator": "counts"}, False, True),
        ({"estimator": "hoc"}, False, True),
        ({"estimator": "hoc", "features": "network"}, True, True),
        ({"estimator": "anchor"}, True, True),
        ({"estimator": "em"}, True, True),
    ],
)
def test_only_what_an_estimator_reads_is_fitted(transition, fits, estimates, tmp_path):
    found = units(run_of(tmp_path, **transition))
    assert ("noisy_classifier" in found, "estimate" in found) == (fits, estimates)
    before = "estimate" if estimates else "labels"
    assert found["classifier"] == (before,)
    if estimates:
        assert found["estimate"] == ("noisy_classifier" if fits else "labels",)


def test_every_image_is_judged_by_the_classifier_that_never_saw_it(tmp_path):
    run = run_of(tmp_path)
    x = jnp.zeros((1, 8, 8, 1))
    fitted = [Fitted(run.classifier.init(jax.random.key(f), x, jnp.zeros(1)), 1.0 + f, np.eye(10), 0.0) for f in (0, 1)]
    p, features = label_stages.out_of_fold(run, fitted)
    x0 = to_float(run.train_set.images)
    own = [run.classifier.apply(one.params, x0, jnp.zeros(len(x0)))[0] / one.temperature for one in fitted]
    expected = np.where(run.fold[:, None] == 0, *(jax.nn.softmax(logits) for logits in own))
    np.testing.assert_allclose(p, expected, atol=1e-6)
    neighbours = nearest_neighbours(features)
    assert (run.fold[neighbours] == run.fold[:, None]).all()


def test_an_estimate_that_cannot_be_inverted_stops_and_leaves_nothing(tmp_path):
    run = with_labels(run_of(tmp_path, "transition=anchor"))
    blind = np.full((len(run.y_tilde), 10), 0.1)
    files.write_arrays(tmp_path / "noisy_posterior.npz", {"p": blind, "features": blind})
    with pytest.raises(UserError, match="every clean class has .* the same row of S"):
        label_stages.estimate_transition(run)
    assert not (tmp_path / "estimate.json").exists()


def test_counts_read_as_many_clean_labels_as_allowed(tmp_path):
    run = with_labels(run_of(tmp_path, "transition=counts", clean_per_class=20))
    label_stages.estimate_transition(run)
    found = json.loads((tmp_path / "estimate.json").read_text())
    known = label_stages.evidence(run)
    joint = np.zeros((10, 10))
    np.add.at(joint, (known.clean_labels, run.y_tilde[known.clean_index]), 1)
    assert joint.sum(axis=1).tolist() == [20] * 10
    np.testing.assert_allclose(found["S"], (joint + 0.5) / 25, atol=1e-12)
    np.testing.assert_array_equal(run.given_S, found["S"])


def test_em_reads_clean_posteriors_of_its_start(tmp_path):
    """Where the noisy posterior is h S and the start is S, EM gets h."""
    run = with_labels(run_of(tmp_path, "rate=0.3,transition=em", start="counts", clean_per_class=10**6))
    h = np.random.default_rng(0).dirichlet(np.full(10, 0.2), len(run.y_tilde))
    counting = run_of(tmp_path, "rate=0.3,transition=counts", clean_per_class=10**6)
    S = label_stages.estimate("counts", label_stages.evidence(counting)).S
    files.write_arrays(tmp_path / "noisy_posterior.npz", {"p": h @ S, "features": h})
    found = label_stages.evidence(run).clean_posterior
    np.testing.assert_allclose(found @ S, h @ S, atol=0.02)
    assert np.abs(found - h).mean() < 0.02


@pytest.mark.parametrize("kind", ["argmax", "soft"])
def test_relabelling_takes_its_labels_from_the_posterior_as_the_config_says(kind, tmp_path):
    run = with_labels(run_of(tmp_path))
    run = Run(FrozenConfigDict({**run.config.to_dict(), "relabel": kind}), tmp_path)
    w = np.full((len(run.y_tilde), 10), 0.05)
    w[:, 3] = 0.55
    files.write_arrays(tmp_path / "image_posterior.npz", {"w": w})
    share = np.mean(run.labels_of("relabel") == 3)
    assert share == 1 if kind == "argmax" else abs(share - 0.55) < 0.05
    np.testing.assert_array_equal(run.labels_of("relabel_tdsm"), run.labels_of("relabel"))
    np.testing.assert_array_equal(run.labels_of("dsm"), run.y_tilde)


def test_fits_of_equal_settings_share_what_was_compiled(tmp_path):
    a, b, c = (
        label_stages.fit_settings(run_of(tmp_path, keys))
        for keys in ("seed=0", "seed=1,noise=asym", "objective=published")
    )
    assert a == b and hash(a) == hash(b) and a != c
