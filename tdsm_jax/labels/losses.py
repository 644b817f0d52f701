"""Classification losses per example."""

import jax
import jax.numpy as jnp

from tdsm_jax.labels.weights import log_noisy_posterior


def forward_corrected(logits: jax.Array, y_tilde: jax.Array, log_S: jax.Array) -> jax.Array:
    """Cross-entropy of the noisy labels under h S (Patrini et al. 2017); with log_S = log I plain cross-entropy.

    Proper: its minimiser is the clean posterior h wherever S is invertible.
    Shapes: logits of h [B,K], y_tilde int [B], log_S [K,K] -> [B].
    """
    log_noisy = log_noisy_posterior(jax.nn.log_softmax(logits), log_S)
    return -jnp.take_along_axis(log_noisy, y_tilde[:, None], axis=1)[:, 0]
