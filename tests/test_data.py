"""Datasets, pixel conversions, content hashes and index-addressed batches."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from tdsm_jax.data import edm_zip, sources
from tdsm_jax.data.batches import batch_indices
from tdsm_jax.data.dataset import Dataset, images_hash, images_set_hash, stratified_split, to_float, to_uint8
from tdsm_jax.data.sources import DataSpec
from tdsm_jax.errors import UserError


def load(name="digits", **fields):
    return sources.load(DataSpec(name, **fields))


def toy(counts):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    labels = labels[np.argsort(np.arange(len(labels)) * 0.618 % 1)]  # classes mixed
    images = np.arange(len(labels) * 4, dtype=np.uint32).view(np.uint8).reshape(-1, 4, 4, 1)
    return Dataset("toy", images, labels, tuple("abcdefgh"[: len(counts)]))


def image_keys(dataset):
    return [image.tobytes() for image in dataset.images]


def test_digits():
    train, test = load()
    assert (train.name, train.num_classes, train.class_names) == ("digits", 10, tuple("0123456789"))
    assert train.images.shape[1:] == test.images.shape[1:] == (8, 8, 1)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert len(train.images) + len(test.images) == 1797
    assert abs(len(test.images) - 0.2 * 1797) <= 5
    original = load_digits()
    labels = {image.tobytes(): label for image, label in zip(original.images, original.target, strict=True)}
    for part in (train, test):
        levels = np.rint(part.images[..., 0] * (16 / 255)).astype(np.float64)  # back to 0..16
        assert [labels[image.tobytes()] for image in levels] == part.labels.tolist()


def test_digits_and_their_split_are_pinned():
    """Label files are bound to these hashes."""
    train, test = load()
    assert images_hash(train.images)[:16] == "0886c4eafae55d56"
    assert images_hash(test.images)[:16] == "9771dc105a73e1c5"


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(4, 30), min_size=2, max_size=5),
    test_fraction=st.floats(0.2, 0.8),
    seed=st.integers(0, 2**40),
)
def test_a_split_is_stratified_ordered_and_complete(counts, test_fraction, seed):
    whole = toy(counts)
    train, test = stratified_split(whole, test_fraction, seed)
    for y, count in enumerate(counts):
        assert (test.labels == y).sum() == round(count * test_fraction)
        assert (train.labels == y).sum() == count - round(count * test_fraction)
    index = {key: i for i, key in enumerate(image_keys(whole))}
    for part in (train, test):
        chosen = [index[key] for key in image_keys(part)]
        assert chosen == sorted(chosen)
        assert (whole.labels[chosen] == part.labels).all()
    assert set(image_keys(train)) | set(image_keys(test)) == set(index)


def test_a_split_depends_on_its_seed_only():
    first, again, other = load(split_seed=1), load(split_seed=1), load(split_seed=2)
    assert image_keys(first[1]) == image_keys(again[1]) != image_keys(other[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digit"}, "unknown dataset 'digit'; did you mean 'digits'"),
        ({"test_fraction": 0.0}, "strictly between 0 and 1, got 0"),
        ({"test_fraction": 1.0}, "got 1"),
        ({"test_fraction": float("nan")}, "got nan"),
        ({"test_fraction": 0.001}, r"178 images of class '0' into 178 \+ 0"),
        ({"test_fraction": 0.999}, r"into 0 \+ 178"),
        ({"split_seed": -1}, "split seed"),
        ({"path": "data.zip"}, "'digits' reads no files, but path is given; it is for 'archive'"),
        ({"name": "synthetic", "labels_path": "a.json"}, "labels_path is given"),
        ({"name": "archive"}, "'archive' needs path"),
        ({"name": "synthetic", "image_size": 0}, "image_size >= 1, got 0"),
        ({"name": "synthetic", "num_images": 10}, r"the 1 images of class '0' into 1 \+ 0"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        load(**arguments)


def test_synthetic_images():
    train, test = load("synthetic", image_size=16, channels=3, num_classes=5, num_images=100)
    assert (train.images.shape, test.images.shape) == ((80, 16, 16, 3), (20, 16, 16, 3))
    assert train.images.dtype == np.uint8 and train.class_names == test.class_names == tuple("01234")
    assert np.bincount(train.labels).tolist() == [16] * 5
    assert images_hash(train.images)[:16] == "028e90ec09f11b8b"  # label files are bound to it
    assert len(set(image_keys(train))) == 80


@pytest.mark.parametrize(("image_size", "channels", "num_classes"), [(32, 3, 100), (28, 1, 10), (8, 1, 3)])
def test_synthetic_classes_look_different(image_size, channels, num_classes):
    """The nearest training image has the same label, so a network can learn the classes."""
    fields = {"image_size": image_size, "channels": channels, "num_classes": num_classes}
    train, test = load("synthetic", num_images=12 * num_classes, **fields)
    a, b = (part.images.reshape(len(part.images), -1).astype(np.float32) for part in (test, train))
    nearest = np.argmin((b**2).sum(1) - 2 * a @ b.T, axis=1)
    assert (train.labels[nearest] == test.labels).mean() > 0.95


@pytest.fixture
def archive_paths(tmp_path):
    """An archive of the toy images with noisy labels, and their clean labels beside it; image i has the value i."""
    whole = toy([12, 9])
    y_tilde = np.where(np.arange(21) % 4 == 0, 1 - whole.labels, whole.labels)
    edm_zip.write(tmp_path / "toy.zip", whole.images, y_tilde)
    pairs = [[name, int(y)] for name, y in zip(edm_zip.image_names(21), whole.labels, strict=True)]
    (tmp_path / "clean.json").write_text(json.dumps({"labels": pairs[::-1]}))
    return {"path": str(tmp_path / "toy.zip"), "labels_path": str(tmp_path / "clean.json")}


def test_an_archive_is_split_like_any_dataset(archive_paths):
    whole = dataclasses.replace(toy([12, 9]), class_names=("0", "1"))
    parts = load("archive", test_fraction=0.3, split_seed=4, **archive_paths)
    for part, expected in zip(parts, stratified_split(whole, 0.3, 4), strict=True):
        np.testing.assert_array_equal(part.images, expected.images, strict=True)
        np.testing.assert_array_equal(part.labels, expected.labels, strict=True)
        assert (part.name, part.class_names) == ("toy", ("0", "1"))


@pytest.mark.parametrize("with_test_archive", [False, True])
def test_noisy_labels_follow_the_training_images(archive_paths, with_test_archive):
    """Clean and noisy labels of one archive agree on which images are which, whoever comes first."""
    whole = toy([12, 9])
    noisy = np.where(np.arange(21) % 4 == 0, 1 - whole.labels, whole.labels)
    noisy_of = dict(zip(image_keys(whole), noisy.tolist(), strict=True))
    test_path = archive_paths["path"] if with_test_archive else ""
    spec = DataSpec("archive", **archive_paths, test_path=test_path, test_fraction=0.3)
    train, _ = sources.load(spec)
    y_tilde = sources.archive_labels(spec, "")
    assert y_tilde.dtype == np.int32
    assert y_tilde.tolist() == [noisy_of[key] for key in image_keys(train)]
    assert (y_tilde != train.labels).any()
    assert sources.archive_labels(spec, spec.labels_path).tolist() == train.labels.tolist()
    with pytest.raises(UserError, match="'digits' have no names to match labels by"):
        sources.archive_labels(DataSpec("digits"), spec.labels_path)


def test_an_archive_with_a_test_archive(tmp_path, archive_paths):
    edm_zip.write(tmp_path / "test", toy([2, 2, 1]).images, toy([2, 2, 1]).labels, ("a", "b", "c"))
    train, test = load("archive", **archive_paths, test_path=str(tmp_path / "test"))
    assert (len(train.images), len(test.images)) == (21, 5)
    assert train.class_names == test.class_names == ("a", "b", "c")
    edm_zip.write(tmp_path / "large", np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]))
    edm_zip.write(tmp_path / "unlabelled", toy([2, 2]).images, None)
    for name, message in (("large", r"test images of shape \(8, 8, 1\)"), ("unlabelled", "not labelled")):
        with pytest.raises(UserError, match=message):
            load("archive", **archive_paths, test_path=str(tmp_path / name))


def test_archives_that_name_their_classes_in_another_order_are_refused(tmp_path):
    """A label is a number: 0 must mean the same class in all parts."""
    whole = toy([2, 2, 2])
    for name, class_names in (("abc", "abc"), ("acb", "acb"), ("ab", "ab"), ("axc", "axc"), ("none", ())):
        some = np.isin(whole.labels, range(len(class_names) or 3))
        edm_zip.write(tmp_path / f"{name}.zip", whole.images[some], whole.labels[some], tuple(class_names))

    def names(a, b, **fields):
        parts = load("archive", path=str(tmp_path / f"{a}.zip"), test_path=str(tmp_path / f"{b}.zip"), **fields)
        return parts[0].class_names, parts[1].class_names

    for a, b in (("abc", "abc"), ("abc", "ab"), ("ab", "abc"), ("abc", "none"), ("none", "abc")):
        assert names(a, b) == (("a", "b", "c"),) * 2
    with pytest.raises(UserError, match="acb.zip list their classes in another order .class 1 is b .* and c.*in one"):
        names("abc", "acb")
    with pytest.raises(UserError, match="axc.zip name other classes .class 1 is b"):
        names("abc", "axc")
    for class_names, words in (("acb", "in another order"), ("abc", ""), ("", "")):
        text = edm_zip.labels_text(edm_zip.image_names(6), whole.labels, tuple(class_names))
        (tmp_path / "labels.json").write_text(text)
        spec = DataSpec("archive", path=str(tmp_path / "abc.zip"), test_path=str(tmp_path / "abc.zip"))
        asks = (
            lambda spec=spec: sources.load(dataclasses.replace(spec, labels_path=str(tmp_path / "labels.json"))),
            lambda spec=spec: sources.archive_labels(spec, str(tmp_path / "labels.json")),
        )
        for ask in asks:
            if words:
                with pytest.raises(UserError, match=f"abc.zip and .*labels.json list their classes {words}"):
                    ask()
            else:
                ask()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((6, 4, 4, 1), np.float32)}, "uint8"),
        ({"images": np.zeros((6, 4, 4), np.uint8)}, r"\[N, H, W, C\]"),
        ({"images": np.zeros((0, 4, 4, 1), np.uint8)}, "N >= 1"),
        ({"labels": np.zeros(6, np.int64)}, "int32"),
        ({"labels": np.zeros(5, np.int32)}, r"int32 \[6\]"),
        ({"labels": np.full(6, 2, np.int32)}, "span 2..2, but there are 2 class names"),
        ({"labels": np.full(6, -1, np.int32)}, "span -1..-1"),
    ],
)
def test_malformed_datasets_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(toy([3, 3]), **changes)


def test_pixels_survive_the_round_trip():
    pixels = np.arange(256, dtype=np.uint8)
    floats = to_float(pixels)
    assert floats.dtype == np.float32
    assert (floats[0], floats[255]) == (-1, 1)
    np.testing.assert_allclose(floats, pixels / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(to_uint8(floats), pixels, strict=True)


def test_to_uint8_rounds_and_clips():
    values = np.array([-np.inf, -3, -1, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1, 1, 1.7, np.inf])
    assert to_uint8(values).tolist() == [0, 0, 0, 0, 1, 255, 255, 255]


def test_pixels_of_the_wrong_kind_are_refused():
    with pytest.raises(UserError, match="uint8"):
        to_float(np.zeros(3))
    with pytest.raises(UserError, match="NaN"):
        to_uint8(np.array([0, np.nan]))


def test_hashes_see_shape_dtype_bytes_and_order():
    images = toy([3, 3]).images
    swapped = images[[1, 0, 2, 3, 4, 5]]
    changed = images.copy()
    changed[5, 0, 0, 0] ^= 1
    for function in (images_hash, images_set_hash):
        assert function(images) == function(images.copy()) == function(np.asfortranarray(images))
        others = [changed, images.reshape(6, 2, 8, 1), images.view(np.int8), images[:5]]
        assert len({function(image) for image in [images, *others]}) == 5
    assert images_hash(images) != images_hash(swapped)
    assert images_set_hash(images) == images_set_hash(swapped)


def sequence(seed, batch_size, num_examples, count):
    steps = range(-(-count // batch_size))
    return np.concatenate([batch_indices(seed, step, batch_size, num_examples) for step in steps])[:count]


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**40),
    batch_size=st.integers(1, 60),
    num_examples=st.integers(1, 25),
)
def test_every_example_comes_once_an_epoch_whatever_the_batch_size(seed, batch_size, num_examples):
    epochs = sequence(seed, batch_size, num_examples, 6 * num_examples).reshape(6, num_examples)
    assert (np.sort(epochs) == np.arange(num_examples)).all()
    assert (epochs.ravel() == sequence(seed, 1, num_examples, 6 * num_examples)).all()


def test_two_small_batches_are_one_large_batch():
    small = [batch_indices(3, step, 64, 100) for step in (10, 11)]
    large = batch_indices(3, 5, 128, 100)
    assert large.dtype == np.int64 and large.shape == (128,)
    np.testing.assert_array_equal(np.concatenate(small), large)


def test_batches_are_pure():
    steps = [0, 90, 7, 7, 45, 0, 91]
    forwards = {step: batch_indices(1, step, 16, 50).tolist() for step in sorted(steps)}
    for step in steps:
        indices = batch_indices(1, step, 16, 50)
        assert indices.tolist() == forwards[step]
        indices[:] = -1  # a caller may overwrite its batch


def test_epochs_and_seeds_are_shuffled_independently():
    epochs = sequence(0, 1000, 1000, 3000).reshape(3, 1000)
    orders = [np.arange(1000), *epochs, batch_indices(1, 0, 1000, 1000)]
    correlation = np.corrcoef(orders) - np.eye(len(orders))
    assert np.abs(correlation).max() < 0.15


def test_the_order_shares_no_randomness_with_the_corruption_or_the_split_of_the_same_seed():
    """Were the streams shared, the first epoch would come sorted by noisy label."""
    corruption = np.random.Generator(np.random.PCG64(0)).random(2000)
    rank = np.argsort(batch_indices(0, 0, 2000, 2000))
    assert abs(np.corrcoef(corruption, rank)[0, 1]) < 0.1
    in_test = np.isin(image_keys(toy([2000])), image_keys(stratified_split(toy([2000]), 0.5, 0)[1]))
    assert abs(np.corrcoef(corruption, in_test)[0, 1]) < 0.1
    assert abs(np.corrcoef(rank, in_test)[0, 1]) < 0.1


def test_the_batch_order_is_pinned():
    assert batch_indices(0, 3, 8, 10).tolist() == [1, 4, 6, 2, 3, 5, 2, 4]


@pytest.mark.parametrize("arguments", [(-1, 0, 4, 10), (0, -1, 4, 10), (0, 0, 0, 10), (0, 0, 4, 0)])
def test_impossible_batches_are_refused(arguments):
    with pytest.raises(UserError):
        batch_indices(*arguments)
