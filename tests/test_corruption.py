"""Label noise: the transition matrices and the corruption."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import (
    CLASS_CONDITIONAL,
    corrupt,
    corrupt_each,
    expected_rate,
    imbalanced,
    realised_matrix,
    realised_rate,
    symmetric,
    transition_matrix,
)

# Super-class (in alphabetical order) of each fine label, as in the data set's own coarse labels.
CIFAR100_COARSE = [
    *[4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7],
    *[6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10],
    *[16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16],
    *[12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13],
]


def test_symmetric_excludes_the_true_class():
    S = transition_matrix("sym", 3, 0.4)
    np.testing.assert_allclose(S, [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]], rtol=1e-15)
    assert S.dtype == np.float64


def test_symmetric_inclusive_draws_the_true_class_too():
    S = transition_matrix("sym_inclusive", 4, 0.4)
    np.testing.assert_allclose(S, 0.6 * np.eye(4) + 0.1, rtol=1e-15)
    np.testing.assert_allclose(S, transition_matrix("sym", 4, 0.4 * 3 / 4), rtol=1e-15)


def test_clean_labels_are_taken_for_symmetric_noise():
    np.testing.assert_array_equal(transition_matrix("clean", 10, 0.05), symmetric(10, 0.05))


def test_pair_flips_to_the_next_class_cyclically():
    assert transition_matrix("pair", 3, 0.25).tolist() == [[0.75, 0.25, 0], [0, 0.75, 0.25], [0.25, 0, 0.75]]


@pytest.mark.parametrize(
    ("table", "flips"),
    [
        ("mnist", {2: 7, 3: 8, 5: 6, 6: 5}),
        ("digits", {2: 7, 3: 8, 5: 6, 6: 5}),
        ("cifar10", {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}),
    ],
)
def test_asymmetric_tables_of_ten_classes(table, flips):
    S = transition_matrix("asym", 10, 0.3, table)
    expected = np.eye(10)
    for source, target in flips.items():
        expected[source, [source, target]] = 0.7, 0.3
    np.testing.assert_array_equal(S, expected)


def test_cifar100_cycles_within_the_true_super_classes():
    S = transition_matrix("asym", 100, 1.0, "cifar100")
    successor = S.argmax(axis=1)
    for coarse in range(20):
        members = np.flatnonzero(np.array(CIFAR100_COARSE) == coarse)  # ascending
        assert successor[members].tolist() == np.roll(members, -1).tolist()


@given(kind=st.sampled_from(CLASS_CONDITIONAL), num_classes=st.integers(2, 40), rate=st.floats(0, 1))
def test_every_model_is_row_stochastic_with_the_rate_off_the_diagonal(kind, num_classes, rate):
    num_classes = 10 if kind == "asym" else num_classes
    S = transition_matrix(kind, num_classes, rate, "cifar10")
    np.testing.assert_allclose(S.sum(axis=1), 1, atol=1e-12)
    wrong = {"sym_inclusive": rate * (num_classes - 1) / num_classes, "asym": rate / 2}.get(kind, rate)
    np.testing.assert_allclose(1 - np.diag(S).mean(), wrong, atol=1e-12)
    assert S.min() >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sym", 10, 1.2), r"rate must lie in \[0, 1\], got 1.2"),
        (("sym", 10, -0.1), "got -0.1"),
        (("asym", 10, float("nan"), "mnist"), "got nan"),
        (("pair", 1, 0.2), "at least 2 classes, got 1"),
        (("symm", 10, 0.2), "'symm'; did you mean 'sym'"),
        (("asym", 10, 0.2, "cifar11"), "'cifar11'; did you mean 'cifar10'"),
        (("asym", 10, 0.2), "unknown table of asymmetric label noise ''"),
        (("asym", 100, 0.2, "cifar10"), "for 10 classes, but the data has 100"),
    ],
)
def test_bad_models_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        transition_matrix(*arguments)


def test_corruption_is_pinned():
    """The noisy labels of a published run must never change."""
    labels = np.arange(10_000) % 10
    y_tilde = corrupt(labels, transition_matrix("sym", 10, 0.4), seed=7)
    assert y_tilde.dtype == np.int32
    digest = hashlib.sha256(y_tilde.astype("<i4").tobytes()).hexdigest()
    assert digest == "91b083a793069c20057443489ff198b12f1a311e0cbaedb0b496f0d773022dd5"


def test_corruption_inverts_the_cdf_with_one_uniform_an_example():
    S = np.array([[0.5, 0.25, 0.25], [0, 0, 1], [0.25, 0.75, 0]])
    labels = np.tile([0, 1, 2, 0, 2], 40)
    uniform = np.random.Generator(np.random.PCG64(3)).random(len(labels))
    expected = [np.flatnonzero(u < np.cumsum(S[y]))[0] for y, u in zip(labels, uniform, strict=True)]
    assert corrupt(labels, S, seed=3).tolist() == expected


def test_an_example_keeps_its_label_when_others_change():
    S = transition_matrix("sym", 10, 0.5)
    labels = np.arange(1000) % 10
    other = labels.copy()
    other[::2] = 3
    assert (corrupt(labels, S, 0)[1::2] == corrupt(other, S, 0)[1::2]).all()
    assert (corrupt(labels, S, 0)[:500] == corrupt(labels[:500], S, 0)).all()
    assert (corrupt(labels, S, 0) != corrupt(labels, S, 1)).any()


@settings(deadline=None)
@given(st.data())
def test_impossible_flips_never_happen(data):
    num_classes = data.draw(st.integers(2, 6))
    entry = st.sampled_from([0.0, 0.1, 1 / 3, 1.0, 7.0])
    S = np.array(
        data.draw(
            st.lists(
                st.lists(entry, min_size=num_classes, max_size=num_classes),
                min_size=num_classes,
                max_size=num_classes,
            )
        )
    )
    S = S + np.eye(num_classes) * (S.sum(axis=1, keepdims=True) == 0)
    S = S / S.sum(axis=1, keepdims=True)
    labels = np.repeat(np.arange(num_classes), 200)
    y_tilde = corrupt(labels, S, data.draw(st.integers(0, 2**40)))
    assert (S[labels, y_tilde] > 0).all()


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, [0, 1, 2]), (0.3, [1, 1, 2]), (np.nextafter(1, 0), [1, 1, 2])])
def test_edge_uniforms_stay_within_possible_classes(monkeypatch, uniform, expected):
    class Constant:
        def __init__(self, bits):
            pass

        def random(self, count):
            return np.full(count, uniform)

    monkeypatch.setattr(np.random, "Generator", Constant)
    S = np.array([[0.3, 0.7 - 5e-6, 0], [0, 1, 0], [0, 0, 1]])  # row 0 sums to just below 1
    assert corrupt([0, 1, 2], S, 0).tolist() == expected


def test_every_model_stays_within_binomial_bounds():
    labels = np.repeat(np.arange(10), 2000)
    for kind in CLASS_CONDITIONAL:
        S = transition_matrix(kind, 10, 0.4, "cifar10")
        realised = realised_matrix(labels, corrupt(labels, S, 1), 10)
        assert (np.abs(realised - S) <= 5 * np.sqrt(S * (1 - S) / 2000)).all()


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=3, max_size=3).filter(any),
    weights=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any), min_size=3, max_size=3),
    seed=st.integers(0, 2**40),
)
def test_exact_corruption_deals_out_whole_shares(counts, weights, seed):
    S = np.array(weights) / np.sum(weights, axis=1, keepdims=True)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), counts))
    y_tilde = corrupt(labels, S, seed, exact=True)
    assert y_tilde.dtype == np.int32
    for y, count in enumerate(counts):
        dealt = np.bincount(y_tilde[labels == y], minlength=3)
        assert (np.abs(dealt - count * S[y]) < 1).all()
        assert (dealt[S[y] == 0] == 0).all()
        whole = [count * w // sum(weights[y]) for w in weights[y]]  # in integers: no rounding
        remainder = [count * w % sum(weights[y]) for w in weights[y]]
        for j in sorted(range(3), key=lambda j: (-remainder[j], j))[: count - sum(whole)]:
            whole[j] += 1
        assert dealt.tolist() == whole


def test_ties_between_exact_shares_go_to_the_lower_class():
    """31.5 and 13.5 of 45 examples, which floating point puts in the other order."""
    y_tilde = corrupt(np.zeros(45, int), np.array([[0.7, 0.3], [0, 1]]), 0, exact=True)
    assert np.bincount(y_tilde).tolist() == [32, 13]


def test_exact_corruption_flips_other_images_with_another_seed():
    labels, S = np.arange(1000) % 10, transition_matrix("sym", 10, 0.45)
    first, second = (corrupt(labels, S, seed, exact=True) for seed in (0, 1))
    assert (first != second).any()
    np.testing.assert_array_equal(realised_matrix(labels, first, 10), realised_matrix(labels, second, 10))
    np.testing.assert_array_equal(first, corrupt(labels, S, 0, exact=True))
    np.testing.assert_allclose(realised_matrix(labels, first, 10), S, atol=0.01)


def test_exact_corruption_is_the_inverse_cdf_on_ranks():
    """Exact and independent flips of one seed hit nearly the same images, so they can be compared in pairs."""
    labels, S = np.zeros(5000, int), transition_matrix("pair", 2, 0.3)
    assert np.mean(corrupt(labels, S, 0) != corrupt(labels, S, 0, exact=True)) < 0.02


@given(seed=st.integers(0, 2**40), rate=st.floats(0, 1))
def test_rows_of_their_own_corrupt_like_a_matrix(seed, rate):
    S, labels = transition_matrix("sym", 5, rate), np.arange(60) % 5
    y_tilde = corrupt_each(S[labels], seed)
    np.testing.assert_array_equal(y_tilde, corrupt(labels, S, seed), strict=True)


def test_realised_noise_approaches_s():
    S = transition_matrix("asym", 10, 0.4, "cifar10")
    labels = np.repeat(np.arange(10), 20_000)
    y_tilde = corrupt(labels, S, 0)
    np.testing.assert_allclose(realised_matrix(labels, y_tilde, 10), S, atol=0.015)
    assert abs(realised_rate(labels, y_tilde) - 0.2) < 0.005  # half of the classes flip


def test_realised_matrix_counts_and_leaves_absent_classes_undefined():
    realised = realised_matrix([0, 0, 0, 0, 2], [0, 1, 1, 1, 2], 3)
    np.testing.assert_array_equal(realised, [[0.25, 0.75, 0], [np.nan] * 3, [0, 0, 1]])
    assert realised_rate([0, 0, 0, 0, 2], [0, 1, 1, 1, 2]) == 0.6


S2 = np.array([[0.9, 0.1], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("labels", "S", "seed", "message"),
    [
        ([0, 2], S2, 0, r"span 0..2, but classes are 0..1"),
        ([-1, 0], S2, 0, r"span -1..0"),
        ([], S2, 0, "non-empty"),
        ([[0, 1]], S2, 0, r"shape \(1, 2\)"),
        ([0.0, 1.0], S2, 0, "must be integers"),
        ([0, 1], S2[:1], 0, "K x K"),
        ([0, 1], [[0.9, 0.2], [0.2, 0.8]], 0, "row 0 .* sums to 1.1"),
        ([0, 1], [[1.1, -0.1], [0.2, 0.8]], 0, r"negative entry: S\[0, 1\]"),
        ([0, 1], [[np.nan, 1], [0.2, 0.8]], 0, "not finite"),
        ([0, 1], S2, -1, "seed must be a non-negative"),
    ],
)
def test_bad_corruptions_are_refused(labels, S, seed, message):
    with pytest.raises(UserError, match=message):
        corrupt(labels, S, seed)


def test_label_lists_must_agree():
    with pytest.raises(UserError, match="2 clean labels do not match 1"):
        realised_rate([0, 1], [0])
    with pytest.raises(UserError, match="2 clean labels do not match 1"):
        realised_matrix([0, 1], [0], 2)
    with pytest.raises(UserError, match="y_tilde span 0..5"):
        realised_matrix([0, 1], [0, 5], 2)


def test_the_expected_rate_weighs_the_classes_by_their_size():
    S = np.array([[0.9, 0.1, 0], [0, 0.5, 0.5], [0, 0, 1]])
    assert expected_rate([0, 0, 0, 1], S) == pytest.approx((3 * 0.1 + 0.5) / 4, abs=1e-15)
    assert expected_rate([2, 2], S) == 0


def test_imbalance_follows_the_exponential_profile():
    labels = np.tile(np.arange(3), 100)
    kept = imbalanced(labels, 0.01, 3, seed=0)
    assert np.bincount(labels[kept]).tolist() == [100, 10, 1]
    assert (np.diff(kept) > 0).all()
    assert imbalanced(labels, 1.0, 3, seed=0).tolist() == list(range(300))
    assert (imbalanced(labels, 0.01, 3, seed=1) != kept).any()


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    ratios=st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)),
    seed=st.integers(0, 2**40),
)
def test_imbalance_keeps_at_least_one_of_each_class_and_nests(counts, ratios, seed):
    labels, K = np.repeat(np.arange(len(counts)), counts), len(counts)
    small, large = (imbalanced(labels, ratio, K, seed) for ratio in sorted(ratios))
    assert set(small) <= set(large)
    for k, n in enumerate(np.bincount(labels[small], minlength=K)):
        wanted = max(counts) * min(ratios) ** (k / max(K - 1, 1))
        assert n == counts[k] or n == max(1, math.floor(wanted)) or n == max(1, math.ceil(wanted))


def test_the_imbalance_is_pinned():
    kept = imbalanced(np.arange(1000) % 10, 0.1, 10, seed=3)
    digest = hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest()
    assert digest == "dde68437792c8c9f22d559aa763abb947c2bca3bfe14e030bf43aea2d8f5c450"


def test_the_imbalance_shares_no_randomness_with_the_corruption():
    """Were the stream shared, the images that stay would be those of low uniforms: all flipped the same way."""
    labels = np.zeros(4000, int)
    flipped = corrupt(labels, transition_matrix("pair", 2, 0.5), 0)
    kept = imbalanced(np.arange(4000) % 2, 0.2, 2, seed=0)
    assert abs(flipped[kept].mean() - flipped.mean()) < 0.05


@pytest.mark.parametrize(
    ("labels", "ratio", "seed", "message"),
    [
        ([0, 1], 0.0, 0, r"in \(0, 1\]; got 0.0"),
        ([0, 1], 1.5, 0, "got 1.5"),
        ([0, 1], float("nan"), 0, "got nan"),
        ([0, 0], 0.5, 0, "class 1 has no examples"),
        ([0, 2], 0.5, 0, "span 0..2"),
        ([0, 1], 0.5, -1, "seed must be a non-negative"),
    ],
)
def test_bad_imbalances_are_refused(labels, ratio, seed, message):
    with pytest.raises(UserError, match=message):
        imbalanced(labels, ratio, 2, seed)
