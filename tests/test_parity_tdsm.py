"""TDSM as published, loss and gradient, against the official implementation under each diffusion process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import official
from official import relative_error
from tdsm_jax.diffusion import mixture
from tdsm_jax.diffusion.objectives import score_matching
from tdsm_jax.diffusion.process import PROCESSES, per_example
from tdsm_jax.labels.weights import WEIGHTS, make_table

RUNS = [(case, name) for case in official.TDSM_CASES for name in PROCESSES if f"{name}_loss" in official.tdsm(case)[1]]


def linear(parameters, x, sigma, label):
    """The denoiser of the arrays: a gain and a bias for each class, images in NCHW."""
    gain, bias = parameters
    return per_example(gain[label], x) * x + per_example(bias[label], x)


@functools.partial(jax.jit, static_argnames=("name", "form", "capacity"))
def gradient_and_loss(parameters, x0, x_t, sigma, table, logits, y_tilde, temperature, name, form, capacity):
    """Returns the gradient of the loss summed over pixels and averaged over examples, and the loss of each pixel."""
    weigh = functools.partial(WEIGHTS[form], temperature=temperature)
    slots = mixture.plan("threshold", y_tilde, table, logits, tau=0.01, weigh=weigh)

    def loss(parameters):
        own = functools.partial(linear, parameters)
        frozen = functools.partial(linear, jax.lax.stop_gradient(parameters))
        losses, _ = score_matching(PROCESSES[name](), own, frozen, x0, x_t, sigma, slots, capacity)
        return losses.sum() / len(losses), losses

    return jax.grad(loss, has_aux=True)(parameters)


@pytest.mark.parametrize(
    ("form", "capacity", "slack"),
    # Through the inverse both sides lose digits to the condition of S, see the parity of the weights.
    [("bayes", None, 1), ("bayes", 0.5, 1), ("inverse", None, 5)],
)
@pytest.mark.parametrize(("case", "name"), RUNS)
def test_loss_and_gradient_match_the_official_implementation(case, name, form, capacity, slack):
    """tau = 0.01 without renormalisation, the gradient through the own label only, packed and not."""
    S, arrays = official.tdsm(case)
    table = make_table(S, np.full(len(S), 1 / len(S)))
    parameters = jnp.asarray(arrays[f"{name}_gain"]), jnp.asarray(arrays[f"{name}_bias"])
    images = (jnp.asarray(arrays[key]) for key in ("x0", f"{name}_x_t", f"{name}_sigma"))
    labels = jnp.asarray(arrays["logits"], jnp.float32), jnp.asarray(arrays["y_tilde"]), float(arrays["temperature"])
    gradient, losses = gradient_and_loss(parameters, *images, table, *labels, name=name, form=form, capacity=capacity)
    want = arrays[f"{name}_loss"]
    assert relative_error(losses, want) <= slack * 1e-5
    # lambda differs by orders of magnitude: no example may hide behind another's.
    for got_example, want_example in zip(losses, want, strict=True):
        assert relative_error(got_example, want_example) <= slack * 1e-4
    for got, parameter in zip(gradient, ("gain", "bias"), strict=True):
        assert relative_error(got, arrays[f"{name}_grad_{parameter}"]) <= slack * 1e-4
