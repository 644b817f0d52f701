"""Clothing-1M: the published files read as they are, S from the images with both labels, no metric on wrong labels."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from PIL import Image

from tdsm_jax import checks, label_stages, plan
from tdsm_jax import config as configuration
from tdsm_jax.data import clothing1m, sources
from tdsm_jax.data.sources import DataSpec
from tdsm_jax.errors import UserError
from tdsm_jax.run import Run
from tdsm_jax.validation import validate

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = configuration.load_module(ROOT / "configs" / "clothing1m.py")
NAMES = ("T-Shirt", "Down Coat", "Underwear")  # some names hold a space


def write_lines(path, lines):
    path.write_text("\n".join(lines) + "\n")


def tree(root, folder="", train=60, known=30, test=12):
    """Writes a small Clothing-1M; returns {name of an image: (clean, noisy)}, None for a label that it has not."""
    g = np.random.default_rng(0)
    where = root / folder
    where.mkdir(parents=True, exist_ok=True)
    labels, lists = {}, {"noisy_train": [], "clean_train": [], "clean_val": [], "clean_test": []}
    for part, count in zip(lists, (train, known, known // 2, test), strict=True):
        for i in range(count):
            name = f"images/{i % 10}/{i % 7:02d}/{part}{i},{i}.jpg"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shown = (80 * (i % 3) + g.integers(0, 60, (20, 24, 3))).astype(np.uint8)
            Image.fromarray(shown).save(root / name)
            y = i % 3
            y_tilde = (y + 1) % 3 if g.random() < 0.3 else y
            both = part != "noisy_train" and i % 2
            labels[name] = (None if part == "noisy_train" else y, y_tilde if part == "noisy_train" or both else None)
            lists[part].append(name)
    for part, names in lists.items():
        write_lines(where / f"{part}_key_list.txt", names)
    write_lines(where / "clean_label_kv.txt", [f"{n} {y}" for n, (y, _) in labels.items() if y is not None])
    write_lines(where / "noisy_label_kv.txt", [f"{n} {y}" for n, (_, y) in labels.items() if y is not None])
    write_lines(where / "category_names_eng.txt", NAMES)
    return labels, lists


def load(root, **fields):
    return sources.load(DataSpec("clothing1m", path=str(root), **{"image_size": 16} | fields))


@pytest.mark.parametrize("folder", ["", "annotations"])
def test_every_part_has_the_labels_of_its_files(tmp_path, folder):
    labels, lists = tree(tmp_path, folder)
    train, test = load(tmp_path)
    assert train.class_names == test.class_names == train.reference.class_names == NAMES
    assert train.images.shape == (60, 16, 16, 3) and test.images.shape == (12, 16, 16, 3)
    assert train.labels.tolist() == [labels[name][1] for name in lists["noisy_train"]]
    assert test.labels.tolist() == [labels[name][0] for name in lists["clean_test"]]
    known = [*lists["clean_train"], *lists["clean_val"]]
    assert train.reference.labels.tolist() == [labels[name][0] for name in known]
    assert train.pairs.tolist() == [list(labels[name]) for name in known if labels[name][1] is not None]
    assert (train.clean, test.clean, train.reference.clean) == (False, True, True)
    one = np.asarray(Image.open(tmp_path / lists["clean_test"][5]).crop((2, 0, 22, 20)).resize((16, 16), 1))
    np.testing.assert_array_equal(test.images[5], one)


def run_of(tmp_path, arguments="", **keys):
    if not (tmp_path / "data").exists():
        tree(tmp_path / "data")
    config = CONFIG.get_config(f"data={tmp_path / 'data'},memory,smoke,{arguments}")
    config.update_from_flattened_dict(keys)
    validate(config)
    return Run(FrozenConfigDict(config), tmp_path / "run")


def test_counts_read_the_pairs_and_nothing_else(tmp_path):
    run = run_of(tmp_path)
    label_stages.make_labels(run)
    known = label_stages.evidence(run)
    assert len(run.y_tilde) == 60
    np.testing.assert_array_equal(known.y_tilde, run.train_set.labels)
    joint = np.zeros((3, 3))
    np.add.at(joint, tuple(run.train_set.pairs.T), 1)
    np.testing.assert_array_equal(known.clean_joint, joint)
    label_stages.estimate_transition(run)
    np.testing.assert_allclose(run.given_S, (joint + 0.5) / (joint + 0.5).sum(axis=1, keepdims=True))


def test_the_reference_is_the_clean_images(tmp_path):
    run = run_of(tmp_path)
    checks.check(run)
    assert run.reference is run.train_set.reference and run.known_S is None
    assert len(run.test_set.labels) == 12
    units = {unit.name: unit for unit in plan.units(run)}
    assert "label_noise.kind" in units["judge"].reads
    assert any(path.endswith("clean_train_key_list.txt") for path in units["judge"].inputs)


@pytest.mark.parametrize(
    ("arguments", "keys", "words"),
    [
        ("", {"label_noise.kind": "sym", "transition.estimator": "known"}, "as given, none of them known to be true"),
        ("methods=dsm+clean", {}, "clean trains on true labels"),
        ("", {"transition.estimator": "known"}, "transition.estimator=known is the matrix"),
        ("", {"task": "robust_losses"}, "robust_losses corrupts true labels; those of clothing1m"),
    ],
)
def test_true_labels_are_nowhere_assumed(tmp_path, arguments, keys, words):
    with pytest.raises(UserError, match=words):
        checks.check(run_of(tmp_path, arguments, **keys))


def without_pairs(root):
    noisy = (root / "noisy_train_key_list.txt").read_text().split()
    lines = (root / "noisy_label_kv.txt").read_text().splitlines()
    write_lines(root / "noisy_label_kv.txt", [line for line in lines if line.split()[0] in set(noisy)])


def test_without_pairs_there_is_nothing_to_count(tmp_path):
    tree(tmp_path / "data")
    without_pairs(tmp_path / "data")
    run = run_of(tmp_path)
    assert run.train_set.pairs is None
    with pytest.raises(UserError, match="counts true classes, which nobody knows of clothing1m"):
        checks.check(run)


def add(path, line):
    with path.open("a") as file:
        file.write(f"{line}\n")


def again(root):
    """The first line of the noisy labels with another label."""
    name, y = (root / "noisy_label_kv.txt").read_text().splitlines()[0].split()
    return f"{name} {(int(y) + 1) % 3}"


def without_test_images_of(root, y):
    clean = dict(line.split() for line in (root / "clean_label_kv.txt").read_text().splitlines())
    path = root / "clean_test_key_list.txt"
    write_lines(path, [name for name in path.read_text().split() if clean[name] != str(y)])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "noisy_train_key_list.txt").unlink(), "no noisy_train_key_list.txt here nor in annotations"),
        (lambda d: (d / "clean_val_key_list.txt").unlink(), "clean_val_key_list.txt: no such file"),
        (lambda d: (d / "category_names_eng.txt").write_text("\n"), "category_names_eng.txt: is empty"),
        (
            lambda d: write_lines(d / "clean_label_kv.txt", ["images/a.jpg 3"]),
            r"line 1, 'images/a.jpg 3', is not a name",
        ),
        (lambda d: write_lines(d / "clean_label_kv.txt", ["images/a.jpg"]), "line 1, 'images/a.jpg', is not a name"),
        (lambda d: write_lines(d / "clean_label_kv.txt", ["images/a.jpg 1"]), "has no label for images/.*a list names"),
        (lambda d: (d / "clean_test_key_list.txt").write_bytes(b"\xff\xfe\xff"), "is no text file"),
        (
            lambda d: (d / "clean_test_key_list.txt").write_text((d / "clean_val_key_list.txt").read_text()),
            "is also in another list",
        ),
        (lambda d: add(d / "noisy_label_kv.txt", again(d)), r"line \d+ labels images/0/00/.*jpg unlike an earlier one"),
        (lambda d: add(d / "noisy_train_key_list.txt", "images/../../secret.jpg"), "is no plain relative name"),
        (lambda d: add(d / "clean_val_key_list.txt", "/etc/secret.jpg"), "val_key_list.txt: '/etc.* no plain relative"),
        (
            lambda d: add(d / "category_names_eng.txt", "Scarf"),
            "noisy_train_key_list.txt: names no image of class Scarf",
        ),
        (lambda d: without_test_images_of(d, 2), "clean_test_key_list.txt: names no image of class Underwear"),
        (lambda d: next((d / "images").rglob("noisy_train3,*.jpg")).unlink(), r"noisy_train3,3\.jpg: no such file"),
    ],
)
def test_what_is_missing_or_damaged_is_named(tmp_path, spoil, words):
    tree(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_label_twice_is_one_label(tmp_path):
    tree(tmp_path)
    expected = load(tmp_path)[0].labels
    add(tmp_path / "noisy_label_kv.txt", (tmp_path / "noisy_label_kv.txt").read_text().splitlines()[0])
    np.testing.assert_array_equal(load(tmp_path)[0].labels, expected)


@pytest.mark.parametrize(("part", "kind"), [("clean_test", "test"), ("clean_", "test"), ("clean_[tv][ra]", "clean")])
def test_images_left_as_they_are_must_be_alike(tmp_path, part, kind):
    tree(tmp_path)
    assert load(tmp_path, image_size=0)[0].images.shape[1:] == (20, 24, 3)
    for path in (tmp_path / "images").rglob(f"{part}*.jpg"):
        Image.open(path).resize((16, 16)).save(path)
    with pytest.raises(UserError, match=rf"holds {kind} images of shape \(16, 16, 3\), but training .* \(20, 24"):
        load(tmp_path, image_size=0)


def test_the_annotations_stand_for_the_data(tmp_path):
    tree(tmp_path)
    before = clothing1m.inputs(tmp_path)
    assert len(before) == 7
    with (tmp_path / "noisy_label_kv.txt").open("a") as file:
        file.write("images/more.jpg 1\n")
    after = clothing1m.inputs(tmp_path)
    assert [path for path in before if before[path] != after[path]] == [str(tmp_path / "noisy_label_kv.txt")]


@pytest.mark.slow
def test_one_command_trains_and_measures_on_true_labels_alone(tmp_path):
    tree(tmp_path / "data")
    keys = (
        "--config.score.augment=0",
        "--config.network.attention_resolutions=()",
        "--config.network.multipliers=(1,)",
    )
    config = f"{ROOT}/configs/clothing1m.py:data={tmp_path / 'data'},memory,methods=tdsm,smoke"
    done = subprocess.run(
        [sys.executable, "-m", "tdsm_jax.main", f"--config={config}", f"--workdir={tmp_path / 'run'}", *keys],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"label_fidelity", "cas", "cw_fd"} <= metrics["methods"]["tdsm"].keys()
    assert "compare with 45 other images whose labels are true" in metrics["labels_as_given"]
    assert "accuracy" not in metrics["classifier"] and metrics["transition"]["estimator"] == "counts"


def test_the_config_is_the_published_one():
    config = CONFIG.get_config("data=x")
    validate(config)
    assert config.data.image_size == 64 and config.data.stream and config.classifier.network == "resnet34"
    assert config.label_noise.kind == "given" and config.transition.estimator == "counts"
    assert "clean" not in config.methods
    smoke = CONFIG.get_config("smoke")
    validate(smoke)
    assert smoke.data.name == "synthetic" and smoke.data.num_classes == 14
