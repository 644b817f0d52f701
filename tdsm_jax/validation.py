"""What a config may say: the choices and bounds of every key, and which values go together."""

from typing import Any

import ml_collections
import numpy as np

from tdsm_jax.config import (
    MATRICES,
    METHODS,
    TASKS,
    TDSM_RULES,
    extractor_name,
    extractors,
    flatten,
    parse_noise,
    reads_noisy_posterior,
)
from tdsm_jax.data.image_corruption import CORRUPTIONS
from tdsm_jax.data.label_files import DRAWN, GIVEN
from tdsm_jax.diffusion.process import PROCESSES
from tdsm_jax.diffusion.residuals import FORMS, RESIDUALS
from tdsm_jax.diffusion.sampling import LEAST_RHO, SCHEDULES, SOLVERS
from tdsm_jax.diffusion.weightings import WEIGHTINGS
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluation.report_words import EXTRACTORS
from tdsm_jax.labels.correction import CORRECTIONS
from tdsm_jax.labels.estimators import ESTIMATORS
from tdsm_jax.labels.losses import LOSSES
from tdsm_jax.labels.weights import WEIGHTS
from tdsm_jax.networks.attention import IMPLEMENTATIONS, PATTERNS
from tdsm_jax.networks.dit import CONDITIONINGS, SIZES
from tdsm_jax.networks.resnet import BLOCKS, JUDGES
from tdsm_jax.networks.unet import STYLES
from tdsm_jax.sampler import check_sampling, sampling_of
from tdsm_jax.score_network import is_dit, size_of
from tdsm_jax.training.calibration import CRITERIA
from tdsm_jax.training.optimisers import OPTIMISERS
from tdsm_jax.training.parallel import BACKENDS


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for the first key whose value cannot work."""
    checks = (
        _check_choices,
        _check_numbers,
        _check_widths,
        _check_dit,
        _check_combinations,
        _check_image_noise,
        _check_residual,
        _check_evaluation,
        _check_robust_losses,
    )
    for check in checks:
        check(config)


def _check_choices(config: ml_collections.ConfigDict) -> None:
    for key, valid in _CHOICES.items():
        value = _at(config, key)
        for item in value if isinstance(value, tuple) else (value,):
            if item not in valid:
                raise UserError(f"config key {key}: {item!r} is not a choice{did_you_mean(str(item), valid)}")
    if not config.methods or len(set(config.methods)) != len(config.methods):
        raise UserError(f"config key methods: name each method once, at least one, got {config.methods}")


def _check_numbers(config: ml_collections.ConfigDict) -> None:
    for key, value in flatten(config).items():
        low, high = _bounds(key)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool):
                continue
            if isinstance(number, (int, float)) and not low <= number <= high:
                raise UserError(f"config key {key}={value} must lie in [{low:g}, {high:g}]")


def _check_widths(config: ml_collections.ConfigDict) -> None:
    if config.network.multipliers == () or config.classifier.widths == () or config.evaluation.widths == ():
        raise UserError("config keys network.multipliers, classifier.widths, evaluation.widths need an entry")
    for key in ("network.multipliers", "classifier.widths", "evaluation.widths"):
        if not all(type(entry) is int for entry in _at(config, key)):
            raise UserError(f"config key {key}={_at(config, key)} must hold whole numbers")
    for key in ("network.channels", "classifier.widths", "evaluation.widths"):
        first = np.ravel(_at(config, key))[0]
        if first % 2:
            raise UserError(f"config key {key}: {first} must be even: half of it embeds the noise level as sines")
    network, widths = config.classifier.network, config.classifier.widths
    needed = {"stages": None, "cnn": 2}.get(network, 1)
    if needed and len(widths) != needed:
        raise UserError(f"config key classifier.widths={widths}: {network} takes {needed}")


def _check_dit(config: ml_collections.ConfigDict) -> None:
    """What does not depend on the images; the rest is for checks.py."""
    if not is_dit(config):
        return
    d, size = config.dit, size_of(config)
    if size.width % size.heads or size.width % 4:
        raise UserError(
            f"config section dit: {size.width} channels (width) must be a multiple of 4 and of the {size.heads} heads"
        )
    if d.attention != "full" and d.conditioning == "in_context":
        raise UserError(f"config key dit.conditioning=in_context needs dit.attention=full, not {d.attention}")
    if d.attention != "full" and config.compute.attention != "auto":
        raise UserError(
            f"config key compute.attention={config.compute.attention} says how full attention is computed; "
            f"for dit.attention={d.attention} there is one way: set auto"
        )


def _check_combinations(config: ml_collections.ConfigDict) -> None:
    kind, path = config.label_noise.kind, config.label_noise.path
    if kind in _READ_NOISE and not path:
        raise UserError(f"config key label_noise.kind={kind} needs label_noise.path, the file that holds it")
    if kind == "instance" and path:
        raise UserError("config key label_noise.path: instance-dependent labels of a file have the kind 'file'")
    if kind == GIVEN:
        _check_given(config)
    if config.transition.estimator == "file" and not config.transition.path:
        raise UserError("config key transition.estimator=file needs transition.path, the matrix S[clean, noisy]")
    if reads_noisy_posterior(config) and config.classifier.folds == 1:
        raise UserError(
            f"config key transition.estimator={config.transition.estimator} reads posteriors of images that their "
            "classifier has not seen: set classifier.folds above 1"
        )
    if "init" in config.methods and not config.init_from:
        raise UserError("config key methods: init samples the model that config key init_from names; give both")
    if "refined" in config.methods and "posterior" not in config.methods:
        raise UserError("config key methods: refined goes on from what posterior trained; give both")
    if "corrected" in config.methods and ("dsm" not in config.methods or not config.score.label_dropout):
        raise UserError(
            "config key methods: corrected samples what dsm trained, null label and all: give both, and set "
            "score.label_dropout above 0"
        )
    check_sampling(sampling_of(config.sampling), "config key sampling.")
    c = config.classifier
    if c.init_from and (c.folds, c.members) != (1, 1):
        raise UserError("config key classifier.init_from is one classifier for all images: set classifier.folds=1")
    if config.generated and (c.init_from or c.loss != "forward" or c.forget_rate):
        raise UserError(
            "config key generated adds clean labels to noisy ones, which only classifiers fitted here by "
            "classifier.loss=forward, with classifier.forget_rate=0, tell apart"
        )
    if len(c.light) != 3 or (c.augment and any(c.light)):
        raise UserError(f"config key classifier.light={c.light}: three spreads, or zeros beside classifier.augment")
    if config.process.sigma_min >= config.process.sigma_max:
        raise UserError("config key process.sigma_min must be below process.sigma_max")
    by_default = {"tdsm", "relabel_tdsm"} & set(config.methods)
    floor = "tdsm_floor" in config.methods or (by_default and config.mixture.rule == "floor")
    if floor and not config.score.label_dropout:
        raise UserError("config key mixture.rule=floor needs score.label_dropout > 0: it trains the null label")
    mixed = any(method.startswith(("tdsm", "relabel_tdsm", "s_weighted")) for method in config.methods)
    null_trained = config.score.label_dropout and (config.mixture.dropped_label == "null" or not mixed)
    reads_null = config.sampling.guidance != 1 and not config.sampling.autoguidance
    if reads_null and not null_trained and set(config.methods) != {"init"}:
        raise UserError(
            "config key sampling.guidance reads the null label: set score.label_dropout > 0, mixture.dropped_label=null"
        )
    if config.logging.save_every % config.logging.log_every:
        raise UserError("config key logging.save_every must be a multiple of logging.log_every")


def _check_image_noise(config: ml_collections.ConfigDict) -> None:
    kind = config.image_noise.kind
    if kind != "off" and config.data.stream:
        raise UserError(f"config key image_noise.kind={kind} corrupts images in memory: set data.stream=False")
    if kind != "off" and config.task == "robust_losses":
        raise UserError(f"config key image_noise.kind={kind} is for task=generation: set image_noise.kind=off")
    if not config.image_noise.severity <= 1:
        raise UserError(f"config key image_noise.severity={config.image_noise.severity} is a share, at most 1")


def _check_residual(config: ml_collections.ConfigDict) -> None:
    by_default = {"tdsm", "relabel_tdsm"} & set(config.methods) and config.mixture.rule == "sampled"
    if config.score.residual != "squared" and (by_default or "tdsm_sampled" in config.methods):
        raise UserError(
            f"config key score.residual={config.score.residual}: the rule sampled multiplies two draws, which is right "
            "for the squared residual alone; set score.residual=squared, or another mixture.rule"
        )
    if config.score.residual not in ("squared", "huber") and config.score.huber_delta > 1:
        raise UserError(
            f"config key score.huber_delta={config.score.huber_delta}: {config.score.residual} starts from 1 and "
            "would go the other way: set it to at most 1, or score.residual=huber"
        )


def _check_given(config: ml_collections.ConfigDict) -> None:
    """Labels as given: nobody drew them, and nobody knows the true ones of the training images."""
    if config.label_noise.path:
        raise UserError("config key label_noise.path: labels as given are those of the data; the kind 'file' reads one")
    if config.transition.estimator == "known":
        raise UserError(
            "config key transition.estimator=known is the matrix that labels were drawn from, and those of "
            "label_noise.kind=given were not drawn: choose file with transition.path, or an estimator such as em_shrunk"
        )
    if "clean" in config.methods:
        raise UserError("config key methods: clean trains on true labels, which label_noise.kind=given has none of")


def _check_evaluation(config: ml_collections.ConfigDict) -> None:
    e = config.evaluation
    for key in ("classifiers", "features"):
        if not e[key] or len(set(map(extractor_name, e[key]))) != len(e[key]):
            raise UserError(f"config key evaluation.{key}: name each kind once, at least one, got {e[key]}")
    for spec in extractors(config):
        kind, _, path = spec.partition(":")
        if kind not in EXTRACTORS:
            valid = ("judge", *EXTRACTORS)
            raise UserError(f"config key evaluation.features: {kind!r} is not a choice{did_you_mean(kind, valid)}")
        if not path:
            raise UserError(f"config key evaluation.features: {kind} needs its weights, written {kind}:PATH")
    for name in JUDGES:
        if len(e[name].light) != 3:
            raise UserError(f"config key evaluation.{name}.light={e[name].light}: three spreads")


def _check_robust_losses(config: ml_collections.ConfigDict) -> None:
    r = config.robust_losses
    for name in ("losses", "networks", "noises", "seeds"):
        if not r[name] or len(set(r[name])) != len(r[name]):
            raise UserError(f"config key robust_losses.{name}: name each once, at least one, got {r[name]}")
    for noise in r.noises:
        parse_noise(noise)
    whole = all(type(entry) is int for entry in (*r.seeds, *r.cnn_widths))
    if not whole or len(r.cnn_widths) != 2:
        raise UserError("config keys robust_losses.seeds, cnn_widths must hold whole numbers, cnn_widths two")


# EM cannot start from itself.
_STARTS = tuple(name for name, one in ESTIMATORS.items() if "clean_posterior" not in one.needs)
_READ_NOISE = ("matrix", "file", "human")  # kinds of label noise that a file holds
_CHOICES = {
    "task": TASKS,
    "methods": METHODS,
    "relabel": CORRECTIONS,
    "robust_losses.losses": ("elr", *LOSSES),
    "robust_losses.networks": ("cnn", *BLOCKS),
    "data.on_corrupt": ("stop", "skip"),
    "label_noise.kind": (*DRAWN, *_READ_NOISE, GIVEN),
    "transition.estimator": MATRICES,
    "transition.start": _STARTS,
    "transition.features": ("pixels", "network"),
    "transition.prior": ("estimated", "uniform"),
    "classifier.network": ("stages", "cnn", *BLOCKS),
    "evaluation.classifiers": ("stages", *JUDGES),
    "classifier.loss": ("forward", "elr", *LOSSES),
    "classifier.calibration": CRITERIA,
    "image_noise.kind": ("off", *CORRUPTIONS),
    "score.weighting": tuple(WEIGHTINGS),
    "score.residual": RESIDUALS,
    "score.huber_form": FORMS,
    "score.optimiser": tuple(OPTIMISERS),
    "mixture.rule": TDSM_RULES,
    "mixture.weights": tuple(WEIGHTS),
    "mixture.dropped_label": ("null", "class0"),
    "network.style": (*STYLES, "dit"),
    "dit.size": tuple(SIZES),
    "dit.conditioning": CONDITIONINGS,
    "dit.attention": PATTERNS,
    "parallel.backend": BACKENDS,
    "compute.attention": IMPLEMENTATIONS,
    "process.kind": tuple(PROCESSES),
    "sampling.solver": tuple(SOLVERS),
    "sampling.schedule": SCHEDULES,
    "network.dtype": ("float32", "bfloat16"),
}
_INFINITY = float("inf")
_FRACTIONS = (
    "guidance_rescale",
    "adaptive_guidance",
    "rate",
    "dropout",
    "label_dropout",
    "tau",
    "test_fraction",
    "ema_ramp",
    "augment",
    "validation_share",
)
_MAY_BE_ZERO = (
    "seed",
    "seeds",
    "split_seed",
    "residual_slots",
    "ramp_images",
    "weight_decay",
    "clip_norm",
    "volume_weight",
    "temperature",
    "freeze_images",
    "light",
    "forget_rate",
    "forget_ramp_images",
    "guidance",
    "guidance_interval",
    "churn",
    "churn_interval",
    "slots",
    "logit_noise",
    "steps_a_call",
)
_OF_DIT_SIZE = ("dit.patch", "dit.width", "dit.depth", "dit.heads")
_ANY = ("P_mean",)


def _bounds(key: str) -> tuple[float, float]:
    """The closed interval that numbers of a key lie in; what has no special rule is positive."""
    name = key.rpartition(".")[2]
    if key in ("transition.rate", "data.image_size", *_OF_DIT_SIZE) or name in _MAY_BE_ZERO:
        return 0, _INFINITY
    if name in _FRACTIONS:
        return 0, 1
    if name == "clip_percentile":
        return 0, 100
    if key == "stress.share":
        return 1e-12, 1
    if key == "correction.limit":
        return 1, _INFINITY
    if key == "sampling.rho":
        return LEAST_RHO, _INFINITY
    if key == "sampling.per_class":
        return 2, _INFINITY
    if name in _ANY:
        return -_INFINITY, _INFINITY
    return 1e-12, _INFINITY


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
