"""The stage of the training images: which of them the config corrupts, on record and as a picture."""

import numpy as np

from tdsm_jax import files
from tdsm_jax.evaluation import grids
from tdsm_jax.run import Run
from tdsm_jax.run_data import IMAGE_NOISE_FILE


def make_images(run: Run) -> None:
    """images -> image_noise.json, image_noise.png: some corrupted ones under what they were, a pair of rows each"""
    files.write_json(run.workdir / IMAGE_NOISE_FILE, run.image_noise_record())
    images, chosen = run.image_noise
    columns, rows = run.config.sampling.grid_columns, run.config.sampling.grid_rows // 2
    shown = np.flatnonzero(chosen)[: columns * max(rows, 1)]
    if not len(shown):  # a rate at which chance chose none
        shown = np.arange(min(columns, len(chosen)))
    columns = min(columns, len(shown))
    shown = shown[: len(shown) // columns * columns].reshape(-1, columns)
    pairs = np.stack([run.train_set.images[shown], images[shown]], axis=1)  # [rows, 2, columns, H, W, C]
    with files.atomic_write(run.workdir / "image_noise.png") as file:
        file.write(grids.image_grid_png(pairs.reshape(-1, *pairs.shape[2:]), scale=4))
