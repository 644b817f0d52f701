"""The labels that people gave to the training images of CIFAR-10 and CIFAR-100: CIFAR-10N and CIFAR-100N.

Source: Wei et al., ICLR 2022, "Learning with noisy labels revisited: a study using real-world human annotations".
"""

import os
import pathlib
from collections.abc import Mapping

import numpy as np

from tdsm_jax import paths
from tdsm_jax.data import tfds_store
from tdsm_jax.data.dataset import Dataset
from tdsm_jax.data.noise_files import labels_of, read_columns
from tdsm_jax.errors import UserError, did_you_mean

# field -> the field that holds the clean labels of the same images
FIELDS = {
    "aggre_label": "clean_label",
    "worse_label": "clean_label",
    "random_label1": "clean_label",
    "random_label2": "clean_label",
    "random_label3": "clean_label",
    "noisy_label": "clean_label",
    "noisy_coarse_label": "clean_coarse_label",
}
# Names in the .npy files and in TensorFlow Datasets.
_OTHER_NAMES = {"noise_label": "noisy_label", "noise_coarse_label": "noisy_coarse_label", "label": "clean_label"}


def read_human_labels(path: str | os.PathLike, dataset: Dataset, field: str, order_path: str = "") -> np.ndarray:
    """Returns the labels int32 [N] that people gave to the images of `dataset`, in their order.

    `path` is a .csv, .npz or structured .npy file with the columns of the official ones, or the data_dir of
    TensorFlow Datasets (or a folder in it) with cifar10_n or cifar100_n, `field` one of `FIELDS`.
    `order_path` is the image_order_c10.npy or image_order_c100.npy beside files in the order of TensorFlow
    Datasets: entry i is the index of the image that line i labels. Pickled files, unknown fields, or clean labels
    in the file that are not those of `dataset` are a `UserError`.
    """
    if pathlib.Path(path).suffix.lower() in (".pt", ".pth"):
        raise UserError(
            f'{path}: PyTorch files are not read here; convert it: python -c "import sys, torch, numpy as np; '
            f"np.savez(sys.argv[2], **{{k: np.asarray(v) for k, v in torch.load(sys.argv[1], weights_only=False)"
            f'.items()}})" {path} {pathlib.Path(path).stem}.npz'
        )
    if is_folder(path):
        if order_path:
            raise UserError(f"{order_path}: TensorFlow Datasets names the images; leave the image order file out")
        return choose_human_labels(path, _prepared_columns(path, field), dataset, field)
    order = _read_order(order_path, len(dataset.labels)) if order_path else None
    return choose_human_labels(path, read_columns(path), dataset, field, order)


def is_folder(path: str | os.PathLike) -> bool:
    """Tells a data_dir of TensorFlow Datasets from a file of labels."""
    return paths.exists(path) and not paths.is_file(path)


def prepared_folder(path: str | os.PathLike, field: str) -> paths.Path:
    """Returns the folder of the prepared dataset with `field` in the data_dir `path`; none is a `UserError`."""
    return tfds_store.find(_prepared_name(field), path)


def _prepared_name(field: str) -> str:
    return "cifar100_n" if field.startswith("noisy") else "cifar10_n"


def _prepared_columns(path: str | os.PathLike, field: str) -> dict[str, np.ndarray]:
    """The columns of the training images that `field` is chosen from, in their original order."""
    name = _prepared_name(field)
    if field == "noisy_coarse_label":
        raise UserError(f"{path}: cifar100_n has no coarse labels that people gave; read the file of CIFAR-100N")
    stored = "noise_label" if name == "cifar100_n" else field
    split = tfds_store.Split(name, prepared_folder(path, field), 0)
    return split.columns(("label", stored) if field in FIELDS else ("label",))


def choose_human_labels(
    path: str | os.PathLike,
    columns: Mapping[str, np.ndarray],
    dataset: Dataset,
    field: str,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the labels int32 [N] of `field` in the columns [N] of the file `path`, once they fit `dataset`.

    `order` [N] is a permutation: entry i is the index of the image that entry i of the columns labels.
    """
    if field not in FIELDS:
        raise UserError(f"unknown field of human labels {field!r}{did_you_mean(field, FIELDS)}")
    columns = {_OTHER_NAMES.get(name, name): values for name, values in columns.items()}
    y_tilde = _ordered(labels_of(path, columns, field, len(dataset.labels), dataset.num_classes), order)
    if FIELDS[field] not in columns:
        raise UserError(
            f"{path}: has no column {FIELDS[field]!r} to check the order of the images by; "
            "if it is right, import the column as plain labels"
        )
    clean = _ordered(labels_of(path, columns, FIELDS[field], len(dataset.labels), dataset.num_classes), order)
    differs = np.flatnonzero(clean != dataset.labels)
    if len(differs):
        n = differs[0]
        raise UserError(
            f"{path}: its clean labels differ from those of {dataset.name} at {len(differs)} of {len(clean)} images "
            f"({len(differs) / len(clean):.1%}), first at index {n} ({clean[n]}, not {dataset.labels[n]}); the images "
            "are in another order: give the image order file, or the images in the order of the label file"
        )
    return y_tilde


def _ordered(labels: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    if order is None:
        return labels
    ordered = np.empty_like(labels)
    ordered[order] = labels
    return ordered


def _read_order(path: str, num_examples: int) -> np.ndarray:
    columns = read_columns(path)
    order = labels_of(path, columns, next(iter(columns)), num_examples, num_examples)
    if len(np.unique(order)) < num_examples:
        raise UserError(f"{path}: an image order names every image once, this one {len(np.unique(order))} of them")
    return order
