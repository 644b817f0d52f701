"""The class of an image by the errors of a model's denoisers, and the method that refines its posterior by it."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from tdsm_jax import config as configuration
from tdsm_jax import files, label_stages, pipeline, plan, refinement
from tdsm_jax.diffusion import likelihood
from tdsm_jax.diffusion.process import EDM, VE, VP, per_example
from tdsm_jax.errors import UserError
from tdsm_jax.run import Run
from tdsm_jax.training import model_file
from tdsm_jax.training.model_file import Model
from tdsm_jax.validation import validate

DIGITS = configuration.load_module(pathlib.Path(__file__).parents[1] / "configs" / "digits.py")


def test_the_evidence_is_the_likelihood_where_that_is_known():
    """Classes N(mu_y, v I): log p(x | y) = -|x - mu_y|^2 / 2v, whatever the noise levels lie close to."""
    rng, v = np.random.default_rng(0), 0.3
    mu, x0 = rng.normal(size=(3, 4)), jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    n = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)

    def denoise(x, sigma, label):
        s2 = per_example(sigma, x) ** 2
        return (v * x + s2 * jnp.asarray(mu, jnp.float32)[label]) / (v + s2)

    sigmas, shares = likelihood.noise_levels(EDM(P_mean=-0.5, P_std=3.0), 100)
    found = np.zeros((5, 3))
    for sigma, share in zip(sigmas, shares, strict=True):
        for y in range(3):
            at, label = jnp.full(5, sigma, jnp.float32), jnp.full(5, y)
            both = (likelihood.denoising_error(denoise, x0, at, sign * n, label) for sign in (1, -1))
            found[:, y] -= share * np.mean(list(both), axis=0)
    expected = -((np.asarray(x0)[:, None] - mu) ** 2).sum(axis=2) / (2 * v)
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("process", [EDM(), VP(), VE()], ids=lambda p: type(p).__name__)
def test_levels_halve_the_shares_of_those_trained_at(process):
    sigma, share = likelihood.noise_levels(process, 8)
    normal = jax.random.normal(jax.random.key(0), (20_000,))
    below = [np.mean(np.asarray(process.sigma(normal)) < s) for s in sigma]
    np.testing.assert_allclose(below, (np.arange(8) + 0.5) / 8, atol=0.02)
    assert (share > 0).all() and share[1:-1].sum() == pytest.approx(
        np.log(sigma[-1] * sigma[-2] / sigma[0] / sigma[1]) / 2
    )
    assert likelihood.noise_levels(process, 1)[1].tolist() == [1]


def test_the_evidence_multiplies_what_was_believed():
    w = np.array([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]])
    refined = likelihood.times_evidence(w, np.log([[3.0, 1.0, 9.0], [4.0, 1.0, 9.0]]) - 1e4)
    np.testing.assert_allclose(refined, [[0.75, 0.25, 0], [0.5, 0.5, 0]])
    np.testing.assert_allclose(likelihood.times_evidence(w, np.full((2, 3), 7.0)), w)


# -- the method ----------------------------------------------------------------------------------------------


def run_of(workdir, methods="posterior+refined", batch_size=40, **changed):
    config = DIGITS.get_config(f"smoke,methods={methods}")
    config.data.update(name="synthetic", image_size=8, channels=1, num_images=100, num_classes=4)
    config.label_noise.table = "cifar10"
    config.sampling.batch_size = batch_size
    config.refinement.update({"levels": 2, **changed})
    return Run(FrozenConfigDict(config), workdir)


def prepared(run):
    """Makes what the stage reads: labels, a posterior and a model, untrained."""
    label_stages.make_labels(run)
    model = Model(run.network, run.initial_params(), run.process, run.train_set.images.shape[1:])
    leaves, tree = jax.tree.flatten(model.params)
    rng = np.random.default_rng(0)  # an untrained network's last layer is zero: it would know no class
    noisy = [leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    model_file.write(run.workdir / "score" / "posterior" / "ema.npz", model._replace(params=tree.unflatten(noisy)))
    w = np.random.default_rng(1).dirichlet(np.ones(4), len(run.y_tilde)).astype(np.float32)
    files.write_arrays(run.workdir / "image_posterior.npz", {"w": w})
    return run


def test_the_posterior_is_refined_by_the_model_and_both_are_judged(tmp_path):
    run = prepared(run_of(tmp_path))
    refinement.refine(run)
    before, after = run.posterior_for("posterior"), run.posterior_for("refined")
    np.testing.assert_allclose(after, likelihood.times_evidence(before, refinement.log_evidence(run)), atol=1e-6)
    assert np.abs(after - before).max() > 0.01 and after.dtype == np.float32
    found = files.read_json(tmp_path / "refinement.json")
    y = run.train_set.labels
    assert found["after"]["accuracy"] == np.mean(after.argmax(axis=1) == y)
    assert found["before"]["weight_error"] == pytest.approx(np.abs(before - np.eye(4)[y]).sum(axis=1).mean(), rel=1e-5)
    assert found["before"]["own_weight"] == pytest.approx(before[np.arange(len(y)), run.y_tilde].mean())
    assert found["expected_own_weight"] == pytest.approx(np.mean(run.y_tilde == y))


def test_the_evidence_does_not_depend_on_the_batch_and_depends_on_the_levels(tmp_path):
    one = refinement.log_evidence(prepared(run_of(tmp_path)))
    other, more = (refinement.log_evidence(run_of(tmp_path, **c)) for c in ({"batch_size": 24}, {"draws": 2}))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)
    assert np.abs(one - more).max() > 0.1


def test_labels_are_drawn_from_the_refined_posterior(tmp_path):
    run = prepared(run_of(tmp_path))
    files.write_arrays(tmp_path / "refined_posterior.npz", {"w": run.image_posterior[:, ::-1]})
    for method, w in (("posterior", run.image_posterior), ("refined", run.image_posterior[:, ::-1])):
        begin = run.score_step(method)
        assert begin.objective.draws_labels
        batch = begin.batches(0, np.arange(begin.batch_size))
        whole = {tuple(row) for row in w}
        assert {tuple(row) for row in batch["image_posterior"]} <= whole


def test_the_first_model_comes_before_what_it_refines(tmp_path):
    units = plan.units(run_of(tmp_path, methods="refined+dsm+posterior"))
    names = [unit.name for unit in units]
    needs = {unit.name: unit.needs for unit in units}
    assert needs["refine"] == ("posterior", "score/posterior") and "refine" in needs["score/refined"]
    for unit in units:
        assert all(names.index(needed) < names.index(unit.name) for needed in unit.needs)
    pipeline.plan(units, run_of(tmp_path).config, tmp_path)
    assert "refine" not in [unit.name for unit in plan.units(run_of(tmp_path, methods="dsm+posterior"))]


def test_refined_alone_is_refused():
    config = DIGITS.get_config("methods=dsm+refined")
    with pytest.raises(UserError, match="config key methods: refined goes on from what posterior trained"):
        validate(config)
