"""CIFAR-10, the published recipe: DDPM++ of 55.7 M parameters, ResNet-18 as classifier, 200 million images a method.

python -m tdsm_jax.data.prepare --dataset=cifar10 --archive_dir=downloads --out=/data/tfds
python -m tdsm_jax.main --config=configs/cifar10.py:data_dir=/data/tfds --workdir=runs/cifar10
python -m tdsm_jax.main --config=configs/cifar10.py:data_dir=...,objective=published --workdir=runs/published
python -m tdsm_jax.main --config=configs/cifar10.py:data=cifar10-train.zip,test=cifar10-test.zip --workdir=runs/cifar10
python -m tdsm_jax.main --config=configs/cifar10.py:data_dir=/data/tfds,network=dit --workdir=runs/transformer
python -m tdsm_jax.main --config=configs/cifar10.py:smoke --workdir=runs/smoke   (made-up images, a minute or two)

data_dir is that of TensorFlow Datasets, by default $TFDS_DATA_DIR or ~/tensorflow_datasets; archives (data=, test=) are
in EDM's format, a folder or a zip with dataset.json. smoke,data_dir=... runs the small one on the real images. Not run
here at full length.
Published for sym 40% (Na et al. 2024): CW-FID 30.45 (DSM), 15.92 (TDSM); CAS 47.21, 62.28; FID 2.07, 2.43.
"""

import ml_collections

from tdsm_jax.config import sibling

edm = sibling(__file__, "edm.py")


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """Returns the config for arguments such as "data_dir=/data/tfds,noise=asym,rate=0.4"."""
    config, chosen = edm.recipe(arguments, "cifar10")
    config.label_noise.table = "cifar10"
    config.classifier.update(network="resnet18", widths=(64,))
    config.evaluation.classifiers = ("stages", "resnet18", "resnet50")
    if chosen.smoke:
        edm.shrink(config, channels=3, num_classes=10)
        config.classifier.widths = (8,)
    return config
