"""Metrics against the official implementations, in float64."""

import pytest

from tdsm_jax.evaluation.frechet import frechet_distance
from tdsm_jax.evaluation.kernels import cmmd
from tdsm_jax.evaluation.neighbours import density_coverage, neighbour_metrics


def test_frechet_distance_matches_the_official_implementation(golden):
    arrays = golden("metrics")
    assert frechet_distance(arrays["real"], arrays["fake"]) == pytest.approx(float(arrays["fid"]), rel=1e-9)


def test_cmmd_matches_the_official_implementation(golden):
    arrays = golden("metrics")
    assert cmmd(arrays["real"], arrays["fake"]) == pytest.approx(float(arrays["cmmd"]), rel=1e-9)


@pytest.mark.parametrize("nearest", [3, 5])
def test_neighbour_metrics_match_the_official_implementation(nearest, golden):
    arrays = golden("metrics")
    names = ("density", "coverage", "precision", "recall")
    expected = [float(arrays[f"k{nearest}_{name}"]) for name in names]
    values = neighbour_metrics(arrays["real"], arrays["fake"], (nearest,))
    assert [values[f"{name}_k{nearest}"] for name in names] == pytest.approx(expected, rel=1e-9)
    assert density_coverage(arrays["real"], arrays["fake"], nearest) == pytest.approx(expected[:2], rel=1e-9)
