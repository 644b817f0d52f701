"""Plans and their evaluation: exact on Gaussian mixtures, equal however packed, gradients where they belong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaussian import SIGMAS, TRANSITIONS, noisy_examples, random_mixture
from tdsm_jax.diffusion import mixture
from tdsm_jax.diffusion.mixture import Plan
from tdsm_jax.diffusion.objectives import add_noise, score_matching
from tdsm_jax.diffusion.process import EDM, VE, per_example
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import transition_matrix
from tdsm_jax.labels.weights import WEIGHTS, make_table, posterior


def table_of(S):
    return make_table(S, np.full(len(S), 1 / len(S)))


def exact_problem(noise, count=64):
    """Returns the mixture, S, x_t, sigma, y_tilde and log h of a Gaussian mixture under label noise."""
    S, world = TRANSITIONS[noise], random_mixture(10)
    _, x_t, sigma, _, y_tilde = noisy_examples(world, S, count)
    return world, S, x_t, sigma, y_tilde, world.log_h(x_t, sigma)


def linear(parameters, x, sigma, label):
    """A denoiser with a gain and a bias for each class and for the null label."""
    gain, bias = parameters
    return per_example(gain[label], x) * x + per_example(bias[label], x) * per_example(sigma, x)


def linear_problem(batch=8, num_classes=4, slots=5, zeros=0.5, seed=0):
    """Returns parameters of `linear`, x_t [B,3], sigma [B] and a plan with many zero weights."""
    rng = np.random.default_rng(seed)
    parameters = tuple(jnp.asarray(rng.normal(size=num_classes + 1), jnp.float32) for _ in range(2))
    weights = rng.random((batch, slots)) * (rng.random((batch, slots)) >= zeros)
    plan = Plan(jnp.asarray(rng.integers(0, num_classes + 1, (batch, slots))), jnp.asarray(weights, jnp.float32))
    x_t = jnp.asarray(rng.normal(size=(batch, 3)), jnp.float32)
    return parameters, x_t, jnp.asarray(rng.uniform(0.1, 2, batch), jnp.float32), plan


# What the plans say


@pytest.mark.parametrize("noise", TRANSITIONS)
@pytest.mark.parametrize("rule", ["all", "floor"])
def test_exact_plans_give_the_denoiser_of_the_noisy_label(noise, rule):
    world, S, x_t, sigma, y_tilde, log_h = exact_problem(noise)
    slots = mixture.plan(rule, y_tilde, table_of(S), log_h, residual_slots=mixture.floor_slots(S, most=len(S)))
    mixed = mixture.evaluate(world.denoise, world.denoise, x_t, sigma, slots)
    M = world.denoise_noisy(x_t, sigma, y_tilde, S)
    np.testing.assert_allclose(mixed.M, M, atol=1e-6 * np.abs(M).max())
    assert mixed.kept_mass == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("noise", "most", "expected"),
    [
        ("sym", 4, (0, True)),  # two evaluations for any number of classes
        ("asym", 4, (1, False)),
        ("pair", 4, (1, False)),
        ("dense", 4, (4, True)),
        ("dense", 10, (8, True)),  # all but the own label and the floor itself
    ],
)
def test_floor_slots_are_as_few_as_the_matrix_needs(noise, most, expected):
    assert mixture.floor_slots(TRANSITIONS[noise], most) == expected


def test_floor_slots_of_the_identity_and_of_100_symmetric_classes():
    assert mixture.floor_slots(np.eye(10), 4) == (0, False)
    assert mixture.floor_slots(transition_matrix("sym", 100, 0.4), 4) == (0, True)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_floor_plan_with_too_few_slots_keeps_the_heaviest_and_all_of_the_mass(most):
    _, S, _, _, y_tilde, log_h = exact_problem("dense")
    slots = mixture.plan("floor", y_tilde, table_of(S), log_h, residual_slots=(most, True))
    assert slots.classes.shape == (64, 2 + most)
    np.testing.assert_allclose(slots.weights.sum(axis=1), 1, atol=1e-6)
    assert (slots.classes[:, -1] == 10).all() and (slots.classes[:, 0] == y_tilde).all()
    h = np.exp(np.asarray(log_h, np.float64))
    above = ((S - S.min(axis=0))[:, y_tilde].T * h) / (h @ S)[np.arange(64), y_tilde, None]
    above[np.arange(64), y_tilde] = -1
    heaviest = -np.sort(-above, axis=1)[:, :most]
    np.testing.assert_allclose(slots.weights[:, 1 : 1 + most], heaviest, atol=1e-5)


def test_a_floor_plan_of_an_impossible_label_is_the_null_label():
    """Such a label says nothing (w = h), so its mixture is D_null, whatever the other columns need."""
    S = np.array([[1.0, 0, 0], [0, 1, 0], [0.3, 0.7, 0]])
    residual_slots = mixture.floor_slots(S, 4)
    slots = mixture.plan("floor", jnp.array([2]), table_of(S), jnp.zeros((1, 3)), residual_slots=residual_slots)
    assert jnp.sum(jnp.where(slots.classes == 3, slots.weights, 0)) == slots.weights.sum() == 1


def test_the_own_rule_is_the_plain_denoiser():
    world, _, x_t, sigma, y_tilde, _ = exact_problem("sym")
    slots = mixture.plan("own", y_tilde)
    assert slots.classes.shape == (64, 1)
    mixed = mixture.evaluate(world.denoise, world.denoise, x_t, sigma, slots)
    np.testing.assert_allclose(mixed.M, world.denoise(x_t, sigma, y_tilde), rtol=1e-6)
    assert mixed.kept_mass == 1 and mixed.overflow == 0


@pytest.mark.parametrize("noise", TRANSITIONS)
def test_the_prior_rule_weighs_by_the_label_posterior(noise):
    S, prior = TRANSITIONS[noise], random_mixture(10).prior
    slots = mixture.plan("prior", jnp.arange(10), make_table(S, prior))
    np.testing.assert_array_equal(slots.classes[:, 0], np.arange(10))
    R = np.zeros((10, 10))
    R[np.arange(10)[:, None], slots.classes] = slots.weights
    joint = prior[:, None] * S
    np.testing.assert_allclose(R, (joint / joint.sum(axis=0)).T, atol=1e-6)


def test_the_threshold_rule_drops_small_weights_keeps_the_own_label_and_does_not_renormalise():
    _, S, _, _, y_tilde, log_h = exact_problem("dense")
    table = table_of(S)
    w = np.asarray(posterior(table, log_h, y_tilde))
    slots = mixture.plan("threshold", y_tilde, table, log_h, tau=0.2)
    kept = np.zeros_like(w)
    kept[np.arange(64)[:, None], slots.classes] = slots.weights
    is_own = np.arange(10) == np.asarray(y_tilde)[:, None]
    np.testing.assert_array_equal(kept, np.where(is_own | (w > 0.2), w, 0))
    assert (w[is_own] < 0.2).any()


def test_the_threshold_loses_four_tenths_of_the_mixture_at_100_classes_where_the_floor_loses_nothing():
    S = transition_matrix("sym", 100, 0.4)
    y_tilde = jnp.arange(100)
    plan = functools.partial(mixture.plan, y_tilde=y_tilde, table=table_of(S), logits=jnp.zeros((100, 100)))
    assert plan("threshold", tau=0.01).weights.sum(axis=1).mean() == pytest.approx(0.6, abs=1e-5)
    floor = plan("floor", residual_slots=mixture.floor_slots(S, 4))
    np.testing.assert_allclose(floor.weights.sum(axis=1), 1, atol=1e-6)
    assert floor.classes.shape == (100, 2)


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(UserError, match="'flor'; did you mean 'floor'"):
        mixture.plan("flor", jnp.array([0]))


def test_the_own_weight_is_on_average_the_share_of_right_labels():
    """E[w_own] = P(y = y_tilde) at every noise level: the calibration check of a classifier."""
    S, world = TRANSITIONS["sym"], random_mixture(10)
    for sigma in SIGMAS:
        _, x_t, sigmas, _, y_tilde = noisy_examples(world, S, 20_000, sigmas=[sigma])
        w = posterior(table_of(S), world.log_h(x_t, sigmas), y_tilde)
        own = jnp.take_along_axis(w, y_tilde[:, None], axis=1).mean()
        assert own == pytest.approx(0.6, abs=0.012), sigma


def test_dropped_examples_train_the_null_label_alone():
    slots = Plan(jnp.array([[2, 0, 3], [1, 2, 3]]), jnp.array([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]]))
    dropped = mixture.drop_labels(slots, jnp.array([False, True]), null=3)
    np.testing.assert_array_equal(dropped.classes[:, 0], [2, 3])
    np.testing.assert_allclose(dropped.weights, [[0.5, 0.3, 0.2], [1, 0, 0]])


def test_the_published_rule_plans_for_a_dropped_label_as_for_class_0():
    y_tilde, dropped = jnp.array([2, 1, 2]), jnp.array([False, True, True])
    labels = mixture.dropped_to_class_0(y_tilde, dropped)
    np.testing.assert_array_equal(labels, [2, 0, 0])
    S = transition_matrix("sym", 3, 0.3)
    slots = mixture.plan("threshold", labels, table_of(S), jnp.zeros((3, 3)), tau=0.01)
    np.testing.assert_array_equal(slots.classes[:, 0], [2, 0, 0])
    np.testing.assert_allclose(slots.weights, np.tile([0.7, 0.15, 0.15], (3, 1)), atol=1e-6)


@pytest.mark.parametrize("rule", ["all", "threshold", "floor"])
def test_plans_weigh_as_they_are_told(rule):
    """Either form of the weights, its temperature bound, gives the same plan; another temperature another one."""
    _, S, _, _, y_tilde, log_h = exact_problem("sym")
    bayes, inverse, cold = (
        mixture.plan(rule, y_tilde, table_of(S), log_h, weigh=functools.partial(WEIGHTS[form], temperature=T))
        for form, T in (("bayes", 1.7), ("inverse", 1.7), ("bayes", 1.0))
    )
    np.testing.assert_allclose(bayes.weights, inverse.weights, atol=1e-5)
    assert np.abs(bayes.weights - cold.weights).max() > 0.05


# How they are evaluated


def loss_of(parameters, x_t, sigma, slots, capacity, own_gradient=True):
    frozen = functools.partial(linear, jax.lax.stop_gradient(parameters)) if own_gradient else None
    mixed = mixture.evaluate(functools.partial(linear, parameters), frozen, x_t, sigma, slots, capacity)
    return jnp.sum((mixed.M - 1) ** 2), mixed


@functools.partial(jax.jit, static_argnames=("capacity", "own_gradient"))
def loss_and_gradient(parameters, x_t, sigma, slots, capacity=None, own_gradient=True):
    gradient, mixed = jax.grad(loss_of, has_aux=True)(parameters, x_t, sigma, slots, capacity, own_gradient)
    return mixed, gradient


@pytest.mark.parametrize("capacity", [0.125, 0.3, 1.0, 3.9, 4.0])
@pytest.mark.parametrize("zeros", [0.0, 0.6, 1.0])
def test_packing_changes_neither_values_nor_gradients(capacity, zeros):
    """From one slot a pass to all at once, overflowing or not, with no weight zero or all of them."""
    problem = linear_problem(zeros=zeros)
    expected, expected_gradient = loss_and_gradient(*problem)
    mixed, gradient = loss_and_gradient(*problem, capacity=capacity)
    np.testing.assert_allclose(mixed.M, expected.M, atol=1e-5)
    assert mixed.kept_mass == expected.kept_mass
    for packed, unpacked in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(packed, unpacked, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("capacity", "overflow"), [(0.125, 18), (1.0, 11), (2.375, 0), (3.0, 0), (4.0, 0)])
def test_overflow_counts_the_slots_beyond_the_first_pass(capacity, overflow):
    parameters, x_t, sigma, slots = linear_problem(zeros=0)
    weights = jnp.ones((8, 5)).at[:, 1:].set((jnp.arange(32) < 19).reshape(8, 4))
    mixed, _ = loss_and_gradient(parameters, x_t, sigma, Plan(slots.classes, weights), capacity=capacity)
    assert mixed.overflow == overflow


def test_packing_evaluates_no_more_than_it_says():
    """The frozen denoiser sees ceil(capacity * B) examples a pass."""
    parameters, x_t, sigma, slots = linear_problem(zeros=0.5)
    seen = []

    def watched(x, sigma, label):
        seen.append(len(x))
        return linear(parameters, x, sigma, label)

    mixture.evaluate(functools.partial(linear, parameters), watched, x_t, sigma, slots, capacity=0.3)
    assert set(seen) == {3}


def augmented(x, sigma, label, augment_label):
    """A denoiser that says whose augmentation label it received, with which class."""
    return augment_label[:, :1] * (1 + label[:, None]) + 0 * x


@pytest.mark.parametrize("capacity", [None, 0.3, 1.0])
@pytest.mark.parametrize("frozen", [augmented, None])
def test_every_slot_receives_the_augmentation_label_of_its_example(capacity, frozen):
    _, x_t, sigma, slots = linear_problem()
    augment_label = jnp.arange(72.0).reshape(8, 9) + 1
    M = mixture.evaluate(augmented, frozen, x_t, sigma, slots, capacity, augment_label).M
    expected = augment_label[:, 0] * (slots.weights * (1 + slots.classes)).sum(axis=1)
    np.testing.assert_allclose(M, np.repeat(expected[:, None], 3, axis=1), rtol=1e-5)


def by_hand(parameters, x_t, sigma, slots, own_gradient):
    """The loss of `loss_of` slot by slot."""
    still = jax.lax.stop_gradient(parameters) if own_gradient else parameters
    M = 0
    for slot in range(slots.classes.shape[1]):
        used = parameters if slot == 0 else still
        M = M + slots.weights[:, slot, None] * linear(used, x_t, sigma, slots.classes[:, slot])
    return jnp.sum((M - 1) ** 2)


@pytest.mark.parametrize("own_gradient", [True, False])
def test_gradients_flow_through_the_own_slot_or_through_all(own_gradient):
    problem = linear_problem()
    _, gradient = loss_and_gradient(*problem, own_gradient=own_gradient)
    _, other = loss_and_gradient(*problem, own_gradient=not own_gradient)
    expected = jax.grad(by_hand)(*problem, own_gradient)
    for got, want, different in zip(gradient, expected, other, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        assert np.abs(got - different).max() > 0.1


def test_score_matching_of_the_own_plan_is_denoising_score_matching():
    parameters, x0, sigma, _ = linear_problem()
    label, n = jnp.arange(8) % 4, jnp.ones_like(x0)
    x_t = add_noise(x0, sigma, n)
    np.testing.assert_allclose(x_t, x0 + sigma[:, None], rtol=1e-6)
    denoise = functools.partial(linear, parameters)
    loss, _ = score_matching(EDM(), denoise, denoise, x0, x_t, sigma, mixture.plan("own", label))
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    expected = weight[:, None] * (denoise(x_t, sigma, label) - x0) ** 2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_score_matching_weighs_by_its_process_and_passes_the_augmentation_label_on():
    _, x0, sigma, slots = linear_problem()
    augment_label = x0 + 1
    losses, _ = score_matching(VE(), augmented, augmented, x0, x0, sigma, slots, None, augment_label)
    M = mixture.evaluate(augmented, augmented, x0, sigma, slots, None, augment_label).M
    np.testing.assert_allclose(losses, (M - x0) ** 2 / sigma[:, None] ** 2, rtol=1e-5)
