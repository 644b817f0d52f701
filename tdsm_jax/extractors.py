"""The feature extractors that images are compared by, each opened by a word: what KIND:DETAILS stands for."""

import hashlib
import math
import re
from typing import NamedTuple

import numpy as np

from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.training.parallel import DataMesh


class Pixels(NamedTuple):
    """Pixels scaled to [0, 1] as features: no weights, and no notion of what an image shows."""

    shape: tuple[int, int, int]

    @property
    def name(self) -> str:
        return "pixels:" + "x".join(map(str, self.shape))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def width(self) -> int:
        return math.prod(self.shape)

    def see(self, images: np.ndarray) -> tuple[np.ndarray, None]:
        """Returns features float32 [B,D] of images uint8 [B,H,W,C]."""
        if images.shape[1:] != self.shape:
            raise UserError(f"images {images.shape[1:]} for the extractor {self.name}; name the shape that they have")
        return images.reshape(len(images), -1).astype(np.float32) / np.float32(255), None


def open_extractor(spec: str, mesh: DataMesh) -> Pixels:
    """Returns the extractor that `spec` names, such as pixels:32x32x3."""
    kind, _, details = spec.partition(":")
    if kind != "pixels":
        raise UserError(f"unknown feature extractor {kind!r}{did_you_mean(kind, ['pixels'])}")
    if not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}x[13]", details):
        raise UserError(f"--features={spec}: name the images' shape, as in pixels:32x32x3")
    return Pixels(tuple(map(int, details.split("x"))))
