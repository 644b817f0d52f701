"""The published recipe for 32x32 images: EDM's training (Karras et al. 2022) with TDSM's classifier (Na et al. 2024).

Not a config to run: cifar10.py, cifar100.py and mnist.py complete it. Lengths that neither paper states are ours and
say so.
"""

from types import SimpleNamespace
from typing import Any

import ml_collections

from tdsm_jax.config import JUDGES, MATRICES, as_published, base_config, parse_arguments

IMAGES = 200_000_000  # of the score network's training
CLASSIFIER_IMAGES = 10_000_000  # ours


def recipe(arguments: str, **defaults: Any) -> tuple[ml_collections.ConfigDict, SimpleNamespace]:
    """Returns the recipe for arguments such as "data=cifar10-32x32.zip,rate=0.4", and the arguments."""
    chosen = parse_arguments(
        arguments,
        data="",
        test="",
        noise=("sym", "asym", "pair", "file"),
        rate=0.4,
        labels="",
        methods="dsm+tdsm+clean",
        transition=MATRICES,
        objective=("floor", "published", "threshold", "all"),
        seed=0,
        smoke=False,
        **defaults,
    )
    config = base_config(__file__)
    config.seed = config.data.split_seed = chosen.seed
    config.methods = tuple(chosen.methods.split("+"))
    config.data.update(name="archive", path=chosen.data, test_path=chosen.test)
    config.label_noise.update(kind=chosen.noise, rate=chosen.rate, path=chosen.labels)
    train_score(config)
    train_classifier(config, chosen.transition)
    config.sampling.update(per_class=5000, batch_size=512)
    config.evaluation.update(widths=(64, 128, 256), hidden=256, steps=20_000, batch_size=256)  # ours
    config.evaluation.update(ramp_images=100_000, ema_half_life=100_000)
    config.logging.update(log_every=100, save_every=5000)
    if chosen.objective == "published":
        as_published(config)
    else:
        config.mixture.rule = chosen.objective
    return config, chosen


def train_score(config: ml_collections.ConfigDict) -> None:
    """Sets network and training of the score network, as published."""
    config.network.update(channels=128, multipliers=(2, 2, 2), blocks=4, attention_resolutions=(16,), dropout=0.13)
    config.score.update(batch_size=512, steps=IMAGES // 512, learning_rate=1e-3, ramp_images=10_000_000)
    config.score.update(ema_half_life=500_000, ema_ramp=0.05, augment=0.12)


def train_classifier(config: ml_collections.ConfigDict, transition: str) -> None:
    """Sets the classifier's training: batch and VolMinNet's schedule as published, the other lengths ours."""
    images = CLASSIFIER_IMAGES
    config.classifier.update(batch_size=1024, learning_rate=1e-3, ramp_images=1_000_000, evaluate_every=250)
    config.classifier.update(ema_half_life=500_000, ema_ramp=0.05)
    config.transition.estimator = transition
    if transition == "volmin":  # first the transition head with a falling rate, then the network alone
        config.classifier.update(decay_images=(1_500_000, 3_000_000, 7_500_000), decay_factors=(0.1, 0.01, 1.0))
        config.transition.freeze_images = 7_500_000
        images += 7_500_000
    config.classifier.steps = images // 1024


def shrink(config: ml_collections.ConfigDict, channels: int, num_classes: int) -> None:
    """Cuts every stage to seconds, on made-up 32x32 images: the whole path, none of the quality."""
    config.data.update(name="synthetic", channels=channels, num_classes=num_classes, num_images=10 * num_classes)
    config.network.update(channels=8, multipliers=(1, 1), blocks=1, attention_resolutions=(16,))
    config.classifier.update(steps=4, batch_size=16, evaluate_every=2, folds=min(2, config.classifier.folds))
    config.score.update(steps=4, batch_size=16)
    config.sampling.update(per_class=2, steps=2, batch_size=20)
    config.evaluation.update(classifiers=("stages",), widths=(8,), hidden=16, steps=4, batch_size=16, nearest=1)
    for judge in JUDGES:
        config.evaluation[judge].update(width=4, steps=2, batch_size=16)
    config.logging.update(log_every=2, save_every=2)
