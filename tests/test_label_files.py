"""Label files: deterministic bytes, a validating reader, and labels that stick to their images."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

from tdsm_jax.data import label_files
from tdsm_jax.data.sources import Dataset, images_hash
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import corrupt, realised_matrix, realised_rate, symmetric


def toy(num_examples=60, labels=None):
    images = (np.arange(num_examples * 12) * 7 % 251).astype(np.uint8).reshape(num_examples, 2, 2, 3)
    labels = np.arange(num_examples) % 3 if labels is None else labels
    return Dataset("toy", images, np.asarray(labels, np.int32), ("a", "b", "c"))


def toy_file(dataset=None, seed=5):
    return label_files.make(dataset or toy(), "sym", 0.4, seed, symmetric(3, 0.4))


def reordered(dataset, order):
    return dataclasses.replace(dataset, images=dataset.images[order], labels=dataset.labels[order])


def test_make_records_the_corruption():
    dataset, label_file = toy(), toy_file()
    y_tilde = corrupt(dataset.labels, symmetric(3, 0.4), 5)
    np.testing.assert_array_equal(label_file.y_tilde, y_tilde)
    assert label_file.realised_rate == realised_rate(dataset.labels, y_tilde)
    np.testing.assert_array_equal(label_file.realised_matrix, realised_matrix(dataset.labels, y_tilde, 3))
    assert (label_file.dataset, label_file.num_classes, label_file.kind) == ("toy", 3, "sym")
    assert (label_file.rate, label_file.seed) == (0.4, 5)
    assert label_file.images_hash == images_hash(dataset.images)


def test_make_needs_a_matrix_of_the_dataset():
    with pytest.raises(UserError, match=r"S has shape \(4, 4\), but toy has 3 classes"):
        label_files.make(toy(), "sym", 0.4, 0, symmetric(4, 0.4))


def test_imported_labels_are_described_by_what_they_are():
    dataset = toy(labels=np.arange(60) % 2)  # no example of class 2
    y_tilde = np.where(np.arange(60) < 15, 2, dataset.labels)
    label_file = label_files.import_labels(dataset, y_tilde)
    np.testing.assert_array_equal(label_file.y_tilde, y_tilde.astype(np.int32), strict=True)
    np.testing.assert_array_equal(label_file.realised_matrix, realised_matrix(dataset.labels, y_tilde, 3))
    np.testing.assert_allclose(label_file.S, [[22 / 30, 0, 8 / 30], [0, 23 / 30, 7 / 30], [0, 0, 1]])
    assert (label_file.kind, label_file.rate, label_file.realised_rate) == ("imported", 0.25, 0.25)
    np.testing.assert_array_equal(label_files.attach(label_file, dataset), y_tilde)
    known = label_files.import_labels(dataset, y_tilde, symmetric(3, 0.4))
    np.testing.assert_array_equal(known.S, symmetric(3, 0.4))


@pytest.mark.parametrize(
    ("y_tilde", "S", "message"),
    [
        (np.zeros(59, int), None, "60 clean labels do not match 59 noisy ones"),
        (np.full(60, 3), None, "span 3..3, but classes are 0..2"),
        (np.zeros(60, int), np.eye(4), r"S has shape \(4, 4\)"),
        (np.zeros(60, int), np.zeros((3, 3)), "sums to 0"),
    ],
)
def test_labels_that_do_not_fit_are_not_imported(y_tilde, S, message):
    with pytest.raises(UserError, match=message):
        label_files.import_labels(toy(), y_tilde, S)


def test_write_then_read_gives_everything_back(tmp_path):
    dataset = toy(labels=np.arange(60) % 2)  # no example of class 2: its realised row is undefined
    label_file = toy_file(dataset)
    assert np.isnan(label_file.realised_matrix[2]).all()
    label_files.write(tmp_path / "labels.json", label_file)
    again = label_files.read(tmp_path / "labels.json")
    for field in dataclasses.fields(label_file):
        value = getattr(label_file, field.name)
        np.testing.assert_array_equal(getattr(again, field.name), value, err_msg=field.name, strict=True)
        assert type(getattr(again, field.name)) is type(value)
    assert label_files.label_file_hash(again) == label_files.label_file_hash(label_file)


def test_the_bytes_are_pinned(tmp_path):
    """The hash is part of every artifact's identity: it may only change together with the version."""
    label_file = toy_file()
    assert label_files.label_file_hash(label_file) == "f415a5bff2f9da4d94368796219d72cd18782b3a9f48f50acf87431e1c910e08"
    label_files.write(tmp_path / "labels.json", label_file)
    content = (tmp_path / "labels.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == label_files.label_file_hash(label_file)
    assert label_files.label_file_hash(toy_file(seed=6)) != label_files.label_file_hash(label_file)


def test_the_labels_are_on_one_line_and_the_clean_ones_nowhere(tmp_path):
    label_files.write(tmp_path / "labels.json", toy_file())
    text = (tmp_path / "labels.json").read_text()
    assert re.search(r'^  "y_tilde": \[(\d, ){59}\d\]$', text, re.MULTILINE)
    assert [key for key, value in json.loads(text).items() if isinstance(value, list) and len(value) == 60] == [
        "y_tilde"
    ]


def test_attach_returns_the_labels_of_the_same_images():
    label_file = toy_file()
    y_tilde = label_files.attach(label_file, toy())
    assert y_tilde.dtype == np.int32
    np.testing.assert_array_equal(y_tilde, label_file.y_tilde)
    y_tilde[:] = 0
    assert label_file.y_tilde.any()


def test_attach_does_not_need_the_clean_labels():
    assert len(label_files.attach(toy_file(), toy(labels=np.zeros(60)))) == 60


def changed_pixel():
    images = toy().images.copy()
    images[17, 1, 0, 2] ^= 1
    return dataclasses.replace(toy(), images=images)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (reordered(toy(), np.roll(np.arange(60), 1)), "same images of toy in another order"),
        (changed_pixel(), "other images"),
        (dataclasses.replace(toy(), images=toy().images.reshape(60, 2, 3, 2)), "other images"),
        (toy(59), "60 labels for the 59 images of toy"),
        (dataclasses.replace(toy(), class_names=("a", "b", "c", "d")), "3 classes, toy has 4"),
    ],
)
def test_attach_refuses_other_images(dataset, message):
    with pytest.raises(UserError, match=message):
        label_files.attach(toy_file(), dataset)


def write_changed(path, **changes):
    label_files.write(path, toy_file())
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "label list"}, "not a label file"),
        ({"version": 2}, "version 2, but this program reads 1"),
        ({"seed": ...}, "missing or unknown entries: seed"),
        ({"labels": [0]}, "missing or unknown entries: labels"),
        ({"num_classes": 1}, "num_classes must be an integer >= 2, got 1"),
        ({"num_classes": True}, "num_classes must be an integer"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"rate": 1.5}, r"rate must be a number in \[0, 1\]"),
        ({"rate": float("nan")}, "rate must be a number"),
        ({"realised_rate": "0.4"}, "realised_rate must be a number"),
        ({"kind": ""}, "kind must be a name"),
        ({"dataset": 3}, "dataset must be a name"),
        ({"images_hash": "abc"}, "images_hash must be a SHA-256"),
        ({"images_set_hash": None}, "images_set_hash must be a SHA-256"),
        ({"num_examples": 61}, "y_tilde must be a list of 61 labels"),
        ({"y_tilde": [0] * 59}, "y_tilde must be a list of 60 labels"),
        ({"y_tilde": [0] * 59 + [3]}, r"y_tilde\[59\] = 3 is no class in 0..2"),
        ({"y_tilde": [-1] + [0] * 59}, r"y_tilde\[0\] = -1"),
        ({"y_tilde": [0.0] * 60}, r"y_tilde\[0\] = 0.0"),
        ({"S": [[1, 0, 0], [0, 1, 0]]}, "S must have 3 rows"),
        ({"S": [[1, 0, 0], [0, 1, 0], [0, 1]]}, "each row of S must be a list of 3 numbers"),
        ({"S": [[1, 0, 0], [0, 1, 0], [0, 0, "1"]]}, "each row of S must be a list of 3 numbers"),
        ({"S": [[1, 0, 0], [0, 1, 0], None]}, "each row of S must be a list of 3 numbers"),
        ({"S": [[1, 0, 0], [0, 1, 0], [0, 0, 0.5]]}, "S: row 2 .* sums to 0.5"),
        ({"realised_matrix": [[1, 0, 0], None, [0, 2, -1]]}, "realised_matrix: .* negative entry"),
    ],
)
def test_read_refuses_damaged_content(tmp_path, changes, message):
    path = tmp_path / "labels.json"
    write_changed(path, **changes)
    with pytest.raises(UserError, match=message) as error:
        label_files.read(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_read_refuses_what_is_no_label_file(tmp_path):
    path = tmp_path / "labels.json"
    with pytest.raises(UserError, match="no such file"):
        label_files.read(path)
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match="not a label file"):
        label_files.read(path)
    label_files.write(path, toy_file())
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not valid JSON"):
            label_files.read(path)
