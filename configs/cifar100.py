"""CIFAR-100, the published recipe: DDPM++ of 55.7 M parameters, ResNet-34 as classifier, 200 million images a method.

python -m tdsm_jax.data.prepare --dataset=cifar100 --archive_dir=downloads --out=/data/tfds
python -m tdsm_jax.main --config=configs/cifar100.py:data_dir=/data/tfds --workdir=runs/c100
python -m tdsm_jax.main --config=configs/cifar100.py:data_dir=...,objective=published --workdir=runs/published
python -m tdsm_jax.main --config=configs/cifar100.py:data=cifar100-train.zip,test=cifar100-test.zip --workdir=runs/c100
python -m tdsm_jax.main --config=configs/cifar100.py:smoke --workdir=runs/smoke   (made-up images, a minute or two)

data_dir is that of TensorFlow Datasets, by default $TFDS_DATA_DIR or ~/tensorflow_datasets; archives (data=, test=) are
in EDM's format, a folder or a zip with dataset.json. smoke,data_dir=... runs the small one on the real images. Not run
here at full length.
Published for sym 40% (Na et al. 2024): CW-FID 100.04 (DSM), 93.24 (TDSM); CAS 15.41, 21.17; FID 3.36, 6.85.
"""

import ml_collections

from tdsm_jax.config import sibling

edm = sibling(__file__, "edm.py")


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """Returns the config for arguments such as "data_dir=/data/tfds,noise=asym,rate=0.4"."""
    config, chosen = edm.recipe(arguments, "cifar100")
    config.label_noise.table = "cifar100"
    config.classifier.update(network="resnet34", widths=(64,))
    config.sampling.per_class = 500
    config.evaluation.classifiers = ("stages", "resnet18", "resnet50")
    if chosen.smoke:
        edm.shrink(config, channels=3, num_classes=100)
        config.classifier.update(network="resnet18", widths=(8,))
    return config
