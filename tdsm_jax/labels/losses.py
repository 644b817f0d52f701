"""Classification losses per example."""

import jax


def forward_corrected(logits: jax.Array, y_tilde: jax.Array, log_S: jax.Array) -> jax.Array:
    """Cross-entropy of the noisy labels under h S (Patrini et al. 2017); with log_S = log I plain cross-entropy.

    Proper: its minimiser is the clean posterior h wherever S is invertible.
    Shapes: logits of h [B,K], y_tilde int [B], log_S [K,K] -> [B].
    """
    return -jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_S.T[y_tilde], axis=1)
