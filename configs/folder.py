"""One's own images: a folder or zip file of CLASS/image.jpg, whose folder names may be wrong for some of the images.

python -m tdsm_jax.main --config=configs/folder.py:data=photos --workdir=runs/photos
python -m tdsm_jax.main --config=configs/folder.py:data=photos.zip,test=checked.zip,image_size=64 --workdir=runs/photos
python -m tdsm_jax.main --config=configs/folder.py:data=photos,matrix=S.csv --workdir=runs/photos   (S known)
python -m tdsm_jax.main --config=configs/folder.py:data=photos,noise=sym,rate=0.4 --workdir=runs/experiment
python -m tdsm_jax.main --config=configs/folder.py:data=photos,smoke --workdir=runs/smoke   (a minute or two)

The folders' names are taken for the labels that the images were given, wrong for an unknown share of them, and S is
estimated from them (transition=) or read (matrix=). Nobody then knows the true classes of the training images: what
needs these is measured on the images of test=, whose folders' names are taken for true, and left out without it.
With noise=sym and the like all names are taken for true and made wrong by the program, as an experiment. `stream` reads
images when they are needed, for more than memory holds. Network and lengths are EDM's for small images and ours
otherwise; images= says how many training images a score network sees. Not run here at that length.
"""

import ml_collections

from tdsm_jax.config import MATRICES, base_config, parse_arguments, sibling

edm = sibling(__file__, "edm.py")
ESTIMATED = ("em_calibrated", *(name for name in MATRICES if name not in ("em_calibrated", "known", "file")))


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """Returns the config for arguments such as "data=photos,test=checked,image_size=64,transition=volmin"."""
    chosen = parse_arguments(
        arguments,
        data="",
        test="",
        image_size=32,
        channels=3,
        stream=False,
        noise=("given", "sym", "pair", "instance"),
        rate=0.4,
        transition=ESTIMATED,
        matrix="",
        methods="dsm+posterior+tdsm",
        images=20_000_000,
        seed=0,
        smoke=False,
    )
    config = base_config(__file__)
    config.seed = config.data.split_seed = chosen.seed
    config.methods = tuple(chosen.methods.split("+"))
    config.data.update(name="folder", path=chosen.data, test_path=chosen.test, stream=chosen.stream)
    config.data.update(image_size=chosen.image_size, channels=chosen.channels)
    config.label_noise.update(kind=chosen.noise, rate=chosen.rate)
    edm.train_score(config)
    if chosen.image_size > 32:
        edm.train_score_64(config)
    config.score.steps = max(1, chosen.images // config.score.batch_size)
    edm.train_classifier(config, "file" if chosen.matrix else chosen.transition)
    config.transition.path = chosen.matrix
    config.transition.features = "network"  # hoc: pixels of photographs say little of their class
    config.classifier.update(network="resnet18", widths=(64,))
    config.sampling.update(per_class=500, batch_size=512)
    edm.evaluate(config)
    config.logging.update(log_every=100, save_every=5000)
    if chosen.smoke:
        edm.shorten(config)
        config.classifier.update(network="stages", widths=(8,))
    return config
