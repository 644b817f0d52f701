"""Neighbours over tiles: the same as of whole matrices, in a bounded memory, for every k at once."""

import tracemalloc

import numpy as np
import pytest

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import pairs
from tdsm_jax.evaluation.neighbours import neighbour_metrics, squared_radii
from tdsm_jax.evaluation.pairs import check_features


def features(count, dimension=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimension))


@pytest.mark.parametrize("columns", [1, 2, 4, 100])
def test_radii_of_tiles_are_those_of_the_whole_matrix(columns, monkeypatch):
    x = features(23)
    whole = np.sort(((x[:, None] - x[None]) ** 2).sum(axis=2), axis=1)
    monkeypatch.setattr(pairs, "ROWS", 5)
    monkeypatch.setattr(pairs, "COLUMNS", columns)
    np.testing.assert_allclose(squared_radii(x, (3, 1, 22)), whole[:, [3, 1, 22]].T, rtol=1e-9)


@pytest.mark.parametrize("tile", [(5, 4), (1024, 8192)])
def test_all_metrics_are_those_of_the_whole_matrices(tile, monkeypatch):
    real, fake = features(41), 0.3 + features(37, seed=1)
    within_real, within_fake, across = (
        np.linalg.norm(a[:, None] - b[None], axis=2) for a, b in ((real, real), (fake, fake), (real, fake))
    )
    expected = {}
    for k in (3, 5):
        in_real = across < np.sort(within_real, axis=1)[:, k, None]  # place 0 is the example itself
        in_fake = across < np.sort(within_fake, axis=1)[None, :, k]
        expected[f"precision_k{k}"], expected[f"recall_k{k}"] = in_real.any(axis=0).mean(), in_fake.any(axis=1).mean()
        expected[f"density_k{k}"], expected[f"coverage_k{k}"] = in_real.sum() / (37 * k), in_real.any(axis=1).mean()
    monkeypatch.setattr(pairs, "ROWS", tile[0])
    monkeypatch.setattr(pairs, "COLUMNS", tile[1])
    assert neighbour_metrics(real, fake, (3, 5)) == pytest.approx(expected, rel=1e-12)
    assert len({*expected.values()}) > 4


def test_equal_sets_meet_everywhere_in_single_precision_too():
    real = features(30).astype(np.float32)
    values = neighbour_metrics(real, real, (3,))
    assert (values["precision_k3"], values["recall_k3"], values["coverage_k3"]) == (1, 1, 1)


def test_memory_does_not_grow_with_the_number_of_pairs(monkeypatch):
    """Twice the examples are four times the pairs, and take no more than their own few numbers."""
    monkeypatch.setattr(pairs, "ROWS", 32)
    monkeypatch.setattr(pairs, "COLUMNS", 64)
    peaks = []
    for count in (500, 1000):
        sets = features(count, 8), features(count, 8, seed=1)
        tracemalloc.start()
        neighbour_metrics(*sets, (3, 5))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] and peaks[1] < 500_000  # one matrix of distances: 8 MB


def test_progress_is_told_block_by_block(monkeypatch):
    told = []

    def watch(items, label, total, images):
        for count, item in enumerate(items, start=1):
            told.append((label, count, total, images))
            yield item

    monkeypatch.setattr(pairs, "ROWS", 5)
    neighbour_metrics(features(11), features(6), (3,), watch)
    assert told == [
        *(("nearest neighbours", i, 3, 5) for i in (1, 2, 3)),
        *(("nearest neighbours", i, 2, 5) for i in (1, 2)),
        *(("pairs of neighbours", i, 3, 5) for i in (1, 2, 3)),
    ]


def test_features_that_cannot_be_compared_are_refused_in_one_line():
    bad = features(9)
    bad[8, 2] = np.inf
    for sets, said in (
        ((bad,), "a feature is infinite or not a number"),
        ((features(3), features(3, 4)), "features of 5 and 4 numbers cannot be compared"),
        ((features(3)[0],), r"features must be \[N, D\]"),
        ((features(0),), r"features must be \[N, D\]"),
    ):
        with pytest.raises(UserError, match=said) as error:
            check_features(*sets)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="balls up to neighbour 5 need more than 5 examples, got 5"):
        neighbour_metrics(features(9), features(5), (3, 5))
