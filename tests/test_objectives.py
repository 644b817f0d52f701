"""Objectives by draws: right in expectation, and right where the label noise depends on the image."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from gaussian import noisy_examples, random_mixture
from tdsm_jax.diffusion import mixture
from tdsm_jax.diffusion.mixture import Plan
from tdsm_jax.diffusion.objectives import draw_labels, sampled_score_matching, score_matching
from tdsm_jax.diffusion.process import EDM, per_example
from tdsm_jax.labels.weights import make_table

K, B = 4, 24
WORLD = random_mixture(K)
TABLE = make_table(np.asarray(0.6 * np.eye(K) + 0.1), WORLD.prior)


def linear_denoiser(params, x, sigma, label):
    """A learnable denoiser with a gain and a bias of every class and of the null label."""
    return params["gain"][label][:, None] * x + params["bias"][label][:, None]


def batch():
    x0, x_t, sigma, _, y_tilde = noisy_examples(WORLD, np.asarray(TABLE.S), B, sigmas=(0.3, 1.0))
    w = mixture.plan("all", y_tilde, TABLE, WORLD.log_h(x_t, sigma))
    params = {"gain": jnp.linspace(0.2, 1.0, K + 1), "bias": jnp.linspace(-0.5, 0.5, K + 1)}
    return x0, x_t, sigma, w, params


def sampled_loss(params, x0, x_t, sigma, slots):
    def denoise(x, s, label):
        return linear_denoiser(params, x, s, label)

    return sampled_score_matching(EDM(), denoise, denoise, x0, x_t, sigma, slots)


def test_value_and_gradient_of_the_sampled_objective_have_the_full_ones_as_their_mean():
    """Every pair of classes in turn, weighted by its probability: no draw, no tolerance for chance."""
    x0, x_t, sigma, w, params = batch()

    def mean_over_pairs(params):
        total = 0.0
        for a, b in itertools.product(range(K), range(K)):
            pair = Plan(w.classes[:, jnp.array([a, b])], jnp.full((B, 2), 0.5))
            probability = w.weights[:, a] * w.weights[:, b]
            total += (per_example(probability, x0) * sampled_loss(params, x0, x_t, sigma, pair)).sum()
        return total

    def full(params):
        def denoise(x, s, label):
            return linear_denoiser(params, x, s, label)

        return score_matching(EDM(), denoise, None, x0, x_t, sigma, w)[0].sum()

    sampled, exact = (jax.jit(jax.value_and_grad(f))(params) for f in (mean_over_pairs, full))
    np.testing.assert_allclose(sampled[0], exact[0], rtol=1e-5)
    for name in params:
        np.testing.assert_allclose(
            sampled[1][name], exact[1][name], rtol=1e-4, atol=1e-4 * np.abs(exact[1][name]).max()
        )


def test_an_example_without_label_trains_the_null_label_in_both_factors():
    x0, x_t, sigma, _, params = batch()
    pairs = Plan(jnp.tile(jnp.array([[0, 1]]), (B, 1)), jnp.full((B, 2), 0.5))
    dropped = mixture.drop_labels(pairs, jnp.ones(B, bool), null=K)

    def plain(params):
        null = linear_denoiser(params, x_t, sigma, jnp.full(B, K))
        return per_example(EDM().loss_weight(sigma), x0) * (null - x0) ** 2

    def total(f):
        return jax.value_and_grad(lambda p: f(p).sum())(params)

    sampled, expected = total(lambda p: sampled_loss(p, x0, x_t, sigma, dropped)), total(plain)
    np.testing.assert_allclose(sampled[0], expected[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), sampled[1], expected[1])


def test_pairs_are_drawn_from_the_weights_independently():
    w = jnp.tile(jnp.array([[0.5, 0.3, 0.2, 0.0]]), (20_000, 1))
    slots = mixture.sampled_plan(jax.random.split(jax.random.key(0), len(w)), w)
    joint = np.zeros((K, K))
    np.add.at(joint, (slots.classes[:, 0], slots.classes[:, 1]), 1 / len(w))
    np.testing.assert_allclose(joint, np.outer(w[0], w[0]), atol=0.012)


def test_labels_are_drawn_from_the_posterior_of_the_image():
    posterior = jnp.tile(jnp.array([[0.1, 0.0, 0.6, 0.3], [0.0, 1.0, 0.0, 0.0]]), (10_000, 1))
    y_hat = np.asarray(draw_labels(jax.random.split(jax.random.key(0), len(posterior)), posterior))
    assert (y_hat[1::2] == 1).all()
    np.testing.assert_allclose(np.bincount(y_hat[::2], minlength=K) / 10_000, posterior[0], atol=0.015)


class InstanceNoise:
    """A world of 400 images on a line, two classes, labels that are wrong where the classes meet.

    Everything is a finite sum: p(x0), p(y | x0) and p(y_tilde | y, x0) are given, the denoisers follow.
    """

    x0 = np.linspace(-2, 2, 400)
    p_x0 = np.exp(-((x0 - 0.9) ** 2) / 0.32) + np.exp(-((x0 + 0.7) ** 2) / 0.5)
    p_x0 = p_x0 / p_x0.sum()
    p_y = 1 / (1 + np.exp(-4 * x0))
    p_y = np.stack([1 - p_y, p_y])  # [2,N]
    wrong = 0.05 + 0.4 * np.exp(-(x0**2) / 0.1)  # p(y_tilde != y | x0): the hard images are labelled worst
    sigma = 0.5

    @classmethod
    def denoiser(cls, p_label):
        """Returns E[x0 | x_t, label] on a grid of x_t, for p(label | x0) [L,N]: [L,T]."""
        x_t = np.linspace(-1.5, 1.5, 61)
        likelihood = np.exp(-((x_t[:, None] - cls.x0) ** 2) / (2 * cls.sigma**2))  # [T,N]
        joint = p_label[:, None] * (cls.p_x0 * likelihood)  # [L,T,N]
        return (joint * cls.x0).sum(-1) / joint.sum(-1), joint.sum(-1)


def test_under_instance_dependent_noise_drawn_labels_recover_the_clean_denoisers_and_tdsm_does_not():
    world = InstanceNoise
    clean, p_y_given_x_t = world.denoiser(world.p_y)
    right, wrong = world.p_y * (1 - world.wrong), world.p_y * world.wrong
    joint = np.stack(
        [np.stack([right[0], wrong[0]]), np.stack([wrong[1], right[1]])]
    )  # p(y, y_tilde | x0) [y,y_tilde,N]

    # Posterior-sampled DSM trains y_hat with probability sum_y_tilde p(y_tilde | x0) p(y_hat | x0, y_tilde).
    p_y_tilde = joint.sum(0)
    p_y_hat = (p_y_tilde * (joint / p_y_tilde)).sum(1)
    np.testing.assert_allclose(world.denoiser(p_y_hat)[0], clean, atol=1e-12)

    # TDSM solves M_j = sum_y p(y | x_t, y_tilde=j) D_y: even with the exact weights, D is not the clean denoiser,
    # because x0 depends on y_tilde beyond y.
    M, p_j = world.denoiser(p_y_tilde)
    w = np.stack([world.denoiser(joint[:, j])[1] for j in range(2)]) / p_j[:, None]  # [j,y,T]
    D = np.linalg.solve(w.transpose(2, 0, 1), M.T[:, :, None])[..., 0].T
    likely = p_y_given_x_t / p_y_given_x_t.sum(0) > 0.05
    assert np.abs(D - clean)[likely].max() > 0.1


def test_with_class_conditional_noise_both_recover_the_clean_denoisers():
    world = InstanceNoise
    clean, _ = world.denoiser(world.p_y)
    S = np.array([[0.7, 0.3], [0.2, 0.8]])
    joint = world.p_y[:, None] * S[:, :, None]
    M, p_j = world.denoiser(joint.sum(0))
    w = np.stack([world.denoiser(joint[:, j])[1] for j in range(2)]) / p_j[:, None]
    D = np.linalg.solve(w.transpose(2, 0, 1), M.T[:, :, None])[..., 0].T
    np.testing.assert_allclose(D, clean, atol=1e-9)
