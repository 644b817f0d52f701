"""The commands that measure images, through their entry points: references, evaluations of a model, comparisons."""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
import runpy
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax import files, hosts
from tdsm_jax.data import edm_zip, sources
from tdsm_jax.data.dataset import images_hash, subset
from tdsm_jax.data.edm_zip import Archive
from tdsm_jax.diffusion.process import EDM
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import features, measure, references
from tdsm_jax.evaluation.frechet import frechet_distance
from tdsm_jax.evaluation.kernels import kid
from tdsm_jax.networks.unet import UNet
from tdsm_jax.training import model_file
from tdsm_jax.training.checkpoint import Checkpoints
from tdsm_jax.training.model_file import Model
from tdsm_jax.training.state import Optimisation, initial_state

ROOT = pathlib.Path(__file__).parents[1]
PIXELS = "--features=pixels:8x8x1"
FEW = ("--steps=2", "--batch_size=16")


@pytest.fixture(autouse=True)
def signals():
    """The commands listen for SIGTERM; the tests' own process shall not go on doing so."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command in this process; returns its exit code and what it printed."""
    monkeypatch.setattr(measure, "kid", functools.partial(kid, subsets=5))  # a hundred take most of the time

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.delitem(sys.modules, f"tdsm_jax.{name}", raising=False)  # or runpy warns
        code = 0
        try:
            runpy.run_module(f"tdsm_jax.{name}", run_name="__main__")
        except SystemExit as ending:
            code = ending.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def tiny_model(num_classes=10):
    network = UNet(num_classes, 8, (1,), 1, (), 0.0, "ddpmpp", 0, jnp.dtype(jnp.float32))
    rng = np.random.default_rng(0)
    shapes = model_file.variable_shapes(network, (8, 8, 1))
    params = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return Model(network, params, EDM(), (8, 8, 1))


def real_images():
    """The first training images of the digits: enough for halves of each class."""
    train, _ = sources.load(sources.DataSpec("digits"))
    return subset(train, np.arange(300))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a tiny model, and a reference of the digits' training images."""
    folder = tmp_path_factory.mktemp("made")
    model_file.write(folder / "ema.npz", tiny_model())
    train = real_images()
    edm_zip.write(folder / "digits.zip", train.images, train.labels, train.class_names)
    arguments = [f"--images={folder}/digits.zip", PIXELS, f"--out={folder}/ref.npz"]
    done = subprocess.run(
        [sys.executable, "-m", "tdsm_jax.make_ref_stats", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "300 images, 10 classes, 64 features of pixels:8x8x1" in done.stdout
    return folder


def evaluate(call, made, out, *more, n=80):
    named = {argument.partition("=")[0] for argument in more}
    given = [f"--checkpoint={made}/ema.npz", f"--reference={made}/ref.npz", PIXELS, f"--out={out}", f"--n={n}", *FEW]
    return call("evaluate", *(a for a in given if a.partition("=")[0] not in named), *more)


def pixels(images):
    return images.reshape(len(images), -1).astype(np.float32) * np.float32(1 / 255)


def test_a_reference_says_what_it_was_made_of(made):
    reference, train = references.read(made / "ref.npz"), real_images()
    about = reference.description
    assert about["images"]["sha256"] == images_hash(train.images)
    assert about["images"]["shape"] == [300, 8, 8, 1] and about["num_classes"] == 10
    assert about["count_per_class"] == np.bincount(train.labels).tolist()
    assert about["extractor"]["name"] == "pixels:8x8x1" and len(about["extractor"]["digest"]) == 64
    assert about["versions"].keys() >= {"jax", "numpy", "tdsm_jax"} and about["date"]
    np.testing.assert_array_equal(reference.real.features, pixels(train.images))
    np.testing.assert_array_equal(reference.real.labels, train.labels)
    arrays = np.load(made / "ref.npz")  # as other FID programs read it
    np.testing.assert_allclose(
        arrays["mu"], pixels(train.images).astype(np.float64).mean(axis=0), rtol=1e-12, atol=1e-15
    )
    np.testing.assert_allclose(
        arrays["sigma"], np.cov(pixels(train.images), rowvar=False, dtype=np.float64), atol=1e-12
    )
    assert {"fd", "kid", "cmmd", "density_k3", "cw_fd", "cw_coverage_k5_per_class"} <= reference.floor.keys()


def test_one_host_alone_says_that_a_reference_is_made(made, call, tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "is_writer", lambda: False)
    code, said, errors = call("make_ref_stats", f"--images={made}/digits.zip", PIXELS, f"--out={tmp_path}/r.npz")
    assert (code, said) == (0, ""), errors


def test_repeats_are_measured_beside_the_floor_and_exported(made, call, tmp_path):
    export = tmp_path / "samples.zip"
    code, table, errors = evaluate(call, made, tmp_path / "out", "--repeats=2", f"--export={export}")
    assert code == 0, errors
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    real = references.read(made / "ref.npz").real.features
    images = []
    for seed in (0, 1):
        with Archive(tmp_path / f"samples-seed{seed}.zip") as archive:
            images.append(archive.load())
            np.testing.assert_array_equal(archive.labels, np.arange(80) % 10)
        assert result["per_seed"][str(seed)]["fd"] == pytest.approx(
            frechet_distance(real, pixels(images[-1])), rel=1e-9
        )
    assert (images[0] != images[1]).any()
    values = [result["per_seed"][seed] for seed in ("0", "1")]
    assert result["summary"]["fd"] == {
        "mean": pytest.approx(np.mean([v["fd"] for v in values])),
        "std": pytest.approx(np.std([v["fd"] for v in values], ddof=1)),
        "best": min(v["fd"] for v in values),
    }
    assert len(values[0]["cw_fd_per_class"]) == 10 and result["floor"]["cw_fd"] > 0
    assert result["settings"]["n"] == 80 and "floor" not in result["reference"]
    assert (tmp_path / "out" / "metrics.md").read_text().strip() == table.strip()
    assert "80 images a repeat of" in table and "The reference has 300 images of 10 classes." in table
    half = sum(count // 2 for count in references.read(made / "ref.npz").description["count_per_class"])
    assert f"Real against real: {half} of them against {half} others." in table
    assert "best of 2" in table and "real against real" in table
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left >= {"metrics.json", "metrics.md", "seed0.json", "seed1.json"} and not any("parts" in n for n in left)


def test_exported_images_have_the_name_of_their_seed_and_are_ours(made, call, tmp_path, monkeypatch):
    out, export = tmp_path / "out", tmp_path / "samples.zip"

    def again(*more, to=export):
        return evaluate(call, made, out, "--metrics=fd", f"--export={to}", *more, n=16)

    export.write_text("another's")
    code, _, errors = again()
    assert code == 2 and "samples.zip is there already, and not from here; give another --export" in errors
    assert export.read_text() == "another's" and not out.exists()
    export.unlink()
    with monkeypatch.context() as patch:  # stopped after the export
        patch.setattr(features, "extract", lambda *_, **__: sys.exit(7))
        assert again()[0] == 7
    assert export.exists() and not (out / "seed0.json").exists()
    before = export.stat().st_mtime_ns
    assert again()[0] == 0 and export.stat().st_mtime_ns == before
    assert files.read_json(out / "seed0.json")["export"] == str(export)
    (out / "seed0.parts").mkdir()  # as a process that ended before it removed them
    assert again("--repeats=2")[0] == 0  # the first keeps its name
    assert not list(out.glob("*.parts"))
    assert again("--seed=2")[0] == 0  # of one repeat, but the plain name is another seed's
    assert {path.name for path in tmp_path.glob("*.zip")} == {f"samples{x}.zip" for x in ("", "-seed1", "-seed2")}
    assert again("--seed=1")[0] == 0  # is there
    assert "export" not in json.loads((out / "metrics.json").read_text())["per_seed"]["1"]
    code, _, errors = again(to=tmp_path / "other.zip")
    assert code == 2 and "keeps the images of seed 0 in " in errors
    export.unlink()
    code, _, errors = again()
    assert code == 2 and "the images of seed 0 are there no more; give another --out" in errors


def test_results_of_fewer_settings_are_another_evaluation(made, call, tmp_path):
    files.write_json(tmp_path / "out" / "settings.json", {"n": 80})
    code, _, errors = evaluate(call, made, tmp_path / "out", "--metrics=fd")
    assert code == 2 and "holds results of another model; give another folder" in errors


def test_an_image_depends_on_the_seed_and_its_number_alone(made, call, tmp_path):
    """Not on how many are drawn, on the batch size, or on which repeat it belongs to."""
    loads = []
    for name, n, more in (("a", 80, ()), ("b", 50, ("--batch_size=24",))):
        export = f"--export={tmp_path}/{name}/images"
        code, _, errors = evaluate(call, made, tmp_path / name, "--seed=1", "--metrics=fd", export, *more, n=n)
        assert code == 0, errors
        with Archive(tmp_path / name / "images") as archive:
            loads.append(archive.load())
    assert [len(images) for images in loads] == [80, 50]
    assert np.abs(loads[0][:50].astype(int) - loads[1]).max() <= 1  # other batches may round otherwise


def test_an_interrupted_evaluation_goes_on_to_the_same_numbers(made, call, tmp_path, monkeypatch):
    assert evaluate(call, made, tmp_path / "whole", "--metrics=fd,kid")[0] == 0
    for after, batches in ((3, 3), (2, 5)):  # in the middle of sampling, and before the extraction
        polls = iter(range(100))
        with monkeypatch.context() as patch:
            patch.setattr(hosts, "stop_asked", lambda polls=polls, after=after: next(polls) == after)
            code, _, errors = evaluate(call, made, tmp_path / "cut", "--metrics=fd,kid")
        assert code == 0 and "the same command goes on from here" in errors
        assert len(list((tmp_path / "cut" / "seed0.parts" / "images").iterdir())) == batches
        assert not (tmp_path / "cut" / "metrics.json").exists()
    assert evaluate(call, made, tmp_path / "cut", "--metrics=fd,kid")[0] == 0
    whole, cut = (json.loads((tmp_path / name / "seed0.json").read_text()) for name in ("whole", "cut"))
    assert whole == cut
    before = (tmp_path / "cut" / "seed0.json").stat().st_mtime_ns
    assert evaluate(call, made, tmp_path / "cut", "--metrics=fd,kid", "--repeats=2")[0] == 0  # more of them
    assert (tmp_path / "cut" / "seed0.json").stat().st_mtime_ns == before
    code, _, errors = evaluate(call, made, tmp_path / "cut", "--metrics=fd,kid", n=70)
    assert code == 2 and "holds results of another n; give another folder" in errors


def test_a_training_folder_stands_for_its_model_or_latest_checkpoint(made, call, tmp_path):
    training, model = tmp_path / "score", tiny_model()
    model_file.write_description(training, model)
    checkpoints = Checkpoints(training / "checkpoints")
    others = jax.tree.map(jnp.zeros_like, model.params)
    state = initial_state(others, Optimisation(8, 1e-3, 0, 8, 1.0, 0.0, 0.0))
    for step, params in ((5, others), (20, model.params)):
        checkpoints.save(step, dataclasses.replace(state, ema_params=params))
    checkpoints.wait()
    assert evaluate(call, made, tmp_path / "file", "--metrics=fd")[0] == 0
    code, _, errors = evaluate(call, made, tmp_path / "folder", "--metrics=fd", f"--checkpoint={training}")
    assert code == 0, errors
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("file", "folder"))
    assert one["per_seed"] == other["per_seed"]
    assert other["settings"]["model"]["path"].endswith("checkpoints/00000020")


def test_labels_in_the_proportions_of_the_reference(made, call, tmp_path):
    out = tmp_path / "samples.zip"
    code, _, errors = evaluate(
        call, made, tmp_path / "out", "--labels=reference", "--metrics=fd", f"--export={out}", n=300
    )
    assert code == 0, errors
    with Archive(out) as archive:
        counts = np.bincount(archive.labels).tolist()
    assert counts == references.read(made / "ref.npz").description["count_per_class"]


def test_other_real_images_give_the_floor(made, call, tmp_path):
    code, _, errors = call("make_ref_stats", "--images=digits", "--split=test", PIXELS, f"--out={tmp_path}/test.npz")
    assert code == 0, errors
    code, table, errors = evaluate(call, made, tmp_path / "out", "--metrics=fd", f"--floor={tmp_path}/test.npz")
    assert code == 0, errors
    assert "test.npz against all of them" in table and "others" not in table
    train, (_, test) = real_images(), sources.load(sources.DataSpec("digits"))
    floor = json.loads((tmp_path / "out" / "metrics.json").read_text())["floor"]
    assert floor == {"fd": pytest.approx(frechet_distance(pixels(train.images), pixels(test.images)))}
    named = {"path": f"{tmp_path}/test.npz", "sha256": files.file_digest(tmp_path / "test.npz")}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["floor_reference"] == named


def test_two_sets_of_images_are_compared(made, call, tmp_path):
    train, (_, test) = real_images(), sources.load(sources.DataSpec("digits"))
    np.savez(tmp_path / "test.npz", images=test.images, labels=test.labels)
    out = tmp_path / "both"
    code, table, errors = call("compare", made / "digits.zip", tmp_path / "test.npz", PIXELS, f"--out={out}")
    assert code == 0, errors
    found = files.read_json(f"{out}.json")
    assert found["metrics"]["fd"] == pytest.approx(frechet_distance(pixels(train.images), pixels(test.images)))
    assert len(found["metrics"]["cw_fd_per_class"]) == 10 and found["floor"]["fd"] > 0
    assert found["images"]["sha256"] == images_hash(test.images)
    assert "class-wise Frechet distance, worst class" in table
    code, _, errors = call("compare", made / "ref.npz", tmp_path / "test.npz", PIXELS, f"--out={out}2")
    assert code == 0, errors
    again = files.read_json(f"{out}2.json")
    assert again["metrics"] == found["metrics"]
    for floor in (again["floor"], found["floor"]):
        del floor["kid"], floor["kid_spread"]  # of a hundred subsets in the reference
    assert again["floor"] == found["floor"]


def test_an_interrupted_comparison_goes_on_after_what_it_has_seen(made, call, tmp_path, monkeypatch):
    train, test = sources.load(sources.DataSpec("digits"))
    np.savez(tmp_path / "test.npz", images=test.images, labels=test.labels)
    command = ("compare", made / "digits.zip", tmp_path / "test.npz", PIXELS, "--metrics=fd", f"--out={tmp_path}/both")
    with monkeypatch.context() as patch:
        patch.setattr(features, "BLOCK", 64)
        polls = itertools.count()
        patch.setattr(hosts, "stop_asked", lambda: next(polls) == 7)  # after 300 real images in five, two blocks more
        code, _, errors = call(*command)
        assert not code and "stopped" in errors and not (tmp_path / "both.json").exists()
        kept = {side: len(list((tmp_path / f"both.{side}.parts").iterdir())) for side in ("real", "made")}
        assert kept == {"real": 5, "made": 2}
        patch.setattr(hosts, "stop_asked", lambda: False)
        seen = []
        in_batches = features.in_batches
        patch.setattr(features, "in_batches", lambda *given: seen.append(given[3]) or in_batches(*given))
        code, _, errors = call(*command)
        assert not code, errors
    assert sum(seen) < 300  # of the made images alone
    found = files.read_json(tmp_path / "both.json")["metrics"]["fd"]
    assert found == pytest.approx(frechet_distance(pixels(real_images().images), pixels(test.images)))
    assert not list(tmp_path.glob("*.parts"))


def test_unlabelled_images_and_moments_of_other_programs_give_what_they_can(made, call, tmp_path):
    train, test = sources.load(sources.DataSpec("digits"))
    np.save(tmp_path / "test.npy", test.images)
    x = pixels(train.images).astype(np.float64)
    np.savez(tmp_path / "stats.npz", mu=x.mean(axis=0), sigma=np.cov(x, rowvar=False))
    code, table, errors = call("compare", tmp_path / "stats.npz", tmp_path / "test.npy", PIXELS, f"--out={tmp_path}/c")
    assert code == 0, errors
    assert files.read_json(tmp_path / "c.json")["metrics"] == {
        "fd": pytest.approx(frechet_distance(x, pixels(test.images)), rel=1e-6)
    }
    code, table, errors = call("compare", made / "digits.zip", tmp_path / "test.npy", PIXELS, "--no_floor")
    assert code == 0 and "class-wise" not in table and "CMMD" not in table, errors
    assert "MMD of embeddings, a thousandfold" in table


@pytest.fixture
def no_extraction(monkeypatch):
    def extract(*_, **__):
        raise AssertionError("images were looked at")

    monkeypatch.setattr(features, "extract", extract)


def test_sets_that_cannot_be_compared_are_refused_before_they_are_looked_at(made, call, no_extraction, tmp_path):
    grey = np.arange(30, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    for name, images, labels in (
        ("colour", grey.repeat(3, 3), np.arange(30) % 10),
        ("wide", grey.repeat(2, 2), np.arange(30) % 10),
        ("few", grey, np.arange(30) % 10),
        ("two", grey, np.arange(30) % 2),
        ("four", grey[:4], np.arange(4) % 2),
    ):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    for real in (made / "digits.zip", made / "ref.npz"):
        for name, more, said in (
            ("colour", (), "is of images of 8x8x1, .*colour.npz of 8x8x3; bring both to one size and colour form"),
            ("wide", (), "is of images of 8x8x1, .*wide.npz of 8x16x1"),
            ("few", (), "class 0 has 3 generated examples; class-wise metrics need more than 5"),
            ("two", (), "has 10 classes, .*two.npz has 2"),
            ("few", ("--metrics=is",), "the metric is needs an extractor that is a classifier"),
        ):
            code, _, errors = call("compare", real, tmp_path / f"{name}.npz", PIXELS, *more)
            assert code == 2 and re.search(said, errors) and errors.count("\n") == 1, errors


def test_an_inception_score_needs_ten_images():
    with pytest.raises(UserError, match="the metric is needs at least 10 images, got 9; give more, or other metrics"):
        measure.check_sizes(("is",), None, 9, None)
    measure.check_sizes(("is",), None, 10, None)


def test_classes_of_other_names_are_not_compared(call, tmp_path):
    images = np.arange(36, dtype=np.uint8).reshape(36, 1, 1, 1).repeat(8, 1).repeat(8, 2)
    labels = np.arange(36, dtype=np.int32) % 3
    for name, classes in (("a", ("ant", "bee", "cow")), ("b", ("bee", "cow", "ant")), ("numbers", ("0", "1", "2"))):
        edm_zip.write(tmp_path / f"{name}.zip", images, labels, classes)
    code, _, errors = call("compare", tmp_path / "a.zip", tmp_path / "b.zip", PIXELS, "--metrics=fd")
    assert code == 2 and re.search("class 0 is 'ant' in .*a.zip and 'bee' in .*b.zip; name the classes", errors), errors
    code, _, errors = call("compare", tmp_path / "a.zip", tmp_path / "numbers.zip", PIXELS, "--metrics=fd")
    assert code == 0, errors


def test_references_that_do_not_fit_are_refused_before_anything_is_drawn(made, call, tmp_path):
    few = np.zeros((12, 8, 8, 1), np.uint8)
    np.savez(
        tmp_path / "few.npz",
        images=few + np.arange(1, 13, dtype=np.uint8)[:, None, None, None],
        labels=np.arange(12) % 2,
    )
    np.save(tmp_path / "wide.npy", np.ones((12, 8, 8, 3), np.uint8))
    for images, by, out in (("few.npz", PIXELS, "few"), ("wide.npy", "--features=pixels:8x8x3", "wide")):
        code, _, errors = call("make_ref_stats", f"--images={tmp_path}/{images}", by, f"--out={tmp_path}/{out}_ref.npz")
        assert code == 0, errors
    np.savez(tmp_path / "none.npz", x=few)
    small = references.read(made / "ref.npz")  # as of an extractor for which images of any size are as good
    small.description["images"]["shape"] = [300, 4, 16, 1]
    references.write(tmp_path / "small_ref.npz", small)
    model_file.write(tmp_path / "two.npz", tiny_model(num_classes=2))
    two, few_ref = f"--checkpoint={tmp_path}/two.npz", f"--reference={tmp_path}/few_ref.npz"
    for more, said in (
        ((few_ref,), "few_ref.npz has 2 classes, the model .*ema.npz has 10"),
        (
            (f"--reference={tmp_path}/wide_ref.npz",),
            "was made with the extractor pixels:8x8x3 .*, not with pixels:8x8x1",
        ),
        ((f"--reference={tmp_path}/none.npz",), "none.npz is no reference: it lacks mu and sigma"),
        ((two, few_ref, "--n=8"), "class 0 has 4 generated examples; class-wise metrics need more than 5"),
        (("--metrics=fid",), "unknown metric 'fid'; did you mean 'fd'"),
        (("--metrics=is",), "the metric is needs an extractor that is a classifier"),
        (("--n=0",), "--n must be at least 1, got 0"),
        (("--n=4", "--metrics=neighbours"), "the metric neighbours needs at least 6 images, got 4"),
        (("--rho=0.001",), "--rho must be a number of at least 1, got 0.001"),
        (("--rho=inf",), "--rho must be a number of at least 1, got inf"),
        (("--guidance=nan",), "--guidance must be a number, got nan"),
        (("--churn=2",), "--churn is noise that the solver stochastic_heun adds; heun adds none"),
        (("--guidance_rescale=2",), r"--guidance_rescale must lie in \[0, 1\], got 2.0"),
        (("--guidance=2", "--guidance_interval=3,1"), "--guidance_interval=.* must be two noise levels"),
        (("--guidance=2", f"--autoguidance={tmp_path}/absent"), "--autoguidance=.*absent: no such file or folder"),
        ((f"--floor={tmp_path}/absent.npz",), "absent.npz: no such file"),
        ((f"--floor={tmp_path}/small_ref.npz",), "small_ref.npz is of images of 4x16x1, the model of 8x8x1"),
        ((f"--reference={tmp_path}/small_ref.npz",), "small_ref.npz is of images of 4x16x1, the model .* of 8x8x1"),
        (("--features=inceptoin:x",), "there is no feature extractor 'inceptoin'; did you mean 'inception'"),
        ((f"--checkpoint={tmp_path}",), "holds no ema.npz and no finished checkpoint"),
        ((f"--checkpoint={tmp_path}/absent",), "absent: no such file or folder"),
        (("--distributed=odd",), "invalid choice: 'odd'"),
    ):
        code, _, errors = evaluate(call, made, tmp_path / "out", *more)
        assert code == 2 and re.search(said, errors), errors
        assert errors.count("\n") == 1 or "usage" in errors
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_hosts_measure_what_one_does(made, call, tmp_path):
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    given = [
        f"--checkpoint={made}/ema.npz",
        f"--reference={made}/ref.npz",
        PIXELS,
        f"--out={tmp_path}/two",
        "--n=80",
        *FEW,
    ]
    place = (f"--coordinator=localhost:{port}", "--num_processes=2")
    command = [sys.executable, "-m", "tdsm_jax.evaluate", *given, *place, "--metrics=fd,neighbours"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    both = [subprocess.Popen([*command, f"--process_id={i}"], cwd=ROOT, env=environment) for i in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert evaluate(call, made, tmp_path / "one", "--metrics=fd,neighbours")[0] == 0
    one, two = (files.read_json(tmp_path / name / "seed0.json") for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)
    assert not (tmp_path / "two" / "seed0.parts").exists()
