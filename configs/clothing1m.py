"""Clothing-1M, labels as they were crawled (61.5% right): the recipe of CIFAR-10, S learnt with the classifiers.

python -m tdsm_jax.main --config=configs/clothing1m.py:data=train.zip,test=test.zip --workdir=runs/clothing1m
python -m tdsm_jax.main --config=configs/clothing1m.py:smoke --workdir=runs/smoke   (made-up images, a minute or two)

The archives are in EDM's format, of square images: the training archive with the crawled labels, the test archive with
verified ones. Its clean labels are not known, so method clean is not one here, and the judges learn from the crawled
labels too: the test accuracy beside their verdicts says what these are worth. Not run here at full length. Image size
and lengths are ours. Published (Na et al. 2024): FID 6.67 (DSM), 4.94 (TDSM); CAS 46.52, 47.79.
"""

import ml_collections

from tdsm_jax.config import sibling

edm = sibling(__file__, "edm.py")

NOISE_RATE = 0.385  # what the made-up images of a smoke run get


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """Returns the config for arguments such as "data=train.zip,test=test.zip,methods=dsm+tdsm"."""
    config, chosen = edm.recipe(f"methods=dsm+tdsm,transition=volmin,{arguments}")
    config.classifier.update(network="resnet18", widths=(64,))
    config.sampling.per_class = 3572  # 50,000 images of 14 classes
    config.evaluation.classifiers = ("stages", "resnet18", "resnet50")
    given = chosen.labels or chosen.data
    if given and not chosen.smoke:  # by default the labels that stand in the archive
        config.label_noise.update(kind="file", path=given)
    if chosen.smoke:
        edm.shrink(config, channels=3, num_classes=14)
        config.classifier.widths = (8,)
        config.label_noise.rate = NOISE_RATE
    return config
