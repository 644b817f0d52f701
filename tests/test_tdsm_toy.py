"""Training end to end on a world that is known: two dimensions, three classes, two labels in five wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gaussian import GaussianMixture
from tdsm_jax.diffusion import mixture
from tdsm_jax.diffusion.objectives import add_noise, sampled_score_matching, score_matching
from tdsm_jax.diffusion.process import EDM, make_denoiser
from tdsm_jax.labels.corruption import transition_matrix
from tdsm_jax.labels.weights import make_table

WORLD = GaussianMixture(
    np.array([0.4, 0.35, 0.25]), np.array([[0.8, 0.0], [-0.5, 0.6], [-0.3, -0.8]]), np.array([0.3, 0.2, 0.25])
)
S = transition_matrix("sym", 3, 0.4)
TABLE = make_table(S, WORLD.prior)
PROCESS = EDM(P_mean=-0.7, P_std=0.8)
STEPS, BATCH, HIDDEN = 1500, 256, 32
OPTIMISER = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))


def initial_params(key):
    sizes = [(6, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2)]
    return [
        (jax.random.normal(jax.random.fold_in(key, layer), size) / np.sqrt(size[0]), jnp.zeros(size[1]))
        for layer, size in enumerate(sizes)
    ]


def perceptron(params, x_in, c_noise, label):
    hidden = jnp.concatenate([x_in, c_noise[:, None], jax.nn.one_hot(label, 3)], axis=1)  # null: the zero row
    for weight, bias in params[:-1]:
        hidden = jax.nn.silu(hidden @ weight + bias)
    weight, bias = params[-1]
    return hidden @ weight + bias


def draw(key):
    """Returns x0, x_t, sigma, y and y_tilde of one batch."""
    y_key, x_key, n_key, sigma_key, noisy_key = jax.random.split(key, 5)
    y = jax.random.categorical(y_key, jnp.log(WORLD.prior), shape=(BATCH,))
    x0 = jnp.asarray(WORLD.mean)[y] + jnp.asarray(WORLD.sd)[y, None] * jax.random.normal(x_key, (BATCH, 2))
    sigma = PROCESS.sigma(jax.random.normal(sigma_key, (BATCH,)))
    y_tilde = jax.random.categorical(noisy_key, jnp.log(S)[y])
    return x0, add_noise(x0, sigma, jax.random.normal(n_key, (BATCH, 2))), sigma, y, y_tilde


@functools.partial(jax.jit, static_argnames=("rule", "label_dropout", "capacity", "own_gradient"))
def train(key, rule, label_dropout=0.0, capacity=None, own_gradient=True):
    """Trains a perceptron by the exact clean posterior h; returns its parameters."""

    def step(carry, key):
        params, opt_state = carry
        draw_key, drop_key = jax.random.split(key)
        x0, x_t, sigma, _, y_tilde = draw(draw_key)
        residual_slots = mixture.floor_slots(S, most=2)
        keys = jax.random.split(jax.random.fold_in(key, 2), BATCH)
        log_h = WORLD.log_h(x_t, sigma)
        slots = mixture.plan(rule, y_tilde, TABLE, log_h, tau=0.01, residual_slots=residual_slots, keys=keys)
        slots = mixture.drop_labels(slots, jax.random.bernoulli(drop_key, label_dropout, (BATCH,)), null=3)

        def loss_fn(params):
            still = jax.lax.stop_gradient(params)
            denoise, frozen = (make_denoiser(PROCESS, functools.partial(perceptron, p)) for p in (params, still))
            if rule == "sampled":
                return sampled_score_matching(PROCESS, denoise, frozen, x0, x_t, sigma, slots).mean()
            others = frozen if own_gradient else None
            return score_matching(PROCESS, denoise, others, x0, x_t, sigma, slots, capacity)[0].mean()

        change, opt_state = OPTIMISER.update(jax.grad(loss_fn)(params), opt_state)
        return (optax.apply_updates(params, change), opt_state), None

    params = initial_params(key)
    return jax.lax.scan(step, (params, OPTIMISER.init(params)), jax.random.split(key, STEPS))[0][0]


def error(params, null=False):
    """Returns the weighted squared error of the clean (or null) denoiser, over that of the noisy labels' exact one.

    0 is the clean-label model, 1 the best that plain score matching on noisy labels can do.
    """
    _, x_t, sigma, y, _ = draw(jax.random.key(99))
    label = jnp.full_like(y, 3) if null else y
    learnt = make_denoiser(PROCESS, functools.partial(perceptron, params))(x_t, sigma, label)
    weight = PROCESS.loss_weight(sigma)[:, None]
    cost = weight * (WORLD.denoise_noisy(x_t, sigma, y, S) - WORLD.denoise(x_t, sigma, y)) ** 2
    return float((weight * (learnt - WORLD.denoise(x_t, sigma, label)) ** 2).sum() / cost.sum())


def test_plain_score_matching_learns_the_noisy_label():
    assert error(train(jax.random.key(0), "own")) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "all"},
        {"rule": "all", "own_gradient": False},
        {"rule": "threshold", "capacity": 1.0},
        {"rule": "sampled"},
    ],
    ids=["all", "all-full-gradient", "threshold-packed", "sampled"],
)
def test_tdsm_learns_the_clean_label(options):
    assert error(train(jax.random.key(0), **options)) < 0.1


def test_tdsm_through_the_null_label_learns_the_clean_and_the_null_label():
    params = train(jax.random.key(0), "floor", label_dropout=0.2)
    assert error(params) < 0.1
    assert error(params, null=True) < 0.1
