"""Class-wise metrics, the floor that real images score, and which metrics apply to what."""

import numpy as np
import pytest

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.class_wise import class_wise, halves, summary
from tdsm_jax.evaluation.frechet import frechet_distance
from tdsm_jax.evaluation.measure import METRICS, Observed, Real, chosen_metrics, floor, measured, real_of
from tdsm_jax.evaluation.metric_table import markdown, summarised
from tdsm_jax.evaluation.neighbours import neighbour_metrics
from tdsm_jax.evaluation.statistics import inception_score


def features(count, dimension=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def seen(count, seed=0, classes=3, dimension=5):
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(4), size=count)
    return Observed(features(count, dimension, seed), probabilities, np.arange(count) % classes)


@pytest.mark.parametrize("dimension", [5, 40])  # fewer features than examples of a class, and more
def test_each_class_is_compared_with_itself(dimension):
    real, fake = seen(60, 0, dimension=dimension), seen(45, 1, dimension=dimension)
    values = class_wise(real.features, real.labels, fake.features, fake.labels, (3, 5))
    for y in range(3):
        sets = real.features[y::3], fake.features[y::3]
        assert values["fd"][y] == pytest.approx(frechet_distance(*sets), rel=1e-6)
        expected = neighbour_metrics(*sets, (3, 5))
        assert {name: values[name][y] for name in expected} == expected
    assert len(values) == 9


def test_the_summary_names_the_worst_class_whichever_direction_is_better():
    found = summary(np.array([2, 5, 7]), {"fd": [1.0, 5.0, 3.0], "coverage_k5": [0.5, 0.9, 0.1]})
    assert found["cw_fd"] == 3 and found["cw_fd_spread"] == pytest.approx(np.sqrt(8 / 3))
    assert (found["cw_fd_worst"], found["cw_fd_worst_class"]) == (5, 5)
    assert (found["cw_coverage_k5_worst"], found["cw_coverage_k5_worst_class"]) == (0.1, 7)
    assert found["cw_fd_per_class"] == [1, 5, 3] and found["cw_classes"] == [2, 5, 7]


@pytest.mark.parametrize(
    ("real_labels", "fake_labels", "said"),
    [
        ([0] * 9 + [1], [0] * 9 + [1] * 9, "class 1 has 1 real examples; class-wise metrics need more than 3 of each"),
        ([0] * 9 + [1] * 9, [0] * 9 + [1] * 3, "class 1 has 3 generated examples"),
        ([0] * 9 + [1] * 9, [0] * 9, "class 1 has examples in one set and none in the other"),
        ([0] * 9, [0] * 9 + [4] * 9, "class 4 has examples in one set"),
    ],
)
def test_classes_without_enough_examples_are_named(real_labels, fake_labels, said):
    real, fake = features(len(real_labels)), features(len(fake_labels))
    with pytest.raises(UserError, match=said):
        class_wise(real, np.array(real_labels), fake, np.array(fake_labels), (3,))


def test_halves_are_disjoint_random_and_of_every_class_alike():
    labels = np.array([0] * 6 + [3] * 9 + [1] * 4)
    first, second = halves(labels)
    assert not set(first) & set(second) and len(first) == len(second) == 3 + 4 + 2
    assert np.bincount(labels[first]).tolist() == np.bincount(labels[second]).tolist() == [3, 2, 0, 4]
    assert set(first) - set(range(3)) - set(range(6, 10)) - set(range(15, 17))  # not the first ones of a class
    np.testing.assert_array_equal(halves(labels), (first, second))


def test_the_floor_is_what_halves_score():
    real = seen(64, classes=2)
    values = floor(real, tuple(METRICS))
    first, second = halves(real.labels)
    assert values["fd"] == pytest.approx(frechet_distance(real.features[first], real.features[second]))
    y0 = [real.features[half][real.labels[half] == 0] for half in (first, second)]
    assert values["cw_fd_per_class"][0] == pytest.approx(frechet_distance(*y0))
    assert values["is"] == inception_score(real.probabilities)[0]  # of all images: no comparison
    assert {"kid", "cmmd", "coverage_k5", "cw_coverage_k5_worst"} <= values.keys()


def test_the_floor_leaves_out_what_halves_are_too_small_for():
    values = floor(seen(30, classes=3), ("fd", "class_wise"))  # halves of 5 a class
    assert values.keys() == {"fd"}
    assert floor(seen(40, classes=40), ("kid", "neighbours")) == {}  # an odd one a class is in neither half
    assert floor(Observed(features(30), None, None), ("fd", "neighbours")).keys() > {"fd", "density_k3"}


def test_the_class_wise_distance_of_few_examples_has_a_floor_far_from_zero():
    """A hundred features and 20 examples a class, as 2048 and 500: real images are far from real ones."""
    labels = np.arange(200) % 10
    values = floor(Observed(features(200, 100), None, labels), ("fd", "class_wise"))
    assert values["cw_fd"] > 2 * values["fd"] > 50


def test_the_metrics_that_apply():
    labelled, plain = real_of(features(9), np.zeros(9, int)), real_of(features(9), None)
    moments = Real(np.zeros(5), np.eye(5), None, None)
    assert chosen_metrics((), labelled, True, True) == ("fd", "kid", "is", "neighbours", "class_wise")
    assert chosen_metrics((), labelled, False, False) == ("fd", "kid", "neighbours", "cmmd")
    assert chosen_metrics((), plain, False, True) == ("fd", "kid", "neighbours", "cmmd")
    assert chosen_metrics((), moments, True, True) == ("fd", "is")
    assert chosen_metrics(("cmmd", "fd"), labelled, True, True) == ("fd", "cmmd")
    for asked, said in (
        ("is", "the metric is needs an extractor that is a classifier"),
        ("class_wise", "the metric class_wise needs labels of both sets"),
    ):
        with pytest.raises(UserError, match=said):
            chosen_metrics((asked,), plain, False, True)
    with pytest.raises(UserError, match="the metric kid needs a reference with features"):
        chosen_metrics(("kid",), moments, False, False)


def test_what_cannot_be_compared_is_refused():
    real = real_of(features(20), np.arange(20) % 2)
    nan = features(20)
    nan[3, 3] = np.nan
    for fake, said in (
        (Observed(features(20, 4), None, None), "features of 5 and 4 numbers cannot be compared"),
        (Observed(nan, None, None), "a feature is infinite or not a number"),
    ):
        with pytest.raises(UserError, match=said):
            measured(real, fake, ("fd",))
    with pytest.raises(UserError, match="a feature of the real images is infinite or not a number"):
        measured(real_of(nan, None), Observed(features(20), None, None), ("fd",))
    with pytest.raises(UserError, match="3 labels for 20 generated images"):
        measured(real, Observed(features(20), None, np.zeros(3, int)), ("class_wise",))


def test_repeats_are_summed_up_by_mean_spread_and_best():
    repeats = [
        {"fd": 3.0, "coverage_k3": 0.5, "cw_classes": [0, 4], "cw_fd_worst_class": 0, "cw_fd_per_class": [1.0, 2.0]},
        {"fd": 1.0, "coverage_k3": 0.9, "cw_classes": [0, 4], "cw_fd_worst_class": 4, "cw_fd_per_class": [3.0, 2.0]},
    ]
    found = summarised(repeats)
    assert found["fd"] == {"mean": 2, "std": pytest.approx(np.sqrt(2)), "best": 1}
    assert found["coverage_k3"]["best"] == 0.9
    assert found["cw_fd_per_class"] == [2, 2] and found["cw_classes"] == [0, 4]
    assert "cw_fd_worst_class" not in found


def test_the_table_shows_what_real_images_score():
    fake, real = seen(60, 1), seen(60, 0)
    values = measured(real_of(real.features, real.labels), fake, tuple(METRICS))
    text = markdown([values, values], floor(real, ("fd", "class_wise")), ("ant", "bee"))
    rows = {cells[1].strip(): cells[2:-1] for cells in (line.split("|") for line in text.splitlines() if line)}
    assert rows["metric"] == [" samples ", " best of 2 ", " real against real "]
    assert "± 0" in rows["Frechet distance"][0] and float(rows["Frechet distance"][2]) > 0
    assert rows["KID"][2].strip() == "–"
    assert {"class-wise coverage, k = 5, worst class", "Inception Score, 10 splits", "ant", "bee", "2"} <= rows.keys()
    assert not any("spread" in name for name in rows)


def test_the_discrepancy_is_called_cmmd_where_it_is_of_clips_embeddings():
    for extractor, words in (("clip", "CMMD"), ("dinov2", "MMD of embeddings, a thousandfold")):
        assert f"\n| {words} | 2 |" in markdown([{"cmmd": 2.0}], {}, (), extractor)
