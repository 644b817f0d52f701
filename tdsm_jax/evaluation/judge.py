"""The classifier that judges generated images: its features, its verdicts, and accuracy scores (CAS)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.data.sources import to_float
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.training.classifier import classify
from tdsm_jax.training.state import Params


def look(network: Classifier, params: Params, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predicted classes [N] and features [N,D] of uint8 images [N,H,W,C]."""
    apply = jax.jit(functools.partial(classify, functools.partial(network.apply, params), None))
    logits, features = apply(jnp.asarray(to_float(images)), jnp.zeros(len(images)))
    return np.asarray(logits).argmax(axis=1), np.asarray(features)
