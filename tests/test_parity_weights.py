"""The weights before the cut, in both forms, against the official implementation."""

import jax.numpy as jnp
import numpy as np
import pytest

import official
from official import relative_error
from tdsm_jax.labels.weights import WEIGHTS, make_table

# Through the inverse both sides lose digits to the condition of S; Bayes' rule loses none of its own.
TOLERANCE = {"bayes": 1e-5, "inverse": 5e-5}


@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize("case", official.TDSM_CASES)
def test_weights_match_the_official_implementation(case, form):
    S, arrays = official.tdsm(case)
    table = make_table(S, np.full(len(S), 1 / len(S)))
    logits, y_tilde = jnp.asarray(arrays["logits"], jnp.float32), jnp.asarray(arrays["y_tilde"])
    w = WEIGHTS[form](table, logits, y_tilde, temperature=float(arrays["temperature"]))
    assert relative_error(w, arrays["weights"]) <= TOLERANCE[form]
