"""Instance-dependent label noise: each image has odds of its own, and they are those of the published recipe."""

import hashlib
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdsm_jax.data import sources
from tdsm_jax.errors import UserError
from tdsm_jax.labels import instance
from tdsm_jax.labels.corruption import realised_matrix
from tdsm_jax.labels.instance import RATE_SPREAD, SHARPNESS, expected_matrix, instance_dependent, instance_rows


def pictures(count=300, shape=(4, 4, 1), seed=0):
    uniform = np.random.Generator(np.random.PCG64(seed)).random((count, *shape))
    return (256 * uniform).astype(np.uint8)


def classes(count=300, num_classes=3):
    return np.arange(count) % num_classes


def stream(seed, count, *key):
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))).random(count)


def test_the_rows_are_those_of_the_recipe():
    """Spelt out for a few examples with the standard library's normal law."""
    images, labels, K, rate, seed = pictures(), classes(), 3, 0.3, 11
    _, p = instance_dependent(images, labels, K, rate, seed)
    normal = statistics.NormalDist(rate, RATE_SPREAD)
    u = stream(seed, 300, 5)
    W = [stream(seed, 16 * K, 6, y).reshape(16, K) for y in range(K)]
    for n in (0, 1, 2, 150, 299):
        y = labels[n]
        q = normal.inv_cdf(normal.cdf(0) + (normal.cdf(1) - normal.cdf(0)) * u[n])
        x = images[n].reshape(16) / 127.5 - 1
        z = [x @ [statistics.NormalDist().inv_cdf(v) for v in W[y][:, j]] for j in range(K)]
        odds = [0 if j == y else math.exp(SHARPNESS * z[j] / math.sqrt(16)) for j in range(K)]
        expected = [1 - q if j == y else q * odds[j] / sum(odds) for j in range(K)]
        np.testing.assert_allclose(p[n], expected, rtol=1e-9)


@settings(deadline=None, max_examples=50)
@given(
    num_classes=st.integers(2, 6),
    rate=st.floats(0, 1),
    seed=st.integers(0, 2**40),
    kind=st.sampled_from(["bytes", "floats", "white"]),
)
def test_rows_are_distributions_and_labels_follow_them(num_classes, rate, seed, kind):
    images = pictures(60, (3, 3, 2))
    images = {"bytes": images, "floats": images / 50, "white": np.full_like(images, 255)}[kind]
    labels = classes(60, num_classes)
    y_tilde, p = instance_dependent(images, labels, num_classes, rate, seed)
    assert p.shape == (60, num_classes) and p.dtype == np.float64 and y_tilde.dtype == np.int32
    assert p.min() >= 0
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
    assert (p[np.arange(60), y_tilde] > 0).all()


def test_the_rates_are_a_truncated_normal():
    q = 1 - instance_rows(np.zeros((20_000, 2)), np.zeros(20_000, int), 2, 0.4, 0)[:, 0]
    assert abs(q.mean() - 0.4) < 0.005 and abs(q.std() - 0.1) < 0.005
    assert q.min() >= 0 and q.max() <= 1
    low = 1 - instance_rows(np.zeros((20_000, 2)), np.zeros(20_000, int), 2, 0.0, 0)[:, 0]
    assert low.min() >= 0 and abs(low.mean() - 0.1 * math.sqrt(2 / math.pi)) < 0.003  # a half-normal


def test_labels_stay_within_binomial_bounds_of_their_rows():
    images, labels = pictures(9000), classes(9000)
    y_tilde, p = instance_dependent(images, labels, 3, 0.4, 2)
    mean = np.stack([p[labels == y].mean(axis=0) for y in range(3)])
    realised = realised_matrix(labels, y_tilde, 3)
    assert (np.abs(realised - mean) < 5 * np.sqrt(0.25 / 3000)).all()
    np.testing.assert_allclose(expected_matrix(p, labels), mean, atol=2e-6)
    assert abs((y_tilde != labels).mean() - 0.4) < 0.03


def test_the_noise_depends_on_the_image():
    """Within one class the odds of two images differ, and equal images at equal rates have equal odds."""
    images, labels = pictures(200), np.zeros(200, int)
    images[100:] = images[0]
    p = instance_rows(images, labels, 4, 0.5, 0)
    odds = p[:, 1:] / p[:, 1:].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(odds[100:], np.broadcast_to(odds[0], (100, 3)), rtol=1e-9)
    assert odds[:100].std(axis=0).min() > 0.05


def test_an_example_keeps_its_label_when_others_change():
    images, labels = pictures(), classes()
    y_tilde, p = instance_dependent(images, labels, 3, 0.4, 0)
    fewer, fewer_p = instance_dependent(images[:100], labels[:100], 3, 0.4, 0)
    np.testing.assert_array_equal(fewer, y_tilde[:100])
    np.testing.assert_allclose(fewer_p, p[:100], rtol=1e-12)
    other_images, other_labels = images.copy(), labels.copy()
    other_images[::2], other_labels[::2] = 0, 1
    other, other_p = instance_dependent(other_images, other_labels, 3, 0.4, 0)
    np.testing.assert_array_equal(other[1::2], y_tilde[1::2])
    np.testing.assert_allclose(other_p[1::2], p[1::2], rtol=1e-12)
    assert (instance_dependent(images, labels, 3, 0.4, 1)[0] != y_tilde).any()


def test_the_lowest_uniform_still_gives_finite_odds(monkeypatch):
    monkeypatch.setattr(instance, "uniforms", lambda seed, count, stream: np.zeros(count))
    assert np.isfinite(instance_rows(pictures(), classes(), 3, 0.4, 0)).all()


def test_the_odds_are_neither_flat_nor_one_class_for_small_and_large_images():
    for images in (sources.load(sources.DataSpec("digits"))[0].images[:500], pictures(500, (32, 32, 3))):
        p = instance_rows(images, classes(500, 10), 10, 0.4, 0)
        p[np.arange(500), classes(500, 10)] = 0
        largest = (p.max(axis=1) / p.sum(axis=1)).mean()
        assert 0.3 < largest < 0.85


def test_floats_and_bytes_of_one_picture_agree():
    images = pictures()
    np.testing.assert_allclose(
        instance_rows(images / 127.5 - 1, classes(), 3, 0.4, 0), instance_rows(images, classes(), 3, 0.4, 0), rtol=1e-12
    )


def test_the_instance_dependent_labels_are_pinned():
    y_tilde, _ = instance_dependent(pictures(5000, (8, 8, 1)), classes(5000, 10), 10, 0.4, seed=7)
    digest = hashlib.sha256(y_tilde.astype("<i4").tobytes()).hexdigest()
    assert digest == "fe3f666bba246ec77259faca67d4e0977f279d5df35bdcdbf59479cb63a9f272"


def test_the_expected_matrix_averages_each_class_and_rounds():
    p = np.array([[0.5, 0.3, 0.2], [0.7, 0.1 + 3e-8, 0.2 - 3e-8], [1 / 3, 1 / 3, 1 / 3]])
    S = expected_matrix(p, np.array([0, 0, 1]))
    assert S.tolist() == [[0.6, 0.2, 0.2], [0.333333, 0.333334, 0.333333], [0, 0, 1]]
    np.testing.assert_array_equal(S, expected_matrix(p * (1 + 1e-13), np.array([0, 0, 1])))


@pytest.mark.parametrize(
    ("images", "labels", "num_classes", "rate", "seed", "message"),
    [
        (pictures(9), classes(10), 3, 0.4, 0, r"one image a label: 10 labels, images \(9, 4, 4, 1\)"),
        (np.zeros(10), classes(10), 3, 0.4, 0, r"images \(10,\)"),
        (np.zeros((10, 0)), classes(10), 3, 0.4, 0, r"images \(10, 0\)"),
        (np.zeros((10, 2), int), classes(10), 3, 0.4, 0, "must be uint8 in 0..255 or floats, got int64"),
        (np.full((10, 2), np.nan), classes(10), 3, 0.4, 0, "not finite"),
        (pictures(10), classes(10), 2, 0.4, 0, "span 0..2, but classes are 0..1"),
        (pictures(10), classes(10) * 0, 1, 0.4, 0, "at least 2 classes"),
        (pictures(10), classes(10), 3, 1.1, 0, "rate must lie in"),
        (pictures(10), classes(10), 3, float("nan"), 0, "rate must lie in"),
        (pictures(10), classes(10), 3, 0.4, -1, "seed must be a non-negative"),
    ],
)
def test_bad_input_is_refused(images, labels, num_classes, rate, seed, message):
    with pytest.raises(UserError, match=message) as error:
        instance_dependent(images, labels, num_classes, rate, seed)
    assert "\n" not in str(error.value)
