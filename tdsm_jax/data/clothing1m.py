"""Clothing-1M as it is distributed: a million images labelled by the text around them, some also by hand.

Beside the folder images/ stand lists of image names (noisy_train_key_list.txt, clean_train_key_list.txt,
clean_val_key_list.txt, clean_test_key_list.txt), labels (noisy_label_kv.txt, clean_label_kv.txt: "name label" a line)
and category_names_eng.txt; they may also lie in a folder annotations/.
Source: Xiao et al., CVPR 2015, "Learning from massive noisy labeled data for image classification".
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tdsm_jax import paths
from tdsm_jax.data.containers import read_file
from tdsm_jax.data.edm_zip import check_plain, fingerprint
from tdsm_jax.data.folder import Found, Pictures
from tdsm_jax.data.pictures import Form
from tdsm_jax.errors import UserError, printable

NOISY_TRAIN, CLEAN_TRAIN = "noisy_train_key_list.txt", "clean_train_key_list.txt"
CLEAN_VAL, CLEAN_TEST = "clean_val_key_list.txt", "clean_test_key_list.txt"
NOISY_LABELS, CLEAN_LABELS, NAMES = "noisy_label_kv.txt", "clean_label_kv.txt", "category_names_eng.txt"
FILES = (NOISY_TRAIN, CLEAN_TRAIN, CLEAN_VAL, CLEAN_TEST, NOISY_LABELS, CLEAN_LABELS, NAMES)
_MAX_BYTES = 2**29  # of an annotation file; those of a million images take 50 MB


class Clothing(NamedTuple):
    """The parts of Clothing-1M.

    `train` has the labels it was given, `test` clean ones; so has `reference`, the clean training and validation
    images. `pairs` int32 [M, 2] are the clean and the given label of those of `reference` that have both: how often
    given labels are wrong. No image of `test` is in the others.
    """

    train: Found
    test: Found
    reference: Found
    pairs: np.ndarray


class _Tree:
    """The folder of images: their names are in the lists, and a million files are better not looked for."""

    def __init__(self, path: paths.Path, names: Sequence[str]):
        self._path, self._names = path, names

    def read(self, name: str, limit: int) -> bytes:
        return read_file(self._path / name, limit)

    def listing(self) -> list:
        return [[name] for name in self._names]


def find(path: str | os.PathLike, form: Form) -> Clothing:
    """Returns the parts of Clothing-1M at `path`; no image is opened.

    A missing or damaged annotation file, a name without a label or that leads out of the folder, a label outside the
    classes, and a class without training or test images are a `UserError`.
    """
    path = paths.path_of(path)
    where = _annotations(path)
    class_names = tuple(_lines(where / NAMES))
    K = len(class_names)
    noisy, clean = (_labels(where / name, K) for name in (NOISY_LABELS, CLEAN_LABELS))

    def part(names: list[str], labels: Mapping[str, int], labels_file: str) -> Found:
        for name in names:
            if name not in labels:
                raise UserError(f"{where / labels_file}: has no label for {printable(name)}, which a list names")
        y = np.array([labels[name] for name in names], np.int32)
        return Found(Pictures(path, _Tree(path, names), names, form), y, class_names)

    lists = {name: _lines(where / name) for name in (NOISY_TRAIN, CLEAN_TEST, CLEAN_TRAIN, CLEAN_VAL)}
    for list_name, names in lists.items():
        check_plain(where / list_name, names)
    train, test, known = lists[NOISY_TRAIN], lists[CLEAN_TEST], [*lists[CLEAN_TRAIN], *lists[CLEAN_VAL]]
    tested = set(test)
    for name in (*train, *known):
        if name in tested:
            raise UserError(f"{where / CLEAN_TEST}: {printable(name)} is also in another list; test images must not be")
    pairs = [(clean[name], noisy[name]) for name in known if name in noisy and name in clean]
    found = Clothing(
        part(train, noisy, NOISY_LABELS),
        part(test, clean, CLEAN_LABELS),
        part(known, clean, CLEAN_LABELS),
        np.array(pairs, np.int32).reshape(-1, 2),
    )
    for list_name, labels in ((NOISY_TRAIN, found.train.labels), (CLEAN_TEST, found.test.labels)):
        counts = np.bincount(labels, minlength=K)
        if not counts.all():
            raise UserError(f"{where / list_name}: names no image of class {printable(class_names[counts.argmin()])}")
    return found


def inputs(path: str | os.PathLike) -> dict[str, str]:
    """Returns a hash of each annotation file: what stands for the data set, whose images are too many to list."""
    where = _annotations(paths.path_of(path))
    return {str(where / name): fingerprint(where / name) for name in FILES}


def _annotations(path: paths.Path) -> paths.Path:
    for where in (path, path / "annotations"):
        if paths.is_file(where / NOISY_TRAIN):
            return where
    raise UserError(f"{path}: no {NOISY_TRAIN} here nor in annotations/; give the folder of Clothing-1M as unpacked")


def _lines(path: paths.Path) -> list[str]:
    try:
        text = read_file(path, _MAX_BYTES).decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text file; copy or download it again") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: is empty; copy or download it again")
    return lines


def _labels(path: paths.Path, num_classes: int) -> dict[str, int]:
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdecimal() or int(label) >= num_classes:
            raise UserError(
                f"{path}: line {number}, {printable(line)!r}, is not a name and a label in 0..{num_classes - 1}"
            )
        if labels.setdefault(name.strip(), int(label)) != int(label):
            raise UserError(f"{path}: line {number} labels {printable(name)} unlike an earlier one; keep one of them")
    return labels
