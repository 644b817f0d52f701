"""Residuals: limits, bounded influence, schedules, and what each form learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaussian import noisy_examples, random_mixture
from tdsm_jax.diffusion import mixture
from tdsm_jax.diffusion.objectives import score_matching
from tdsm_jax.diffusion.process import EDM, PROCESSES, VE, VP
from tdsm_jax.diffusion.residuals import RESIDUALS, SCHEDULES, Residual, cost, deltas, pseudo_huber
from tdsm_jax.errors import UserError
from tdsm_jax.labels.weights import make_table

B, SHAPE = 6, (6, 4, 4, 1)
SIGMA = jnp.array([0.01, 0.1, 0.3, 1.0, 5.0, 40.0])
RNG = np.random.default_rng(0)
X0, D = (jnp.asarray(RNG.normal(size=SHAPE), jnp.float32) for _ in range(2))


def test_the_published_formula_at_round_numbers():
    """2 delta (sqrt(r^2 + delta^2) - delta): r = 3, delta = 4 gives 8 (5 - 4); r = 0 costs nothing."""
    r = jnp.array([[3.0, -3.0, 0.0]])
    np.testing.assert_allclose(pseudo_huber(r, jnp.array([4.0])), [[8, 8, 0]], rtol=1e-6)
    # One example of two pixels 1 and 7: m = 25, delta = 12 -> rho = 24 (13 - 12), the mean of its pixels' shares.
    shares = pseudo_huber(jnp.array([[1.0, 7.0]]), jnp.array([12.0]), "example")
    np.testing.assert_allclose(shares.mean(), 24, rtol=1e-6)
    np.testing.assert_allclose(shares[0, 1] / shares[0, 0], 49, rtol=1e-6)


@pytest.mark.parametrize("form", ["element", "example"])
@pytest.mark.parametrize("process", [EDM(), VP(), VE()], ids=list(PROCESSES))
def test_a_large_delta_is_the_squared_loss_under_any_weight(process, form):
    sigma = jnp.clip(SIGMA, 0.03)
    for weight in (process.loss_weight(sigma), jnp.arange(1.0, B + 1)):
        squared = cost(Residual(), process, weight, D, X0, sigma)
        huber = cost(Residual("huber", 1e6, form), process, weight, D, X0, sigma)
        np.testing.assert_allclose(huber, squared, rtol=2e-5)


def test_squared_is_the_loss_as_it_was_bit_for_bit():
    weight = EDM().loss_weight(SIGMA)
    expected = weight.reshape(-1, 1, 1, 1) * (D - X0) ** 2
    np.testing.assert_array_equal(cost(Residual(), EDM(), weight, D, X0, SIGMA), expected)


@settings(deadline=None, max_examples=50)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e3))
def test_each_pixel_lies_between_line_and_parabola_and_pulls_less_than_twice_delta(r, delta):
    value, slope = jax.value_and_grad(lambda r: pseudo_huber(r[None], jnp.full(1, delta))[0])(jnp.float32(r))
    assert 0 <= value <= min(r * r, 2 * delta * abs(r)) * (1 + 1e-5) + 1e-30
    assert abs(slope) <= min(2 * delta, 2 * abs(r)) * (1 + 1e-5) + 1e-30


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-2, 1e3), st.sampled_from(["element", "example"]))
def test_the_cost_rises_with_residual_and_delta(delta, form):
    r = jnp.abs(D)
    at = [pseudo_huber(scale * r, jnp.full(B, d), form) for scale, d in ((1, delta), (1.1, delta), (1, 1.1 * delta))]
    assert (at[1] > at[0]).all() and (at[2] >= at[0] * (1 - 1e-6)).all()


def test_a_whole_example_pulls_no_more_than_a_bound():
    """The gradient of an example's mean cost by its residual has a norm below 2 delta / sqrt(pixels)."""
    for scale in (1.0, 1e3):
        pull = jax.grad(lambda r: pseudo_huber(r, jnp.full(B, 0.1), "example").mean(axis=(1, 2, 3)).sum())(scale * D)
        norms = np.sqrt((np.asarray(pull) ** 2).sum(axis=(1, 2, 3)))
        assert (norms <= 2 * 0.1 / np.sqrt(16) * 1.00001).all()
        flat = np.asarray(pull).reshape(B, -1)
        cosine = (flat * np.asarray(D).reshape(B, -1)).sum(1) / np.linalg.norm(flat, axis=1)
        np.testing.assert_allclose(cosine, np.linalg.norm(np.asarray(D).reshape(B, -1), axis=1), rtol=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_quantile_of_a_noise_level_undoes_its_draw(name):
    normal = jnp.linspace(-3, 3, 25)
    process = PROCESSES[name]()
    expected = jax.scipy.special.ndtr(normal)
    np.testing.assert_allclose(process.quantile(process.sigma(normal)), expected, atol=2e-6)


def test_schedules_go_where_they_say():
    process = EDM()
    least, middle, most = process.sigma(jnp.array([-9.0, 0.0, 9.0]))
    sigma = jnp.stack([least, middle, most])
    for kind, expected in {
        "huber": (0.01, 0.01, 0.01),
        "huber_exponential": (1, 0.1, 0.01),
        "huber_reversed": (0.01, 0.1, 1),
        "huber_snr": (1, 0.01 + 0.99 / (1 + float(middle)) ** 2, 0.01),
    }.items():
        np.testing.assert_allclose(deltas(Residual(kind, 0.01), process, sigma), expected, rtol=2e-3, atol=1e-4)
    assert set(RESIDUALS) == {"squared", *SCHEDULES}


def learnt(samples, form, delta=0.02):
    """The constant D [d] of least cost for images `samples` [N,d], by Newton-like reweighting: exact for both forms."""
    D = samples.mean(axis=0)
    for _ in range(300):
        r2 = (samples - D) ** 2
        within = r2.mean(axis=1, keepdims=True) if form == "example" else r2
        pull = 1 / np.sqrt(within + delta**2)
        D = (pull * samples).sum(axis=0) / (pull * np.ones_like(r2)).sum(axis=0)
    gradient = jax.grad(lambda D: pseudo_huber(jnp.asarray(samples) - D, jnp.full(len(samples), delta), form).mean())
    assert np.abs(gradient(jnp.asarray(D))).max() < 1e-4
    return D


def test_the_form_of_whole_examples_learns_the_mean_where_pixels_learn_a_median():
    """Pixels that are 1 in a fifth of the images: their mean .2 is what a denoiser must give, their median is 0."""
    rng = np.random.default_rng(0)
    samples = (rng.random((400, 64)) < 0.2).astype(float)
    mean = samples.mean(axis=0)
    assert np.abs(learnt(samples, "example") - mean).max() < 0.01
    assert learnt(samples, "element").max() < 0.02


@pytest.mark.parametrize("form", ["element", "example"])
def test_images_that_do_not_belong_move_what_is_learnt_less_than_under_squares(form):
    rng = np.random.default_rng(1)
    good, bad = rng.normal(0, 0.1, size=(140, 64)), rng.normal(3, 1, size=(60, 64))
    everything = np.concatenate([good, bad])
    assert everything.mean() > 0.8
    assert np.abs(learnt(everything, form)).mean() < 0.15


K, WORLD = 4, random_mixture(4)
TABLE = make_table(np.asarray(0.6 * np.eye(K) + 0.1), WORLD.prior)


def tdsm_loss(params, residual, own_gradient):
    x0, x_t, sigma, _, y_tilde = noisy_examples(WORLD, np.asarray(TABLE.S), 24, sigmas=(0.3, 1.0))
    slots = mixture.plan("all", y_tilde, TABLE, WORLD.log_h(x_t, sigma))

    def denoise(params, x, s, label):
        return params["gain"][label][:, None] * x + params["bias"][label][:, None]

    still = jax.lax.stop_gradient(params)
    frozen = (lambda *at: denoise(still, *at)) if own_gradient else None
    return score_matching(EDM(), lambda *at: denoise(params, *at), frozen, x0, x_t, sigma, slots, residual=residual)[
        0
    ].mean()


@pytest.mark.parametrize("own_gradient", [True, False])
def test_the_mixture_is_what_the_residual_is_of(own_gradient):
    """Large delta: value and gradient of TDSM as published; small delta: other ones."""
    params = {"gain": jnp.linspace(0.2, 1.0, K + 1), "bias": jnp.linspace(-0.5, 0.5, K + 1)}
    squared, large, small = (
        jax.value_and_grad(tdsm_loss)(params, residual, own_gradient)
        for residual in (Residual(), Residual("huber", 1e5, "example"), Residual("huber_exponential", 0.1))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), large, squared)
    assert small[0] < 0.9 * squared[0] and np.abs(small[1]["bias"]).max() < np.abs(squared[1]["bias"]).max()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hubert",), "did you mean 'huber'"),
        (("huber", 0.1, "exemple"), "did you mean 'example'"),
        (("huber", 0.0), "must be a positive number, got 0.0"),
    ],
)
def test_a_residual_that_is_none_is_refused(arguments, said):
    with pytest.raises(UserError, match=said):
        Residual(*arguments)
