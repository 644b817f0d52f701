"""Typed string arguments, validation, hashes: bad input ends in one line that names the nearest valid name."""

import pathlib

import ml_collections
import pytest

from tdsm_jax import config as configuration
from tdsm_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def digits(arguments=""):
    return configuration.load_module(CONFIGS / "digits.py").get_config(arguments)


def test_arguments_set_what_they_say():
    config = digits("noise=pair,rate=0.2,methods=dsm+tdsm,transition=volmin,rule=floor,seed=7")
    assert (config.label_noise.kind, config.label_noise.rate) == ("pair", 0.2)
    assert config.methods == ("dsm", "tdsm")
    assert (config.transition.estimator, config.mixture.rule) == ("volmin", "floor")
    assert config.seed == config.data.split_seed == 7
    configuration.validate(config)


@pytest.mark.parametrize("arguments", ["", "smoke", "noise=asym,rate=0.3"])
def test_digits_has_the_keys_of_base(arguments):
    base = configuration.load_module(CONFIGS / "base.py").get_config()
    assert configuration.flatten(digits(arguments)).keys() == configuration.flatten(base).keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nois=sym", "unknown config argument 'nois'; did you mean 'noise'?"),
        ("noise=simm", "did you mean 'sym'?"),
        ("rate=much", "config argument rate='much' is not of type float"),
        ("rate", "needs a value"),
        ("smoke=yes", "is a switch"),
        ("seed=1.5", "not of type int"),
    ],
)
def test_bad_arguments(arguments, said):
    with pytest.raises(UserError, match="config argument") as error:
        digits(arguments)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("label_noise.rate", 1.5, "config key label_noise.rate=1.5 must lie in [0, 1]"),
        ("label_noise.rate", -0.1, "must lie in [0, 1]"),
        ("label_noise.rate", float("nan"), "must lie in [0, 1]"),
        ("score.steps", 0, "must lie in"),
        ("score.learning_rate", -1.0, "must lie in"),
        ("classifier.folds", 1, "must lie in [2, inf]"),
        ("label_noise.kind", "sim", "did you mean 'sym'?"),
        ("mixture.rule", "own", "is not a choice"),
        ("methods", ("dsm", "tsdm"), "did you mean 'tdsm'?"),
        ("methods", (), "at least one"),
        ("methods", ("dsm", "dsm"), "once"),
        ("network.multipliers", (), "need an entry"),
        ("process.sigma_max", 0.001, "sigma_min must be below"),
        ("score.label_dropout", 0.0, "mixture.rule=floor needs score.label_dropout > 0"),
        ("sampling.per_class", 1, "must lie in [2, inf]"),
        ("logging.save_every", 75, "multiple of logging.log_every"),
    ],
)
def test_bad_values(key, value, said):
    config = digits()
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    with pytest.raises(UserError, match="config key") as error:
        configuration.validate(config)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_every_default_is_valid():
    configuration.validate(digits())


@pytest.mark.parametrize("key", ["packed", "own_gradient"])
def test_switches_can_be_turned_off(key):
    config = digits()
    config.mixture[key] = False
    configuration.validate(config)


def test_base_is_a_config_of_its_own():
    base = configuration.load_module(CONFIGS / "base.py")
    configuration.validate(base.get_config(""))
    with pytest.raises(UserError, match="unknown config argument 'smoke'"):
        base.get_config("smoke")


def test_unknown_override_names_the_nearest_key():
    with pytest.raises(UserError, match="did you mean 'score.steps'"):
        configuration.check_overrides(f"{CONFIGS / 'digits.py'}:smoke", ["score.step"])
    configuration.check_overrides(str(CONFIGS / "digits.py"), ["score.steps", "methods"])


def test_missing_config_file():
    with pytest.raises(UserError, match="no config file"):
        configuration.check_overrides("configs/nothing.py", [])


def test_flatten_and_resolve_keep_everything():
    config = ml_collections.FrozenConfigDict({"a": 1, "b": {"c": (1, 2), "d": {"e": "x"}}})
    assert configuration.flatten(config) == {"a": 1, "b.c": (1, 2), "b.d.e": "x"}
    assert configuration.resolved(config) == {"a": 1, "b": {"c": [1, 2], "d": {"e": "x"}}}
