"""Samples of a model: what they depend on, what they cost, and which settings go together."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from tdsm_jax import config as configuration
from tdsm_jax import plan
from tdsm_jax.data.dataset import to_uint8
from tdsm_jax.diffusion.process import EDM
from tdsm_jax.diffusion.sampling import edm_sigmas, heun
from tdsm_jax.diffusion.unmixing import unmixing_terms
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import transition_matrix
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.unet import UNet
from tdsm_jax.run import Run
from tdsm_jax.sampler import Correction, Sampler, Sampling, check_sampling, drawn, sampling_call
from tdsm_jax.training import model_file
from tdsm_jax.training.calibration import SIGMAS
from tdsm_jax.training.cross_fit import CrossFitted, Weigher, averaged_logits, fold_logits
from tdsm_jax.training.model_file import Model
from tdsm_jax.training.parallel import data_mesh
from tdsm_jax.training.state import initial_variables
from tdsm_jax.validation import validate

DIGITS = configuration.load_module(pathlib.Path(__file__).parents[1] / "configs" / "digits.py")

KEY, LABELS, SHAPE = jax.random.key(3), np.arange(10, dtype=np.int32) % 3, (8, 8, 1)
PLAIN = Sampling(batch_size=8, steps=4)


@functools.cache
def model(seed=0, num_classes=3):
    network = UNet(num_classes, 8, (1,), 1, (), 0.0, "ddpmpp", 0, jnp.dtype(jnp.float32))
    rng = np.random.default_rng(seed)
    shapes = model_file.variable_shapes(network, SHAPE)
    return Model(
        network, jax.tree.map(lambda s: 0.3 * rng.normal(size=s.shape).astype(np.float32), shapes), EDM(), SHAPE
    )


def correction(folds=2, K=3, limit=5.0):
    network = Classifier(K, (8,), 16, 0.0)
    x, sigma = jnp.zeros((1, *SHAPE)), jnp.zeros(1)
    stacked = [initial_variables(network, jax.random.key(f), x, sigma) for f in range(folds)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves)[:, None], *stacked)
    classifiers = CrossFitted(params, jnp.full((folds, len(SIGMAS)), 1.5))
    return Correction(unmixing_terms(transition_matrix("sym", K, 0.3), 9), Weigher(network, EDM()), classifiers, limit)


def draw(tmp_path, settings=PLAIN, given=None, correct=None, labels=LABELS):
    mesh = data_mesh()
    parts = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    return drawn(Sampler(given or model(), settings, mesh, correct), labels, KEY, parts, "sample")


def with_(**changes):
    return dataclasses.replace(PLAIN, **changes)


def close(a, b):
    return np.abs(a.images.astype(int) - b.images.astype(int)).max() <= 1


def test_by_default_images_are_those_of_heuns_solver(tmp_path):
    call, given = sampling_call(model().network, EDM()), model()
    latents = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(KEY, i), SHAPE))(jnp.arange(8))
    bound = lambda x, sigma: call(given.params, x, sigma, jnp.asarray(LABELS[:8]))  # noqa: E731
    expected = to_uint8(np.asarray(heun(bound, latents, edm_sigmas(4, 0.002, 80.0))))
    made = draw(tmp_path)
    np.testing.assert_array_equal(made.images[:8], expected)
    assert (made.cost.evaluations, made.cost.classifier_evaluations) == (7, 0) and made.cost.images_per_second > 0
    assert sampling_call(model().network.clone(), EDM()) is call


@pytest.mark.parametrize(
    "settings",
    [
        with_(solver="stochastic_heun", churn=2.0, churn_interval=(0.05, 50.0), churn_noise=1.01),
        with_(guidance=3.0, adaptive_guidance=0.9),
    ],
    ids=["churn", "adaptive"],
)
def test_image_i_depends_on_key_i_and_label_alone(settings, tmp_path):
    """Other batches and fewer images: the same, though noise is added and each image's guidance has an end."""
    every = draw(tmp_path, settings)
    assert close(every, draw(tmp_path, dataclasses.replace(settings, batch_size=3)))
    np.testing.assert_array_equal(draw(tmp_path, settings, labels=LABELS[:8]).images, every.images[:8])
    assert not close(every, draw(tmp_path))


def test_churn_is_fresh_in_each_step_and_image(tmp_path):
    seen = []

    class Watching(Sampler):
        def images(self, latents, label, noise):
            seen.extend(np.asarray(noise(step)) for step in range(2))
            return super().images(latents, label, noise)

    mesh = data_mesh()
    settings = with_(solver="stochastic_heun", churn=1.0)
    drawn(Watching(model(), settings, mesh), LABELS[:8], KEY, tmp_path / "parts", "sample")
    rows = np.concatenate([noise.reshape(8, -1) for noise in seen])
    correlation = np.corrcoef(rows) - np.eye(16)
    assert np.abs(correlation).max() < 0.6 and rows.std() == pytest.approx(1, abs=0.05)


def test_what_is_not_needed_is_not_evaluated(tmp_path):
    costs = {
        "guided": (with_(guidance=2.0), 14),
        "interval": (with_(guidance=2.0, guidance_interval=(1.0, 10.0)), 9),  # at one of four levels, twice looked at
        "unconditional": (with_(guidance=0.0), 7),
        "multistep": (with_(solver="dpmpp_2m", schedule="ve"), 4),
    }
    levels = edm_sigmas(4, 0.002, 80.0)
    assert ((levels > 1.0) & (levels <= 10.0)).sum() == 1
    for name, (settings, evaluations) in costs.items():
        assert draw(tmp_path, settings).cost.evaluations == evaluations, name


def test_a_weaker_model_guides(tmp_path):
    model_file.write(tmp_path / "weak.npz", model(1))
    path = str(tmp_path / "weak.npz")
    one = with_(steps=1, guidance=2.0, autoguidance=path)
    latents = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(KEY, i), SHAPE))(jnp.arange(10))
    call, sigma = sampling_call(model().network, EDM()), np.full(10, 80.0, np.float32)
    strong, weak = (call(m.params, 80 * latents, sigma, jnp.asarray(LABELS)) for m in (model(), model(1)))
    made = draw(tmp_path, one)
    np.testing.assert_allclose(made.images, to_uint8(np.asarray(weak + 2 * (strong - weak))), atol=1)
    assert made.cost.evaluations == 2
    with pytest.raises(UserError, match="autoguidance by .*: its number of classes is 3, that of the model 0"):
        draw(tmp_path, one, model(num_classes=0))


def test_a_model_of_noisy_labels_is_corrected(tmp_path):
    made = draw(tmp_path, with_(guidance=1.5), correct=correction())
    assert (made.cost.evaluations, made.cost.classifier_evaluations) == (14, 14)  # two folds; D_null is shared
    assert not close(made, draw(tmp_path, with_(guidance=1.5)))
    with pytest.raises(UserError, match="the correction is one of 3 classes and the model has 5"):
        draw(tmp_path, given=model(num_classes=5), correct=correction())


def test_the_posterior_of_a_new_image_is_the_mean_over_folds():
    _, weigher, classifiers, _ = correction()
    x, sigma = jax.random.normal(KEY, (4, *SHAPE)), jnp.array([0.1, 0.5, 2.0, 60.0])
    one, mean = (jax.jit(f, static_argnums=n) for f, n in ((fold_logits, (0, 2)), (averaged_logits, 0)))
    h = [jax.nn.softmax(one(weigher, classifiers, f, x, sigma)) for f in range(2)]
    averaged = jax.nn.softmax(mean(weigher, classifiers, x, sigma))
    np.testing.assert_allclose(averaged, (h[0] + h[1]) / 2, atol=1e-6)
    assert np.abs(h[0] - h[1]).max() > 1e-3


def test_guidance_needs_a_label_to_leave_out(tmp_path):
    with pytest.raises(UserError, match="must be 1 for a network without labels"):
        draw(tmp_path, with_(guidance=2.0), model(num_classes=0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance_interval": (2.0, 1.0), "guidance": 2.0}, "guidance_interval=(2.0, 1.0) must be two noise levels"),
        ({"guidance_interval": (2.0,), "guidance": 2.0}, "the lower one first"),
        ({"guidance_interval": ("a", 2.0), "guidance": 2.0}, "guidance_interval=('a', 2.0) must be two noise levels"),
        ({"guidance_rescale": 0.7}, "guidance_rescale changes nothing where --guidance is 1"),
        ({"autoguidance": "weak.npz"}, "autoguidance changes nothing where --guidance is 1"),
        ({"adaptive_guidance": 0.9, "guidance": 0.0}, "--guidance=0 looks at no label"),
        (
            {"guidance_rescale": 0.7, "guidance": 0.0, "autoguidance": "weak.npz"},
            "--guidance=0 is the weaker model alone: leave guidance_rescale",
        ),
        ({"churn": 1.0}, "the solver stochastic_heun adds; heun adds none"),
        ({"solver": "stochastic_heun"}, "needs --churn above 0"),
        ({"solver": "stochastic_heun", "churn": 1.0, "churn_interval": (5.0, 5.0)}, "churn_interval=(5.0, 5.0)"),
    ],
)
def test_settings_that_do_not_go_together(changes, said):
    with pytest.raises(UserError) as error:
        check_sampling(with_(**changes), "--")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_settings_name_what_differs_from_the_defaults():
    assert PLAIN.chosen == {"steps": 4}
    assert with_(churn_interval=(1.0, 2.0), guidance=2.0).chosen == {
        "steps": 4, "churn_interval": [1.0, 2.0], "guidance": 2.0,
    }  # fmt: skip


def test_samples_are_made_again_where_what_they_read_has_changed(tmp_path):
    config = DIGITS.get_config("methods=dsm+corrected")
    config.sampling.update(guidance=2.0, autoguidance=str(tmp_path / "weak.npz"))
    validate(config)
    with pytest.raises(UserError, match="config key sampling.autoguidance=.*weak.npz: no such file or folder"):
        plan.units(Run(FrozenConfigDict(config), tmp_path))
    found = []
    for content in ("one", "other"):
        (tmp_path / "weak.npz").write_text(content)
        found.append({unit.name: unit for unit in plan.units(Run(FrozenConfigDict(config), tmp_path))})
    assert "score/corrected" not in found[0] and list(found[0]).index("sample/corrected") > list(found[0]).index(
        "score/dsm"
    )
    assert found[0]["sample/corrected"].needs == ("score/dsm", "transition")
    assert "correction" in found[0]["sample/corrected"].reads and "correction" not in found[0]["sample/dsm"].reads
    for name in ("sample/dsm", "sample/corrected"):
        assert found[0][name].inputs.keys() == {str(tmp_path / "weak.npz")}
        assert found[0][name].inputs != found[1][name].inputs
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "ema.npz").write_text("other")
    config.sampling.autoguidance = str(tmp_path / "training")  # as the option of commands takes it
    run = Run(FrozenConfigDict(config), tmp_path)
    units = {unit.name: unit for unit in plan.units(run)}
    assert list(units["sample/dsm"].inputs.values()) == list(found[1]["sample/dsm"].inputs.values())
    assert run.weaker_path == tmp_path / "training" / "ema.npz"
    assert found[0]["measure/corrected"].needs == ("judge", "sample/corrected")
