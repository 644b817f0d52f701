"""Classification losses against the official implementations."""

import jax.numpy as jnp
import numpy as np
import pytest

import official
from official import relative_error
from tdsm_jax.labels.losses import forward_corrected, make_loss, volmin
from tdsm_jax.labels.transition import volmin_matrix
from tdsm_jax.labels.weights import make_table

ROBUST = sorted(official.load("robust_losses").keys() - {"logits", "y"})
CORRECTED = [key.removesuffix("_rate") for key in official.load("classifier_losses") if key.endswith("_rate")]


@pytest.mark.parametrize("name", ROBUST)
def test_robust_losses_match_the_official_implementation(name, golden):
    """Batch means, with the published parameters, which are the defaults."""
    arrays = golden("robust_losses")
    losses = make_loss(name.replace("_", "+"))(jnp.asarray(arrays["logits"]), jnp.asarray(arrays["y"]))
    assert losses.shape == arrays["y"].shape
    assert float(losses.mean()) == pytest.approx(float(arrays[name]), rel=1e-5)


@pytest.mark.parametrize("case", CORRECTED)
def test_forward_correction_matches_the_official_implementation(case, golden):
    arrays = golden("classifier_losses")
    logits, y_tilde = jnp.asarray(arrays[f"{case}_logits"], jnp.float32), jnp.asarray(arrays[f"{case}_y_tilde"])
    K = logits.shape[1]
    S = official.transition_of(case, K, float(arrays[f"{case}_rate"]))
    losses = forward_corrected(logits, y_tilde, make_table(S, np.full(K, 1 / K)).log_S)
    assert relative_error(losses, arrays[f"{case}_loss"]) <= 1e-5


def test_volmin_matches_the_official_implementation(golden):
    arrays = {name.removeprefix("volmin_"): values for name, values in golden("classifier_losses").items()}
    T = volmin_matrix(jnp.asarray(arrays["V"], jnp.float32))
    assert relative_error(T, arrays["transition"]) <= 1e-5
    losses = volmin(jnp.asarray(arrays["logits"], jnp.float32), jnp.asarray(arrays["y_tilde"]), jnp.log(T))
    assert relative_error(losses, arrays["loss"]) <= 1e-5
