"""The classifiers that judge generated images, and that accuracy scores (CAS) train: features and verdicts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax.data.dataset import to_float
from tdsm_jax.data.stream import Images
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.resnet import ResNet
from tdsm_jax.training.classifier import classify, logits_of
from tdsm_jax.training.parallel import DataMesh, in_batches, per_device, replicate
from tdsm_jax.training.state import Params

BATCH_SIZE = 512  # bounds the memory of a look


def look(network: Classifier, params: Params, images: Images, mesh: DataMesh) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predicted classes [N] and features [N,D] of uint8 images [N,H,W,C], seen by all devices."""

    def see(batch: dict) -> tuple[jax.Array, jax.Array]:
        return classify(functools.partial(network.apply, params), None, batch["x"], jnp.zeros(len(batch["x"])))

    def rows_of(index: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": to_float(images[index])}

    logits, features = in_batches(per_device(see, mesh), rows_of, mesh, len(images), BATCH_SIZE)
    return logits.argmax(axis=1), features


def verdicts(network: ResNet, params: Params, images: np.ndarray, mesh: DataMesh) -> np.ndarray:
    """Returns the predicted classes [N] of uint8 images [N,H,W,C]; looks of one network share what is compiled."""
    params = replicate(params, mesh)

    def see(batch: dict) -> jax.Array:
        return logits_of(network, None, params, batch["x"], batch["sigma"])

    def rows_of(index: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": to_float(images[index]), "sigma": np.zeros(len(index), np.float32)}

    return in_batches(see, rows_of, mesh, len(images), BATCH_SIZE).argmax(axis=1)
