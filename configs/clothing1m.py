"""Clothing-1M at 64x64: a million shop images labelled by the text around them, 61.5% of them rightly (published).

python -m tdsm_jax.main --config=configs/clothing1m.py:data=clothing1m --workdir=runs/clothing1m
python -m tdsm_jax.main --config=configs/clothing1m.py:data=...,transition=volmin,objective=published --workdir=runs/c
python -m tdsm_jax.main --config=configs/clothing1m.py:smoke --workdir=runs/smoke   (made-up images, a minute or two)

data= is the folder as unpacked: images/ and the lists and labels beside it. Not run here: the images, which their
authors give on request, were not at hand. Published (Na et al. 2024): FID 6.67 (DSM), 4.94 (TDSM); CAS 46.52, 47.79.
Published too: a classifier like ResNet-34, 64x64 pixels, 14 classes. The score network's settings are those that EDM
publishes for 64x64 faces (FFHQ), the lengths of classifier and evaluation ours.

S is counted from the clean training and validation images that have a label of both kinds; the true classes of the
million are not known, so there is no method clean, and metrics compare with the clean images.
"""

import ml_collections

from tdsm_jax.config import MATRICES, as_published, base_config, parse_arguments, sibling

edm = sibling(__file__, "edm.py")
COUNTED = ("counts", *(name for name in MATRICES if name not in ("counts", "known", "file")))


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """Returns the config for arguments such as "data=clothing1m,transition=volmin,methods=dsm+tdsm"."""
    chosen = parse_arguments(
        arguments,
        data="",
        methods="dsm+tdsm",
        transition=COUNTED,
        objective=("floor", "published", "threshold", "all"),
        memory=False,
        seed=0,
        smoke=False,
    )
    config = base_config(__file__)
    config.seed = config.data.split_seed = chosen.seed
    config.methods = tuple(chosen.methods.split("+"))
    # A million images of 64x64 are 12 GB: with `memory` they are decoded once, at the start.
    config.data.update(name="clothing1m", path=chosen.data, image_size=64, stream=not chosen.memory)
    config.label_noise.kind = "given"
    edm.train_score(config)
    edm.train_score_64(config)
    edm.train_classifier(config, chosen.transition)
    config.transition.features = "network"
    config.classifier.update(network="resnet34", widths=(64,))
    config.sampling.update(per_class=3500, batch_size=512)
    edm.evaluate(config)
    config.evaluation.classifiers = ("stages", "resnet18", "resnet50")
    config.logging.update(log_every=100, save_every=5000)
    if chosen.objective == "published":
        as_published(config)
    else:
        config.mixture.rule = chosen.objective
    if chosen.smoke:
        edm.shorten(config)
        config.classifier.update(network="stages", widths=(8,))
        config.data.image_size = 32
        if not chosen.data:
            config.data.update(name="synthetic", num_classes=14, num_images=140, stream=False)
            config.label_noise.update(kind="sym", rate=0.385)
    return config
