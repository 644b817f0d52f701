"""The published recipe for 32x32 images: EDM's training (Karras et al. 2022) with TDSM's classifier (Na et al. 2024).

Not a config to run: cifar10.py, cifar100.py, cifar10n.py and mnist.py complete it. Lengths that neither paper states
are ours and say so.
"""

import math
from types import SimpleNamespace
from typing import Any

import ml_collections

from tdsm_jax.config import JUDGES, MATRICES, as_published, base_config, check_attention, parse_arguments
from tdsm_jax.errors import UserError
from tdsm_jax.networks.attention import PATTERNS

IMAGES = 200_000_000  # of the score network's training
CLASSIFIER_IMAGES = 10_000_000  # ours


def recipe(arguments: str, dataset: str = "", **defaults: Any) -> tuple[ml_collections.ConfigDict, SimpleNamespace]:
    """Returns the recipe for arguments such as "data_dir=/data/tfds,rate=0.4", and the arguments.

    `dataset` is what it is run on unless data= names an archive: one that TensorFlow Datasets or data.prepare has
    prepared in data_dir. `defaults` are more arguments, or other choices of those here.
    """
    usual = dict(
        data_dir="",
        data="",
        test="",
        noise=("sym", "asym", "pair", "file"),
        rate=0.4,
        labels="",
        methods="dsm+tdsm+clean",
        transition=MATRICES,
        objective=("floor", "published", "threshold", "all"),
        network=("unet", "dit"),
        attention=PATTERNS,
        seed=0,
        smoke=False,
    )
    chosen = parse_arguments(arguments, **usual | defaults)
    config = base_config(__file__)
    config.seed = config.data.split_seed = chosen.seed
    config.methods = tuple(chosen.methods.split("+"))
    choose_images(config, chosen, dataset)
    config.label_noise.update(kind=chosen.noise, rate=chosen.rate, path=chosen.labels)
    train_score(config)
    check_attention(chosen.network, chosen.attention)
    if chosen.network == "dit":
        train_transformer(config, chosen.attention)
    train_classifier(config, chosen.transition)
    config.sampling.update(per_class=5000, batch_size=512)
    evaluate(config)
    config.logging.update(log_every=100, save_every=5000)
    if chosen.objective == "published":
        as_published(config)
    else:
        config.mixture.rule = chosen.objective
    return config, chosen


def choose_images(config: ml_collections.ConfigDict, chosen: SimpleNamespace, dataset: str) -> None:
    """Sets where the images come from; digits of 28x28 are padded to the image size of 32 that base.py sets."""
    if chosen.data and chosen.data_dir:
        raise UserError("config arguments data and data_dir: both name the images; give one of them")
    if chosen.test and not chosen.data:
        raise UserError("config argument test names the test images of an archive; give data, its training images, too")
    if chosen.data or not dataset:
        config.data.update(name="archive", path=chosen.data, test_path=chosen.test)
    else:
        config.data.update(name=dataset, path=chosen.data_dir)


def train_score(config: ml_collections.ConfigDict) -> None:
    """Sets network and training of the score network, as published."""
    config.network.update(channels=128, multipliers=(2, 2, 2), blocks=4, attention_resolutions=(16,), dropout=0.13)
    config.score.update(batch_size=512, steps=IMAGES // 512, learning_rate=1e-3, ramp_images=10_000_000)
    config.score.update(ema_half_life=500_000, ema_ramp=0.05, augment=0.12)


def train_transformer(config: ml_collections.ConfigDict, attention: str) -> None:
    """Changes what the diffusion transformer (Peebles & Xie 2023) changes: DiT-S/2, its batch, rate and average.

    32x32 images have as many tokens as the latents of its paper; the number of images stays that of the recipe.
    """
    config.network.update(style="dit", dropout=0.0)
    config.dit.update(size="S/2", attention=attention, window=7 if attention == "neighbourhood" else 49)
    half_life = round(256 * math.log(0.5) / math.log(0.9999))  # of its average, which keeps .9999 a step
    config.score.update(batch_size=256, steps=IMAGES // 256, learning_rate=1e-4, ramp_images=0, ema_half_life=half_life)


def train_score_64(config: ml_collections.ConfigDict) -> None:
    """Changes what EDM changes for 64x64 images (those of faces, FFHQ)."""
    config.network.update(multipliers=(1, 2, 2, 2), dropout=0.05)
    config.score.update(batch_size=256, steps=IMAGES // 256, learning_rate=2e-4, augment=0.15)


def evaluate(config: ml_collections.ConfigDict) -> None:
    """Sets the training of the classifiers that judge, ours."""
    config.evaluation.update(widths=(64, 128, 256), hidden=256, steps=20_000, batch_size=256)
    config.evaluation.update(ramp_images=100_000, ema_half_life=100_000)


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
    """Cuts every stage to seconds, on made-up 32x32 images unless some are given: the whole path, no quality."""
    if not config.data.path:
        config.data.update(name="synthetic", channels=channels, num_classes=num_classes, num_images=10 * num_classes)
    shorten(config)


def shorten(config: ml_collections.ConfigDict) -> None:
    """Cuts every stage to seconds, on whatever images there are."""
    config.network.update(channels=8, multipliers=(1, 1), blocks=1, attention_resolutions=(16,))
    config.dit.update(width=16, depth=1, heads=2)
    config.classifier.update(steps=4, batch_size=16, evaluate_every=2, folds=min(2, config.classifier.folds))
    config.score.update(steps=4, batch_size=16)
    config.sampling.update(per_class=2, steps=2, batch_size=20)
    config.evaluation.update(classifiers=("stages",), widths=(8,), hidden=16, steps=4, batch_size=16, nearest=1)
    for judge in JUDGES:
        config.evaluation[judge].update(width=4, steps=2, batch_size=16)
    config.logging.update(log_every=2, save_every=2)
