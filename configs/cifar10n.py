"""CIFAR-10N, the labels that people gave to CIFAR-10 (Wei et al. 2022), with the published recipe of cifar10.py.

python -m tdsm_jax.data.prepare --dataset=cifar10 --archive_dir=downloads --out=/data/tfds
python -m tdsm_jax.data.prepare --dataset=cifar10_n --archive_dir=downloads --out=/data/tfds
python -m tdsm_jax.main --config=configs/cifar10n.py:data_dir=/data/tfds --workdir=runs/cifar10n
python -m tdsm_jax.main --config=configs/cifar10n.py:data_dir=/data/tfds,column=aggre_label --workdir=runs/aggre
python -m tdsm_jax.main --config=configs/cifar10n.py:data_dir=/data/tfds,labels=CIFAR-10_human.csv --workdir=runs/csv
python -m tdsm_jax.main --config=configs/cifar10n.py:smoke --workdir=runs/smoke   (made-up images and labels)

Wrong labels, as published: worse_label 40.21%, aggre_label 9.03%, random_label1 to 3 about 18%; in cifar10_n of
data_dir, unless labels= names a file (see label_noise.order_path for files in the order of TensorFlow Datasets). S is
that of the labels unless transition= names an estimator. Not run here at full length.
"""

import ml_collections

from tdsm_jax.config import sibling
from tdsm_jax.data.tfds_store import default_dir

edm = sibling(__file__, "edm.py")


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """Returns the config for arguments such as "data_dir=/data/tfds,column=aggre_label,transition=hoc_shrunk"."""
    columns = ("worse_label", "aggre_label", "random_label1", "random_label2", "random_label3")
    config, chosen = edm.recipe(arguments, "cifar10", noise=("human",), column=columns)
    given = chosen.labels or chosen.data_dir
    config.label_noise.update(table="cifar10", column=chosen.column, path=given or str(default_dir()))
    config.classifier.update(network="resnet18", widths=(64,))
    if chosen.smoke:
        edm.shrink(config, channels=3, num_classes=10)
        config.classifier.widths = (8,)
        if config.data.name == "synthetic":  # nobody has labelled made-up images
            config.label_noise.update(kind="sym", path="", column="")
    return config
