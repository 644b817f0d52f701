"""The stages that make models and samples: each reads artifacts of a run and writes its own."""

import dataclasses

import numpy as np

from tdsm_jax import files
from tdsm_jax.data import stream
from tdsm_jax.errors import UserError
from tdsm_jax.run import Run
from tdsm_jax.sampler import Sampler, drawn, sampling_of
from tdsm_jax.training import loop, model_file
from tdsm_jax.training.model_file import Model
from tdsm_jax.training.state import stream_key


def train_score(run: Run, method: str) -> None:
    """images + labels (+ classifier + table) -> score/<method>/: checkpoints, model.json, metrics.jsonl, ema.npz"""
    begin, directory = run.score_step(method), run.workdir / "score" / method
    model = Model(run.network, None, run.process, run.train_set.image_shape)
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


def sample(run: Run, method: str) -> None:
    """EMA parameters -> samples/<method>.npz (images, labels), .png (rows = classes) and .json (what they cost)"""
    c, model = run.config.sampling, run.model(method)
    if (channels := model.image_shape[2]) not in (1, 3):
        raise UserError(
            f"{run.config.init_from or method}: images of {channels} channels are no pictures but, say, latents of an "
            "autoencoder, which nothing here decodes; draw them from Python with tdsm_jax.sampler and your decoder"
        )
    K = max(model.network.num_classes, 1)  # a network without labels makes one row
    labels = np.arange(c.per_class * K, dtype=np.int32) % K  # sample i depends on i alone
    key, parts = stream_key(run.config.seed, "sample"), run.workdir / "samples" / f"{method}.parts"
    settings = sampling_of(c, autoguidance=str(run.weaker_path) if c.autoguidance else "")
    sampler = Sampler(model, settings, run.mesh, run.correction if method == "corrected" else None)
    made = drawn(sampler, labels, key, parts, f"sample/{method}")
    files.write_arrays(run.workdir / "samples" / f"{method}.npz", {"images": made.images, "labels": labels})
    files.write_json(run.workdir / "samples" / f"{method}.json", dataclasses.asdict(made.cost))
    run.write_grid(f"samples/{method}.png", made.images, labels, K)
