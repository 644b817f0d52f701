"""Labels that people gave: read in every plain form, and only for the images that they belong to."""

import re
import subprocess
import sys

import numpy as np
import pytest

from tdsm_jax.data.dataset import Dataset
from tdsm_jax.data.human_labels import FIELDS, choose_human_labels, read_human_labels
from tdsm_jax.errors import UserError

N = 40
CLEAN = (np.arange(N) * 7 % 10).astype(np.int32)
FIELDS_10N = ["aggre_label", "worse_label", "random_label1", "random_label2", "random_label3"]


def toy():
    return Dataset("toy", np.zeros((N, 2, 2, 1), np.uint8), CLEAN, tuple("0123456789"))


def annotations():
    """The fields of CIFAR-10N, each a different set of labels."""
    return {"clean_label": CLEAN} | {
        name: np.where(np.arange(N) % (k + 2) == 0, (CLEAN + k + 1) % 10, CLEAN) for k, name in enumerate(FIELDS_10N)
    }


def write_csv(path, columns):
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")


def write_npz(path, columns):
    np.savez(path, **columns)


def write_structured(path, columns):
    np.save(path, np.array(list(zip(*columns.values(), strict=True)), [(name, "i8") for name in columns]))


WRITERS = {"human.csv": write_csv, "human.npz": write_npz, "human.npy": write_structured}


@pytest.mark.parametrize("field", FIELDS_10N)
@pytest.mark.parametrize("name", WRITERS)
def test_every_field_of_every_form(tmp_path, name, field):
    WRITERS[name](tmp_path / name, annotations())
    y_tilde = read_human_labels(tmp_path / name, toy(), field)
    np.testing.assert_array_equal(y_tilde, annotations()[field].astype(np.int32), strict=True)


@pytest.mark.parametrize("stored", ["noisy_label", "noise_label"])
def test_the_hundred_classes_have_one_field_under_two_names(tmp_path, stored):
    labels = (CLEAN + 1) % 10
    write_csv(tmp_path / "human.csv", {stored: labels, "clean_label": CLEAN})
    np.testing.assert_array_equal(read_human_labels(tmp_path / "human.csv", toy(), "noisy_label"), labels)


def test_coarse_labels_are_checked_against_coarse_classes(tmp_path):
    fine = {"clean_label": CLEAN * 10, "noisy_label": CLEAN * 10}
    coarse = {"noisy_coarse_label": (CLEAN + 2) % 10, "clean_coarse_label": CLEAN}
    write_csv(tmp_path / "human.csv", fine | coarse)
    y_tilde = read_human_labels(tmp_path / "human.csv", toy(), "noisy_coarse_label")
    np.testing.assert_array_equal(y_tilde, (CLEAN + 2) % 10)


def test_the_order_of_tensorflow_datasets_is_undone(tmp_path):
    order = np.arange(N) * 3 % N  # line i labels image order[i]
    write_csv(tmp_path / "ordered.csv", {name: values[order] for name, values in annotations().items()})
    np.save(tmp_path / "order.npy", order)
    y_tilde = read_human_labels(tmp_path / "ordered.csv", toy(), "worse_label", str(tmp_path / "order.npy"))
    np.testing.assert_array_equal(y_tilde, annotations()["worse_label"])
    with pytest.raises(UserError, match="another order: give the image order file"):
        read_human_labels(tmp_path / "ordered.csv", toy(), "worse_label")
    np.save(tmp_path / "order.npy", order // 2)
    with pytest.raises(UserError, match="names every image once, this one 20 of them"):
        read_human_labels(tmp_path / "ordered.csv", toy(), "worse_label", str(tmp_path / "order.npy"))


def test_other_images_are_named_by_the_first_difference():
    columns = annotations()
    columns["clean_label"] = CLEAN.copy()
    columns["clean_label"][[7, 30]] = (CLEAN[[7, 30]] + 1) % 10
    message = r"differ from those of toy at 2 of 40 images \(5.0%\), first at index 7 \(0, not 9\)"
    with pytest.raises(UserError, match=message):
        choose_human_labels("human.npy", columns, toy(), "aggre_label")


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({}, "worst_label", "unknown field of human labels 'worst_label'; did you mean 'worse_label'"),
        ({}, "noisy_label", "has no column 'noisy_label'"),
        ({"clean_label": None}, "aggre_label", "no column 'clean_label' to check the order of the images by"),
        ({"aggre_label": CLEAN[:-1]}, "aggre_label", "39 labels for 40 images"),
        ({"aggre_label": CLEAN + 1}, "aggre_label", "is 10, but classes are 0..9"),
        ({"aggre_label": CLEAN * 1.0}, "aggre_label", "labels are integers"),
        ({"clean_label": CLEAN + 90}, "aggre_label", "column 'clean_label' is 90"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(changes, field, message):
    columns = {name: values for name, values in (annotations() | changes).items() if values is not None}
    with pytest.raises(UserError, match=message) as error:
        choose_human_labels("human.npy", columns, toy(), field)
    assert "\n" not in str(error.value)


def test_the_pickled_original_is_refused_with_a_conversion_that_works(tmp_path):
    path = tmp_path / "CIFAR-10_human.npy"
    np.save(path, np.array(annotations(), object), allow_pickle=True)
    with pytest.raises(UserError, match="pickled Python objects") as error:
        read_human_labels(path, toy(), "worse_label")
    assert "\n" not in str(error.value)
    program, source, target = re.search(r'python -c "(.+)" (\S+) (\S+)$', str(error.value)).groups()
    subprocess.run([sys.executable, "-c", program, source, str(tmp_path / target)], check=True)
    y_tilde = read_human_labels(tmp_path / target, toy(), "worse_label")
    np.testing.assert_array_equal(y_tilde, annotations()["worse_label"])


def test_pytorch_files_are_refused_with_a_conversion(tmp_path):
    with pytest.raises(UserError, match="torch.load.*CIFAR-10_human.npz") as error:
        read_human_labels(tmp_path / "CIFAR-10_human.pt", toy(), "worse_label")
    program = re.search(r'python -c "(.+)" \S+ \S+$', str(error.value)).group(1)
    compile(program, "conversion", "exec")


def test_every_field_is_checked_by_clean_labels():
    assert {"aggre_label", "worse_label", "noisy_label", "noisy_coarse_label"} <= FIELDS.keys()
    assert all(clean.startswith("clean_") for clean in FIELDS.values())
