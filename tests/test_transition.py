"""Transition matrices: validity, identifiability, VolMinNet's parametrisation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdsm_jax.errors import UserError
from tdsm_jax.labels import transition
from tdsm_jax.labels.corruption import pair, symmetric


@pytest.mark.parametrize(
    ("S", "message"),
    [
        ([[1.0]], "K >= 2"),
        ([0.5, 0.5], r"shape \(2,\)"),
        ([[1, 0, 0], [0, 1, 0]], r"shape \(2, 3\)"),
        ([[np.inf, 0], [0, 1]], "not finite"),
        ([[np.nan, 1], [0, 1]], "not finite"),
        ([["a", "b"], ["c", "d"]], "not finite numbers"),
        ([[1, 0], [1.5, -0.5]], r"S\[1, 1\] = -0.5"),
        ([[1, 0], [0.6, 0.3]], "row 1 .* sums to 0.9, not 1"),
    ],
)
def test_only_row_stochastic_matrices_pass(S, message):
    with pytest.raises(UserError, match=message):
        transition.check_stochastic(np.array(S))


def test_float32_and_integer_matrices_pass():
    transition.check_stochastic(symmetric(100, 0.4).astype(np.float32))
    transition.check_stochastic(np.eye(3, dtype=int))


def test_a_transposed_matrix_is_recognised():
    with pytest.raises(UserError, match="transposed"):
        transition.check_stochastic(np.array([[0.6, 0.4], [0, 1]]).T)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_symmetric_noise_loses_identifiability_at_its_singular_rate(num_classes):
    singular = (num_classes - 1) / num_classes
    with pytest.raises(UserError, match="every clean class has"):
        transition.check_invertible(symmetric(num_classes, singular))
    transition.check_invertible(symmetric(num_classes, singular - 0.05))


def test_pair_flips_at_one_half_are_singular_for_even_k_only():
    with pytest.raises(UserError, match="linearly dependent"):
        transition.check_invertible(pair(10, 0.5))
    transition.check_invertible(pair(9, 0.5))
    transition.check_invertible(pair(10, 0.45))


def test_the_error_names_the_classes_and_the_ways_out():
    S = np.eye(4)
    S[1, [1, 3]] = S[3, [3, 1]] = 0.5
    with pytest.raises(UserError, match="clean classes 1 and 3 .* raise the limit to insist") as error:
        transition.check_invertible(S)
    assert "\n" not in str(error.value)
    transition.check_invertible(S, limit=math.inf)


def test_the_limit_is_on_the_condition_number():
    S = symmetric(10, 0.8)
    transition.check_invertible(S, limit=9.01)
    with pytest.raises(UserError, match="condition number of S 9, limit 8.9"):
        transition.check_invertible(S, limit=8.9)
    with pytest.raises(UserError, match="sums to 2"):
        transition.check_invertible(2 * np.eye(2))


@given(num_classes=st.integers(2, 30), rate=st.floats(0, 0.45))
def test_condition_number_of_symmetric_noise(num_classes, rate):
    expected = 1 / (1 - num_classes * rate / (num_classes - 1))
    assert transition.condition_number(symmetric(num_classes, rate)) == pytest.approx(expected)


def test_condition_number_of_a_singular_matrix_is_huge():
    assert transition.condition_number(np.full((4, 4), 0.25)) > 1e12


def test_relative_l1():
    S = np.eye(2)
    assert transition.relative_l1(S, S) == 0
    assert transition.relative_l1(np.full((2, 2), 0.5), S) == 1
    assert transition.relative_l1([[0.9, 0.1], [0.0, 1.0]], S) == pytest.approx(0.1)
    assert transition.relative_l1(2 * S, S) == 1
    with pytest.raises(UserError, match="shapes"):
        transition.relative_l1(np.eye(3), S)


def test_volmin_matrix_is_its_formula():
    V = jax.random.normal(jax.random.key(0), (6, 6)) * 3
    unnormalised = np.eye(6) + (1 - np.eye(6)) / (1 + np.exp(-np.asarray(V, np.float64)))
    expected = unnormalised / unnormalised.sum(axis=1, keepdims=True)
    T = transition.volmin_matrix(V)
    np.testing.assert_allclose(T, expected, rtol=1e-5)
    transition.check_stochastic(T)
    assert (jnp.argmax(T, axis=1) == jnp.arange(6)).all()


def test_volmin_gradient_reaches_every_off_diagonal_parameter_and_no_other():
    V = transition.volmin_initial(5)
    gradient = jax.grad(lambda V: transition.volmin_matrix(V)[jnp.arange(5), jnp.arange(5)].sum())(V)
    assert (gradient[~jnp.eye(5, dtype=bool)] != 0).all()
    assert (jnp.diag(gradient) == 0).all()


@pytest.mark.parametrize(("num_classes", "diagonal"), [(2, 0.9), (10, 0.5), (100, 0.5), (100, 0.02)])
def test_volmin_starts_where_it_is_told(num_classes, diagonal):
    V = transition.volmin_initial(num_classes, diagonal)
    T = np.asarray(transition.volmin_matrix(V))
    assert V.shape == (num_classes, num_classes) and V.dtype == jnp.float32
    np.testing.assert_allclose(T, symmetric(num_classes, 1 - diagonal), rtol=1e-5)


def test_volmin_start_is_near_the_published_constants():
    assert float(transition.volmin_initial(10)[0, 1]) == pytest.approx(-2, abs=0.1)
    assert float(transition.volmin_initial(100)[0, 1]) == pytest.approx(-4.5, abs=0.1)


@pytest.mark.parametrize("diagonal", [0.1, 1.0, 0.0, math.nan])
def test_unreachable_volmin_starts_are_refused(diagonal):
    with pytest.raises(UserError, match="strictly between 1/K = 0.1 and 1"):
        transition.volmin_initial(10, diagonal)


def test_log_volume():
    S = symmetric(5, 0.4)  # eigenvalues 1 and, four times, 1 - 5/4 * 0.4
    assert float(transition.log_volume(jnp.array(S))) == pytest.approx(4 * math.log(0.5), rel=1e-5)
    swap = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    assert float(transition.log_volume(swap)) == 0  # the determinant is -1
    # far below the smallest float32: the determinant itself would underflow to zero
    assert float(transition.log_volume(1e-3 * jnp.eye(100))) == pytest.approx(100 * math.log(1e-3), rel=1e-5)
