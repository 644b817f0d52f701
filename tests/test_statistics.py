"""Distances between feature sets, by hand and by their symmetries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import pairs
from tdsm_jax.evaluation.frechet import frechet_distance
from tdsm_jax.evaluation.kernels import cmmd
from tdsm_jax.evaluation.neighbours import density_coverage, neighbour_metrics
from tdsm_jax.evaluation.statistics import compare, confusion, inception_score, per_class_accuracy, recovery


def features(count, dimension=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimension))


def test_frechet_distance_of_independent_axes_by_hand():
    """It is the sum over axes of (mu - mu')^2 + (sd - sd')^2."""
    real = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])  # variance 2/3 an axis
    fake = [2, 3] * real + [5, 0]
    assert frechet_distance(real, fake) == pytest.approx(5**2 + (1**2 + 2**2) * 2 / 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_frechet_distance_is_symmetric_and_sees_a_shift(seed):
    real, fake = features(40, seed=seed), 2 * features(30, seed=seed + 1)
    distance = frechet_distance(real, fake)
    assert distance > 0
    assert distance == pytest.approx(frechet_distance(fake, real), rel=1e-9)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real, real + 3) == pytest.approx(5 * 3**2, rel=1e-9)


def test_frechet_distance_of_fewer_examples_than_features_is_finite():
    assert np.isfinite(frechet_distance(features(4, 20), features(4, 20, seed=1)))


def test_frechet_distance_of_a_single_feature():
    real, fake = np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])  # sd sqrt(2) and 2 sqrt(2)
    assert frechet_distance(real, fake) == pytest.approx(3**2 + 2)


def test_single_precision_features_are_compared_in_double():
    real, fake = ((1000 + features(40, seed=seed)).astype(np.float32) for seed in (0, 1))
    assert frechet_distance(real, fake) == frechet_distance(real.astype(np.float64), fake.astype(np.float64))
    double = density_coverage(real.astype(np.float64), fake.astype(np.float64), 3)
    assert density_coverage(real, fake, 3) == double


def test_density_and_coverage_by_hand():
    """Real balls around 0, 1, 3 reach their nearest neighbour: radii 1, 1, 2; the edge is outside."""
    real, fake = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [1.9], [2.0]])
    # 0.5 lies in the balls of 0 and 1, 1.9 in those of 1 and 3, 2.0 in that of 3 alone.
    assert density_coverage(real, fake, nearest=1) == (pytest.approx(5 / 3), 1.0)
    assert density_coverage(real, np.array([[100.0]]), nearest=1) == (0.0, 0.0)
    assert density_coverage(real, np.array([[3.5]]), nearest=1) == (1.0, pytest.approx(1 / 3))


def precision_recall(real, fake, nearest):
    values = neighbour_metrics(real, fake, (nearest,))
    return values[f"precision_k{nearest}"], values[f"recall_k{nearest}"]


def test_precision_and_recall_by_hand():
    """Real balls as above; the fake ones around 0.5, 0.8, 9 have radii 0.3, 0.3, 8.2."""
    real, fake = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [0.8], [9.0]])
    assert precision_recall(real, fake, nearest=1) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert precision_recall(real, real, nearest=1) == (1.0, 1.0)
    assert precision_recall(real, np.array([[1.0], [1.0], [1.0]]), nearest=1) == (1.0, 0.0)  # recall sees collapse


def test_too_few_examples_for_the_neighbours_are_refused():
    for measure in (density_coverage, precision_recall):
        with pytest.raises(UserError, match="balls up to neighbour 5 need more than 5 examples, got 5"):
            measure(features(5), features(9), 5)


def test_cmmd_by_hand():
    """At right angles the squared distance is 2; an example beside itself counts."""
    kernel = np.exp(-1 / 100)
    assert cmmd(np.array([[2.0, 0]]), np.array([[0, 5.0]])) == pytest.approx(1000 * (2 - 2 * kernel))
    both = np.eye(2)
    assert cmmd(both, both[:1]) == pytest.approx(1000 * ((1 + kernel) / 2 + 1 - (1 + kernel)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_cmmd_is_symmetric_blind_to_length_and_zero_between_equal_sets(seed):
    real, fake = features(20, seed=seed), 1 + features(15, seed=seed + 1)
    distance = cmmd(real, fake)
    assert distance > 0
    assert distance == pytest.approx(cmmd(fake, 3 * real), rel=1e-9)
    assert cmmd(real, real) == pytest.approx(0, abs=1e-12)
    assert cmmd(real, np.tile(real, (2, 1))) == pytest.approx(0, abs=1e-12)


def test_embeddings_without_a_direction_are_refused():
    for bad in (np.zeros((1, 5)), np.full((1, 5), np.nan)):
        with pytest.raises(UserError, match="an embedding is zero or not a number"):
            cmmd(features(3), bad)


@pytest.mark.parametrize("measure", [cmmd, density_coverage, precision_recall])
def test_blocks_do_not_change_the_result(measure, monkeypatch):
    arguments = [features(23), 0.5 + features(17, seed=1)] + [3] * (measure is not cmmd)
    whole = measure(*arguments)
    monkeypatch.setattr(pairs, "ROWS", 5)
    monkeypatch.setattr(pairs, "COLUMNS", 4)
    assert measure(*arguments) == pytest.approx(whole, rel=1e-9)


def test_class_wise_distances_compare_each_class_with_itself():
    real, fake = features(60), features(45, seed=1)
    real_labels, fake_labels = np.arange(60) % 3, np.arange(45) % 3
    real[real_labels == 1] += 4
    result = compare(real, real_labels, fake, fake_labels, nearest=3)
    pairs = [(real[real_labels == y], fake[fake_labels == y]) for y in range(3)]
    assert result["cw_fd_per_class"] == [frechet_distance(r, f) for r, f in pairs]
    assert result["cw_fd"] == pytest.approx(np.mean(result["cw_fd_per_class"]))
    assert result["cw_fd_per_class"][1] > 10 * max(result["cw_fd_per_class"][0], result["cw_fd_per_class"][2])
    assert result["cw_density"] == pytest.approx(np.mean([density_coverage(r, f, 3)[0] for r, f in pairs]))
    assert result["cw_coverage"] == pytest.approx(np.mean([density_coverage(r, f, 3)[1] for r, f in pairs]))
    assert result["fd"] == frechet_distance(real, fake)
    assert (result["density"], result["coverage"]) == density_coverage(real, fake, 3)


def test_images_under_wrong_labels_hurt_the_class_wise_distance_only():
    real, labels = features(60), np.arange(60) % 2
    real[labels == 1] += 4
    right, wrong = (compare(real, labels, real, shown, nearest=3) for shown in (labels, 1 - labels))
    assert right["cw_fd"] == pytest.approx(0, abs=1e-9) and wrong["cw_fd"] > 50
    assert right["fd"] == wrong["fd"] and right["coverage"] == 1


def test_accuracy_by_class_leaves_absent_classes_undefined():
    accuracy = per_class_accuracy(np.array([0, 1, 0, 3]), np.array([0, 0, 0, 3]), 4)
    np.testing.assert_allclose(accuracy, [2 / 3, np.nan, np.nan, 1])


def test_confusion_counts_asked_by_row_and_seen_by_column():
    assert confusion(np.array([0, 0, 0, 2]), np.array([0, 1, 1, 0]), 3) == [[1, 2, 0], [0, 0, 0], [1, 0, 0]]


def test_recovery_is_one_at_the_clean_model_and_zero_at_the_noisy_one():
    assert recovery(30.0, 10.0, 10.0) == 1 and recovery(30.0, 30.0, 10.0) == 0
    assert recovery(0.5, 0.8, 0.9) == pytest.approx(0.75)  # whichever direction is better
    assert recovery(0.5, 0.8, 0.5) is None


def test_inception_score_by_hand():
    """Certain and evenly spread over L classes it is L; the same prediction everywhere scores 1."""
    certain = np.tile(np.eye(4), (10, 1))
    assert inception_score(certain, splits=1) == (pytest.approx(4), pytest.approx(0, abs=1e-12))
    assert inception_score(np.full((30, 4), 0.25)) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    p = np.array([[0.9, 0.1], [0.5, 0.5]])
    by_hand = np.exp(np.mean([sum(row * np.log(row / [0.7, 0.3])) for row in p]))
    assert inception_score(p, splits=1)[0] == pytest.approx(by_hand)


def test_inception_score_is_of_shuffled_parts():
    """Sets are in the order of their classes, where consecutive parts would be of one class each and score 1."""
    by_class = np.repeat(np.eye(10), 500, axis=0)
    assert inception_score(by_class)[0] > 9.8
    assert inception_score(by_class, splits=1)[0] == pytest.approx(10)
    order, p = np.random.RandomState(2020).permutation(9), np.random.default_rng(0).dirichlet(np.ones(3), 9)
    parts = [inception_score(p[of_part], splits=1)[0] for of_part in (order[:4], order[4:])]  # 9 examples: 4 and 5
    assert inception_score(p, splits=2) == (pytest.approx(np.mean(parts)), pytest.approx(np.std(parts)))
    with pytest.raises(UserError, match="of 10 parts needs at least 10 examples, got 9"):
        inception_score(np.full((9, 2), 0.5))
