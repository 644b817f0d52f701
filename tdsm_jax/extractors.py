"""Opens the frozen networks that judge images, each by its kind and the path of its weights on this machine.

inception:pt_inception-2015-12-05-6726825d.pth   FID's network, as published by pytorch-fid and torch-fidelity
inception_unchecked:FILE                         another file of its form; results carry this name
clip:FOLDER  siglip:FOLDER  align:FOLDER  dinov2:FOLDER   as transformers' save_pretrained or the hub has them
pixels:32x32x3                                   no network: the pixels of images of that shape
"""

import re

from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluation import features, pretrained
from tdsm_jax.evaluation.features import Extractor
from tdsm_jax.interop.inception_weights import read_inception
from tdsm_jax.training.parallel import DataMesh

KINDS = ("inception", "inception_unchecked", *pretrained.KINDS, "pixels")


def open_extractor(spec: str, mesh: DataMesh) -> Extractor:
    """Returns the extractor that "kind:path" names; an unknown kind, or weights that are missing, damaged or other
    than the kind's, are a `UserError`. Nothing in the files is executed, nothing is downloaded."""
    kind, _, path = spec.partition(":")
    if kind not in KINDS:
        raise UserError(f"there is no feature extractor {kind!r}{did_you_mean(kind, KINDS)}; give KIND:PATH")
    if not path:
        raise UserError(f"feature extractor {kind!r} needs its weights; give {kind}:PATH")
    if kind == "pixels":
        if not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}x[13]", path):
            raise UserError(f"feature extractor {spec!r}: name the images' shape, as in pixels:32x32x3")
        return features.pixel_extractor(tuple(map(int, path.split("x"))), mesh)
    if kind in pretrained.KINDS:
        return pretrained.open_pretrained(kind, path, mesh)
    variables, digest = read_inception(path, checked=kind == "inception")
    return features.inception_extractor(kind, digest, variables, mesh)
