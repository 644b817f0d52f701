"""The files of CIFAR-10N and CIFAR-100N as they are published for TensorFlow Datasets: labels, workers, image order.

Source: Wei et al., ICLR 2022; https://github.com/UCSC-REAL/cifar-10-100n
"""

import csv
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from tdsm_jax import paths
from tdsm_jax.data.containers import read_file
from tdsm_jax.data.noise_files import labels_of, read_columns
from tdsm_jax.data.original_archives import Contents, Example, read_cifar
from tdsm_jax.errors import UserError

_MOST = 1 << 28  # bytes of a file
_OTHER_NAMES = {"noisy_label": "noise_label"}  # of the hundred classes in some of the files


class _HumanFiles(NamedTuple):
    images: str
    fields: Mapping[str, str]  # feature -> column of the annotations
    workers: tuple[str, ...]  # features of the columns of the side information, after the first
    group: int  # images that share a line of side information


_HUMAN = {
    "cifar10_n": _HumanFiles(
        "cifar10",
        {field: field for field in ("worse_label", "aggre_label", *(f"random_label{n}" for n in (1, 2, 3)))},
        tuple(f"worker{n}_{what}" for n in (1, 2, 3) for what in ("id", "time")),
        10,
    ),
    "cifar100_n": _HumanFiles("cifar100", {"noise_label": "noise_label"}, ("worker_id", "worker_time"), 5),
}


def read_human(
    name: str, archive: paths.Path, annotations: paths.Path, side_information: paths.Path, order: paths.Path
) -> Contents:
    """Returns the examples of CIFAR-10N or CIFAR-100N: CIFAR's own, and what people said of the training images.

    Line i of the annotations is of image order[i]; their clean labels must be those of the archive.
    """
    stored = _HUMAN[name]
    original = read_cifar(stored.images, archive)
    clean = np.array([features["label"] for _, features in original.examples["train"]()], np.int32)
    given = _annotations(stored, annotations, order, clean, len(original.class_names["label"]))
    workers = _side_information(side_information, len(stored.workers), -(-len(clean) // stored.group))

    def examples(split: str) -> Iterator[Example]:
        for index, features in original.examples[split]():
            if split == "train":
                said = {field: int(labels[index]) for field, labels in given.items()}
                numbers = workers[int(index) // stored.group]
            else:  # nobody was asked
                said, numbers = dict.fromkeys(stored.fields, -1), [-1.0] * len(stored.workers)
            told = zip(stored.workers, numbers, strict=True)
            shared = {field: int(value) if field.endswith("_id") else value for field, value in told}
            yield index, features | said | shared

    return Contents(original.class_names, {split: functools.partial(examples, split) for split in ("train", "test")})


def _annotations(
    stored: _HumanFiles, path: paths.Path, order_path: paths.Path, clean: np.ndarray, num_classes: int
) -> dict[str, np.ndarray]:
    """The columns in the order of the images, once their clean labels are those of the images."""
    columns, count = _plain(read_columns(path)), len(clean)
    order_columns = read_columns(order_path)
    order = labels_of(order_path, order_columns, next(iter(order_columns)), count, count)
    if len(np.unique(order)) < count:
        raise UserError(f"{order_path}: names {len(np.unique(order))} of {count} images; an order names each once")
    ordered = {}
    for field in ("clean_label", *stored.fields.values()):
        ordered[field] = np.empty(count, np.int32)
        ordered[field][order] = labels_of(path, columns, field, count, num_classes)
    differs = np.flatnonzero(ordered.pop("clean_label") != clean)
    if len(differs):
        raise UserError(
            f"{path}: its clean labels differ from those of the archive at {len(differs)} of {count} images, first at "
            f"{differs[0]}; it is not the file in the order that {order_path.name} undoes (its name says ordered)"
        )
    return {feature: ordered[column] for feature, column in stored.fields.items()}


def _plain(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns under one name each, whole numbers that a program wrote as 3.0 without their point."""
    return {
        _OTHER_NAMES.get(name, name): (
            np.array([text.removesuffix(".0") for text in values]) if values.dtype.kind == "U" else values
        )
        for name, values in columns.items()
    }


def _side_information(path: paths.Path, width: int, count: int) -> list[list[float]]:
    """The numbers of each line but the first, without its first column."""
    try:
        lines = list(csv.reader(read_file(path, _MOST).decode("utf-8-sig").splitlines()))[1:]
        numbers = [[float(cell) for cell in line[1 : 1 + width]] for line in lines if line]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not a table of numbers ({error})") from None
    if not all(map(math.isfinite, itertools.chain(*numbers))):
        raise UserError(f"{path}: holds NaN or infinity where numbers of workers and seconds should be; copy it again")
    if len(numbers) < count or any(len(line) < width for line in numbers):
        raise UserError(f"{path}: {count} lines of {width} numbers are needed, it has {len(numbers)}")
    return numbers
