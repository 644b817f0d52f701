"""Extraction: every image once, in order, whatever the batches; it goes on after a stop; bad input is one line."""

import jax
import numpy as np
import pytest

from golden_rule import inception_state
from official import load
from tdsm_jax import extractors, hosts
from tdsm_jax.errors import Stopped, UserError
from tdsm_jax.evaluation import features
from tdsm_jax.evaluation.features import Extractor, extract
from tdsm_jax.extractors import open_extractor
from tdsm_jax.training.parallel import data_mesh, per_device
from test_inception import saved
from test_parallel import on


def toy(batch_size=4, classify=True, name="toy", mesh=None):
    """An extractor whose features are an image's mean of each colour and its first value."""
    mesh = mesh or data_mesh()

    def see(batch):
        x = batch["x"].astype("float32")
        seen = jax.numpy.concatenate([x.mean((1, 2)), x[:, 0, 0, :1]], axis=1)
        return (seen, jax.nn.softmax(seen[:, :2])) if classify else (seen,)

    return Extractor(name, "f" * 64, 4, batch_size, mesh, per_device(see, mesh))


def counted(extractor, seen, stop_at=None):
    """Appends how many images each batch has, and is asked to stop in the batch of that number."""

    def see(batch):
        if len(seen) == stop_at:
            raise Stopped
        seen.append(len(batch["x"]))
        return extractor.see(batch)

    return extractor._replace(see=see)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (23, 5, 4, 3), dtype=np.uint8)


def expected(images):
    x = images.astype(np.float32)
    return np.concatenate([x.mean((1, 2)), x[:, 0, 0, :1]], axis=1)


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
@pytest.mark.parametrize("block", [3, 8, 1024])
def test_every_image_is_seen_once_and_in_order(batch_size, block, images, monkeypatch):
    monkeypatch.setattr(features, "BLOCK", block)
    seen = extract(toy(batch_size), images, label="toy")
    assert seen.features.dtype == seen.probabilities.dtype == np.float32
    np.testing.assert_allclose(seen.features, expected(images), rtol=1e-6)
    np.testing.assert_allclose(seen.probabilities.sum(axis=1), 1, rtol=1e-6)
    assert seen.probabilities.shape == (23, 2)


def test_a_network_without_classes_gives_no_probabilities(images):
    seen = extract(toy(classify=False), images, label="toy")
    assert seen.probabilities is None and seen.features.shape == (23, 4)


def test_all_batches_have_one_size(images, monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 10)
    sizes = []
    extract(counted(toy(4), sizes), images, label="toy")
    assert sizes == [4] * (3 + 3 + 1)


SPLIT = """
import jax, numpy as np
from test_features import toy, expected
from tdsm_jax.evaluation import features
features.BLOCK = 10
images = np.random.default_rng(0).integers(0, 256, (23, 5, 4, 3), dtype=np.uint8)
assert jax.device_count() == 3
np.testing.assert_allclose(features.extract(toy(6), images, label="toy").features, expected(images), rtol=1e-6)
"""


def test_several_devices_see_the_same(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "tests")
    on(3, f"import sys; sys.path[:0] = ['.', 'tests']\n{SPLIT}")


class Lazy:
    """Images that are only given by an array of places, as a file would."""

    def __init__(self, images):
        self._images, self.shape, self.most = images, images.shape, 0

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        assert isinstance(index, np.ndarray)
        self.most = max(self.most, len(index))
        return self._images[index]


def test_images_are_read_a_batch_at_a_time(images):
    lazy = Lazy(images)
    np.testing.assert_array_equal(
        extract(toy(4), lazy, label="toy").features, extract(toy(4), images, label="").features
    )
    assert lazy.most == 4


def test_progress_is_shown_with_its_rate(images, capsys):
    extract(toy(4), images, label="real/toy")
    assert "real/toy: 6/6" in (shown := capsys.readouterr().err) and "images/s" in shown


# -- parts --------------------------------------------------------------------------------------------------


def test_an_interrupted_extraction_goes_on_after_its_finished_blocks(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "BLOCK", 8)
    sizes = []
    with pytest.raises(Stopped):
        extract(counted(toy(4), sizes, stop_at=5), images, label="toy", parts=tmp_path / "parts")
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["00000000.npz", "00000008.npz"]
    sizes.clear()
    capsys.readouterr()
    seen = extract(counted(toy(4), sizes), images, label="toy", parts=tmp_path / "parts")
    assert len(sizes) == 2 and "toy: 6/6" in capsys.readouterr().err
    whole = extract(toy(4), images, label="toy")
    jax.tree.map(np.testing.assert_array_equal, seen, whole)
    sizes.clear()  # nothing is left to do, whatever the batches
    again = extract(counted(toy(2), sizes), images, label="toy", parts=tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert sizes == []


def test_a_stop_that_is_asked_for_comes_between_two_batches(images, tmp_path, monkeypatch):
    def asked():
        raise Stopped

    monkeypatch.setattr(hosts, "stop_if_asked", asked)
    with pytest.raises(Stopped):
        extract(toy(4), images, label="toy", parts=tmp_path)


@pytest.mark.parametrize("what", ["images", "an inner image", "count", "network"])
def test_parts_of_other_images_or_networks_are_refused(what, images, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 8)
    extract(toy(4), images, label="toy", parts=tmp_path)
    other, seen_by = images.copy(), toy(4, name="other") if what == "network" else toy(4)
    if what == "images":
        other[0] += 1
    elif what == "an inner image":
        other[3] += 1
    elif what == "count":
        other = other[:20]
    with pytest.raises(UserError, match=r"00000000.npz: was not made of these images by .*; delete "):
        extract(seen_by, other, label="toy", parts=tmp_path)


def test_a_damaged_part_is_refused_by_its_name(images, tmp_path):
    extract(toy(4), images, label="toy", parts=tmp_path)
    path = tmp_path / "00000000.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"00000000.npz: not a readable array file"):
        extract(toy(4), images, label="toy", parts=tmp_path)


# -- what cannot be seen ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images",
    [np.zeros((3, 4, 4), np.uint8), np.zeros((3, 4, 4, 2), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)],
    ids=["no channels", "two channels", "none"],
)
def test_images_of_another_form_are_refused(images):
    with pytest.raises(UserError, match=r"images have shape \("):
        extract(toy(), images, label="toy")


def test_images_that_are_not_uint8_are_refused(images):
    with pytest.raises(UserError, match="images have dtype float32; features are defined for uint8"):
        extract(toy(), images.astype(np.float32), label="toy")


# -- by their kind ------------------------------------------------------------------------------------------


def test_the_extractor_of_a_file_sees_as_torch_fidelity_does(tmp_path):
    arrays = load("inception_rule")
    (tmp_path / "weights.pth").write_bytes(saved(inception_state(arrays)))
    with pytest.raises(UserError, match="is not the published file"):
        open_extractor(f"inception:{tmp_path}/weights.pth", data_mesh())
    extractor = open_extractor(f"inception_unchecked:{tmp_path}/weights.pth", data_mesh())
    assert (extractor.name, extractor.width, len(extractor.digest)) == ("inception_unchecked", 2048, 64)
    assert extractor.classifies and not open_extractor("pixels:4x4x3", data_mesh()).classifies
    seen = extract(extractor, arrays["image_0"][None], label="inception")
    np.testing.assert_allclose(seen.features[0], arrays["2048_0"], atol=1e-5, rtol=0)
    weights = np.exp(arrays["logits_unbiased_0"].astype(np.float64))
    np.testing.assert_allclose(seen.probabilities[0], weights / weights.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("incepton:x.pth", r"no feature extractor 'incepton'; did you mean 'inception'\?; give KIND:PATH"),
        ("", "no feature extractor ''; valid: align, clip, dinov2, inception"),
        ("inception", "needs its weights; give inception:PATH"),
        ("clip:", "needs its weights; give clip:PATH"),
        ("inception:nowhere.pth", "nowhere.pth: no such file"),
        ("clip:nowhere", "nowhere: no such folder"),
        ("siglip:gs://bucket/x", "copy the folder here first"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(spec, match):
    with pytest.raises(UserError, match=match) as refused:
        open_extractor(spec, data_mesh())
    assert "\n" not in str(refused.value)


def test_every_kind_is_listed():
    assert extractors.KINDS == ("inception", "inception_unchecked", "clip", "siglip", "align", "dinov2", "pixels")
