"""Typed string arguments, validation, hashes: bad input ends in one line that names the nearest valid name."""

import pathlib

import ml_collections
import pytest
from ml_collections import FrozenConfigDict

from tdsm_jax import config as configuration
from tdsm_jax.errors import UserError
from tdsm_jax.run import Run, optimisation
from tdsm_jax.validation import validate

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def digits(arguments=""):
    return configuration.load_module(CONFIGS / "digits.py").get_config(arguments)


def test_arguments_set_what_they_say():
    config = digits("noise=pair,rate=0.2,methods=dsm+tdsm,transition=volmin,objective=threshold,seed=7")
    assert (config.label_noise.kind, config.label_noise.rate) == ("pair", 0.2)
    assert config.methods == ("dsm", "tdsm")
    assert (config.transition.estimator, config.mixture.rule) == ("volmin", "threshold")
    assert config.seed == config.data.split_seed == 7
    validate(config)


CONFIG_FILES = ("digits", "cifar10", "cifar100", "mnist")


@pytest.mark.parametrize("arguments", ["", "smoke", "noise=asym,rate=0.3", "objective=published", "transition=volmin"])
@pytest.mark.parametrize("name", CONFIG_FILES)
def test_every_config_is_valid_and_has_the_keys_of_base(name, arguments):
    base = configuration.load_module(CONFIGS / "base.py").get_config()
    config = configuration.load_module(CONFIGS / f"{name}.py").get_config(arguments)
    assert configuration.flatten(config).keys() == configuration.flatten(base).keys()
    validate(config)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist"])
def test_the_published_recipe(name):
    config = configuration.load_module(CONFIGS / f"{name}.py").get_config("objective=published,transition=volmin")
    score, classifier = config.score, config.classifier
    assert score.batch_size == 512 and score.steps * 512 == pytest.approx(200e6, rel=1e-5)
    assert (score.learning_rate, score.ramp_images, score.ema_half_life, score.ema_ramp) == (1e-3, 10**7, 500_000, 0.05)
    assert (config.network.dropout, score.augment, score.label_dropout) == (0.13, 0.12, 0)
    assert config.network.channels == (32 if name == "mnist" else 128) and config.network.multipliers == (2, 2, 2)
    assert (classifier.batch_size, classifier.folds, classifier.temperature) == (1024, 1, 1)
    assert classifier.network == {"cifar10": "resnet18", "cifar100": "resnet34", "mnist": "cnn"}[name]
    assert classifier.decay_images == (1_500_000, 3_000_000, 7_500_000) and classifier.augment == 0.12
    mixture = config.mixture
    assert (mixture.rule, mixture.tau, mixture.weights, mixture.dropped_label) == (
        "threshold",
        0.01,
        "inverse",
        "class0",
    )
    assert mixture.own_gradient and config.transition.prior == "uniform"


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
        ("classifier.folds", 0, "must lie in"),
        ("label_noise.kind", "sim", "did you mean 'sym'?"),
        ("mixture.rule", "own", "is not a choice"),
        ("methods", ("dsm", "tsdm"), "did you mean 'tdsm'?"),
        ("methods", (), "at least one"),
        ("methods", ("dsm", "dsm"), "once"),
        ("network.multipliers", (), "need an entry"),
        ("process.sigma_max", 0.001, "sigma_min must be below"),
        ("score.label_dropout", 0.0, "mixture.rule=floor needs score.label_dropout > 0"),
        ("stress.share", 0.0, "must lie in [1e-12, 1]"),
        ("stress.logit_noise", -1.0, "must lie in [0, inf]"),
        ("sampling.guidance", -0.5, "must lie in [0, inf]"),
        ("sampling.per_class", 1, "must lie in [2, inf]"),
        ("sampling.solver", "dpm", "is not a choice"),
        ("sampling.schedule", "cosine", "is not a choice"),
        ("sampling.rho", 0.001, "config key sampling.rho=0.001 must lie in [1, inf]"),
        ("sampling.churn", 5.0, "the solver stochastic_heun adds; heun adds none"),
        ("sampling.churn_noise", 0.0, "must lie in"),
        ("sampling.guidance_rescale", 1.5, "must lie in [0, 1]"),
        ("sampling.adaptive_guidance", 0.99, "changes nothing where config key sampling.guidance is 1"),
        ("sampling.guidance_interval", (0.1, 3.0), "changes nothing where config key sampling.guidance is 1"),
        ("sampling.autoguidance", "weak.npz", "changes nothing where config key sampling.guidance is 1"),
        ("correction.limit", 0.5, "must lie in [1, inf]"),
        ("correction.slots", -1, "must lie in [0, inf]"),
        ("methods", ("corrected", "clean"), "corrected samples what dsm trained"),
        ("logging.save_every", 75, "multiple of logging.log_every"),
        ("methods", ("init",), "config key init_from names; give both"),
        ("classifier.init_from", "classifier.npz", "set classifier.folds=1"),
        ("classifier.network", "resnet18", "resnet18 takes 1"),
        ("label_noise.kind", "file", "needs label_noise.path"),
        ("transition.estimator", "em_calibrate", "did you mean 'em_calibrated'?"),
        ("transition.estimator", "file", "needs transition.path"),
        ("transition.start", "em", "is not a choice"),
        ("compute.attention", "cuda", "did you mean"),
        ("network.style", "ddpm", "did you mean 'ddpmpp'?"),
        ("score.residual", "hubert", "did you mean 'huber'?"),
        ("score.huber_form", "exemple", "did you mean 'example'?"),
        ("score.huber_delta", 0.0, "must lie in [1e-12, inf]"),
        ("score.weighting", "p3", "did you mean 'p2'?"),
        ("score.optimiser", "adabelieve", "did you mean 'adabelief'?"),
        ("score.clip_percentile", 101.0, "must lie in [0, 100]"),
    ],
)
def test_bad_values(key, value, said):
    config = digits()
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    with pytest.raises(UserError, match="config key") as error:
        validate(config)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("methods", [("dsm", "tdsm"), ("tdsm_sampled",), ("relabel_tdsm",)])
def test_drawn_products_go_with_squares_alone(methods):
    config = digits()
    config.methods, config.score.residual, config.mixture.rule = methods, "huber", "sampled"
    with pytest.raises(UserError, match=r"score.residual=huber: the rule sampled .* set score.residual=squared"):
        validate(config)
    config.methods = ("dsm", "posterior", "tdsm_floor")  # which draw no products
    validate(config)


def test_what_squares_do_not_read_does_not_stand_in_the_way_of_drawn_products():
    config = digits()
    config.methods = ("tdsm_sampled",)
    config.score.update(huber_delta=0.05, huber_form="example")
    validate(config)
    objective = Run(FrozenConfigDict(config), pathlib.Path()).objective("tdsm_sampled")
    assert (objective.rule, objective.residual.kind) == ("sampled", "squared")


@pytest.mark.parametrize("kind", ["huber_exponential", "huber_reversed", "huber_snr"])
def test_schedules_of_delta_come_down_from_one(kind):
    config = digits()
    config.score.update(residual=kind, huber_delta=1.0)
    validate(config)
    config.score.huber_delta = 1.5
    with pytest.raises(UserError, match=f"score.huber_delta=1.5: {kind} starts from 1") as error:
        validate(config)
    assert "\n" not in str(error.value)
    config.score.residual = "huber"  # which has no schedule
    validate(config)


def test_the_optimiser_of_the_score_is_the_one_asked_for():
    config = digits()
    config.score.update(optimiser="adopt", clip_percentile=90.0, clip_window=16)
    chosen = optimisation(config.score)
    assert (chosen.optimiser, chosen.clip_percentile, chosen.clip_window) == ("adopt", 90.0, 16)
    assert optimisation(config.classifier).optimiser == "adam"


def test_guidance_needs_a_trained_null_label():
    config = digits("objective=all")
    config.sampling.guidance = 2.0
    validate(config)
    for section, key, value in (("score", "label_dropout", 0.0), ("mixture", "dropped_label", "class0")):
        without = config.copy_and_resolve_references()
        without[section][key] = value
        with pytest.raises(UserError, match="config key sampling.guidance reads the null label"):
            validate(without)
        without.update(methods=("init",), init_from="ema.npz")  # which says nothing of how it was trained
        validate(without)


def test_a_weaker_model_guides_without_a_null_label():
    config = digits("objective=all")
    config.sampling.update(guidance=2.0, autoguidance="weak.npz")
    config.score.label_dropout = 0.0
    validate(config)
    config.methods = ("dsm", "corrected")
    with pytest.raises(UserError, match="set score.label_dropout above 0"):
        validate(config)


def test_every_default_is_valid():
    validate(digits())


@pytest.mark.parametrize("key", ["packed", "own_gradient"])
def test_switches_can_be_turned_off(key):
    config = digits()
    config.mixture[key] = False
    validate(config)


def test_base_is_a_config_of_its_own():
    base = configuration.load_module(CONFIGS / "base.py")
    validate(base.get_config(""))
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


def test_an_estimate_from_posteriors_needs_images_that_a_classifier_has_not_seen():
    config = digits("transition=em_calibrated")
    validate(config)
    config.classifier.folds = 1
    with pytest.raises(UserError, match="set classifier.folds above 1"):
        validate(config)
    config.transition.estimator = "hoc"  # reads pixels
    validate(config)
    config.transition.features = "network"
    with pytest.raises(UserError, match="set classifier.folds above 1"):
        validate(config)
