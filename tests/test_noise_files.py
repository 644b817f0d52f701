"""Matrices and labels in other programs' files: every form reads alike, and nothing wrong gets through."""

import json
import pathlib

import numpy as np
import pytest

from tdsm_jax.data import noise_files
from tdsm_jax.errors import UserError

S = np.array([[0.75, 0.25, 0], [0, 1, 0], [0.5, 0.125, 0.375]])
LABELS = np.array([2, 0, 1, 1])


def write_text(path, text):
    path.write_text(text)
    return path


def text_of(matrix, separator):
    return "\n".join(separator.join(map(str, row)) for row in matrix) + "\n"


MATRIX_WRITERS = {
    "S.npy": lambda path: np.save(path, S),
    "S.npz": lambda path: np.savez(path, S=S.astype(np.float32), prior=S[0]),
    "S.csv": lambda path: path.write_text(text_of(S.tolist(), ", ")),
    "S.txt": lambda path: np.savetxt(path, S, header="rows: clean classes"),
    "rows.json": lambda path: path.write_text(json.dumps(S.tolist())),
    "object.json": lambda path: path.write_text(json.dumps({"S": S.tolist(), "kind": "asym"})),
}


@pytest.mark.parametrize("name", MATRIX_WRITERS)
def test_every_form_of_a_matrix_reads_alike(tmp_path, name):
    MATRIX_WRITERS[name](tmp_path / name)
    np.testing.assert_array_equal(noise_files.read_matrix(tmp_path / name, 3), S, strict=True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("S.csv", text_of(np.eye(4), ","), r"shape \(4, 4\), but the data has 3 classes"),
        ("S.csv", text_of([[0.5, 0.4, 0], [0, 1, 0], [0, 0, 1]], ","), "row 0 .* sums to 0.9"),
        ("S.csv", text_of([[1.5, -0.5, 0], [0, 1, 0], [0, 0, 1]], ","), "negative entry"),
        ("S.csv", text_of([["nan", 1, 0], [0, 1, 0], [0, 0, 1]], ","), "not finite"),
        ("S.csv", "1,0,0\n0,1\n0,0,1\n", r"one length, these have \[2, 3\]"),
        ("S.csv", "a,b,c\n1,0,0\n", "'a,b,c' is no row of numbers"),
        ("S.csv", "", "these have none"),
        ("S.json", "[[1, 0], [true, 0]]", "numbers only"),
        ("S.json", "[1, 0]", "holds no matrix"),
        ("S.json", '{"T": [[1]]}', "holds no matrix"),
        ("S.json", "{", "not valid JSON"),
        ("S.npy", "not an array", "not a readable .npy file"),
        ("S.npz", "not arrays", "not a readable array file"),
        ("S.pkl", "", ".pkl is not read here; give .npy, .npz, .json, .csv, .txt"),
        ("S", "", "a file without suffix is not read here"),
    ],
)
def test_what_is_no_matrix_is_refused(tmp_path, name, text, message):
    path = write_text(tmp_path / name, text)
    with pytest.raises(UserError, match=message) as error:
        noise_files.read_matrix(path, 3)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    for name in MATRIX_WRITERS:
        with pytest.raises(UserError, match=f"{name}: no such file"):
            noise_files.read_matrix(tmp_path / name, 3)


def test_an_archive_of_arrays_needs_one_named_s(tmp_path):
    np.savez(tmp_path / "S.npz", T=S)
    with pytest.raises(UserError, match="no array named S"):
        noise_files.read_matrix(tmp_path / "S.npz", 3)


LABEL_WRITERS = {
    "y.npy": lambda path: np.save(path, LABELS.astype(np.uint8)),
    "y.npz": lambda path: np.savez(path, label=LABELS),
    "y.txt": lambda path: path.write_text("2\n0\n1\n1\n"),
    "y.csv": lambda path: path.write_text("2\r\n0\r\n\r\n1\r\n1"),
    "named.csv": lambda path: path.write_text("name,label\ncat.png,2\n dog.png,0\n'3',1\n,1\n"),
    "noisy.csv": lambda path: path.write_text("\ufefflabel,noisy_label\n0,2\n0,0\n0,1\n0,1\n", "utf-8"),
    "alone.csv": lambda path: path.write_text("annotation\n2\n0\n1\n1\n"),
    "fields.npy": lambda path: np.save(path, np.array([(0, y) for y in LABELS], [("n", "i4"), ("label", "i8")])),
}


@pytest.mark.parametrize("name", LABEL_WRITERS)
def test_every_form_of_labels_reads_alike(tmp_path, name):
    LABEL_WRITERS[name](tmp_path / name)
    y = noise_files.read_labels(tmp_path / name, 4, 3)
    np.testing.assert_array_equal(y, LABELS.astype(np.int32), strict=True)


def test_the_column_can_be_chosen(tmp_path):
    path = write_text(tmp_path / "y.csv", "first,second\n0,2\n1,0\n1,1\n0,1\n")
    np.testing.assert_array_equal(noise_files.read_labels(path, 4, 3, "second"), LABELS)
    with pytest.raises(UserError, match="which column holds the labels. It has first, second"):
        noise_files.read_labels(path, 4, 3)
    with pytest.raises(UserError, match="no column 'secnd'; did you mean 'second'"):
        noise_files.read_labels(path, 4, 3, "secnd")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("y.txt", "2\n0\n1\n", "3 labels for 4 images"),
        ("y.txt", "2\n0\n3\n1\n", r"entry 2 of the list of labels is 3, but classes are 0..2"),
        ("y.txt", "2\n0\n-1\n1\n", "entry 2 of the list of labels is -1"),
        ("y.txt", "2\n0\n1.0\n1\n", "entry 2 of the list of labels is '1.0', no integer label"),
        ("y.csv", "label\n2\n0\nnan\n1\n", "entry 2 of column 'label' is 'nan'"),
        ("y.csv", "label\n2\n0\n" + "9" * 30 + "\n1\n", "no integer label"),
        ("y.csv", "a,label\n1,2\n0\n", "entry 1 has 1 columns, the first line 2"),
        ("y.csv", "1,2\n1,0\n", "2 columns need names of their own"),
        ("y.csv", "a,a\n1,0\n", "2 columns need names of their own"),
        ("y.csv", "label\n", "non-empty list of labels"),
        ("y.csv", "\n# nothing\n", "is empty"),
        ("y.csv", 'label\n"' + "x" * 200_000, "not a table of text"),
        ("y.json", "[1]", ".json is not read here"),
    ],
)
def test_what_are_no_labels_is_refused(tmp_path, name, text, message):
    path = write_text(tmp_path / name, text)
    with pytest.raises(UserError, match=message) as error:
        noise_files.read_labels(path, 4, 3)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (LABELS.astype(float), "of type float64; labels are integers"),
        (LABELS > 0, "of type bool"),
        (LABELS[None], r"shape \(1, 4\)"),
        (np.zeros(0, int), r"shape \(0,\)"),
        (np.array(2), r"shape \(\)"),
    ],
)
def test_arrays_that_are_no_labels_are_refused(tmp_path, array, message):
    np.save(tmp_path / "y.npy", array)
    with pytest.raises(UserError, match=message):
        noise_files.read_labels(tmp_path / "y.npy", 4, 3)


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_pickled_objects_are_never_executed(tmp_path):
    trace = tmp_path / "executed"
    content = np.array({"label": Bomb(trace)}, object)
    np.save(tmp_path / "y.npy", content, allow_pickle=True)
    np.savez(tmp_path / "y.npz", label=content)
    with pytest.raises(UserError, match="pickled Python objects.*allow_pickle=True.*y.npz") as error:
        noise_files.read_labels(tmp_path / "y.npy", 4, 3)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="not a readable array file"):
        noise_files.read_labels(tmp_path / "y.npz", 4, 3)
    assert not trace.exists()


def test_binary_files_are_no_text_and_truncated_arrays_no_arrays(tmp_path):
    (tmp_path / "y.csv").write_bytes(b"\xff\xfe1\x00")
    with pytest.raises(UserError, match="not a text file"):
        noise_files.read_labels(tmp_path / "y.csv", 4, 3)
    np.save(tmp_path / "y.npy", LABELS)
    whole = (tmp_path / "y.npy").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "y.npy").write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a readable .npy file"):
            noise_files.read_labels(tmp_path / "y.npy", 4, 3)


def test_damaged_headers_end_in_one_line(tmp_path):
    np.save(tmp_path / "y.npy", LABELS)
    whole = (tmp_path / "y.npy").read_bytes()
    for position in range(100):
        for byte in b"\x00(O'9":
            (tmp_path / "y.npy").write_bytes(whole[:position] + bytes([byte]) + whole[position + 1 :])
            try:
                noise_files.read_labels(tmp_path / "y.npy", 4, 3)
            except UserError as error:
                assert "\n" not in str(error)
