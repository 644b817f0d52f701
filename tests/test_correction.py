"""Label correction on mixtures whose posteriors are known: exact decisions, and the noise that is left."""

import numpy as np
import pytest

from tdsm_jax.errors import UserError
from tdsm_jax.labels.correction import corrected, residual_matrix, suspects
from tdsm_jax.labels.corruption import corrupt, symmetric

MEANS = np.array([-1.5, 0.0, 2.0])
PRIOR = np.array([0.5, 0.3, 0.2])


def mixture(N, seed=0, S=None):
    """Returns y, y_tilde [N] and the exact posteriors w [N,3] of a mixture of Gaussians on a line."""
    S = symmetric(3, 0.4) if S is None else S
    rng = np.random.default_rng(seed)
    y = rng.choice(3, N, p=PRIOR).astype(np.int32)
    x = MEANS[y] + 0.6 * rng.normal(size=N)
    y_tilde = corrupt(y, S, seed + 1)  # its stream is the plain one, as above
    joint = PRIOR * np.exp(-((x[:, None] - MEANS) ** 2) / (2 * 0.36)) * S[:, y_tilde].T
    return y, y_tilde, joint / joint.sum(axis=1, keepdims=True)


def test_correction_takes_the_most_probable_class():
    w = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]])
    np.testing.assert_array_equal(corrected(w, "argmax"), [0, 2, 0])
    y, y_tilde, w = mixture(20_000)
    y_hat = corrected(w, "argmax")
    assert y_hat.dtype == np.int32
    right = np.mean(y_hat == y)
    assert right == pytest.approx(w.max(axis=1).mean(), abs=0.01)  # Bayes: as sure as it says
    assert right > np.mean(corrected(w, "soft") == y) > np.mean(y_tilde == y)


def test_soft_correction_draws_from_the_posterior():
    w = np.repeat([[0.6, 0.0, 0.4]], 20_000, axis=0)
    shares = np.bincount(corrected(w, "soft"), minlength=3) / len(w)
    np.testing.assert_allclose(shares, w[0], atol=0.015)
    assert shares[1] == 0
    _, _, w = mixture(20_000)
    shares = np.bincount(corrected(w, "soft"), minlength=3) / len(w)
    np.testing.assert_allclose(shares, PRIOR, atol=0.015)  # every class keeps its share
    np.testing.assert_array_equal(corrected(w, "soft", seed=3), corrected(w, "soft", seed=3))
    assert np.any(corrected(w, "soft", seed=3) != corrected(w, "soft", seed=4))


@pytest.mark.parametrize("kind", ["argmax", "soft"])
def test_the_residual_matrix_is_that_of_the_corrected_labels(kind):
    y, _, w = mixture(40_000)
    y_hat = corrected(w, kind)
    true = np.stack([np.bincount(y_hat[y == i], minlength=3) / np.sum(y == i) for i in range(3)])
    S_res = residual_matrix(w, y_hat)
    np.testing.assert_allclose(S_res.sum(axis=1), 1)
    np.testing.assert_allclose(S_res, true, atol=0.01)
    assert 0.05 < 1 - np.diag(S_res).min() < 0.4  # some noise is left, less than there was


def test_sure_posteriors_leave_no_noise():
    w = np.eye(3)[[0, 1, 2, 1]]
    np.testing.assert_array_equal(residual_matrix(w, corrected(w, "soft")), np.eye(3))
    np.testing.assert_array_equal(residual_matrix(w, np.array([0, 1, 2, 2])), [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]])


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (np.ones((2, 1)), "must be floats .*K >= 2"),
        (np.ones((2, 3), int), "must be floats"),
        (np.full((2, 3), np.nan), "not finite"),
        (np.array([[0.5, 0.6]]), "row 0 sums to 1.1"),
        (np.array([[1.5, -0.5]]), "the smallest is -0.5"),
    ],
)
def test_what_is_no_posterior_is_refused(w, message):
    with pytest.raises(UserError, match=message):
        corrected(w, "argmax")
    with pytest.raises(UserError, match=message):
        residual_matrix(w, np.zeros(2, int))


def test_bad_labels_and_kinds_are_refused():
    w = np.eye(3)[[0, 1]]
    with pytest.raises(UserError, match="no image can be of class 2"):
        residual_matrix(w, np.array([0, 1]))
    for y_hat in (np.array([0, 3]), np.array([0, -1]), np.array([0.0, 1.0]), np.array([0])):
        with pytest.raises(UserError, match="must be 2 integers from 0 to 2"):
            residual_matrix(w, y_hat)
    with pytest.raises(UserError, match="unknown label correction 'hard'"):
        corrected(w, "hard")


def test_suspects_are_the_images_of_another_class_least_trusted_first():
    w = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2], [0.45, 0.5, 0.05], [0.0, 1.0, 0.0]])
    np.testing.assert_array_equal(suspects(w, np.array([0, 1, 1, 0, 2])), [4, 1, 3])  # a tie is no reason
    assert len(suspects(w, w.argmax(axis=1))) == 0


def test_suspects_are_wrong_as_often_as_their_posteriors_say():
    y, y_tilde, w = mixture(20_000)
    found = suspects(w, y_tilde)
    own = w[found, y_tilde[found]]
    assert (np.diff(own) >= 0).all()
    assert np.mean(y[found] == y_tilde[found]) == pytest.approx(own.mean(), abs=0.01)


def test_suspects_need_a_label_for_each_posterior():
    with pytest.raises(UserError, match="given labels must be 2 integers from 0 to 1"):
        suspects(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 2]))
