"""The stages that make models and samples: each reads artifacts of a run and writes its own."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from tdsm_jax import files, hosts, paths
from tdsm_jax.data import stream
from tdsm_jax.data.dataset import to_uint8
from tdsm_jax.diffusion import sampling
from tdsm_jax.diffusion.guidance import guided
from tdsm_jax.diffusion.process import Process, make_denoiser
from tdsm_jax.errors import UserError
from tdsm_jax.networks.backbones import ScoreNetwork
from tdsm_jax.run import Run
from tdsm_jax.training import loop, model_file, parallel
from tdsm_jax.training.logs import Progress
from tdsm_jax.training.model_file import Model
from tdsm_jax.training.state import Params, stream_key


def train_score(run: Run, method: str) -> None:
    """images + labels (+ classifier + table) -> score/<method>/: checkpoints, model.json, metrics.jsonl, ema.npz"""
    begin, directory = run.score_step(method), run.workdir / "score" / method
    model = Model(run.network, None, run.process, run.train_set.images.shape[1:])
    model_file.write_description(directory, model)
    state = loop.run(
        f"score/{method}",
        begin.step,
        begin.state,
        begin.batches,
        begin.key,
        batch_size=run.config.score.batch_size,
        schedule=run.score_schedule,
        mesh=run.mesh,
        directory=directory,
        ahead=stream.is_streamed(run.train_set.images),
    )
    model_file.write(directory / "ema.npz", model._replace(params=state.ema_params))


def sampling_call(network: ScoreNetwork, process: Process, guidance: float = 1.0) -> Callable[..., jax.Array]:
    """Returns the jitted denoise(params, x, sigma, label) -> D that a sampler calls once an evaluation.

    Shapes: x, D [B,H,W,C], sigma [B], label int [B].
    """

    @jax.jit
    def denoise(params: Params, x: jax.Array, sigma: jax.Array, label: jax.Array) -> jax.Array:
        plain = make_denoiser(process, functools.partial(network.apply, params))
        return guided(plain, guidance, null=network.num_classes)(x, sigma, label)

    return denoise


class Sampling(NamedTuple):
    """How images are drawn from a model: solver steps, their spacing, guidance, images at a time."""

    steps: int
    rho: float
    guidance: float
    batch_size: int


def sample(run: Run, method: str) -> None:
    """EMA parameters -> samples/<method>.npz (images, labels) and .png (rows = classes)"""
    c, model = run.config.sampling, run.model(method)
    K = max(model.network.num_classes, 1)  # a network without labels makes one row
    labels = np.arange(c.per_class * K, dtype=np.int32) % K  # sample i depends on i alone
    key, parts = stream_key(run.config.seed, "sample"), run.workdir / "samples" / f"{method}.parts"
    settings = Sampling(c.steps, c.rho, c.guidance, c.batch_size)
    images = drawn(model, settings, labels, key, run.mesh, parts, f"sample/{method}")
    files.write_arrays(run.workdir / "samples" / f"{method}.npz", {"images": images, "labels": labels})
    run.write_grid(f"samples/{method}.png", images, labels, K)


def drawn(
    model: Model,
    settings: Sampling,
    labels: np.ndarray,
    key: jax.Array,
    mesh: parallel.DataMesh,
    parts: paths.Path,
    title: str,
) -> np.ndarray:
    """Returns one image uint8 [N,H,W,C] for each of `labels` int [N]; image i depends on the key, i and its label.

    Every batch is kept in the folder `parts` until the caller removes it: an interrupted sampling goes on after them.
    """
    if settings.guidance != 1 and not model.network.num_classes:
        raise UserError("guidance (sampling.guidance in a config) must be 1 for a network without labels")
    sigmas = sampling.edm_sigmas(settings.steps, model.process.sigma_min, model.process.sigma_max, settings.rho)
    denoise = sampling_call(model.network, model.process, settings.guidance)
    params = parallel.replicate(model.params, mesh)
    latents_of = jax.jit(jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), model.image_shape)))
    size = min(settings.batch_size, parallel.round_up(len(labels)))
    images = finished_parts(parts)
    done = sum(map(len, images))
    hosts.check_equal(str(done), f"number of finished images in {parts}")
    with Progress(title, -(-(len(labels) - done) // size), size) as progress:
        for start in range(done, len(labels), size):
            hosts.stop_if_asked()
            index = (start + mesh.rows(size)) % len(labels)  # the last batch is filled up
            batch = parallel.split({"index": index, "label": labels[index]}, mesh)
            bound = functools.partial(lambda label, x, sigma: denoise(params, x, sigma, label), batch["label"])
            made = parallel.gather(sampling.heun(bound, latents_of(batch["index"]), sigmas))
            images.append(to_uint8(made)[: len(labels) - start])
            files.write_arrays(parts / f"{start:08d}.npz", {"images": images[-1]})
            progress.update()
    return np.concatenate(images)


def finished_parts(folder: paths.Path) -> list[np.ndarray]:
    """Returns the images of the batches that an interrupted sampling has finished, without a gap from the first on."""
    images, done = [], 0
    while paths.exists(path := folder / f"{done:08d}.npz"):
        images.append(files.read_arrays(path)["images"])
        done += len(images[-1])
    return images
