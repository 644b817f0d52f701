"""Configurations: reading, typed string arguments, validation, and the hashes that name artifacts."""

import importlib.util
import json
import pathlib
from types import SimpleNamespace
from typing import Any

import ml_collections
import numpy as np

from tdsm_jax.data.label_files import DRAWN, GIVEN
from tdsm_jax.diffusion.mixture import RULES
from tdsm_jax.diffusion.process import PROCESSES
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluation.report_words import EXTRACTORS
from tdsm_jax.labels.correction import CORRECTIONS
from tdsm_jax.labels.estimators import ESTIMATORS
from tdsm_jax.labels.losses import LOSSES
from tdsm_jax.labels.weights import WEIGHTS
from tdsm_jax.networks.resnet import BLOCKS, JUDGES
from tdsm_jax.networks.unet import ATTENTIONS, STYLES
from tdsm_jax.training.calibration import CRITERIA
from tdsm_jax.training.parallel import BACKENDS

TDSM_RULES = tuple(rule for rule in RULES if rule not in ("own", "prior"))
METHODS = (
    "dsm",
    "tdsm",
    *(f"tdsm_{rule}" for rule in TDSM_RULES),  # tdsm with this rule, whatever mixture.rule says
    "s_weighted",
    "posterior",  # posterior-sampled DSM
    "refined",  # posterior once more, its posterior corrected by the model that posterior trained
    "relabel",  # DSM on corrected labels
    "relabel_tdsm",  # tdsm on corrected labels, with the matrix of what noise is left in them
    "clean",
    "init",
)
MATRICES = ("known", "file", "volmin", *ESTIMATORS)  # where S comes from
TASKS = ("generation", "robust_losses")


def base_config(config_file: str) -> ml_collections.ConfigDict:
    """Returns the defaults: `get_config()` of the base.py beside `config_file`."""
    return sibling(config_file, "base.py").get_config()


def sibling(config_file: str, name: str) -> Any:
    """Returns the module of the config file `name` beside `config_file`."""
    return load_module(pathlib.Path(config_file).with_name(name))


def load_module(path: pathlib.Path) -> Any:
    """Runs a Python config file and returns its module."""
    if not path.is_file():
        raise UserError(f"no config file {path}")
    spec = importlib.util.spec_from_file_location(f"tdsm_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_arguments(text: str, **defaults: Any) -> SimpleNamespace:
    """Parses "name=value,flag" against typed defaults; a tuple lists the choices, the first one the default.

    Unknown names, values of another type and unknown choices are `UserError`s that name the nearest valid one.
    """
    values = {name: default[0] if isinstance(default, tuple) else default for name, default in defaults.items()}
    for part in filter(None, text.split(",")):
        name, given, value = part.partition("=")
        if name not in defaults:
            raise UserError(f"unknown config argument {name!r}{did_you_mean(name, defaults)}")
        values[name] = _parse_value(name, value if given else None, defaults[name])
    return SimpleNamespace(**values)


def _parse_value(name: str, value: str | None, default: Any) -> Any:
    if isinstance(default, bool):
        if value not in (None, "True", "False"):
            raise UserError(f"config argument {name!r} is a switch: write {name} or {name}=False, not {value!r}")
        return value != "False"
    if value is None:
        raise UserError(f"config argument {name!r} needs a value: {name}=...")
    if isinstance(default, tuple):
        if value not in default:
            raise UserError(f"config argument {name}={value!r} is not a choice{did_you_mean(value, default)}")
        return value
    try:
        return type(default)(value)
    except ValueError:
        raise UserError(f"config argument {name}={value!r} is not of type {type(default).__name__}") from None


def check_overrides(specification: str, keys: list[str]) -> None:
    """Raises `UserError` where "path.py:arguments" cannot be read or a dotted key is not in its config."""
    path, _, arguments = specification.partition(":")
    module = load_module(pathlib.Path(path))
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} is not a config to run: it has no get_config; try configs/cifar10.py")
    valid = flatten(module.get_config(arguments))
    for key in keys:
        if key not in valid:
            raise UserError(f"unknown config key {key!r}{did_you_mean(key, valid)}")


def parse_noise(text: str) -> tuple[str, float]:
    """Turns "sym:0.4" into ("sym", 0.4); the kinds are those that label files are drawn with."""
    kind, _, rate = text.partition(":")
    if kind not in DRAWN:
        raise UserError(f"label noise {text!r}: unknown kind {kind!r}{did_you_mean(kind, DRAWN)}")
    try:
        number = float(rate)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise UserError(f"label noise {text!r} must be a kind and a rate in [0, 1], such as sym:0.4")
    return kind, number


def reads_noisy_posterior(config: Any) -> bool:
    """Says whether the estimator of S that a config names reads classifiers of the noisy labels."""
    t = config.transition
    needs = ESTIMATORS[t.estimator].needs if t.estimator in ESTIMATORS else ()
    learnt = {"noisy_posterior", "clean_posterior", *(("features",) if t.features == "network" else ())}
    return not learnt.isdisjoint(needs)


def small_judge(config: Any) -> bool:
    """Says whether a config asks for the small judge: for its verdicts or for its features, it measures both."""
    return "stages" in config.evaluation.classifiers or "judge" in config.evaluation.features


def resnet_judges(config: Any) -> list[str]:
    """Returns the names of the larger classifiers that a config asks for."""
    return [name for name in JUDGES if name in config.evaluation.classifiers]


def extractors(config: Any) -> list[str]:
    """Returns the feature extractors that a config asks for, "kind:path"."""
    return [spec for spec in config.evaluation.features if spec != "judge"]


def extractor_name(spec: str) -> str:
    """Returns the name that an extractor's results stand under: "inception" of "inception:weights.pth"."""
    return spec.partition(":")[0]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted key: value} of a nested config or dictionary."""
    flat = {}
    for key, value in config.items():
        nested = hasattr(value, "items")
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def resolved(config: Any) -> dict[str, Any]:
    """Returns the config as nested JSON values."""
    return json.loads(config.to_json())


def as_published(config: ml_collections.ConfigDict) -> None:
    """Sets every choice of TDSM's official implementation (Na et al. 2024) that differs from ours.

    The classifier gets the augmentation that `score.augment` has now; override both keys, not one.
    docs/official.md lists them with the reasons for ours.
    """
    config.mixture.update(rule="threshold", tau=0.01, weights="inverse", dropped_label="class0", own_gradient=True)
    config.transition.prior = "uniform"
    config.classifier.update(folds=1, temperature=1.0, augment=config.score.augment, light=(0.0, 0.0, 0.0))
    config.score.label_dropout = 0.0


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for the first key whose value cannot work."""
    checks = (
        _check_choices,
        _check_numbers,
        _check_widths,
        _check_combinations,
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
    if config.sampling.guidance != 1 and not null_trained and set(config.methods) != {"init"}:
        raise UserError(
            "config key sampling.guidance reads the null label: set score.label_dropout > 0, mixture.dropped_label=null"
        )
    if config.logging.save_every % config.logging.log_every:
        raise UserError("config key logging.save_every must be a multiple of logging.log_every")


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
    "mixture.rule": TDSM_RULES,
    "mixture.weights": tuple(WEIGHTS),
    "mixture.dropped_label": ("null", "class0"),
    "network.style": tuple(STYLES),
    "parallel.backend": BACKENDS,
    "compute.attention": ATTENTIONS,
    "process.kind": tuple(PROCESSES),
    "network.dtype": ("float32", "bfloat16"),
}
_INFINITY = float("inf")
_FRACTIONS = ("rate", "dropout", "label_dropout", "tau", "test_fraction", "ema_ramp", "augment", "validation_share")
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
    "logit_noise",
    "steps_a_call",
)
_ANY = ("P_mean",)


def _bounds(key: str) -> tuple[float, float]:
    """The closed interval that numbers of a key lie in; what has no special rule is positive."""
    name = key.rpartition(".")[2]
    if key in ("transition.rate", "data.image_size") or name in _MAY_BE_ZERO:
        return 0, _INFINITY
    if name in _FRACTIONS:
        return 0, 1
    if key == "stress.share":
        return 1e-12, 1
    if key == "sampling.per_class":
        return 2, _INFINITY
    if name in _ANY:
        return -_INFINITY, _INFINITY
    return 1e-12, _INFINITY


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
