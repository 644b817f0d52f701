"""The command that makes and inspects label files: what it writes, what it says, how it refuses."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tdsm_jax.data import label_command, label_files, sources
from tdsm_jax.data.matrix_picture import write_matrix_picture
from tdsm_jax.labels.corruption import imbalanced, symmetric

ROOT = pathlib.Path(__file__).parents[1]
FAKE = ("--dataset=synthetic", "--num_images=300", "--image_size=8")


@pytest.fixture
def command(monkeypatch, capsys):
    """Returns a function that runs the command and returns its exit code, output and error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["label_files", *map(str, arguments)])
        code = 0
        try:
            label_command.run()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def fake(imbalance=1.0, seed=0):
    train, _ = sources.load(sources.DataSpec("synthetic", num_images=300, image_size=8))
    return label_command._subset(train, imbalanced(train.labels, imbalance, 10, seed))


def test_the_module_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tdsm_jax.data.label_files", "--inspect=none.json"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: none.json: no such file\n")


@pytest.mark.parametrize(
    ("noise", "options"),
    [
        ("sym", {}),
        ("sym", {"exact": True}),
        ("sym_inclusive", {}),
        ("pair", {}),
        ("asym", {"table": "mnist"}),
        ("clean", {}),
        ("instance", {}),
    ],
)
def test_drawn_label_files_are_those_of_the_library(tmp_path, command, noise, options):
    out = tmp_path / "labels.json"
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    code, _, err = command(*FAKE, f"--noise={noise}", "--rate=0.3", "--seed=4", f"--out={out}", *flags)
    assert (code, err) == (0, "")
    expected = label_files.draw(fake(), noise, 0.3, 4, **options)
    assert label_files.label_file_hash(label_files.read(out)) == label_files.label_file_hash(expected)


def test_what_is_said_is_what_the_file_holds(tmp_path, command):
    out, picture = tmp_path / "labels.json", tmp_path / "S.png"
    options = (*FAKE, "--noise=pair", "--rate=0.25", "--exact", "--imbalance=0.5", f"--out={out}")
    code, said, err = command(*options, f"--picture={picture}")
    assert (code, err) == (0, "")
    label_file = label_files.read(out)
    assert label_files.label_file_hash(label_file) in said
    assert f"wrong    {label_file.realised_rate:.2%} of the labels" in said
    counts = np.bincount(label_file.y_tilde, minlength=10)
    assert f"given    {' '.join(map(str, counts))}\n" in said
    assert f"clean    {' '.join(map(str, np.bincount(fake(0.5).labels)))}\n" in said
    assert "pair, rate 0.25, seed 0, exact counts" in said
    rows = re.findall(r"^ *(?:\d+\.\d ?\s*){10}$", said, re.MULTILINE)
    printed = np.array([row.split() for row in rows], float)
    np.testing.assert_allclose(printed, 100 * label_file.realised_matrix, atol=0.051)
    assert Image.open(picture).size[0] > 100


def test_a_digits_file_fits_the_digits(tmp_path, command):
    """The table of asymmetric noise is by default the one named like the dataset."""
    out = tmp_path / "labels.json"
    assert command("--dataset=digits", "--noise=asym", "--rate=0.4", f"--out={out}")[0] == 0
    code, said, err = command(f"--inspect={out}", "--dataset=digits")
    assert (code, err) == (0, "") and "fits digits: these very images, in this order" in said
    code, said, err = command(f"--inspect={out}", "--dataset=digits", "--split_seed=1")
    assert code == 2 and "other images than these of digits" in err
    assert "realised matrix" in said
    code, said, _ = command(f"--inspect={out}")
    assert code == 0 and "not compared with any images" in said and "clean  " not in said


def test_files_hold_matrices_labels_and_human_labels(tmp_path, command):
    train = fake()
    np.save(tmp_path / "S.npy", symmetric(10, 0.2))
    y = (train.labels + 1) % 10
    (tmp_path / "y.txt").write_text("\n".join(map(str, y)))
    np.savez(tmp_path / "human.npz", clean_label=train.labels, worse_label=y)
    expected = {
        "matrix": label_files.make_from_matrix(train, symmetric(10, 0.2), 0),
        "labels": label_files.import_labels(train, y),
        "human": label_files.import_labels(train, y),
    }
    given = {"matrix": ("S.npy",), "labels": ("y.txt",), "human": ("human.npz", "--column=worse_label")}
    for noise, (name, *options) in given.items():
        out = tmp_path / f"{noise}.json"
        assert command(*FAKE, f"--noise={noise}", f"--from={tmp_path / name}", f"--out={out}", *options)[0] == 0
        assert label_files.label_file_hash(label_files.read(out)) == label_files.label_file_hash(expected[noise])
    again = tmp_path / "again.json"
    assert command(*FAKE, "--noise=labels", f"--from={tmp_path / 'labels.json'}", f"--out={again}")[0] == 0
    assert again.read_bytes() == (tmp_path / "labels.json").read_bytes()


def test_labels_of_the_whole_training_set_serve_an_imbalanced_one(tmp_path, command):
    (tmp_path / "y.txt").write_text("\n".join(map(str, fake().labels)))
    options = ("--noise=labels", f"--from={tmp_path / 'y.txt'}", "--imbalance=0.2", f"--out={tmp_path / 'l.json'}")
    assert command(*FAKE, *options)[0] == 0
    label_file = label_files.read(tmp_path / "l.json")
    np.testing.assert_array_equal(label_file.y_tilde, fake(0.2).labels)
    assert command(*FAKE, f"--inspect={tmp_path / 'l.json'}", "--imbalance=0.2")[0] == 0
    code, _, err = command(*FAKE, f"--inspect={tmp_path / 'l.json'}")
    assert code == 2 and "labels for the" in err


SYM = (*FAKE, "--noise=sym", "--rate=0.4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --out to make a label file or --inspect"),
        ((*SYM, "--out=new.json", "--inspect=old.json"), "give --out to make a label file or --inspect"),
        (("--noise=sym", "--rate=0.4", "--out=new.json"), "--out needs --dataset"),
        (("--dataset=digit", "--noise=sym", "--rate=0.4", "--out=new.json"), "'digit'; did you mean 'digits'"),
        ((*FAKE, "--noise=symm", "--rate=0.4", "--out=new.json"), "--noise=symm: no such label noise; did you mean"),
        ((*FAKE, "--noise=sym", "--out=new.json"), "--noise=sym needs --rate"),
        ((*FAKE, "--noise=sym", "--rate=2", "--out=new.json"), r"rate must lie in \[0, 1\]"),
        ((*FAKE, "--noise=sym", "--rate=high", "--out=new.json"), "invalid float value: 'high'"),
        ((*SYM, "--seed=-1", "--out=new.json"), "seed must be a non-negative integer"),
        ((*SYM, "--table=mnist", "--out=new.json"), "--table is not read by --noise=sym, but by: asym"),
        ((*SYM, "--from=S.npy", "--out=new.json"), "--from is not read by --noise=sym"),
        ((*SYM, "--imbalance=0", "--out=new.json"), "smallest class over the largest"),
        ((*SYM, "--out=new.json", "--picture=S.svg"), "the picture is a PNG file"),
        ((*SYM, "--out=README.md"), "README.md exists"),
        ((*SYM, "--out=new.json", "--picture=README.md"), "README.md exists"),
        ((*FAKE, "--noise=asym", "--rate=0.4", "--out=new.json"), "unknown table .* 'synthetic'"),
        ((*FAKE, "--noise=instance", "--rate=0.4", "--exact", "--out=new.json"), "--exact is not read"),
        ((*FAKE, "--noise=matrix", "--out=new.json"), "--noise=matrix needs --from"),
        ((*FAKE, "--noise=matrix", "--from=S.npy", "--rate=0", "--out=new.json"), "--rate is not read by"),
        ((*FAKE, "--noise=matrix", "--from=S.npy", "--out=new.json"), "S.npy: no such file"),
        ((*FAKE, "--noise=labels", "--from=y.csv", "--out=new.json"), "y.csv: no such file"),
        ((*FAKE, "--noise=human", "--from=y.csv", "--out=new.json"), "--noise=human needs --column"),
        ((*FAKE, "--inspect=old.json"), "old.json: no such file"),
        ((*SYM, "--inspect=old.json"), "--noise says how to make a label file; leave it out with --inspect"),
        ((*SYM, "--out=new.json", "--loud"), "unrecognized arguments: --loud"),
    ],
)
def test_bad_arguments_end_in_one_line(command, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").touch()
    code, out, err = command(*arguments)
    assert code == 2 and out == "" and re.search(message, err)
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "new.json").exists()


def test_a_picture_shows_the_matrix(tmp_path):
    matrix = np.array([[0.0, 1.0, 0.0], [np.nan] * 3, [0.5, 0.0, 0.5]])
    write_matrix_picture(tmp_path / "S.png", matrix)
    pixels = np.asarray(Image.open(tmp_path / "S.png").convert("RGB")).astype(int)
    cell = 36
    corner = pixels[46 : 46 + 3 * cell : cell, 46 : 46 + 3 * cell : cell]  # inside each cell, off its number
    darkness = 255 - corner.mean(axis=2)
    assert darkness[0].argmax() == 1 and darkness[0, 0] == darkness[0, 2] == 0
    assert 0 < darkness[2, 0] == darkness[2, 2] < darkness[0, 1]
    assert (corner[1] == 200).all()


def test_a_hundred_classes_fit_a_picture(tmp_path):
    write_matrix_picture(tmp_path / "S.png", symmetric(100, 0.4))
    assert max(Image.open(tmp_path / "S.png").size) < 1000


def test_nothing_in_a_file_depends_on_the_machine_or_the_version(tmp_path, command):
    out = tmp_path / "labels.json"
    assert command(*SYM, f"--out={out}")[0] == 0
    content = json.loads(out.read_text())
    assert content.keys() == {
        "format", "version", "num_examples", "dataset", "num_classes", "kind", "rate", "seed", "images_hash",
        "images_set_hash", "realised_rate", "S", "realised_matrix", "y_tilde",
    }  # fmt: skip
