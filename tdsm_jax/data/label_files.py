"""The label file: the noisy labels of one dataset, how they came about, and which images they belong to.

One JSON text file, the same bytes for the same input. It holds no clean labels, so training cannot read them.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from typing import Any

import numpy as np

from tdsm_jax import files
from tdsm_jax.data import noise_files
from tdsm_jax.data.dataset import Dataset, images_hash, images_set_hash
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import (
    CLASS_CONDITIONAL,
    corrupt,
    expected_rate,
    realised_matrix,
    realised_rate,
    transition_matrix,
)
from tdsm_jax.labels.instance import expected_matrix, instance_dependent
from tdsm_jax.labels.transition import check_stochastic

FORMAT = "tdsm_jax label file"
VERSION = 1
GIVEN = "given"  # the kind of labels that images came with, right or wrong
DRAWN = (*CLASS_CONDITIONAL, "instance")  # the kinds of label noise that `draw` makes


@dataclasses.dataclass(frozen=True, eq=False)
class LabelFile:
    """Noisy labels y_tilde int32 [N] and their provenance.

    `S` [K, K] is the matrix they were drawn from, or taken to be drawn from; `realised_matrix` [K, K] and
    `realised_rate` are what the draw gave, with a NaN row for a class without examples. `exact` says that the two
    matrices agree up to rounding to whole examples. Of the kind "given", labels of images whose true ones nobody knows,
    the rates and both matrices are NaN. `images_hash` depends on the order of the images,
    `images_set_hash` does not.
    """

    dataset: str
    num_classes: int
    kind: str
    rate: float
    seed: int
    exact: bool = dataclasses.field(default=False, kw_only=True)
    images_hash: str
    images_set_hash: str
    realised_rate: float
    S: np.ndarray
    realised_matrix: np.ndarray
    y_tilde: np.ndarray


def draw(dataset: Dataset, kind: str, rate: float, seed: int, *, table: str = "", exact: bool = False) -> LabelFile:
    """Returns the label file of `dataset` with label noise `kind` of `DRAWN`.

    "clean" leaves the labels as they are and takes them for symmetric noise of `rate`. The S of "instance" is the
    class average of what the images were given. `table` is read by "asym", `exact` by the kinds that draw from S;
    elsewhere it is a `UserError`, as is whatever `transition_matrix` and `instance_dependent` refuse.
    """
    if kind == "instance":
        if exact:
            raise UserError("instance-dependent noise gives each image odds of its own: there is no exact count")
        y_tilde, p = instance_dependent(dataset.images, dataset.labels, dataset.num_classes, rate, seed)
        return _record(dataset, y_tilde, kind, rate, seed, expected_matrix(p, dataset.labels))
    return make(dataset, kind, rate, seed, transition_matrix(kind, dataset.num_classes, rate, table), exact)


def make(dataset: Dataset, kind: str, rate: float, seed: int, S: np.ndarray, exact: bool = False) -> LabelFile:
    """Returns the label file of `dataset` corrupted by S [K, K] with `seed`; `kind` and `rate` describe S.

    The kind "clean" leaves the labels as they are: S is then only what they are taken for.
    """
    S = _matrix_of(dataset, S)
    if kind != "clean":
        return _record(dataset, corrupt(dataset.labels, S, seed, exact), kind, rate, seed, S, exact)
    if exact:
        raise UserError("clean labels are left as they are: there is nothing to draw exactly")
    check_stochastic(S)
    return _record(dataset, dataset.labels.copy(), kind, rate, seed, S)


def make_from_matrix(dataset: Dataset, S: np.ndarray, seed: int, exact: bool = False) -> LabelFile:
    """Returns the label file of `dataset` corrupted by any S [K, K]: kind "matrix", the rate the expected one."""
    S = _matrix_of(dataset, S)
    check_stochastic(S)
    return make(dataset, "matrix", expected_rate(dataset.labels, S), seed, S, exact)


def import_labels(dataset: Dataset, y_tilde: np.ndarray, S: np.ndarray | None = None) -> LabelFile:
    """Returns the label file of noisy labels int [N] that came from elsewhere, for the clean labels of `dataset`.

    `S` [K, K] is the matrix that they are known to be drawn from; without it the realised one stands in, with
    the identity for a class without examples. The kind is "imported", the rate the realised one and the seed 0.
    Labels of another number or outside [0, K) are a `UserError`.
    """
    if S is None:
        S = realised_matrix(dataset.labels, y_tilde, dataset.num_classes)
        S = np.where(np.isnan(S), np.eye(dataset.num_classes), S)
    S = _matrix_of(dataset, S)
    check_stochastic(S)
    rate = realised_rate(dataset.labels, y_tilde)
    return _record(dataset, np.asarray(y_tilde, np.int32), "imported", rate, 0, S)


def given(dataset: Dataset) -> LabelFile:
    """Returns the label file of the labels that the images of `dataset` came with: how wrong they are is not known."""
    unknown = np.full((dataset.num_classes, dataset.num_classes), np.nan)
    return LabelFile(
        dataset=dataset.name,
        num_classes=dataset.num_classes,
        kind=GIVEN,
        rate=math.nan,
        seed=0,
        images_hash=images_hash(dataset.images),
        images_set_hash=images_set_hash(dataset.images),
        realised_rate=math.nan,
        S=unknown,
        realised_matrix=unknown,
        y_tilde=dataset.labels.copy(),
    )


def is_dataset_json(path: str | os.PathLike) -> bool:
    """Tells a dataset.json, whose labels go by the names of images, from files that keep the order of the images."""
    if pathlib.Path(path).suffix.lower() != ".json":
        return False
    content = files.read_json(path)
    return not (isinstance(content, dict) and content.get("format") == FORMAT)


def read_given_labels(path: str | os.PathLike, dataset: Dataset, column: str = "") -> np.ndarray:
    """Returns the labels int32 [N] that a file gives to the images of `dataset`, in their order.

    A .json file is a label file, made for these very images; others are read by `noise_files.read_labels`.
    """
    if pathlib.Path(path).suffix.lower() == ".json":
        return attach(read(path), dataset)
    return noise_files.read_labels(path, len(dataset.labels), dataset.num_classes, column)


def _matrix_of(dataset: Dataset, S: np.ndarray) -> np.ndarray:
    S = np.asarray(S, np.float64)
    if S.shape != (dataset.num_classes, dataset.num_classes):
        raise UserError(f"S has shape {S.shape}, but {dataset.name} has {dataset.num_classes} classes")
    return S


def _record(
    dataset: Dataset, y_tilde: np.ndarray, kind: str, rate: float, seed: int, S: np.ndarray, exact: bool = False
) -> LabelFile:
    return LabelFile(
        dataset=dataset.name,
        num_classes=dataset.num_classes,
        kind=kind,
        rate=float(rate),
        seed=int(seed),
        exact=bool(exact),
        images_hash=images_hash(dataset.images),
        images_set_hash=images_set_hash(dataset.images),
        realised_rate=realised_rate(dataset.labels, y_tilde),
        S=S,
        realised_matrix=realised_matrix(dataset.labels, y_tilde, dataset.num_classes),
        y_tilde=y_tilde,
    )


def attach(label_file: LabelFile, dataset: Dataset) -> np.ndarray:
    """Returns y_tilde int32 [N] for the images of `dataset`, in order.

    Raises `UserError` unless these are the very images, in the very order, that the file was made for.
    """
    count = len(label_file.y_tilde)
    if count != len(dataset.images):
        raise UserError(f"the label file has {count} labels for the {len(dataset.images)} images of {dataset.name}")
    if label_file.num_classes != dataset.num_classes:
        raise UserError(
            f"the label file has {label_file.num_classes} classes, {dataset.name} has {dataset.num_classes}"
        )
    if label_file.images_hash == images_hash(dataset.images):
        return label_file.y_tilde.copy()
    if label_file.images_set_hash == images_set_hash(dataset.images):
        raise UserError(
            f"the label file was made for the same images of {dataset.name} in another order; "
            "restore that order or make the label file again"
        )
    raise UserError(
        f"the label file was made for other images than these of {dataset.name} "
        "(another split, size or dataset, or data.stream?); make it again"
    )


def write(path: str | os.PathLike, label_file: LabelFile) -> None:
    """Writes `label_file` to `path`, atomically."""
    files.write_text(path, _text(label_file))


def label_file_hash(label_file: LabelFile) -> str:
    """Returns the SHA-256 of the bytes that `write` writes."""
    return hashlib.sha256(_text(label_file).encode()).hexdigest()


def read(path: str | os.PathLike) -> LabelFile:
    """Reads and validates a label file; a missing, damaged or foreign one is a `UserError` naming it."""
    try:
        return _parse(files.read_json(path))
    except _Malformed as error:
        raise UserError(f"{path}: {error}; make the label file again") from None


class _Malformed(UserError):
    """What is wrong with the content, before the path is known."""


def _text(label_file: LabelFile) -> str:
    """One key a line and one matrix row a line, so that a diff of two label files can be read."""
    fields = {"format": FORMAT, "version": VERSION, "num_examples": len(label_file.y_tilde)}
    fields |= {field.name: getattr(label_file, field.name) for field in dataclasses.fields(label_file)}
    fields["y_tilde"] = label_file.y_tilde.tolist()
    if not label_file.exact:
        del fields["exact"]  # said where it holds only, so that all other label files keep their hashes
    lines = []
    for key, value in fields.items():
        value = None if isinstance(value, float) and math.isnan(value) else value  # JSON has no NaN
        text = _matrix_text(value) if key in ("S", "realised_matrix") else json.dumps(value, allow_nan=False)
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _matrix_text(matrix: np.ndarray) -> str:
    rows = [None if np.isnan(row).any() else row.tolist() for row in matrix]  # JSON has no NaN
    return "[\n" + ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in rows) + "\n  ]"


def _parse(content: Any) -> LabelFile:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _Malformed(f'not a label file (no "format": "{FORMAT}")')
    if content.get("version") != VERSION:
        raise _Malformed(f"label file version {content.get('version')!r}, but this program reads {VERSION}")
    expected = {"format", "version", "num_examples"} | {field.name for field in dataclasses.fields(LabelFile)}
    content = {"exact": False, **content}
    if content.keys() != expected:
        raise _Malformed(f"missing or unknown entries: {', '.join(sorted(content.keys() ^ expected))}")
    if type(content["exact"]) is not bool:
        raise _Malformed(f"exact must be true or false, got {content['exact']!r}")
    num_classes, kind = _integer(content, "num_classes", 2), _name(content, "kind")
    fraction = _unknown if kind == GIVEN else _fraction
    return LabelFile(
        dataset=_name(content, "dataset"),
        num_classes=num_classes,
        kind=kind,
        rate=fraction(content, "rate"),
        seed=_integer(content, "seed", 0),
        exact=content["exact"],
        images_hash=_sha256(content, "images_hash"),
        images_set_hash=_sha256(content, "images_set_hash"),
        realised_rate=fraction(content, "realised_rate"),
        S=_matrix(content, "S", num_classes, absent_rows=kind == GIVEN),
        realised_matrix=_matrix(content, "realised_matrix", num_classes, absent_rows=True),
        y_tilde=_labels(content, num_classes),
    )


def _labels(content: dict, num_classes: int) -> np.ndarray:
    y_tilde, num_examples = content["y_tilde"], _integer(content, "num_examples", 1)
    if not isinstance(y_tilde, list) or len(y_tilde) != num_examples:
        raise _Malformed(f"y_tilde must be a list of {num_examples} labels")
    for index, label in enumerate(y_tilde):
        if type(label) is not int or not 0 <= label < num_classes:
            raise _Malformed(f"y_tilde[{index}] = {label!r} is no class in 0..{num_classes - 1}")
    return np.array(y_tilde, np.int32)


def _matrix(content: dict, key: str, num_classes: int, absent_rows: bool = False) -> np.ndarray:
    """A row-stochastic matrix [K, K]; with `absent_rows`, null stands for a row of NaN."""
    rows = content[key]
    if not isinstance(rows, list) or len(rows) != num_classes:
        raise _Malformed(f"{key} must have {num_classes} rows")
    absent = [absent_rows and row is None for row in rows]
    for row, is_absent in zip(rows, absent, strict=True):
        if not is_absent and not (
            isinstance(row, list) and len(row) == num_classes and all(type(p) in (int, float) for p in row)
        ):
            raise _Malformed(f"each row of {key} must be a list of {num_classes} numbers")
    identity = np.eye(num_classes)  # stands in for the absent rows while the others are checked
    matrix = np.array([identity[i] if absent[i] else row for i, row in enumerate(rows)], np.float64)
    try:
        check_stochastic(matrix)
    except UserError as error:
        raise _Malformed(f"{key}: {error}") from None
    matrix[absent] = np.nan
    return matrix


def _integer(content: dict, key: str, minimum: int) -> int:
    value = content[key]
    if type(value) is not int or value < minimum:
        raise _Malformed(f"{key} must be an integer >= {minimum}, got {value!r}")
    return value


def _fraction(content: dict, key: str) -> float:
    value = content[key]
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise _Malformed(f"{key} must be a number in [0, 1], got {value!r}")
    return float(value)


def _unknown(content: dict, key: str) -> float:
    if content[key] is not None:
        raise _Malformed(f"{key} must be null where the labels are given, got {content[key]!r}")
    return math.nan


def _name(content: dict, key: str) -> str:
    value = content[key]
    if not isinstance(value, str) or not value:
        raise _Malformed(f"{key} must be a name, got {value!r}")
    return value


def _sha256(content: dict, key: str) -> str:
    value = content[key]
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise _Malformed(f"{key} must be a SHA-256 in hexadecimal, got {value!r}")
    return value


if __name__ == "__main__":
    from tdsm_jax.data import label_command  # which imports this module

    label_command.run()
