"""CLIP, SigLIP, ALIGN and DINOv2 as extractors: PyTorch models of transformers, from a folder on this machine.

The embeddings are those that CMMD compares (Jayasumana et al. 2024, whose statistic is `statistics.cmmd`): CLIP's
projected ones; of SigLIP and ALIGN the pooled ones, which they compare with text as they are; of DINOv2 the normalised
class token. None is divided by its length here.

Preprocessing is that of CMMD's published code for every model: the middle square of the image, resized at once to
the model's side by Pillow's bicubic filter in uint8, then the model's own mean and deviation. Hub processors of ALIGN
and DINOv2 would resize to a larger side first and cut off the margin.
"""

import os
import pathlib
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from tdsm_jax import files, paths
from tdsm_jax.errors import UserError, printable
from tdsm_jax.evaluation.features import Extractor
from tdsm_jax.training.parallel import DataMesh

BATCH_SIZE = 32
LARGEST_SIDE = 4096  # pixels; far beyond what such models take
# What the weights may be called, in the order of preference: in shards, the index lists them.
_WEIGHTS = (("model", ".safetensors"), ("pytorch_model", ".bin"))


class Kind(NamedTuple):
    """The model types that a folder's config.json may name, the class that reads them, and where its embeddings are."""

    model_types: tuple[str, ...]
    reader: str
    embed: Callable[[Any, Any], Any]


KINDS = {
    # The whole model: the vision part alone takes the width of its projection from elsewhere in the config.
    "clip": Kind(
        ("clip",), "CLIPModel", lambda model, x: model.visual_projection(model.vision_model(x).pooler_output)
    ),
    "siglip": Kind(
        ("siglip", "siglip_vision_model"), "SiglipVisionModel", lambda model, x: model(x).pooler_output
    ),
    "align": Kind(("align",), "AlignModel", lambda model, x: model.vision_model(x).pooler_output),
    "dinov2": Kind(("dinov2",), "Dinov2Model", lambda model, x: model(x).pooler_output),
}  # fmt: skip


class Preprocessing(NamedTuple):
    """From uint8 pixels to a model's: resized to `side`, times `factor`, less `mean`, over `std` (both [3])."""

    side: int
    factor: float
    mean: np.ndarray
    std: np.ndarray


def open_pretrained(kind: str, folder: str | os.PathLike, mesh: DataMesh) -> Extractor:
    """Returns the extractor of a folder with config.json, preprocessor_config.json and weights.

    `kind` is one of `KINDS`. PyTorch works on the first GPU that it finds, else on the host's CPU; `mesh` only says
    which rows are this process's. A folder that lacks something or holds another model is a `UserError`.
    """
    if paths.is_remote(folder):
        raise UserError(f"{folder}: weights are read from this machine; copy the folder here first")
    folder = pathlib.Path(folder).absolute()  # transformers takes a name without a folder for one of the hub
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a copy of the model's files from the Hugging Face hub")
    _check_type(kind, folder)
    preprocessing = read_preprocessing(folder / "preprocessor_config.json")
    weights = weight_files(folder)
    settings = [folder / "config.json", folder / "preprocessor_config.json"]  # without which weights say nothing
    digest = files.digest([files.file_digest(path) for path in (*settings, *weights)])
    torch, transformers = _torch(kind)
    model = _load(torch, transformers, kind, folder, weights[0].suffix == ".safetensors")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()

    def embed(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return KINDS[kind].embed(model, torch.from_numpy(x).to(device)).flatten(1).float().cpu().numpy()

    def see(batch: dict[str, jax.Array]) -> tuple[np.ndarray]:
        return (embed(preprocess(own_rows(batch["x"]), preprocessing)),)

    side = preprocessing.side
    try:
        width = embed(np.zeros((1, 3, side, side), np.float32)).shape[1]
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{folder}: takes no images of {side} pixels ({_line(error)}); check its config files"
        ) from None
    return Extractor(kind, digest, width, BATCH_SIZE, mesh, see)


def own_rows(array: jax.Array) -> np.ndarray:
    """Returns the rows of a batch over all devices that lie on this process's, in their order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def read_preprocessing(path: pathlib.Path) -> Preprocessing:
    """Reads a model's preprocessor_config.json; what is missing or makes no sense there is a `UserError`."""
    settings = files.read_json(path)
    try:
        cropped = settings.get("do_center_crop") and "crop_size" in settings
        size = settings["crop_size" if cropped else "size"]
        (side,) = set(size.values()) if isinstance(size, dict) else {size}
        normal = settings.get("do_normalize", True)
        mean, std = (
            np.asarray(settings[name] if normal else [default] * 3, np.float32)
            for name, default in (("image_mean", 0), ("image_std", 1))
        )
        factor = float(settings.get("rescale_factor", 1 / 255))
        if settings.get("rescale_offset"):  # ALIGN's may be from -1 to 1 before they are normalised
            mean = mean + np.float32(1)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        reason = printable(f"{type(error).__name__}: {error}")
        raise UserError(f"{path}: does not say size, image_mean and image_std ({reason}); copy it again") from None
    sensible = mean.shape == std.shape == (3,) and (std > 0).all() and np.isfinite(mean).all() and factor > 0
    if not (sensible and type(side) is int and 0 < side <= LARGEST_SIDE):
        raise UserError(
            f"{path}: its side {printable(repr(side))}, image_mean or image_std make no sense; copy it again"
        )
    return Preprocessing(side, factor, mean, std)


def preprocess(images: np.ndarray, to: Preprocessing) -> np.ndarray:
    """Returns images as a model sees them. Shapes: uint8 [B,H,W,3 or 1] -> float32 [B,3,side,side]."""
    height, width = images.shape[1:3]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    squares = images[:, top : top + edge, left : left + edge]
    if squares.shape[-1] == 1:
        squares = squares.repeat(3, axis=-1)
    resized: np.ndarray = np.stack(
        [Image.fromarray(square).resize((to.side, to.side), Image.Resampling.BICUBIC) for square in squares]
    )
    return ((resized * np.float32(to.factor) - to.mean) / to.std).transpose(0, 3, 1, 2).astype(np.float32, order="C")


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a model's weights: safetensors where there are any, else PyTorch's."""
    for stem, suffix in _WEIGHTS:
        if (whole := folder / f"{stem}{suffix}").is_file():
            return [whole]
        if shards := sorted(folder.glob(f"{stem}-*-of-*{suffix}")):
            return shards
    names = " or ".join(f"{stem}{suffix}" for stem, suffix in _WEIGHTS)
    raise UserError(f"{folder}: holds no weights; copy {names} there too")


def _check_type(kind: str, folder: pathlib.Path) -> None:
    config = files.read_json(folder / "config.json")
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in KINDS[kind].model_types:
        holds = next((other for other, one in KINDS.items() if found in one.model_types), None)
        hint = f"; give {holds}:{folder}" if holds else "; check the path"
        raise UserError(f"{folder}: its config.json is of a model of type {printable(str(found))}, not of {kind}{hint}")


def _torch(kind: str) -> tuple[types.ModuleType, types.ModuleType]:
    """Returns torch and transformers, which only these extractors need."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is asked for, whatever a folder lacks
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"feature extractor {kind!r} needs PyTorch and transformers ({_line(error)}); pip install 'tdsm_jax[clip]'"
        ) from None
    torch.backends.cudnn.allow_tf32 = False  # convolutions of fewer digits than those of a CPU
    transformers.logging.set_verbosity_error()  # what is wrong ends in an error here
    transformers.logging.disable_progress_bar()
    return torch, transformers


def _load(torch: Any, transformers: Any, kind: str, folder: pathlib.Path, safetensors: bool) -> Any:
    """Returns the model in float32, all of its weights from the folder."""
    try:
        model, found = getattr(transformers, KINDS[kind].reader).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=safetensors,
            weights_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # of transformers, torch, safetensors: what they raise for a damaged file is their own
        raise UserError(f"{folder}: cannot be read as {kind} ({_line(error)}); copy it again") from None
    # Such weights would be random numbers.
    if lacking := sorted([*found["missing_keys"], *map(str, found.get("mismatched_keys", ()))]):
        shown = ", ".join(printable(name) for name in lacking[:3])
        raise UserError(
            f"{folder}: its weights lack {shown} ({len(lacking)} in all), or in another shape; copy it again"
        )
    return model


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
