"""The small time-dependent convolutional network that TDSM classifies noisy MNIST digits with."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tdsm_jax.networks.layers import Conv, linear
from tdsm_jax.networks.resnet import add_noise_level, embed_noise


class MnistCNN(nn.Module):
    """Two 5x5 convolutions, each with ReLU, halving by the maximum and the noise level added; parameters float32.

    `__call__` returns (logits [B,num_classes], features [B,H*W*C/16]), both float32. The features are all pixels of
    the second stage, so the parameters fit one image size.
    """

    num_classes: int
    channels: tuple[int, ...] = (16, 32)
    embedding_channels: int = 128
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,  # [B,H,W,C]
        c_noise: jax.Array,  # [B]
        dropout_keys: jax.Array | None = None,  # part of the classifiers' interface; nothing is dropped here
        train: bool = False,  # likewise
    ) -> tuple[jax.Array, jax.Array]:
        embedding = embed_noise(c_noise, self.embedding_channels, self.dtype)
        for stage, width in enumerate(self.channels, start=1):
            x = Conv(width, size=5, init_kind="torch", dtype=self.dtype, name=f"conv{stage}")(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
            x = add_noise_level(x, embedding, f"dense_{stage}")
        features = x.reshape(x.shape[0], -1).astype(jnp.float32)
        logits = linear(self.num_classes, jnp.float32, "linear", "torch", fan_in=features.shape[-1])(features)
        return logits, features
