"""Corrupted training images: a pure function of seed and index, seen in training alone, on record."""

import pathlib

import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from tdsm_jax import config as configuration
from tdsm_jax import files, image_stages, pipeline, plan, results
from tdsm_jax.data.dataset import images_hash, to_float
from tdsm_jax.data.image_corruption import CORRUPTIONS, ImageNoise, corrupted
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import report_words
from tdsm_jax.run import Run
from tdsm_jax.validation import validate

DIGITS = configuration.load_module(pathlib.Path(__file__).parents[1] / "configs" / "digits.py")
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 12, 12, 3), np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_depends_on_seed_and_index_alone(kind, channels):
    images, index = IMAGES[..., :channels], np.arange(60)
    made, chosen = corrupted(images, index, ImageNoise(kind, 0.4, 0.5, 3))
    assert made.dtype == np.uint8 and made.shape == images.shape and 10 < chosen.sum() < 40
    np.testing.assert_array_equal(made[~chosen], images[~chosen])
    assert all((made[i] != images[i]).any() for i in np.flatnonzero(chosen))
    again, of_some = corrupted(images[7:20], index[7:20], ImageNoise(kind, 0.4, 0.5, 3))
    np.testing.assert_array_equal(again, made[7:20])
    np.testing.assert_array_equal(of_some, chosen[7:20])
    more, of_more = corrupted(images, index, ImageNoise(kind, 0.7, 0.5, 3))
    assert of_more[chosen].all() and of_more.sum() > chosen.sum()
    np.testing.assert_array_equal(more[chosen], made[chosen])
    other, of_other = corrupted(images, index, ImageNoise(kind, 0.4, 0.5, 4))
    assert (of_other != chosen).any() and (other != made).any()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_rates_of_nothing_and_of_everything(kind):
    none, chosen = corrupted(IMAGES, np.arange(60), ImageNoise(kind, 0.0, 0.5, 0))
    np.testing.assert_array_equal(none, IMAGES)
    assert not chosen.any() and corrupted(IMAGES, np.arange(60), ImageNoise(kind, 1.0, 0.5, 0))[1].all()


def test_off_topic_images_owe_nothing_to_those_they_replace():
    for kind in ("off_topic_symbols", "off_topic_photos"):
        noise = ImageNoise(kind, 1.0, 0.5, 0)
        a, b = (corrupted(images, np.arange(60), noise)[0] for images in (IMAGES, 255 - IMAGES))
        np.testing.assert_array_equal(a, b)
        assert len({image.tobytes() for image in a}) == 60


def test_severity_is_the_share_that_is_covered_or_broken():
    grey = np.full((200, 16, 16, 1), 77, np.uint8)
    covered, _ = corrupted(grey, np.arange(200), ImageNoise("occlusion", 1.0, 0.25, 0))
    broken, _ = corrupted(grey, np.arange(200), ImageNoise("salt_pepper", 1.0, 0.25, 0))
    assert np.mean(covered != 77) == pytest.approx(0.25, abs=0.02)
    assert np.mean(broken != 77) == pytest.approx(0.25, abs=0.01)
    assert set(np.unique(broken)) == {0, 77, 255}
    whole = corrupted(grey[:3], np.arange(3), ImageNoise("occlusion", 1.0, 1.0, 0))[0]
    assert all(len(np.unique(image)) == 1 for image in whole)


def test_what_cannot_be_corrupted_is_refused():
    with pytest.raises(UserError, match="did you mean 'occlusion'"):
        corrupted(IMAGES, np.arange(60), ImageNoise("oclusion", 0.5, 0.5, 0))
    with pytest.raises(UserError, match="these have 2 channels"):
        corrupted(IMAGES[..., :2], np.arange(60), ImageNoise("occlusion", 0.5, 0.5, 0))


def make_run(workdir, methods="dsm+tdsm+posterior+clean", **noise):
    config = DIGITS.get_config(f"smoke,methods={methods}")
    config.image_noise.update(noise)
    validate(config)
    return Run(FrozenConfigDict(config), workdir)


NOISE = {"kind": "off_topic_photos", "rate": 0.3}


def test_training_sees_corrupted_images_and_nothing_else_does(tmp_path):
    plain, run = make_run(tmp_path), make_run(tmp_path, **NOISE)
    chosen = run.image_noise[1]
    assert chosen.mean() == pytest.approx(0.3, abs=0.04)
    for name in ("train_set", "test_set", "compared", "reference"):
        np.testing.assert_array_equal(getattr(run, name).images, getattr(plain, name).images)
    np.testing.assert_array_equal(plain.training_images, plain.train_set.images)
    assert ((run.training_images != run.train_set.images).any(axis=(1, 2, 3)) == chosen).all()
    np.testing.assert_array_equal(run.images_of("clean"), run.train_set.images)
    assert run.new_labels.images_hash == plain.new_labels.images_hash
    np.testing.assert_array_equal(run.new_labels.y_tilde, plain.new_labels.y_tilde)


def test_the_steps_of_the_ceiling_are_those_without_image_noise(tmp_path):
    run, index = make_run(tmp_path, "dsm+clean", **NOISE), np.arange(64)
    pipeline.execute(pipeline.select(planned(run), ("images", "labels")), tmp_path)
    seen = {m: run.score_step(m).batches(0, index)["x0"] for m in ("dsm", "clean")}
    plain = make_run(tmp_path / "plain", "dsm+clean").score_step("clean").batches(0, index)["x0"]
    np.testing.assert_array_equal(seen["clean"], plain)
    assert 5 < (seen["dsm"] != plain).any(axis=(1, 2, 3)).sum() < 35
    given = run.given(np.ones(len(run.y_tilde), bool)).images  # what classifiers are fitted on
    np.testing.assert_array_equal(given, run.training_images)
    np.testing.assert_array_equal(run.labelled_batch(index)["x0"], to_float(run.training_images[index]))


def planned(run):
    return pipeline.plan(plan.units(run), run.config, run.workdir)


def test_the_record_says_which_images_and_is_checked(tmp_path):
    run = make_run(tmp_path, **NOISE)
    image_stages.make_images(run)
    record = files.read_json(tmp_path / "image_noise.json")
    assert record["kind"] == "off_topic_photos" and record["indices"] == np.flatnonzero(run.image_noise[1]).tolist()
    assert record["images_sha256"] == images_hash(run.training_images)
    assert (tmp_path / "image_noise.png").read_bytes().startswith(b"\x89PNG")
    files.write_json(tmp_path / "image_noise.json", record | {"images_sha256": "0"})
    with pytest.raises(UserError, match="records other corrupted images"):
        _ = make_run(tmp_path, **NOISE).training_images
    _ = make_run(tmp_path, **NOISE | {"rate": 0.2}).training_images  # a record of another config is not its matter


def test_the_report_says_who_does_not_see_them(tmp_path):
    run = make_run(tmp_path, **NOISE)
    image_stages.make_images(run)
    said = results.corrupted_images(run)
    share = run.image_noise[1].mean()
    assert said.startswith(f"{share:.1%} of the training images are corrupted: crops of photographs in their place.")
    assert "Method clean, the ceiling, trains on the images as they were" in said
    assert "Recovery counts what the corrupted images cost as damage of the labels" in said
    without = {
        methods: results.corrupted_images(make_run(tmp_path, methods, **NOISE)) for methods in ("dsm", "dsm+clean")
    }
    assert all("Test images and those" in said and "Recovery" not in said for said in without.values())
    assert "ceiling" not in without["dsm"] and "ceiling" in without["dsm+clean"]
    assert set(report_words.IMAGE_NOISE) == set(CORRUPTIONS)


def test_units_that_train_are_made_again_and_the_others_are_not(tmp_path):
    hashes = [
        {p.unit.name: p.hash for p in planned(make_run(tmp_path, "dsm+tdsm+clean", **noise))}
        for noise in ({}, NOISE, NOISE | {"rate": 0.15})
    ]
    assert "images" not in hashes[0] and "images" in hashes[1]
    same = {name for name in hashes[0] if hashes[0][name] == hashes[1][name]}
    assert same >= {"labels", "score/clean", "sample/clean", "judge", "measure/clean"}
    assert not same & {"classifier", "transition", "score/dsm", "score/tdsm", "sample/dsm", "measure/dsm"}
    changed = {name for name in hashes[1] if hashes[1][name] != hashes[2][name]}
    assert changed >= {"images", "classifier", "score/dsm", "score/tdsm"} and not changed & same


def test_a_number_of_an_image_survives_imbalance(tmp_path):
    config = DIGITS.get_config("smoke,imbalance=0.3")
    config.image_noise.update(NOISE)
    few, all_of_them = Run(FrozenConfigDict(config), tmp_path), make_run(tmp_path, **NOISE)
    assert 100 < len(few.training_images) < len(all_of_them.training_images)
    assert set(few.image_noise_record()["indices"]) <= set(all_of_them.image_noise_record()["indices"])


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("image_noise", "kind", "oclusion", "did you mean 'occlusion'"),
        ("image_noise", "rate", 1.2, r"image_noise.rate=1.2 must lie in \[0, 1\]"),
        ("image_noise", "severity", 1.2, "is a share, at most 1"),
        ("data", "stream", True, "image_noise.kind=salt_pepper corrupts images in memory: set data.stream=False"),
        (None, "task", "robust_losses", "image_noise.kind=salt_pepper is for task=generation"),
    ],
)
def test_bad_values_end_in_one_line(section, key, value, said):
    config = DIGITS.get_config("smoke")
    config.image_noise.kind = "salt_pepper"
    (config[section] if section else config)[key] = value
    with pytest.raises(UserError, match=said) as error:
        validate(config)
    assert "\n" not in str(error.value)
