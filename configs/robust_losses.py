"""The benchmark of robust losses (Ma et al. 2020) on scikit-learn's digits: plain classifiers, noisy labels, 3 seeds.

python -m tdsm_jax.main --config=configs/robust_losses.py --workdir=runs/robust
python -m tdsm_jax.main --config=configs/robust_losses.py:smoke --workdir=runs/smoke
python -m tdsm_jax.main --config=configs/robust_losses.py --config.data.name=archive --config.data.path=cifar10.zip ...

Any key of the section robust_losses in configs/base.py can be set: losses, networks, noises, seeds, steps. For data
other than digits set label_noise.table, which classes asymmetric noise confuses.
"""

import ml_collections

from tdsm_jax.config import base_config, parse_arguments


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """Returns the config; the only argument is "smoke"."""
    chosen = parse_arguments(arguments, smoke=False)
    config = base_config(__file__)
    config.task = "robust_losses"
    if chosen.smoke:
        shrink(config)
    return config


def shrink(config: ml_collections.ConfigDict) -> None:
    """Cuts the benchmark to seconds: two of everything, none of the quality."""
    config.robust_losses.update(
        losses=("ce", "nce+rce"),
        resnet_width=2,
        noises=("sym:0", "sym:0.6", "asym:0.4"),
        seeds=(0, 1),
        steps=20,
        evaluate_every=5,
    )
    config.logging.update(log_every=5, save_every=10)
