"""What frozen networks see in images: features for distances between sets, probabilities for the inception score."""

import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax import files, hosts, paths
from tdsm_jax.errors import UserError
from tdsm_jax.networks.inception import WIDTH, InceptionV3
from tdsm_jax.training.logs import Progress
from tdsm_jax.training.parallel import DataMesh, in_batches, per_device, round_up
from tdsm_jax.training.state import Params

BLOCK = 1024  # images between two writes: what an interruption can cost, some minutes on a CPU
INCEPTION_BATCH = 32  # images a device: some 0.3 GiB; larger batches are no faster on CPU
PIXEL_BATCH = 512  # images a device
_HASHED = 64  # images that are hashed at a time


class Extractor(NamedTuple):
    """A frozen network: its kind, the SHA-256 of its weights, and how it sees a batch over the devices of a mesh.

    `see` maps {"x": uint8 [B,H,W,3 or 1]}, as `parallel.split` returns it, to (features [B,width],) or to (features,
    probabilities [B,L]), float32: as arrays over the devices, or as numpy of the rows that this process brings. With
    probabilities it `classifies`.
    """

    name: str
    digest: str
    width: int
    batch_size: int  # over all devices; bounds the memory
    mesh: DataMesh
    see: Callable[[dict[str, jax.Array]], tuple[Any, ...]]
    classifies: bool = False


class Seen(NamedTuple):
    """Features [N,D] and probabilities [N,L] of images in their order, float32; None where a network has no classes."""

    features: np.ndarray
    probabilities: np.ndarray | None


def inception_extractor(name: str, digest: str, variables: Params, mesh: DataMesh) -> Extractor:
    """Returns the extractor of FID's features, with the probabilities of its 1008 classes by the logits without bias.

    `variables` are `InceptionV3`'s. Images of any size, grayscale ones counting for all three colours.
    """

    def see(batch: dict[str, jax.Array], variables: Params) -> tuple[jax.Array, jax.Array]:
        seen = InceptionV3().apply(variables, batch["x"])
        return seen.features, jax.nn.softmax(seen.logits)

    return Extractor(name, digest, WIDTH, INCEPTION_BATCH * mesh.size, mesh, per_device(see, mesh, variables), True)


def pixel_extractor(shape: tuple[int, int, int], mesh: DataMesh) -> Extractor:
    """Returns the extractor that takes pixels themselves for features, in [0, 1]: it needs no weights.

    `shape` (H, W, C) is that of every image; another one is a `UserError`.
    """
    name = f"pixels:{'x'.join(map(str, shape))}"

    def see(batch: dict[str, jax.Array]) -> tuple[jax.Array]:
        x = batch["x"]
        if x.shape[1:] != shape:
            raise UserError(f"images are {x.shape[1:]}, not what the extractor {name} names")
        return (x.reshape(len(x), -1).astype(jnp.float32) * jnp.float32(1 / 255),)

    digest = hashlib.sha256(name.encode()).hexdigest()
    return Extractor(name, digest, math.prod(shape), PIXEL_BATCH * mesh.size, mesh, per_device(see, mesh))


def extract(extractor: Extractor, images: Any, *, label: str, parts: paths.Path | None = None) -> Seen:
    """Returns what an extractor sees in images, each once, however they are split into batches and over devices.

    `images` is uint8 [N,H,W,C], or anything with its `shape`, its length and its indexing by an array of places;
    what one batch needs is read at a time. `label` names the work beside its progress. With `parts`, a folder, every
    block of images is kept there when it is done: the same call goes on after them. Whoever uses the result removes
    the folder. Images of another form, or parts made of other images, are a `UserError`.
    """
    count = len(images)
    _check_form(images)
    size = round_up(min(extractor.batch_size, count, BLOCK))
    seen = _Collected(count)
    while parts is not None and paths.exists(path := _part(parts, seen.done)):
        seen.add(_read_part(path, extractor, images, seen.done))
    hosts.check_equal(str(seen.done), f"number of images seen by {extractor.name} in {parts}")
    with Progress(label, _batches(count, size), size, _batches(seen.done, size)) as progress:

        def see(batch: dict[str, jax.Array]) -> tuple[Any, ...]:
            outputs = jax.block_until_ready(extractor.see(batch))
            progress.update()
            return outputs

        for start in range(seen.done, count, BLOCK):

            def rows_of(index: np.ndarray, start: int = start) -> dict[str, np.ndarray]:
                return {"x": _rows(images, (start + index) % count)}

            wanted = min(BLOCK, count - start)
            # All batches are full, also those of a short last block: one program is compiled.
            outputs = in_batches(see, rows_of, extractor.mesh, -(-wanted // size) * size, size)
            block = dict(zip(("features", "probabilities"), (rows[:wanted] for rows in outputs), strict=False))
            if parts is not None:
                files.write_arrays(_part(parts, start), block | {"of": np.array(_origin(extractor, images, start))})
            seen.add(block)
    return Seen(seen.arrays["features"], seen.arrays.get("probabilities"))


class _Collected:
    """Arrays of a known number of rows, filled block by block."""

    def __init__(self, count: int):
        self._count, self.done = count, 0
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, block: dict[str, np.ndarray]) -> None:
        end = self.done + len(block["features"])
        for name, rows in block.items():
            if name not in self.arrays:
                self.arrays[name] = np.empty((self._count, rows.shape[1]), np.float32)
            self.arrays[name][self.done : end] = rows
        self.done = end


def _batches(count: int, size: int) -> int:
    """How many batches the first `count` images take: each block is split by itself."""
    whole, rest = divmod(count, BLOCK)
    return whole * -(-BLOCK // size) + -(-rest // size)


def _check_form(images: Any) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[3] not in (1, 3) or not all(shape):
        raise UserError(f"images have shape {shape}; give [N,H,W,3] or, for grayscale, [N,H,W,1], with N at least 1")


def _rows(images: Any, index: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(images[index])
    if rows.dtype != np.uint8:
        raise UserError(f"images have dtype {rows.dtype}; features are defined for uint8, values 0 to 255")
    return rows


def _part(parts: paths.Path, start: int) -> paths.Path:
    return parts / f"{start:08d}.npz"


def _origin(extractor: Extractor, images: Any, start: int) -> str:
    """Returns a digest of what the block from `start` on is made by and of: the network, and every image of it."""
    shown, end = hashlib.sha256(), min(start + BLOCK, len(images))
    for first in range(start, end, _HASHED):
        shown.update(_rows(images, np.arange(first, min(first + _HASHED, end))))
    return files.digest([extractor.name, extractor.digest, list(images.shape), shown.hexdigest()])


def _read_part(path: paths.Path, extractor: Extractor, images: Any, start: int) -> dict[str, np.ndarray]:
    block = files.read_arrays(path)
    if str(block.pop("of", "")) != _origin(extractor, images, start):
        raise UserError(f"{path}: was not made of these images by {extractor.name}; delete {path.parent} and run again")
    return block
