"""Classification losses: bounds, symmetry, reductions to one another, and what extreme logits do to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdsm_jax.errors import UserError
from tdsm_jax.labels import losses
from tdsm_jax.labels.losses import LOSSES, forward_corrected, make_loss, volmin
from tdsm_jax.labels.transition import volmin_initial, volmin_matrix

A = -np.log(1e-4)  # what RCE puts in place of -log 0
UPPER = {"nce": 1, "nfl": 1, "mae": 1, "rce": A, "gce": 1 / 0.7, "nce+rce": 1 + A, "nfl+mae": 2}
seeds = st.integers(0, 2**31)
anything = settings(max_examples=25, deadline=None)


def problem(seed, num_classes=7, batch=6, scale=3.0):
    """Returns logits [B,K] and labels [B]."""
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(scale=scale, size=(batch, num_classes)), jnp.float32)
    return logits, jnp.asarray(rng.integers(0, num_classes, batch))


@jax.jit
def of_every_label(logits):
    """Returns the losses [B] of each label, K of them, by name."""
    B, K = logits.shape
    return {name: [loss(logits, jnp.full(B, y)) for y in range(K)] for name, loss in LOSSES.items()}


@anything
@given(seeds, st.sampled_from([0.1, 3.0, 30.0]))
def test_losses_stay_within_their_bounds(seed, scale):
    every = of_every_label(problem(seed, scale=scale)[0])
    for name, values in every.items():
        assert np.min(values) >= 0, name
        assert np.max(values) <= UPPER.get(name, np.inf) * (1 + 1e-5), name


@anything
@given(seeds)
def test_symmetric_losses_sum_over_labels_to_a_constant(seed):
    """The sum does not depend on the prediction: what makes a loss robust to uniform label noise."""
    K = 7
    every = of_every_label(problem(seed, K)[0])
    constants = {"mae": K - 1, "rce": A * (K - 1), "nce": 1, "nfl": 1, "nce+rce": 1 + A * (K - 1)}
    for name, constant in constants.items():
        np.testing.assert_allclose(np.sum(every[name], axis=0), constant, rtol=1e-5)
    assert np.ptp(np.sum(every["ce"], axis=0)) > 1e-2 and np.ptp(np.sum(every["gce"], axis=0)) > 1e-3


@anything
@given(seeds)
def test_losses_follow_their_formulas(seed):
    logits, y = problem(seed)
    log_p = np.asarray(logits, np.float64)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    p, own = np.exp(log_p), (np.arange(len(y)), np.asarray(y))
    reversed_labels = np.log(np.maximum(np.eye(p.shape[1])[y], 1e-4))
    focal = -((1 - p) ** 0.5) * log_p
    expected = {
        "ce": -log_p[own],
        "fl": focal[own],
        "nce": log_p[own] / log_p.sum(axis=1),
        "nfl": focal[own] / focal.sum(axis=1),
        "mae": np.abs(p - np.eye(p.shape[1])[y]).sum(axis=1) / 2,
        "rce": -(p * reversed_labels).sum(axis=1),
        "gce": (1 - p[own] ** 0.7) / 0.7,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(LOSSES[name](logits, y), values, rtol=2e-5, atol=1e-6, err_msg=name)
    combined = make_loss("nfl+rce", a=10.0, b=0.1)(logits, y)
    np.testing.assert_allclose(combined, 10 * expected["nfl"] + 0.1 * expected["rce"], rtol=2e-5, atol=1e-5)
    symmetric = make_loss("sce", a=2.0, b=0.5)(logits, y)
    np.testing.assert_allclose(symmetric, 2 * expected["ce"] + 0.5 * expected["rce"], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "limit"),
    [
        ("fl", {"gamma": 0.0}, "ce"),
        ("nfl", {"gamma": 0.0}, "nce"),
        ("gce", {"q": 1.0}, "mae"),
        ("gce", {"q": 1e-6}, "ce"),
        ("sce", {"a": 1.0, "b": 0.0}, "ce"),
        ("nce+mae", {"a": 0.0, "b": 1.0}, "mae"),
    ],
)
def test_losses_and_their_gradients_reduce_to_one_another(name, parameters, limit):
    logits, y = problem(0)
    special, plain = make_loss(name, **parameters), make_loss(limit)
    np.testing.assert_allclose(special(logits, y), plain(logits, y), rtol=2e-5)
    gradients = [jax.grad(lambda z, loss=loss: loss(z, y).sum())(logits) for loss in (special, plain)]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_leave_losses_and_gradients_finite(name):
    logits = jnp.array([[1e4, 0.0, -1e4], [1e4, 1e4, 1e4], [-1e4, -1e4, 1e4], [0.0, 0.0, 0.0]])
    for y in range(3):
        values, pull = jax.vjp(lambda z, y=y: LOSSES[name](z, jnp.full(4, y)), logits)
        (gradient,) = pull(jnp.ones(4))
        assert np.isfinite(values).all() and np.isfinite(gradient).all(), y


def test_the_focal_factor_carries_no_gradient():
    """FL pulls like CE scaled by (1 - p_y)^gamma."""
    logits, y = problem(1)
    factor = LOSSES["fl"](logits, y) / LOSSES["ce"](logits, y)
    gradients = [jax.grad(lambda z, loss=loss: loss(z, y).sum())(logits) for loss in (losses.fl, losses.ce)]
    np.testing.assert_allclose(gradients[0], factor[:, None] * gradients[1], rtol=1e-4, atol=1e-6)


def test_elr_follows_its_formula_and_its_gradient():
    """CE pulls by p - e_y; the regulariser by -weight p (t - <t,p>) / (1 - <t,p>), t held still."""
    logits, targets = jnp.array([[1.0, -0.5, 0.2]]), jnp.array([[0.6, 0.1, 0.2]])
    y = jnp.array([1])
    p = np.exp([1.0, -0.5, 0.2]) / np.exp([1.0, -0.5, 0.2]).sum()
    t = 0.7 * np.array([0.6, 0.1, 0.2]) + 0.3 * p
    loss, new = losses.elr(logits, y, targets)
    np.testing.assert_allclose(new[0], t, rtol=1e-6)
    np.testing.assert_allclose(loss[0], -np.log(p[1]) + 3 * np.log(1 - t @ p), rtol=1e-5)
    gradient = jax.grad(lambda z: losses.elr(z, y, targets)[0].sum())(logits)[0]
    np.testing.assert_allclose(gradient, p - np.eye(3)[1] - 3 * p * (t - t @ p) / (1 - t @ p), rtol=1e-4)


def test_elr_without_weight_is_cross_entropy_and_stays_finite_where_sure():
    logits, y = problem(3)
    targets = jnp.zeros((6, 7))
    np.testing.assert_array_equal(losses.elr(logits, y, targets, weight=0.0)[0], losses.ce(logits, y))
    np.testing.assert_allclose(losses.elr(logits, y, targets, momentum=0.0)[1], jax.nn.softmax(logits), rtol=1e-6)
    sure, corner = jnp.array([[1e4, 0.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0]])
    value, pull = jax.vjp(lambda z: losses.elr(z, jnp.array([0]), corner)[0], sure)
    assert np.isfinite(value).all() and np.isfinite(pull(jnp.ones(1))[0]).all()


def test_the_smallest_losses_are_chosen():
    values = jnp.array([3.0, 1.0, 2.0, 1.0, 1.0])
    np.testing.assert_array_equal(losses.smallest(values, 2), [False, True, False, True, False])
    assert losses.smallest(values, 5).all() and not losses.smallest(values, 0).any()


def test_volmin_adds_the_volume_of_the_transition_matrix():
    logits, y_tilde = problem(2, num_classes=5)
    T = volmin_matrix(volmin_initial(5, 0.6))
    added = volmin(logits, y_tilde, jnp.log(T), 0.3) - forward_corrected(logits, y_tilde, jnp.log(T))
    np.testing.assert_allclose(added, 0.3 * np.log(np.linalg.det(np.asarray(T, np.float64))), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("gcee", {}, "unknown loss 'gcee'; did you mean 'gce'"),
        ("rce+nce", {}, "unknown loss 'rce\\+nce'"),
        ("mae", {"q": 0.7}, "'mae' has no parameter 'q'; it has: none"),
        ("nce+rce", {"gamma": 0.5}, "'nce\\+rce' has no parameter 'gamma'; it has: a, b"),
        ("gce", {"q": 0.0}, "q of the loss 'gce' must be a number from 1e-06 to 1, got 0.0"),
        ("fl", {"gamma": -1.0}, "gamma of the loss 'fl' must be a number from 0 to inf, got -1.0"),
        ("sce", {"a": float("nan")}, "a of the loss 'sce' must be"),
        ("sce", {"b": float("inf")}, "b of the loss 'sce' must be"),
    ],
)
def test_bad_losses_are_refused(name, parameters, message):
    with pytest.raises(UserError, match=message):
        make_loss(name, **parameters)
