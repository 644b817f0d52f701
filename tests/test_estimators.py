"""Estimators of the transition matrix: exact where their assumption holds, consistent, and clear about bad input."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import corrupt, pair, realised_matrix, symmetric, transition_matrix
from tdsm_jax.labels.em import TEMPERATURES, em_posterior
from tdsm_jax.labels.estimators import ESTIMATORS, WEAK_ROW, estimate, weight_error
from tdsm_jax.labels.evidence import Evidence, clean_subset
from tdsm_jax.labels.hoc import nearest_neighbours
from tdsm_jax.labels.shrinkage import frequencies, shrunk
from tdsm_jax.labels.transition import check_stochastic, relative_l1
from tdsm_jax.labels.weights import make_table, posterior

# Rows far apart: triples of labels tell the classes apart well.
DISTINCT = np.array([[0.9, 0.04, 0.06], [0.1, 0.8, 0.1], [0.25, 0.05, 0.7]])
SKEWED = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])


def exact_labels(S, images):
    """Returns (labels, y_tilde) with `images` a class whose noisy labels have exactly the frequencies of S."""
    labels = np.repeat(np.arange(len(S)), images)
    y_tilde = np.concatenate([np.repeat(np.arange(len(S)), np.rint(row * images).astype(int)) for row in S])
    return labels, y_tilde


def scene(S, images, seed=0, sharpness=4.0):
    """Returns (labels, evidence) of images a class each, with every field: the posteriors are the true ones.

    The clean label is drawn from h, so that h is calibrated; features tell the classes apart.
    """
    rng = np.random.default_rng(seed)
    K = len(S)
    logits = sharpness * np.eye(K)[np.repeat(np.arange(K), images)] + rng.normal(size=(K * images, K))
    h = np.exp(logits)
    h /= h.sum(axis=1, keepdims=True)
    labels = (rng.random((len(h), 1)) > h.cumsum(axis=1)[:, :-1]).sum(axis=1)
    y_tilde = corrupt(labels, S, seed)
    subset = np.arange(0, len(h), 2)
    return labels, Evidence(
        K,
        y_tilde,
        noisy_posterior=h @ S,
        clean_posterior=h,
        features=5.0 * np.eye(K)[labels] + rng.normal(size=(len(h), K)),
        clean_index=subset,
        clean_labels=labels[subset],
    )


def certain(S, images=1000):
    """Returns evidence in which every image is an anchor and the noisy labels have exactly the frequencies of S."""
    labels, y_tilde = exact_labels(S, images)
    return Evidence(
        len(S),
        y_tilde,
        noisy_posterior=S[labels],
        clean_posterior=np.eye(len(S))[labels],
        clean_index=np.arange(len(labels)),
        clean_labels=labels,
    )


@pytest.mark.parametrize("S", [SKEWED, symmetric(10, 0.4), pair(4, 0.4), transition_matrix("asym", 10, 0.4, "digits")])
@pytest.mark.parametrize("name", ["anchor", "confident_joint", "em"])
def test_exact_with_anchors(name, S):
    images = 900 if len(S) == 10 else 1000  # whole numbers of labels
    result = estimate(name, certain(S, images))
    np.testing.assert_allclose(result.S, S, atol=2e-5)  # EM stops within its tolerance
    np.testing.assert_allclose(result.prior, 1 / len(S), atol=1e-3)


def test_anchor_takes_one_image_and_leaves_the_surest_out():
    p = certain(SKEWED, 100).noisy_posterior.copy()
    p[:9] = np.eye(3)[0]  # 3% of 300 images
    spoiled = dataclasses.replace(certain(SKEWED, 100), noisy_posterior=p)
    np.testing.assert_allclose(estimate("anchor", spoiled).S[0], SKEWED[0])
    p[9] = np.eye(3)[0]
    spoiled = dataclasses.replace(spoiled, noisy_posterior=p)
    np.testing.assert_allclose(estimate("anchor", spoiled).S[0], np.eye(3)[0])


def test_anchor_of_many_classes_leaves_some_images_of_each():
    S = symmetric(100, 0.495)
    np.testing.assert_allclose(estimate("anchor", certain(S, 200)).S, S)


def test_dualt_is_exact_for_predictions_without_doubt_and_counts_noise_twice_with_it():
    evidence = certain(SKEWED)
    sure = dataclasses.replace(evidence, noisy_posterior=evidence.clean_posterior)
    np.testing.assert_allclose(estimate("dualt", sure).S, SKEWED, atol=1e-12)
    np.testing.assert_allclose(estimate("dualt", evidence).S, SKEWED @ SKEWED, atol=1e-12)


def test_confident_joint_scales_to_the_noisy_labels():
    # The two images that nobody is sure of do not count, yet the noisy labels keep their frequencies.
    p = np.array([[0.8, 0.2]] * 4 + [[0.2, 0.8]] * 4 + [[0.45, 0.55]] * 2)
    evidence = Evidence(2, np.array([0, 0, 0, 1, 1, 1, 1, 0, 1, 1]), noisy_posterior=p)
    joint = np.array([[3 / 4, 1 / 4], [1 / 4, 3 / 4]]) * [[4], [6]]  # [y_tilde, y]
    result = estimate("confident_joint", evidence)
    np.testing.assert_allclose(result.S, joint.T / joint.sum(axis=0)[:, None])
    np.testing.assert_allclose(result.prior, joint.sum(axis=0) / 10)


def test_a_class_nobody_is_confident_of_counts_one_image():
    p = np.tile([0.6, 0.3, 0.1], (30, 1))
    result = estimate("confident_joint", Evidence(3, np.arange(30) % 3, noisy_posterior=p))
    check_stochastic(result.S)
    assert "rows of S that rest on fewer" in result.diagnostics.warnings[0]


def test_counts_are_smoothed_by_one_half():
    labels, y_tilde = exact_labels(SKEWED, 10)
    evidence = Evidence(3, y_tilde, clean_index=np.arange(30), clean_labels=labels)
    result = estimate("counts", evidence)
    np.testing.assert_allclose(result.S, (10 * SKEWED + 0.5) / 11.5)
    np.testing.assert_allclose(result.diagnostics.standard_error, np.sqrt(result.S * (1 - result.S) / 12.5))


@pytest.mark.parametrize("S", [DISTINCT, pair(4, 0.4)])
@pytest.mark.parametrize(("name", "tolerance"), [("hoc", 4e-3), ("hoc_shrunk", 1e-2)])
def test_hoc_is_exact_for_exact_consensus_counts(name, tolerance, S):
    images, K = 1000, len(S)  # of each class in tight groups of three; every triple at its exact frequency
    shares = np.einsum("ij,ik,il->ijkl", S, S, S)
    copies = np.rint(images * shares).astype(int)
    groups = [t for i in range(K) for t in np.ndindex(K, K, K) for _ in range(copies[i][t])]
    y_tilde = np.array(groups).ravel()
    features = np.repeat(10.0 * np.arange(len(groups)), 3) + np.tile([0.0, 1.0, 2.0], len(groups))
    result = estimate(name, Evidence(K, y_tilde, features=features[:, None]))
    np.testing.assert_allclose(result.S, S, atol=tolerance)
    np.testing.assert_allclose(result.prior, 1 / K, atol=tolerance)


def test_nearest_neighbours_are_those_of_all_distances():
    features = np.random.default_rng(0).normal(size=(1203, 3)) + 100  # more than one chunk
    distance = np.linalg.norm(features[:, None] - features, axis=2)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_array_equal(nearest_neighbours(features, 4), np.argsort(distance, axis=1)[:, :4])


@pytest.mark.parametrize("name", ["counts", "hoc", "hoc_shrunk", "em", "em_shrunk", "em_calibrated"])
def test_consistent_as_images_grow(name):
    few, many = (
        np.mean([relative_l1(estimate(name, scene(DISTINCT, images, seed)[1]).S, DISTINCT) for seed in range(3)])
        for images in (50, 1500)
    )
    assert many < 0.5 * few
    assert many < 0.05


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_distributions(name, dtype):
    evidence = scene(SKEWED, 60)[1]
    p = evidence.noisy_posterior.astype(dtype)
    result = estimate(name, dataclasses.replace(evidence, noisy_posterior=p))
    check_stochastic(result.S)
    assert result.S.dtype == np.float64
    assert result.prior.sum() == pytest.approx(1)
    if result.diagnostics.standard_error is not None:
        assert np.isfinite(result.diagnostics.standard_error).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_renaming_the_classes_renames_s(name):
    evidence = scene(SKEWED, 100)[1]
    new = np.array([2, 0, 1])  # old name -> new name
    old = np.argsort(new)
    renamed = Evidence(
        3,
        new[evidence.y_tilde],
        noisy_posterior=evidence.noisy_posterior[:, old],
        clean_posterior=evidence.clean_posterior[:, old],
        features=evidence.features,
        clean_index=evidence.clean_index,
        clean_labels=new[evidence.clean_labels],
    )
    expected = estimate(name, evidence)
    result = estimate(name, renamed)
    np.testing.assert_allclose(result.S, expected.S[np.ix_(old, old)], atol=1e-6)
    np.testing.assert_allclose(result.prior, expected.prior[old], atol=1e-6)


@pytest.mark.parametrize("name", ["counts", "confident_joint", "em", "hoc"])
def test_shrinking_sees_that_symmetric_rows_are_alike(name):
    S = symmetric(10, 0.4)
    for seed in range(2):
        evidence = scene(S, 100, seed, sharpness=8.0)[1]
        plain, shrunken = (relative_l1(estimate(n, evidence).S, S) for n in (name, f"{name}_shrunk"))
        assert shrunken < 0.4 * plain


@pytest.mark.parametrize(
    ("name", "kind", "rate"),
    [
        ("confident_joint", "pair", 0.4),
        ("confident_joint", "asym", 0.4),
        ("em", "pair", 0.4),
        ("em", "asym", 0.4),
        ("hoc", "pair", 0.4),
        ("hoc", "asym", 0.2),  # at 0.4 triples hardly tell the swapped 5 and 6 apart
    ],
)
def test_shrinking_leaves_pair_and_asymmetric_rows_as_they_are(name, kind, rate):
    S = transition_matrix(kind, 10, rate, "digits")
    plain, shrunken = [], []
    for seed in range(3):
        evidence = scene(S, 140, seed, sharpness=8.0)[1]
        plain.append(relative_l1(estimate(name, evidence).S, S))
        shrunken.append(relative_l1(estimate(f"{name}_shrunk", evidence).S, S))
    assert np.mean(shrunken) < np.mean(plain) + 0.01


def test_the_prior_gives_way_to_counts():
    counts = 1e6 * SKEWED
    np.testing.assert_allclose(shrunk(counts).S, SKEWED, atol=1e-4)
    np.testing.assert_allclose(shrunk(1e6 * np.eye(3)).S, np.eye(3), atol=1e-4)


def test_a_class_with_few_images_borrows_the_rows_of_the_others():
    S = symmetric(10, 0.4)
    counts = np.round(900 * S)
    counts[9] = np.eye(10)[3] + np.eye(10)[9]  # two images, half of them flipped to one class
    np.testing.assert_allclose(shrunk(counts).S[9], S[9], atol=0.02)
    np.testing.assert_allclose(shrunk(np.vstack([counts[:9], np.zeros(10)])).S[9], S[9], atol=0.02)
    assert relative_l1(frequencies(counts).S[9], S[9]) > 0.5


@pytest.mark.parametrize("S", [symmetric(10, 0.4), pair(10, 0.4)], ids=["sym", "pair"])
def test_standard_errors_of_shrunk_rows_cover_the_truth(S):
    labels = np.repeat(np.arange(10), 140)
    inside = []
    for seed in range(10):
        rows = shrunk(140 * realised_matrix(labels, corrupt(labels, S, seed), 10))
        inside.append(np.abs(rows.S - S) < 2 * rows.standard_error + 1e-4)
    assert np.mean(inside) > 0.85


@given(counts=st.lists(st.floats(0, 1e4), min_size=9, max_size=9))
@settings(deadline=None)
def test_any_counts_make_rows(counts):
    for smooth in (frequencies, shrunk):
        S, standard_error = smooth(np.reshape(counts, (3, 3)))
        check_stochastic(S)
        assert (standard_error >= 0).all() and (standard_error <= 0.5).all()


def test_two_classes_shrink():
    np.testing.assert_allclose(shrunk(np.array([[600.0, 400], [0, 1000]])).S, [[0.6, 0.4], [0, 1]], atol=0.01)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_wrong_temperature_of_h_is_found(temperature):
    S = symmetric(5, 0.4)
    evidence = scene(S, 1000, sharpness=4.0)[1]
    h = evidence.clean_posterior ** (1 / temperature)
    h /= h.sum(axis=1, keepdims=True)
    wrong = dataclasses.replace(evidence, clean_posterior=h)
    result = estimate("em_calibrated", wrong)
    step = TEMPERATURES[0] / TEMPERATURES[1]
    assert 1 / (temperature * step**1.5) < result.diagnostics.temperature < step**1.5 / temperature
    assert relative_l1(result.S, S) < 0.06
    if temperature == 2.0:
        assert relative_l1(estimate("em_shrunk", wrong).S, S) > 0.1


def test_em_posterior_inverts_s_and_stays_on_the_simplex():
    h = np.array([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]])
    np.testing.assert_allclose(em_posterior(h @ SKEWED, SKEWED, steps=20000), h, atol=1e-6)
    impossible = np.eye(3)[[1]]  # surer of noisy label 1 than S allows: p S^-1 is negative
    assert (impossible @ np.linalg.inv(SKEWED)).min() < 0
    np.testing.assert_allclose(em_posterior(impossible, SKEWED, steps=2000), [[0, 1, 0]], atol=1e-6)


def test_em_posterior_starts_at_the_prior():
    prior = np.array([0.5, 0.3, 0.2])
    p = np.array([[0.2, 0.5, 0.3]])
    np.testing.assert_allclose(em_posterior(p, SKEWED, prior, steps=0), [prior])
    expected = prior * (SKEWED @ (p[0] / (prior @ SKEWED)))
    np.testing.assert_allclose(em_posterior(p, SKEWED, prior, steps=1), [expected / expected.sum()])


def test_em_finds_the_same_maximum_as_the_likelihood_says():
    evidence = scene(SKEWED, 100, sharpness=1.0)[1]
    h, y_tilde = evidence.clean_posterior, evidence.y_tilde
    S = estimate("em", evidence).S

    def likelihood(T):
        return np.log((h @ T)[np.arange(len(h)), y_tilde]).mean()

    for corner in np.eye(3):
        for i in range(3):
            nearby = S.copy()
            nearby[i] += 0.01 * (corner - S[i])
            assert likelihood(nearby) <= likelihood(S) + 1e-9


def test_weight_error_is_that_of_the_weight_table():
    _, evidence = scene(SKEWED, 20)
    h, y_tilde = evidence.clean_posterior, evidence.y_tilde
    w_hat, w = (
        np.asarray(posterior(make_table(T, np.full(3, 1 / 3)), np.log(h), y_tilde)) for T in (symmetric(3, 0.3), SKEWED)
    )
    expected = np.abs(w_hat - w).sum(axis=1).mean()
    assert expected > 0.01
    assert weight_error(symmetric(3, 0.3), SKEWED, h, y_tilde) == pytest.approx(expected, rel=1e-4)
    assert weight_error(SKEWED, SKEWED, h, y_tilde) == 0


def test_diagnostics_name_rows_of_few_images_lost_classes_and_singularity():
    labels, y_tilde = np.repeat([0, 1, 2], [100, 100, WEAK_ROW - 1]), np.repeat([0, 1, 2], [100, 100, WEAK_ROW - 1])
    everyone = {"clean_index": np.arange(len(labels)), "clean_labels": labels}
    diagnostics = estimate("counts", Evidence(3, y_tilde, **everyone)).diagnostics
    np.testing.assert_array_equal(diagnostics.images, [100, 100, WEAK_ROW - 1])
    assert diagnostics.warnings == (f"rows of S that rest on fewer than {WEAK_ROW} images, and how many: 2 (19)",)
    assert diagnostics.condition < 2

    lost = estimate("em", certain(np.array([[0.4, 0.6, 0], [0, 1, 0], [0, 0, 1]]))).diagnostics
    assert lost.warnings == ("classes that lose most of their labels, or whose names are permuted: 0 (mostly 1)",)
    singular = estimate("em", certain(np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]))).diagnostics
    assert any("nearly singular" in line for line in singular.warnings)
    assert estimate("em", certain(SKEWED)).diagnostics.warnings == ()
    vague = dataclasses.replace(certain(SKEWED), clean_posterior=0.98 / 3 + 0.02 * certain(SKEWED).clean_posterior)
    assert "end of the range" in estimate("em_calibrated", vague).diagnostics.warnings[-1]


UNIFORM = np.full((6, 3), 1 / 3)
NOISY = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 1}, "at least 2 classes, got 1"),
        ({"y_tilde": np.array([0, 1, 2, 0, 1, 3])}, r"y_tilde span 0\.\.3, but must lie in 0\.\.2"),
        ({"y_tilde": np.array([0, 1, 2, 0, 1, -1])}, r"y_tilde span -1\.\.2"),
        ({"y_tilde": NOISY.astype(float)}, "must be integers, got float64"),
        ({"y_tilde": NOISY[:, None]}, "must be a non-empty list"),
        ({"y_tilde": np.zeros(0, int)}, "must be a non-empty list"),
        ({"y_tilde": np.full(6, 1)}, "every noisy label is class 1"),
        ({"y_tilde": np.array([0, 1, 0, 0, 1, 1])}, "class 2 never occurs among the 6 noisy labels"),
        ({"noisy_posterior": UNIFORM[:, :2]}, r"noisy_posterior .* K columns, \(6, 3\), got shape \(6, 2\)"),
        ({"clean_posterior": UNIFORM[:5]}, r"clean_posterior .* got shape \(5, 3\)"),
        ({"noisy_posterior": np.where(np.eye(6, 3), np.nan, UNIFORM)}, "not finite numbers, first in row 0"),
        ({"noisy_posterior": UNIFORM * 1.01}, "row 0 of noisy_posterior sums to 1.01, not 1"),
        ({"clean_posterior": np.tile([1.5, -0.5, 0], (6, 1))}, "negative entries, first in row 0"),
        ({"features": np.zeros((5, 2))}, r"features must have one row a noisy label, \[6, D\]"),
        ({"features": np.full((6, 2), np.inf)}, "features have entries that are not finite"),
        ({"clean_index": np.array([0])}, "needs both clean_index and clean_labels"),
        ({"clean_index": np.array([0]), "clean_labels": np.array([3])}, r"clean_labels span 3\.\.3"),
        ({"clean_index": np.array([6]), "clean_labels": np.array([0])}, r"clean_index span 6\.\.6"),
        ({"clean_index": np.array([0, 1]), "clean_labels": np.array([0])}, "1 clean labels do not match 2"),
        ({"clean_index": np.array([0, 0]), "clean_labels": np.array([0, 1])}, "names an image twice"),
    ],
)
def test_malformed_evidence_ends_in_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        Evidence(**({"num_classes": 3, "y_tilde": NOISY} | fields))
    assert "\n" not in str(error.value)


def test_every_estimator_says_what_it_lacks():
    for name, estimator in ESTIMATORS.items():
        with pytest.raises(UserError, match=f"{name}.* needs {estimator.needs[0]}"):
            estimate(name, Evidence(3, NOISY))
    with pytest.raises(UserError, match="did you mean 'em_shrunk'"):
        estimate("em_shrunken", Evidence(3, NOISY))


def test_counts_need_every_class_and_consensus_needs_neighbours():
    with pytest.raises(UserError, match="no clean image of class 1"):
        estimate("counts", Evidence(3, NOISY, clean_index=np.array([0, 2]), clean_labels=np.array([0, 2])))
    with pytest.raises(UserError, match="2 images have no 2 neighbours"):
        estimate("hoc", Evidence(2, np.array([0, 1]), features=np.zeros((2, 1))))


def test_a_clean_subset_holds_as_many_of_every_class_and_follows_its_seed_alone():
    y = np.array([0] * 50 + [1] * 3 + [2] * 40)
    index = clean_subset(y, 5, seed=0)
    assert np.bincount(y[index]).tolist() == [5, 3, 5]
    assert (np.diff(index) > 0).all()
    np.testing.assert_array_equal(index, clean_subset(y, 5, seed=0))
    assert index.tolist() != clean_subset(y, 5, seed=1).tolist()
    # What is asked for less is a part of what is asked for more.
    assert set(index) < set(clean_subset(y, 8, seed=0))
