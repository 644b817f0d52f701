"""The time-dependent classifier h(x_t, sigma): a small convolutional network with the noise level in every stage."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tdsm_jax.networks.layers import Conv, downsample, dropout, group_norm, linear, positional_embedding

NORM_EPS = 1e-6


class Classifier(nn.Module):
    """Two convolutions and a halving per stage, then one hidden layer; parameters float32.

    `__call__` returns (logits [B,num_classes], features [B,hidden]), both float32.
    """

    num_classes: int
    widths: tuple[int, ...]
    hidden: int
    dropout_rate: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,  # [B,H,W,C]
        c_noise: jax.Array,  # [B]
        dropout_keys: jax.Array | None = None,  # [B], None in evaluation
        train: bool = False,  # part of the classifiers' interface; no layer here behaves differently
    ) -> tuple[jax.Array, jax.Array]:
        embedding = positional_embedding(c_noise, self.widths[0])
        embedding = nn.silu(linear(2 * self.widths[0], self.dtype, "map_layer")(embedding))
        for stage, width in enumerate(self.widths):
            x = Conv(width, dtype=self.dtype, name=f"stage{stage}_conv0")(x)
            x = group_norm(width, NORM_EPS, self.dtype, f"stage{stage}_norm0")(x)
            x = x + linear(width, self.dtype, f"stage{stage}_affine")(embedding)[:, None, None, :]
            x = Conv(width, dtype=self.dtype, name=f"stage{stage}_conv1")(nn.silu(x))
            x = nn.silu(group_norm(width, NORM_EPS, self.dtype, f"stage{stage}_norm1")(x))
            x = downsample(x)
        x = dropout(x.reshape(x.shape[0], -1), self.dropout_rate, dropout_keys, layer=0)
        features = nn.silu(linear(self.hidden, self.dtype, "hidden")(x))
        features = features.astype(jnp.float32)
        dropped = dropout(features, self.dropout_rate, dropout_keys, layer=1)
        return linear(self.num_classes, jnp.float32, "logits")(dropped), features
