"""MNIST at 32x32, the published recipe: DDPM++ of 32 channels and one block, a small CNN as classifier.

python -m tdsm_jax.data.prepare --dataset=mnist --archive_dir=downloads/mnist --out=/data/tfds
python -m tdsm_jax.main --config=configs/mnist.py:data_dir=/data/tfds --workdir=runs/mnist
python -m tdsm_jax.main --config=configs/mnist.py:data_dir=...,objective=published --workdir=runs/published
python -m tdsm_jax.main --config=configs/mnist.py:data=mnist-train.zip,test=mnist-test.zip --workdir=runs/mnist
python -m tdsm_jax.main --config=configs/mnist.py:smoke --workdir=runs/smoke   (made-up images, a minute)

data_dir is that of TensorFlow Datasets, by default $TFDS_DATA_DIR or ~/tensorflow_datasets; its digits of 28x28 get a
black margin of two pixels. Archives (data=, test=) are in EDM's format, a folder or a zip with dataset.json, of digits
that are 32x32 already. Not run here at full length.
"""

import ml_collections

from tdsm_jax.config import sibling

edm = sibling(__file__, "edm.py")


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """Returns the config for arguments such as "data_dir=/data/tfds,noise=asym,rate=0.2"."""
    config, chosen = edm.recipe(arguments, "mnist")
    config.label_noise.table = "mnist"
    config.network.update(channels=32, blocks=1)
    config.classifier.update(network="cnn", widths=(16, 32))
    if chosen.smoke:
        edm.shrink(config, channels=1, num_classes=10)
        config.classifier.widths = (4, 8)
    return config
