"""Configurations: reading, typed string arguments, and what a config asks for."""

import importlib.util
import json
import pathlib
from types import SimpleNamespace
from typing import Any

import ml_collections

from tdsm_jax.data.label_files import DRAWN
from tdsm_jax.diffusion.mixture import RULES
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.labels.estimators import ESTIMATORS
from tdsm_jax.networks.resnet import JUDGES

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
    "corrected",  # the model of dsm, its label noise undone while it is sampled: nothing is trained
    "clean",
    "init",
)
MATRICES = ("known", "file", "volmin", *ESTIMATORS)  # where S comes from
UNTRAINED = ("corrected", "init")  # methods that sample a model which is there already
TASKS = ("generation", "robust_losses")
PACKAGE = pathlib.Path(__file__).parent
# The configs that come with the program: inside an installed package (setup.py puts them there), else beside it.
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
_WHICH = "?"  # asks a config for its arguments instead of giving some


class _Asked(Exception):
    """Carries the arguments of a config, name -> default, to who asked for them."""

    def __init__(self, defaults: dict[str, Any]):
        self.defaults = defaults


def base_config(config_file: str) -> ml_collections.ConfigDict:
    """Returns the defaults: `get_config()` of the base.py beside `config_file`."""
    return sibling(config_file, "base.py").get_config()


def default_config() -> ml_collections.ConfigDict:
    """Returns the defaults of every key: those of configs/base.py beside the package."""
    return load_module(CONFIGS / "base.py").get_config()


def sibling(config_file: str, name: str) -> Any:
    """Returns the module of the config file `name` beside `config_file`."""
    return load_module(pathlib.Path(config_file).with_name(name))


def load(specification: str) -> ml_collections.ConfigDict:
    """Returns the config of "path.py:arguments", see `locate`; values can be changed, keys not be added."""
    path, arguments = locate(specification)
    module = load_module(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} is not a config to run: it has no get_config; try configs/cifar10.py")
    return module.get_config(arguments).lock()


def locate(specification: str) -> tuple[pathlib.Path, str]:
    """Returns the file and the arguments that "path.py:arguments" names.

    A file that is there is taken as it is. Else digits, digits.py and configs/digits.py name a config that comes with
    the program, from any folder.
    """
    name, _, arguments = specification.partition(":")
    path = pathlib.PurePath(name)
    own = CONFIGS / f"{path.stem}.py"
    if pathlib.Path(name).is_file():
        return pathlib.Path(name), arguments
    if name in (path.stem, own.name, f"configs/{own.name}") and own.is_file():
        return own, arguments
    names = [f"configs/{known.name}" for known in runnable()]
    raise UserError(f"no config file {name}{did_you_mean(f'configs/{path.stem}.py', names)}")


def runnable() -> list[pathlib.Path]:
    """Returns the files of the configs that come with the program and are complete, by name."""
    return sorted(path for path in CONFIGS.glob("*.py") if "\ndef get_config(" in path.read_text())


def arguments_of(path: pathlib.Path) -> dict[str, Any]:
    """Returns the arguments that a config file takes, name -> default, as it gives them to `parse_arguments`."""
    try:
        load_module(path).get_config(_WHICH)
    except _Asked as asked:
        return asked.defaults
    return {}


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
    if text == _WHICH:
        raise _Asked(defaults)
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


def check_attention(network: str, attention: str) -> None:
    """Raises `UserError` where config arguments ask of another network for an attention that is a transformer's."""
    if attention != "full" and network != "dit":
        raise UserError(f"config argument attention={attention} is one of transformers: give network=dit, too")


def check_overrides(specification: str, keys: list[str]) -> None:
    """Raises `UserError` where "path.py:arguments" cannot be read or a dotted key is not in its config."""
    valid = flatten(load(specification))
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
    flat: dict[str, Any] = {}
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
