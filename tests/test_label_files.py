"""Label files: deterministic bytes, a validating reader, and labels that stick to their images."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

from tdsm_jax.data import label_files
from tdsm_jax.data.dataset import Dataset, images_hash
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import (
    corrupt,
    imbalanced,
    pair,
    realised_matrix,
    realised_rate,
    symmetric,
    transition_matrix,
)
from tdsm_jax.labels.instance import expected_matrix, instance_dependent


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


def ten_classes():
    """Fixed pictures, of which no library makes a single pixel."""
    images = (np.arange(200 * 48) * 31 % 253).astype(np.uint8).reshape(200, 4, 4, 3)
    return Dataset("fake", images, (np.arange(200) * 7 % 10).astype(np.int32), tuple("0123456789"))


def imbalanced_fake():
    dataset = ten_classes()
    return reordered(dataset, imbalanced(dataset.labels, 0.1, 10, 5))


S10 = 0.75 * np.eye(10) + 0.25 / 10
GOLDEN = {
    "sym": lambda: label_files.draw(ten_classes(), "sym", 0.4, 5),
    "sym_exact": lambda: label_files.draw(ten_classes(), "sym", 0.4, 5, exact=True),
    "sym_inclusive": lambda: label_files.draw(ten_classes(), "sym_inclusive", 0.4, 5),
    "pair": lambda: label_files.draw(ten_classes(), "pair", 0.4, 5),
    "asym": lambda: label_files.draw(ten_classes(), "asym", 0.4, 5, table="cifar10"),
    "asym_exact": lambda: label_files.draw(ten_classes(), "asym", 0.4, 5, table="cifar10", exact=True),
    "clean": lambda: label_files.draw(ten_classes(), "clean", 0.05, 5),
    "instance": lambda: label_files.draw(ten_classes(), "instance", 0.4, 5),
    "matrix": lambda: label_files.make_from_matrix(ten_classes(), S10, 5),
    "imported": lambda: label_files.import_labels(ten_classes(), (np.arange(200) * 3 % 10).astype(np.int32)),
    "imbalanced": lambda: label_files.draw(imbalanced_fake(), "sym", 0.4, 5),
}
# kind -> SHA-256 of the file, SHA-256 of y_tilde as little-endian int32
PINNED = {
    "sym": (
        "3bab604aa5e5f3799661aafa1d1b4bbe13af1ce6b45f1fed798ffde53a3d63c0",
        "1585401c10cbfbb37eb5441a07eb7bec6c3f402371db508f3c227e2b8040086d",
    ),
    "sym_exact": (
        "756133baa10987c1b414b8d2323d8bf54de37f9febcff1e0cdc03a04afbacb8a",
        "21afb90677e283ac9d97ab53f0b3cfb439095db2e047b4d01ddab01a96b8e953",
    ),
    "sym_inclusive": (
        "2be71aa79e63c952614cdd2cf29c2859c6df6ec3a1d27b402e6a1bb2ee526da1",
        "53177847a6a30b16a45d531b7bad247c12c6fc8f91e5a2fd6fe77f3365c2384e",
    ),
    "pair": (
        "d61512c2a17528a76b8ca4e31ac2b5bfb0f5a812ac369c8a5f05dc72e02b68e3",
        "29ab5dbe13645a7aab0c61dbbf534206fad98b968dbf5a0569477d216b6c2742",
    ),
    "asym": (
        "c6bfe7bbe463aecab3cd365aa95717ff4074384e2f1df011c8507a15fb7badd8",
        "a806e84bb26f429f5c4ab1f567da398398e3f03e1c51476d0beb5745a43a00cf",
    ),
    "asym_exact": (
        "bacb84e05b793e95bd8ef20f59c863a20d03c5ae47fdc052a754c8d598ef4e46",
        "81420028df44e0d08ec40aa7d91136cc2cbdfa1d7e38e75d082b35ab27fdb83d",
    ),
    "clean": (
        "ca6063ece40b89c36bfbe4dbcf0a1fc6a1030c9badee84dade357ac9e8d2d798",
        "40c94a0839ff48995fad8fae6e718dfd60eb64f3b2080e55fa89239b52d21061",
    ),
    "instance": (
        "ab8119f1a39a0c2c169cc3c403e22ad15e2557bca1e00d3a4d1c2a49fd7cc18b",
        "1769e6d02e6101c8082ed229364021725cfedc770f1a396edf1ca7877164bd9c",
    ),
    "matrix": (
        "13d97f0dcd30571b61c0ccc17e215e19246c255373bddf09506773919760fe6f",
        "fbfd6a33aea5021acfcc1e90b82ade9004c978d7950a3669347f932817a29d92",
    ),
    "imported": (
        "eaa1fcdd2d181a8380263031bd09cb9223e475a00d9119a19e69b13c63fa4660",
        "0bfe5df13c564ec0a576b4541504a737bc75e2826f9cc001e9e62701ca6cfe3f",
    ),
    "imbalanced": (
        "90341a9a4475513c5e977d3ca42cd5a60fe187b7f8def0ab4a30cae1be964f2f",
        "016bcf11047a1780b922017a073322de33faa4939cb7fcad324e27ac615d37ba",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_every_kind_is_pinned(name, tmp_path):
    """The same command gives the same bytes on every machine and with every version."""
    label_file = GOLDEN[name]()
    label_files.write(tmp_path / "labels.json", label_file)
    content = (tmp_path / "labels.json").read_bytes()
    y_tilde = label_files.read(tmp_path / "labels.json").y_tilde.astype("<i4").tobytes()
    assert (hashlib.sha256(content).hexdigest(), hashlib.sha256(y_tilde).hexdigest()) == PINNED[name]


@pytest.mark.parametrize("kind", ["sym", "sym_inclusive", "pair", "asym"])
@pytest.mark.parametrize("exact", [False, True])
def test_drawn_labels_are_those_of_the_matrix(kind, exact):
    dataset, S = ten_classes(), transition_matrix(kind, 10, 0.3, "mnist")
    label_file = label_files.draw(dataset, kind, 0.3, 2, table="mnist", exact=exact)
    np.testing.assert_array_equal(label_file.y_tilde, corrupt(dataset.labels, S, 2, exact))
    np.testing.assert_array_equal(label_file.S, S)
    assert (label_file.kind, label_file.rate, label_file.seed, label_file.exact) == (kind, 0.3, 2, exact)
    if exact:
        assert np.abs(20 * (label_file.realised_matrix - S)).max() < 1


def test_clean_labels_stay_but_are_taken_for_noisy():
    label_file = label_files.draw(ten_classes(), "clean", 0.05, 0)
    np.testing.assert_array_equal(label_file.y_tilde, ten_classes().labels, strict=True)
    np.testing.assert_array_equal(label_file.S, symmetric(10, 0.05))
    assert (label_file.kind, label_file.rate, label_file.realised_rate) == ("clean", 0.05, 0)


def test_instance_dependent_labels_come_with_their_average_matrix():
    dataset = ten_classes()
    y_tilde, p = instance_dependent(dataset.images, dataset.labels, 10, 0.4, 3)
    label_file = label_files.draw(dataset, "instance", 0.4, 3)
    np.testing.assert_array_equal(label_file.y_tilde, y_tilde)
    np.testing.assert_array_equal(label_file.S, expected_matrix(p, dataset.labels))


def test_a_matrix_brings_its_own_rate():
    S = np.eye(3)
    S[0] = 0.25, 0.75, 0
    label_file = label_files.make_from_matrix(toy(labels=np.arange(60) % 4 // 2), S, 1)
    assert (label_file.kind, label_file.rate) == ("matrix", 0.375)
    with pytest.raises(UserError, match="sums to 2"):
        label_files.make_from_matrix(toy(), 2 * np.eye(3), 1)
    with pytest.raises(UserError, match=r"S has shape \(4, 4\)"):
        label_files.make_from_matrix(toy(), np.eye(4), 1)


@pytest.mark.parametrize(
    ("kind", "rate", "options", "message"),
    [
        ("instance", 0.4, {"exact": True}, "there is no exact count"),
        ("clean", 0.4, {"exact": True}, "nothing to draw exactly"),
        ("clean", 1.4, {}, "rate must lie in"),
        ("symm", 0.4, {}, "'symm'; did you mean 'sym'"),
        ("asym", 0.4, {}, "unknown table"),
        ("asym", 0.4, {"table": "cifar100"}, "for 100 classes, but the data has 10"),
    ],
)
def test_noise_that_cannot_be_drawn(kind, rate, options, message):
    with pytest.raises(UserError, match=message):
        label_files.draw(ten_classes(), kind, rate, 0, **options)


def test_only_exact_label_files_say_so(tmp_path):
    path = tmp_path / "labels.json"
    label_files.write(path, toy_file())
    assert "exact" not in json.loads(path.read_text()) and not label_files.read(path).exact
    exact = label_files.make(toy(), "pair", 0.4, 5, pair(3, 0.4), exact=True)
    label_files.write(path, exact)
    assert json.loads(path.read_text())["exact"] is True and label_files.read(path).exact


def test_given_labels_come_from_label_files_and_tables(tmp_path):
    label_file = toy_file()
    label_files.write(tmp_path / "labels.json", label_file)
    np.save(tmp_path / "labels.npy", label_file.y_tilde)
    for name in ("labels.json", "labels.npy"):
        y_tilde = label_files.read_given_labels(tmp_path / name, toy())
        np.testing.assert_array_equal(y_tilde, label_file.y_tilde, strict=True)
    with pytest.raises(UserError, match="another order"):
        label_files.read_given_labels(tmp_path / "labels.json", reordered(toy(), np.arange(60)[::-1]))


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
        ({"exact": 1}, "exact must be true or false, got 1"),
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
