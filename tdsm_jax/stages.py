"""The stages that make models and samples: each reads artifacts of a run and writes its own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax import files
from tdsm_jax.data import label_files, sources
from tdsm_jax.data.sources import to_float
from tdsm_jax.diffusion import sampling
from tdsm_jax.diffusion.process import make_denoiser
from tdsm_jax.evaluation import grids
from tdsm_jax.labels import transition
from tdsm_jax.labels.losses import forward_corrected
from tdsm_jax.labels.weights import WeightTable, clean_prior, make_table, posterior
from tdsm_jax.run import Run, optimisation
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training import loop, parallel
from tdsm_jax.training.classifier import FitSettings, Labelled
from tdsm_jax.training.logs import Progress
from tdsm_jax.training.state import flatten_params, stream_key, unflatten_params

QUALITY_SIGMAS = np.geomspace(0.02, 5.0, 9)  # where the classifiers' quality is measured


def make_labels(run: Run) -> None:
    """clean labels -> labels.json, labels.png (training images, rows = the labels they were given)"""
    noise = run.config.label_noise
    made = label_files.make(run.train_set, noise.kind, noise.rate, run.config.seed, run.known_S)
    label_files.write(run.workdir / "labels.json", made)
    write_grid(run, "labels.png", run.train_set.images, made.y_tilde)


def fit_classifier(run: Run) -> None:
    """images + y_tilde -> classifier/: one classifier a fold, fitted on the other folds' noisy labels"""
    c, t = run.config.classifier, run.config.transition
    settings = FitSettings(
        network=run.classifier,
        optimisation=optimisation(c),
        schedule=run.schedule(c.steps, evaluate_every=c.evaluate_every),
        process=run.process,
        volume_weight=t.volume_weight,
        transition_rate=t.rate,
    )
    fitted = []
    for f in range(c.folds):
        inside, name = run.fold != f, f"fold{f}"
        fitted.append(
            classifiers.fit(
                Labelled(run.train_set.images[inside], run.y_tilde[inside]),
                stream_key(run.config.seed, f"classifier/{name}"),
                label=f"classifier/{name}",
                settings=settings,
                S=run.known_S if t.estimator == "known" else None,
                mesh=run.mesh,
                seed=run.config.seed,
                held_out=Labelled(run.train_set.images[~inside], run.y_tilde[~inside]),
                directory=run.workdir / "classifier" / name,
            )
        )
        classifiers.write_fitted(run.workdir / "classifier" / f"{name}.npz", fitted[-1])


def make_weight_table(run: Run) -> None:
    """classifiers + y_tilde -> weight_table.npz, transition.json (S, its errors, the classifiers' quality)"""
    S = np.mean([fitted.S for fitted in run.fitted], axis=0)
    transition.check_invertible(S, run.config.transition.condition_limit)
    prior = clean_prior(S, run.y_tilde)
    quality = classifier_quality(run, make_table(S, prior))
    files.write_json(
        run.workdir / "transition.json",
        {
            "estimator": run.config.transition.estimator,
            "S": S.tolist(),
            "condition_number": transition.condition_number(S),
            "relative_l1": transition.relative_l1(S, run.known_S),
            "classifier": quality,
            "temperature": [fitted.temperature for fitted in run.fitted],
            "held_out_nll": [fitted.held_out_nll for fitted in run.fitted],
        },
    )
    files.write_arrays(run.workdir / "weight_table.npz", {"S": S, "prior": prior})


def classifier_quality(run: Run, table: WeightTable) -> dict[str, Any]:
    """Returns the out-of-fold quality at each of `QUALITY_SIGMAS`; clean labels are read to report, not to train."""
    y, y_tilde = run.train_set.labels, run.y_tilde
    x0, fold = jnp.asarray(to_float(run.train_set.images)), jnp.asarray(run.fold)
    key, network, cross_fitted = stream_key(run.config.seed, "classifier_quality"), run.classifier, run.cross_fitted

    @jax.jit
    def measure(sigma: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x_t = x0 + sigma * jax.random.normal(key, x0.shape)
        sigmas = jnp.full(len(x0), sigma)
        logits = classifiers.cross_fitted_logits(network, run.process, cross_fitted, x_t, sigmas, fold)
        own = posterior(table, logits, y_tilde)[jnp.arange(len(x0)), y_tilde]
        return logits.argmax(axis=1), own, forward_corrected(logits, y_tilde, table.log_S)

    rows = [measure(sigma, jax.random.fold_in(key, i)) for i, sigma in enumerate(QUALITY_SIGMAS)]
    return {
        "sigma": QUALITY_SIGMAS.tolist(),
        "accuracy": [float(np.mean(seen == y)) for seen, _, _ in rows],
        "noisy_accuracy": [float(np.mean(seen == y_tilde)) for seen, _, _ in rows],
        "own_weight": [float(own.mean()) for _, own, _ in rows],
        "noisy_nll": [float(nll.mean()) for _, _, nll in rows],
        "expected_own_weight": 1 - run.label_file.realised_rate,
    }


def train_score(run: Run, method: str) -> None:
    """images + labels (+ classifier + table) -> score/<method>/: checkpoints, metrics.jsonl, ema.npz"""
    begin = run.score_step(method)
    state = loop.run(
        f"score/{method}",
        begin.step,
        begin.state,
        begin.batches,
        begin.key,
        schedule=run.schedule(run.config.score.steps),
        mesh=run.mesh,
        directory=run.workdir / "score" / method,
    )
    files.write_arrays(run.workdir / "score" / method / "ema.npz", flatten_params(state.ema_params))


def sample(run: Run, method: str) -> None:
    """EMA parameters -> samples/<method>.npz (images, labels) and .png (rows = classes)"""
    config, K = run.config.sampling, run.num_classes
    params = unflatten_params(files.read_arrays(run.workdir / "score" / method / "ema.npz"))
    sigmas = sampling.edm_sigmas(config.steps, run.process.sigma_min, run.process.sigma_max, config.rho)
    denoise = jax.jit(
        lambda params, x, sigma, label: make_denoiser(run.process, functools.partial(run.network.apply, params))(
            x, sigma, label
        )
    )
    params = parallel.replicate(params, run.mesh)
    key, shape = stream_key(run.config.seed, "sample"), run.train_set.images.shape[1:]
    latents_of = jax.jit(jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape)))
    labels = np.arange(config.per_class * K, dtype=np.int32) % K  # sample i depends on i alone
    images = []
    with Progress(f"sample/{method}", -(-len(labels) // config.batch_size), config.batch_size) as progress:
        for start in range(0, len(labels), config.batch_size):
            index = np.arange(start, start + config.batch_size) % len(labels)  # the last batch is filled up
            batch = parallel.split({"index": index, "label": labels[index]}, run.mesh)
            bound = functools.partial(lambda label, x, sigma: denoise(params, x, sigma, label), batch["label"])
            made = sampling.heun(bound, latents_of(batch["index"]), sigmas)
            images.append(sources.to_uint8(np.asarray(made)))
            progress.update()
    images = np.concatenate(images)[: len(labels)]
    files.write_arrays(run.workdir / "samples" / f"{method}.npz", {"images": images, "labels": labels})
    write_grid(run, f"samples/{method}.png", images, labels)


def write_grid(run: Run, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes the first images of each class as a PNG, one row a class."""
    with files.atomic_write(run.workdir / name) as file:
        file.write(grids.image_grid_png(grid(run, images, labels), scale=4))


def grid(run: Run, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the first images of each class, uint8 [K,columns,H,W,C]."""
    rows = [images[labels == y][: run.config.sampling.grid_columns] for y in range(run.num_classes)]
    columns = max(len(row) for row in rows)  # a class that nobody was given as a label leaves its row black
    return np.stack([np.pad(row, [(0, columns - len(row)), (0, 0), (0, 0), (0, 0)]) for row in rows])
