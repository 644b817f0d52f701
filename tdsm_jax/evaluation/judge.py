"""The classifier that judges generated images: its features, its verdicts, and accuracy scores (CAS)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.data.batches import in_batches
from tdsm_jax.data.sources import to_float
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.training.classifier import classify
from tdsm_jax.training.state import Params

BATCH_SIZE = 512  # bounds the memory of a look


def look(network: Classifier, params: Params, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predicted classes [N] and features [N,D] of uint8 images [N,H,W,C]."""
    apply = jax.jit(functools.partial(classify, functools.partial(network.apply, params), None))
    logits, features = in_batches(
        lambda index: apply(to_float(images[index]), jnp.zeros(len(index))), len(images), BATCH_SIZE
    )
    return logits.argmax(axis=1), features
