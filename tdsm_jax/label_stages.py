"""The stages of the label side: from clean labels to what the weights are made of; each writes its own artifacts."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tdsm_jax import files
from tdsm_jax.data import label_files, stream
from tdsm_jax.data.augment import augment, light
from tdsm_jax.data.batches import evenly
from tdsm_jax.data.dataset import to_float
from tdsm_jax.diffusion.objectives import add_noise
from tdsm_jax.labels import transition
from tdsm_jax.labels.em import em_posterior
from tdsm_jax.labels.estimators import ESTIMATORS, estimate
from tdsm_jax.labels.evidence import Evidence, clean_subset
from tdsm_jax.labels.losses import forward_corrected
from tdsm_jax.labels.stress import calibration_error, share_of
from tdsm_jax.labels.weights import WeightTable, clean_prior, make_table, posterior
from tdsm_jax.run import Run, optimisation
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training.calibration import SIGMAS, own_weights, softened
from tdsm_jax.training.classifier import Fitted, Labelled
from tdsm_jax.training.cross_fit import cross_fitted_logits, fit_fold
from tdsm_jax.training.fit_step import Augment, FitSettings, classify
from tdsm_jax.training.parallel import in_batches, per_device
from tdsm_jax.training.state import example_keys, normal_like, stream_key

_FAR = 1e4  # between the features of two folds, whose own spread is 1
CLEAN_SIGMA = 0.02  # the noise level that classifiers are told for a clean image: one they were fitted at
QUALITY_SIGMAS = np.geomspace(0.02, 5.0, 9)  # where the classifiers' quality is measured
QUALITY_IMAGES = 2**17  # of which it is measured at most: a report needs no more digits


def make_labels(run: Run) -> None:
    """clean labels -> labels.json, labels.png (training images as they came, rows = the labels they were given)"""
    label_files.write(run.workdir / "labels.json", run.new_labels)
    run.write_grid("labels.png", run.train_set.images, run.new_labels.y_tilde, run.num_classes)


def fit_noisy_classifier(run: Run) -> None:
    """images + y_tilde -> noisy_classifier/, noisy_posterior.npz: p(y_tilde | x0) and features, out of fold"""
    name = "noisy_classifier"
    as_given = dataclasses.replace(
        fit_settings(run), process=None, loss="forward", forget_rate=0.0, co_teaching=False, stopping=True
    )
    fitted = [members[0] for members in fit_folds(run, name, as_given, np.eye(run.num_classes), members=1)]
    p, features = out_of_fold(run, fitted)
    files.write_arrays(run.workdir / "noisy_posterior.npz", {"p": p, "features": features})


def estimate_transition(run: Run) -> None:
    """y_tilde + what the estimator reads beside it -> estimate.json: S, and what to know before it is trusted"""
    config = run.config.transition
    found = estimate(config.estimator, evidence(run))
    for warning in found.diagnostics.warnings:
        logging.warning("transition.estimator=%s: %s", config.estimator, warning)
    transition.check_invertible(found.S, config.condition_limit)
    standard_error = found.diagnostics.standard_error
    values = {
        "estimator": config.estimator,
        "S": found.S.tolist(),
        "prior": found.prior.tolist(),
        "standard_error": None if standard_error is None else standard_error.tolist(),
        "images": found.diagnostics.images.tolist(),
        "temperature": found.diagnostics.temperature,
        "warnings": list(found.diagnostics.warnings),
    }
    files.write_json(run.workdir / "estimate.json", values)


def evidence(run: Run) -> Evidence:
    """Returns all that the config lets an estimator of S read."""
    config = run.config.transition
    known = Evidence(run.num_classes, run.y_tilde, features=pixels(run), **clean_evidence(run))
    if not run.reads_noisy_posterior:
        return known
    arrays = files.read_arrays(run.workdir / "noisy_posterior.npz")
    known = dataclasses.replace(known, noisy_posterior=arrays["p"])
    if config.features == "network":
        known = dataclasses.replace(known, features=arrays["features"])
    if "clean_posterior" not in ESTIMATORS[config.estimator].needs:
        return known
    start = estimate(config.start, known)
    return dataclasses.replace(known, clean_posterior=em_posterior(arrays["p"], start.S, start.prior))


def clean_evidence(run: Run) -> dict[str, np.ndarray]:
    """Returns what an estimator may know of true classes, as fields of `Evidence`; nothing where nobody knows any."""
    y, pairs = run.train_set.labels, run.train_set.pairs
    if run.labels_are_clean:
        subset = clean_subset(y, run.config.transition.clean_per_class, run.config.seed)
        return {"clean_index": subset, "clean_labels": y[subset]}
    return {} if pairs is None else {"clean_labels": pairs[:, 0], "clean_given": pairs[:, 1]}


def pixels(run: Run) -> np.ndarray | None:
    """Returns the training images as features [N,D]; of streamed ones None, unless neighbours are sought in them."""
    images, config = run.training_images, run.config.transition
    sought = "features" in ESTIMATORS[config.estimator].needs and config.features == "pixels"
    if stream.is_streamed(images) and not sought:
        return None
    return np.asarray(images).reshape(len(images), -1)


def out_of_fold(run: Run, fitted: Sequence[Fitted]) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities [N,K] and features [N,D+1] of the training images, by the classifier that never saw each.

    Features of two classifiers have nothing in common: the last one, the fold, keeps their images far apart.
    """

    @jax.jit
    def look(one: Fitted, batch: dict) -> tuple[jax.Array, jax.Array]:
        x0 = batch["x0"]
        logits, features = classify(functools.partial(run.classifier.apply, one.params), None, x0, jnp.zeros(len(x0)))
        return jax.nn.softmax(softened(logits, one.temperature, jnp.ones(len(x0)))), features

    def rows_of(f: int, index: np.ndarray) -> dict[str, np.ndarray]:
        return {"x0": to_float(images[f][index])}

    images = [stream.part_of(run.training_images, run.fold == f) for f in range(len(fitted))]
    size = run.config.classifier.batch_size
    seen = [
        in_batches(functools.partial(look, one), functools.partial(rows_of, f), run.mesh, len(images[f]), size)
        for f, one in enumerate(fitted)
    ]
    width = seen[0][1].shape[1]
    p, features = np.empty((len(run.fold), run.num_classes)), np.empty((len(run.fold), width + 1))
    for f, (probabilities, values) in enumerate(seen):
        p[run.fold == f] = probabilities
        features[run.fold == f] = np.column_stack([values / values.std(), np.full(len(values), _FAR * f)])
    return p, features


def fit_classifier(run: Run) -> None:
    """images + y_tilde (+ S, samples) -> classifier/: classifiers of each fold, fitted on the other folds' labels"""
    c, S = run.config.classifier, run.given_S
    if c.init_from:
        given = run.given_classifier()
        fitted = [[given if S is None else given._replace(S=S)]]
    else:
        fitted = fit_folds(run, "classifier", fit_settings(run), S, c.members, run.generated)
    for f, members in enumerate(fitted):
        for file, one in zip(run.classifier_files(f), members, strict=True):
            one = one._replace(temperature=c.temperature or one.temperature)
            classifiers.write_fitted(run.workdir / file, one)


def fit_folds(
    run: Run,
    name: str,
    settings: FitSettings,
    S: np.ndarray | None,
    members: int,
    generated: Labelled | None = None,
) -> Iterator[list[Fitted]]:
    """Yields the fitted members of each fold; S [K,K] is None where they learn it.

    Every fold trains on all `generated` images, their labels taken for clean; what is held out is real and noisy.
    """
    folds = run.config.classifier.folds
    for f in range(folds):
        held_out = run.fold == f if folds > 1 else np.zeros(len(run.fold), bool)
        real = run.given(share_of(~held_out, run.config.stress.share, run.config.seed))
        yield fit_fold(
            real if generated is None else classifiers.with_clean(real, generated),
            stream_key(run.config.seed, f"{name}/fold{f}"),
            label=f"{name}/fold{f}",
            settings=settings,
            S=S,
            mesh=run.mesh,
            seed=run.config.seed,
            members=members,
            held_out=run.given(held_out) if held_out.any() else None,
            directory=run.workdir / name / f"fold{f}",
        )


def fit_settings(run: Run) -> FitSettings:
    """Returns how the classifiers of h(x_t, sigma) are fitted."""
    c, t = run.config.classifier, run.config.transition
    return FitSettings(
        network=run.classifier,
        optimisation=optimisation(c),
        schedule=run.schedule(c.steps, evaluate_every=c.evaluate_every if c.folds > 1 else 0),
        process=run.classifier_process,
        volume_weight=t.volume_weight,
        transition_rate=t.rate,
        augment=image_changes(c.augment, c.light),
        freeze_transition_images=t.freeze_images,
        stopping=c.stopping,
        calibration=c.calibration,
        temperature_per_sigma=c.temperature_per_sigma,
        loss=c.loss,
        forget_rate=c.forget_rate,
        forget_ramp_images=c.forget_ramp_images,
        co_teaching=c.co_teaching,
    )


@functools.cache
def image_changes(probability: float, spreads: tuple[float, float, float]) -> Augment | None:
    """Returns EDM's augmentation or light changes; the same function again for the same numbers, as compiling wants."""
    if any(spreads):
        shift, rotation, scale = spreads
        return functools.partial(light, shift=shift, rotation=rotation, scale=scale)
    return functools.partial(augment, probability=probability) if probability else None


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
            "relative_l1": None if run.known_S is None else transition.relative_l1(S, run.known_S),
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
    looked_at = evenly(len(run.y_tilde), QUALITY_IMAGES)
    y, y_tilde = run.train_set.labels[looked_at], run.y_tilde[looked_at]
    key, weigher, cross_fitted = stream_key(run.config.seed, "classifier_quality"), run.weigher, run.cross_fitted
    uncalibrated = cross_fitted._replace(temperature=jnp.ones_like(cross_fitted.temperature))

    def measure(batch: dict) -> tuple[jax.Array, ...]:
        x0, sigma, y_tilde = batch["x0"], batch["sigma"], batch["label"]
        x_t = add_noise(x0, sigma, normal_like(example_keys(key, batch["level"][0], batch["position"]), x0))
        logits, raw = (cross_fitted_logits(weigher, c, x_t, sigma, batch["fold"]) for c in (cross_fitted, uncalibrated))
        w, raw_own = posterior(table, logits, y_tilde), own_weights(raw, y_tilde, table.log_S)
        return jax.nn.softmax(logits), w, raw_own, forward_corrected(logits, y_tilde, table.log_S)

    def rows_of(level: int, index: np.ndarray) -> dict[str, np.ndarray]:
        sigma, levels = np.float32(QUALITY_SIGMAS[level]), np.full(len(index), level)
        index = looked_at[index]
        return run.labelled_batch(index) | {"sigma": np.full(len(index), sigma), "level": levels, "position": index}

    size, seen = run.config.classifier.batch_size, per_device(measure, run.mesh)
    rows = [
        in_batches(seen, functools.partial(rows_of, level), run.mesh, len(y), size)
        for level in range(len(QUALITY_SIGMAS))
    ]
    each = np.arange(len(y))
    quality = {
        "sigma": QUALITY_SIGMAS.tolist(),
        "noisy_accuracy": [float(np.mean(h.argmax(axis=1) == y_tilde)) for h, *_ in rows],
        "own_weight": [float(w[each, y_tilde].mean()) for _, w, *_ in rows],
        "own_weight_uncalibrated": [float(raw_own.mean()) for _, _, raw_own, _ in rows],  # at temperature 1
        "noisy_nll": [float(nll.mean()) for *_, nll in rows],
    }
    if not run.labels_are_clean:  # what needs true classes is left out
        return quality
    return quality | {
        "accuracy": [float(np.mean(h.argmax(axis=1) == y)) for h, *_ in rows],
        "calibration_error": [calibration_error(h, y) for h, *_ in rows],
        "weight_error": [2 * float(1 - w[each, y].mean()) for _, w, *_ in rows],  # sum_i |w_i - 1{i=y}|
        "expected_own_weight": 1 - run.label_file.realised_rate,
    }


def make_posterior(run: Run) -> None:
    """classifiers + table + y_tilde -> image_posterior.npz: p(y | x0, y_tilde) of every clean training image"""
    weigher, cross_fitted, table = run.weigher, run.cross_fitted, run.table

    def posterior_of(batch: dict) -> jax.Array:
        sigma = jnp.full(batch["label"].shape, CLEAN_SIGMA)
        logits = cross_fitted_logits(weigher, cross_fitted, batch["x0"], sigma, batch["fold"])
        return posterior(table, logits, batch["label"])

    size = run.config.classifier.batch_size
    w = in_batches(per_device(posterior_of, run.mesh), run.labelled_batch, run.mesh, len(run.y_tilde), size)
    files.write_arrays(run.workdir / "image_posterior.npz", {"w": w})
