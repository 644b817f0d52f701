"""The main job on scikit-learn's 1,797 handwritten digits (8x8): no download, about a quarter of an hour on two cores.

python -m tdsm_jax.main --config=configs/digits.py --workdir=runs/digits
python -m tdsm_jax.main --config=configs/digits.py:noise=asym,rate=0.3,transition=volmin --workdir=runs/asym
python -m tdsm_jax.main --config=configs/digits.py:network=dit,attention=neighbourhood --workdir=runs/transformer
python -m tdsm_jax.main --config=configs/digits.py:smoke --workdir=runs/smoke
"""

import ml_collections

from tdsm_jax.config import JUDGES, MATRICES, as_published, base_config, check_attention, parse_arguments
from tdsm_jax.networks.attention import PATTERNS


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """Returns the config for arguments such as "noise=pair,rate=0.2,methods=dsm+tdsm,seed=1,smoke"."""
    chosen = parse_arguments(
        arguments,
        noise=("sym", "asym", "pair", "instance", "sym_inclusive"),
        imbalance=1.0,
        rate=0.4,
        methods="dsm+tdsm+posterior+clean",
        transition=MATRICES,
        objective=("floor", "threshold", "all", "published"),
        network=("unet", "dit"),
        attention=PATTERNS,
        seed=0,
        smoke=False,
    )
    config = base_config(__file__)
    config.seed = config.data.split_seed = chosen.seed
    config.methods = tuple(chosen.methods.split("+"))
    config.label_noise.kind = chosen.noise
    config.label_noise.rate = chosen.rate
    config.label_noise.imbalance = chosen.imbalance
    config.transition.estimator = chosen.transition
    # Small images of high contrast: the noise that hides or shows the digit is stronger than for 32x32 photographs.
    config.process.P_mean = -0.5
    config.score.learning_rate = 2e-3
    check_attention(chosen.network, chosen.attention)
    if chosen.network == "dit":
        config.network.style = "dit"
        config.dit.update(attention=chosen.attention, window=9 if chosen.attention == "window" else 3)
        config.score.learning_rate = 1e-3
    # 1,438 images are memorised soon: small changes of them raise the accuracy on unseen ones by .02.
    config.classifier.light = (0.05, 0.1, 0.1)
    if chosen.objective == "published":
        as_published(config)
    else:
        config.mixture.rule = chosen.objective
    if chosen.smoke:
        shrink(config)
    return config


def shrink(config: ml_collections.ConfigDict) -> None:
    """Cuts every stage to seconds: the whole path, none of the quality."""
    config.classifier.update(
        widths=(8,), hidden=32, folds=min(2, config.classifier.folds), steps=20, batch_size=64, evaluate_every=10
    )
    config.network.update(channels=8, multipliers=(1,))
    config.dit.update(width=16, depth=1, heads=2)
    config.score.update(steps=20, batch_size=64)
    config.sampling.update(per_class=8, steps=4, batch_size=40)
    config.evaluation.update(widths=(8,), hidden=32, steps=30, batch_size=64)
    for judge in JUDGES:
        config.evaluation[judge].update(width=4, steps=2, batch_size=64)
    config.logging.update(log_every=5, save_every=10)
