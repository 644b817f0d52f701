"""Transition matrices and labels in plain files of other programs: .npy, .npz, .csv, .txt, .json.

Nothing is ever unpickled: arrays of Python objects are refused.
"""

import csv
import io
import os
import pathlib
import re
import tokenize
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tdsm_jax import files
from tdsm_jax.data.containers import read_file
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.labels.transition import check_stochastic

MAX_BYTES = 1 << 28  # of a file; the labels of ImageNet take 10 MB
# Names of a table's only column, its noisy labels; the earlier one where a table has several of these.
LABEL_COLUMNS = ("", "noisy_label", "label")
_TEXT = (".csv", ".txt")
# What NumPy raises, between them, for bytes that are no whole .npy file.
_DAMAGE = (ValueError, EOFError, OSError, MemoryError, OverflowError, TypeError, tokenize.TokenError)


def read_matrix(path: str | os.PathLike, num_classes: int) -> np.ndarray:
    """Returns the transition matrix S float64 [K, K] of a file; rows are clean classes, columns given labels.

    .npy; .npz, whose array is named S; .csv or .txt, a row a line; .json, a list of rows or an object that has one
    as "S", such as a label file. A file that holds anything but a row-stochastic K x K matrix is a `UserError`.
    """
    readers = {".npy": _read_npy, ".npz": _read_npz_matrix, ".json": _read_json_matrix} | dict.fromkeys(
        _TEXT, _read_text_matrix
    )
    S = np.asarray(_reader(path, readers)(path))
    if S.shape != (num_classes, num_classes):
        raise UserError(f"{path}: holds an array of shape {S.shape}, but the data has {num_classes} classes")
    try:
        check_stochastic(S)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return S.astype(np.float64)


def read_labels(path: str | os.PathLike, num_examples: int, num_classes: int, column: str = "") -> np.ndarray:
    """Returns the labels int32 [N] of a file, in its order.

    .npy; .npz; .csv or .txt, one label a line, or with a line of column names. `column` is needed where the file
    has several and none is called noisy_label or label. Anything but N integers in [0, K) is a `UserError`.
    """
    columns = read_columns(path)
    if not column:
        column = next((name for name in LABEL_COLUMNS if name in columns), next(iter(columns)))
        if column not in LABEL_COLUMNS and len(columns) > 1:
            raise UserError(f"{path}: which column holds the labels? It has {', '.join(columns)}")
    return labels_of(path, columns, column, num_examples, num_classes)


def read_columns(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the columns of a table as they stand, [N] each: numbers, or the text of a .csv or .txt file.

    A column without a name is called "". .npy files hold one column, or named ones as a structured array; .npz
    files name their arrays. Damaged, empty or ragged files and arrays of another rank are a `UserError`.
    """
    readers = {".npy": _read_npy_columns, ".npz": files.read_arrays} | dict.fromkeys(_TEXT, _read_text_columns)
    columns = _reader(path, readers)(path)
    for name, values in columns.items():
        if values.ndim != 1 or len(values) == 0:
            raise UserError(f"{path}: {_called(name)} has shape {values.shape}; give a non-empty list of labels")
    if not columns:
        raise UserError(f"{path}: is empty")
    return columns


def labels_of(
    path: str | os.PathLike, columns: Mapping[str, np.ndarray], name: str, num_examples: int, num_classes: int
) -> np.ndarray:
    """Returns the labels int32 [N] in the column `name` of `columns`, those of the file `path`.

    Unknown names, another number of labels, or anything but integers in [0, K) raise `UserError`.
    """
    if name not in columns:
        raise UserError(f"{path}: has no column {name!r}{did_you_mean(name, columns)}")
    values = columns[name]
    if values.dtype.kind == "U":
        wrong = next((n for n, text in enumerate(values) if not re.fullmatch(r"-?\d{1,9}", text)), None)
        if wrong is not None:
            raise UserError(f"{path}: entry {wrong} of {_called(name)} is {str(values[wrong])!r}, no integer label")
        values = values.astype(np.int64)
    if values.dtype.kind not in "iu":
        raise UserError(f"{path}: {_called(name)} is of type {values.dtype}; labels are integers")
    if len(values) != num_examples:
        raise UserError(f"{path}: holds {len(values)} labels for {num_examples} images")
    outside = np.flatnonzero((values < 0) | (values >= num_classes))
    if len(outside):
        n = outside[0]
        raise UserError(f"{path}: entry {n} of {_called(name)} is {values[n]}, but classes are 0..{num_classes - 1}")
    return values.astype(np.int32)


def _called(name: str) -> str:
    return f"column {name!r}" if name else "the list of labels"


def _reader(path: str | os.PathLike, readers: dict) -> Callable[..., Any]:
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in readers:
        raise UserError(f"{path}: {suffix or 'a file without suffix'} is not read here; give {', '.join(readers)}")
    return readers[suffix]


def _read_npy(path: str | os.PathLike) -> np.ndarray:
    content = read_file(path, MAX_BYTES)
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except _DAMAGE as error:
        if "Object arrays" in str(error):
            raise UserError(
                f"{path}: holds pickled Python objects, which can run any code when they are read; if you trust the "
                f'file, convert it: python -c "import sys, numpy as np; np.savez(sys.argv[2], '
                f'**np.load(sys.argv[1], allow_pickle=True).item())" {path} {pathlib.Path(path).stem}.npz'
            ) from None
        raise UserError(f"{path}: not a readable .npy file ({_line(error)}); write it again") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_npy_columns(path: str | os.PathLike) -> dict[str, np.ndarray]:
    array = _read_npy(path)
    return {name: array[name] for name in array.dtype.names} if array.dtype.names else {"": array}


def _read_npz_matrix(path: str | os.PathLike) -> np.ndarray:
    arrays = files.read_arrays(path)
    if "S" not in arrays:
        raise UserError(f"{path}: has no array named S{did_you_mean('S', arrays)}")
    return arrays["S"]


def _read_json_matrix(path: str | os.PathLike) -> np.ndarray:
    content = files.read_json(path)
    rows = content.get("S") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise UserError(f'{path}: holds no matrix; give a list of rows, or an object that has one as "S"')
    return _from_rows(path, rows)


def _read_text_matrix(path: str | os.PathLike) -> np.ndarray:
    rows = []
    for line in _lines(path):
        entries = re.split(r"[\s,;]+", line.strip(" \t,;"))
        try:
            rows.append([float(entry) for entry in entries])
        except ValueError:
            raise UserError(f"{path}: the line {line[:60]!r} is no row of numbers") from None
    return _from_rows(path, rows)


def _from_rows(path: str | os.PathLike, rows: list[list]) -> np.ndarray:
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        raise UserError(f"{path}: rows must be of one length, these have {sorted(lengths) or 'none'}")
    if not all(type(entry) in (int, float) for row in rows for entry in row):
        raise UserError(f"{path}: a transition matrix holds numbers only")
    return np.array(rows, np.float64)


def _read_text_columns(path: str | os.PathLike) -> dict[str, np.ndarray]:
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(_lines(path))]
    except csv.Error as error:
        raise UserError(f"{path}: not a table of text ({error})") from None
    if not rows:
        raise UserError(f"{path}: is empty")
    has_names = not all(re.fullmatch(r"[-+.\de]*", cell) for cell in rows[0])
    names = rows.pop(0) if has_names else [""] * len(rows[0])
    if len(set(names)) < len(names):
        raise UserError(f"{path}: {len(names)} columns need names of their own in the first line")
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise UserError(f"{path}: entry {number} has {len(row)} columns, the first line {len(names)}")
    return {name: np.array([row[c] for row in rows], str) for c, name in enumerate(names)}


def _lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text file that are neither blank nor comments."""
    try:
        text = read_file(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file") from None
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
