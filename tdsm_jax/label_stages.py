"""The stages of the label side: from clean labels to what the weights are made of; each writes its own artifacts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax import files
from tdsm_jax.data import label_files
from tdsm_jax.data.augment import augment, light
from tdsm_jax.data.batches import in_batches
from tdsm_jax.diffusion.objectives import add_noise
from tdsm_jax.labels import transition
from tdsm_jax.labels.losses import forward_corrected
from tdsm_jax.labels.weights import WeightTable, clean_prior, make_table, posterior
from tdsm_jax.run import Run, optimisation
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training.calibration import SIGMAS
from tdsm_jax.training.cross_fit import cross_fitted_logits, fit_fold
from tdsm_jax.training.fit_step import FitSettings
from tdsm_jax.training.state import example_keys, normal_like, stream_key

CLEAN_SIGMA = 0.02  # the noise level that classifiers are told for a clean image: one they were fitted at
QUALITY_SIGMAS = np.geomspace(0.02, 5.0, 9)  # where the classifiers' quality is measured


def make_labels(run: Run) -> None:
    """clean labels -> labels.json, labels.png (training images, rows = the labels they were given)"""
    label_files.write(run.workdir / "labels.json", run.new_labels)
    run.write_grid("labels.png", run.train_set.images, run.new_labels.y_tilde, run.num_classes)


def fit_classifier(run: Run) -> None:
    """images + y_tilde -> classifier/: classifiers of each fold, fitted on the other folds' noisy labels"""
    c, t = run.config.classifier, run.config.transition
    settings = fit_settings(run)
    for f in range(c.folds):
        name = f"classifier/fold{f}"
        if c.init_from:
            members = [run.given_classifier()]
        else:
            held_out = run.fold == f if c.folds > 1 else np.zeros(len(run.fold), bool)
            members = fit_fold(
                run.given(~held_out),
                stream_key(run.config.seed, name),
                label=name,
                settings=settings,
                S=run.known_S if t.estimator == "known" else None,
                mesh=run.mesh,
                seed=run.config.seed,
                members=c.members,
                held_out=run.given(held_out) if held_out.any() else None,
                directory=run.workdir / name,
            )
        for file, fitted in zip(run.classifier_files(f), members, strict=True):
            fitted = fitted._replace(temperature=c.temperature or fitted.temperature)
            classifiers.write_fitted(run.workdir / file, fitted)


def fit_settings(run: Run) -> FitSettings:
    """Returns how the classifiers of h(x_t, sigma) are fitted."""
    c, t = run.config.classifier, run.config.transition
    changes = functools.partial(augment, probability=c.augment) if c.augment else None
    if any(c.light):
        changes = functools.partial(light, **dict(zip(("shift", "rotation", "scale"), c.light, strict=True)))
    return FitSettings(
        network=run.classifier,
        optimisation=optimisation(c),
        schedule=run.schedule(c.steps, evaluate_every=c.evaluate_every if c.folds > 1 else 0),
        process=run.classifier_process,
        volume_weight=t.volume_weight,
        transition_rate=t.rate,
        augment=changes,
        freeze_transition_images=t.freeze_images,
        stopping=c.stopping,
        calibration=c.calibration,
        temperature_per_sigma=c.temperature_per_sigma,
        loss=c.loss,
        forget_rate=c.forget_rate,
        forget_ramp_images=c.forget_ramp_images,
        co_teaching=c.co_teaching,
    )


def make_weight_table(run: Run) -> None:
    """classifiers + y_tilde -> weight_table.npz, transition.json (S, its errors, the classifiers' quality)"""
    config = run.config.transition
    fitted = [member for fold in run.fitted for member in fold]
    S = np.mean([member.S for member in fitted], axis=0)
    transition.check_invertible(S, config.condition_limit)
    prior = clean_prior(S, run.y_tilde) if config.prior == "estimated" else np.full(len(S), 1 / len(S))
    quality = classifier_quality(run, make_table(S, prior))
    files.write_json(
        run.workdir / "transition.json",
        {
            "estimator": config.estimator,
            "S": S.tolist(),
            "condition_number": transition.condition_number(S),
            "relative_l1": transition.relative_l1(S, run.known_S),
            "classifier": quality,
            "temperature": {
                "sigma": SIGMAS.tolist(),
                "T": [np.broadcast_to(m.temperature, SIGMAS.shape).tolist() for m in fitted],
            },
            "held_out_nll": [None if np.isnan(m.held_out_nll) else m.held_out_nll for m in fitted],
        },
    )
    files.write_arrays(run.workdir / "weight_table.npz", {"S": S, "prior": prior})


def classifier_quality(run: Run, table: WeightTable) -> dict[str, Any]:
    """Returns the out-of-fold quality at each of `QUALITY_SIGMAS`; clean labels are read to report, not to train."""
    y, y_tilde = run.train_set.labels, run.y_tilde
    key, weigher, cross_fitted = stream_key(run.config.seed, "classifier_quality"), run.weigher, run.cross_fitted

    @jax.jit
    def measure(batch: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
        x0, sigma, y_tilde = batch["x0"], batch["sigma"], batch["label"]
        x_t = add_noise(x0, sigma, normal_like(example_keys(key, batch["level"][0], batch["position"]), x0))
        logits = cross_fitted_logits(weigher, cross_fitted, x_t, sigma, batch["fold"])
        own = jnp.take_along_axis(posterior(table, logits, y_tilde), y_tilde[:, None], axis=1)[:, 0]
        return logits.argmax(axis=1), own, forward_corrected(logits, y_tilde, table.log_S)

    def at(level: int, index: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
        sigma, levels = np.float32(QUALITY_SIGMAS[level]), np.full(len(index), level)
        batch = run.labelled_batch(index) | {"sigma": np.full(len(index), sigma), "level": levels, "position": index}
        return measure(batch)

    size = run.config.classifier.batch_size
    rows = [in_batches(functools.partial(at, level), len(y), size) for level in range(len(QUALITY_SIGMAS))]
    return {
        "sigma": QUALITY_SIGMAS.tolist(),
        "accuracy": [float(np.mean(seen == y)) for seen, _, _ in rows],
        "noisy_accuracy": [float(np.mean(seen == y_tilde)) for seen, _, _ in rows],
        "own_weight": [float(own.mean()) for _, own, _ in rows],
        "noisy_nll": [float(nll.mean()) for _, _, nll in rows],
        "expected_own_weight": 1 - run.label_file.realised_rate,
    }


def make_posterior(run: Run) -> None:
    """classifiers + table + y_tilde -> image_posterior.npz: p(y | x0, y_tilde) of every clean training image"""
    weigher, cross_fitted, table = run.weigher, run.cross_fitted, run.table

    @jax.jit
    def posterior_of(batch: dict) -> jax.Array:
        sigma = jnp.full(batch["label"].shape, CLEAN_SIGMA)
        logits = cross_fitted_logits(weigher, cross_fitted, batch["x0"], sigma, batch["fold"])
        return posterior(table, logits, batch["label"])

    size = run.config.classifier.batch_size
    w = in_batches(lambda index: posterior_of(run.labelled_batch(index)), len(run.y_tilde), size)
    files.write_arrays(run.workdir / "image_posterior.npz", {"w": w})
