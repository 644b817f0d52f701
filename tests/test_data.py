"""Datasets, pixel conversions, content hashes and index-addressed batches."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from tdsm_jax.data import sources
from tdsm_jax.data.batches import batch_indices
from tdsm_jax.data.sources import Dataset
from tdsm_jax.errors import UserError


def load(test_fraction=0.2, split_seed=0, name="digits"):
    return sources.load(name, test_fraction=test_fraction, split_seed=split_seed)


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
    assert sources.images_hash(train.images)[:16] == "0886c4eafae55d56"
    assert sources.images_hash(test.images)[:16] == "9771dc105a73e1c5"


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(4, 30), min_size=2, max_size=5),
    test_fraction=st.floats(0.2, 0.8),
    seed=st.integers(0, 2**40),
)
def test_a_split_is_stratified_ordered_and_complete(counts, test_fraction, seed):
    whole = toy(counts)
    train, test = sources.stratified_split(whole, test_fraction, seed)
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
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        load(**arguments)


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
    floats = sources.to_float(pixels)
    assert floats.dtype == np.float32
    assert (floats[0], floats[255]) == (-1, 1)
    np.testing.assert_allclose(floats, pixels / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(sources.to_uint8(floats), pixels, strict=True)


def test_to_uint8_rounds_and_clips():
    values = np.array([-np.inf, -3, -1, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1, 1, 1.7, np.inf])
    assert sources.to_uint8(values).tolist() == [0, 0, 0, 0, 1, 255, 255, 255]


def test_pixels_of_the_wrong_kind_are_refused():
    with pytest.raises(UserError, match="uint8"):
        sources.to_float(np.zeros(3))
    with pytest.raises(UserError, match="NaN"):
        sources.to_uint8(np.array([0, np.nan]))


def test_hashes_see_shape_dtype_bytes_and_order():
    images = toy([3, 3]).images
    swapped = images[[1, 0, 2, 3, 4, 5]]
    changed = images.copy()
    changed[5, 0, 0, 0] ^= 1
    for function in (sources.images_hash, sources.images_set_hash):
        assert function(images) == function(images.copy()) == function(np.asfortranarray(images))
        others = [changed, images.reshape(6, 2, 8, 1), images.view(np.int8), images[:5]]
        assert len({function(image) for image in [images, *others]}) == 5
    assert sources.images_hash(images) != sources.images_hash(swapped)
    assert sources.images_set_hash(images) == sources.images_set_hash(swapped)


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
    in_test = np.isin(image_keys(toy([2000])), image_keys(sources.stratified_split(toy([2000]), 0.5, 0)[1]))
    assert abs(np.corrcoef(corruption, in_test)[0, 1]) < 0.1
    assert abs(np.corrcoef(rank, in_test)[0, 1]) < 0.1


def test_the_batch_order_is_pinned():
    assert batch_indices(0, 3, 8, 10).tolist() == [1, 4, 6, 2, 3, 5, 2, 4]


@pytest.mark.parametrize("arguments", [(-1, 0, 4, 10), (0, -1, 4, 10), (0, 0, 0, 10), (0, 0, 4, 0)])
def test_impossible_batches_are_refused(arguments):
    with pytest.raises(UserError):
        batch_indices(*arguments)
