"""The paper's cells: every one is a valid run of the published recipe, and only such a run stands as its result."""

import functools
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import tfds_archives as archives
from tdsm_jax import config as configuration
from tdsm_jax import files, pipeline
from tdsm_jax.benchmark.cells import carry_out
from tdsm_jax.data import label_files, prepare
from tdsm_jax.data.dataset import Dataset
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import transition_matrix
from tdsm_jax.networks.resnet import JUDGES, Bottleneck, ResNet
from tdsm_jax.paper import cells, table
from tdsm_jax.paper.cells import CELLS, FOLLOW_UPS, METRICS, PUBLISHED, SOURCES
from tdsm_jax.validation import validate

ROOT = pathlib.Path(__file__).parents[1]


def config_of(arguments):
    return configuration.load_module(ROOT / "configs" / "paper.py").get_config(arguments)


def call(module, *arguments):
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# -- the manifest -------------------------------------------------------------------------------------------


def test_the_cells_are_those_of_the_tables():
    assert len(CELLS) == 65
    for name in (
        *("mnist-sym20-dsm", "mnist-asym40-floor", "c10-sym40-s-weighted", "c10-sym80-tdsm", "c10-clean"),
        *("c10-assumed5-tdsm", "c100-asym20-tdsm", "clothing1m-dsm"),
    ):
        assert CELLS[name].name == name
    assert PUBLISHED.keys() <= CELLS.keys()
    assert {name.partition("-floor")[0] for name in CELLS} >= FOLLOW_UPS.keys()
    for values in (*PUBLISHED.values(), *FOLLOW_UPS.values()):
        assert values.keys() <= METRICS.keys() and {one.source for one in values.values()} <= SOURCES.keys()


def test_the_published_values():
    """All of them, as the papers print them."""
    published = {
        name: {metric: tuple(one) for metric, one in (PUBLISHED.get(name, {}) | FOLLOW_UPS.get(name, {})).items()}
        for name, values in (
            (name, PUBLISHED.get(name, {}) | FOLLOW_UPS.get(name, {})) for name in PUBLISHED | FOLLOW_UPS
        )
    }
    assert published == {
        "c10-sym40-dsm": {"fid": (2.07, "tdsm"), "cw_fid": (30.45, "tdsm"), "cas": (47.21, "tdsm")},
        "c10-sym40-s-weighted": {"cw_fid": (16.26, "tdsm"), "cas": (63.46, "tdsm")},
        "c10-sym40-tdsm": {"fid": (2.43, "tdsm"), "cw_fid": (15.92, "tdsm"), "cas": (62.28, "tdsm")},
        "c10-sym40": {"cw_fid": (13.85, "dmis")},
        "c10-sym50-dsm": {"cw_fid": (38.6, "sbdc")},
        "c10-sym50-tdsm": {"cw_fid": (18.2, "sbdc")},
        "c10-sym50": {"cw_fid": (15.6, "sbdc")},
        "c10-sym80-dsm": {"cw_fid": (71.7, "sbdc")},
        "c10-sym80-tdsm": {"cw_fid": (59.8, "sbdc")},
        "c10-sym80": {"cw_fid": (48.2, "sbdc")},
        "c10-asym40-dsm": {"cw_fid": (14.70, "either")},
        "c10-asym40": {"cw_fid": (13.24, "dmis")},
        "c10-clean": {"fid": (2.05, "either"), "cw_fid": (9.83, "dmis")},
        "c100-sym40-dsm": {"fid": (3.36, "tdsm"), "cw_fid": (100.04, "tdsm"), "cas": (15.41, "tdsm")},
        "c100-sym40-tdsm": {"fid": (6.85, "tdsm"), "cw_fid": (93.24, "tdsm"), "cas": (21.17, "tdsm")},
        "clothing1m-dsm": {"fid": (6.67, "tdsm"), "cas": (46.52, "tdsm")},
        "clothing1m-tdsm": {"fid": (4.94, "tdsm"), "cas": (47.79, "tdsm")},
    }


@pytest.mark.parametrize("smoke", ["", ",smoke"])
def test_every_cell_is_a_valid_config(smoke):
    for cell in CELLS.values():
        config = config_of(f"cell={cell.name},seed=3{smoke}")
        validate(config)
        assert config.methods == (cell.trained,) and config.seed == 3
        assert config.label_noise.table == {"c10": "cifar10", "c100": "cifar100", "mnist": "mnist"}.get(
            cell.name.partition("-")[0], "digits"
        )
        if cell.noise in ("sym", "asym"):
            assert (config.label_noise.kind, config.label_noise.rate) == (cell.noise, cell.rate)
        assert config.evaluation.classifiers == ("stages", "resnet18", "resnet50")
        assert (config.data.name == "synthetic") == bool(smoke)


def test_a_cell_is_the_published_recipe():
    config = config_of("cell=c100-sym40-tdsm,data=a.zip,test=b.zip,inception=/weights/inception.pth")
    assert (config.data.path, config.data.test_path) == ("a.zip", "b.zip")
    assert config.evaluation.features == ("judge", "inception:/weights/inception.pth")
    assert config.evaluation.resnet50.batch_size == 150
    assert config.score.batch_size * config.score.steps == pytest.approx(200e6, rel=1e-5)
    assert (config.mixture.rule, config.mixture.weights, config.score.label_dropout) == ("threshold", "inverse", 0)
    assert (config.transition.estimator, config.classifier.network) == ("volmin", "resnet34")
    ours = config_of("cell=c100-sym40-floor,transition=known")
    assert (ours.mixture.rule, ours.score.label_dropout, ours.classifier.folds) == ("floor", 0.1, 5)
    assert ours.transition.estimator == "known"
    assumed = config_of("cell=c10-assumed5-tdsm")
    assert (assumed.label_noise.kind, assumed.label_noise.rate) == ("clean", 0.05)
    assert assumed.transition.estimator == "known"  # what the labels are taken for
    crawled = config_of("cell=clothing1m-tdsm,data=clothing1m")
    assert (crawled.label_noise.kind, crawled.data.path) == ("given", "clothing1m")
    assert (crawled.transition.estimator, crawled.classifier.network) == ("volmin", "resnet34")


def test_an_unknown_cell_names_the_nearest():
    with pytest.raises(UserError, match="unknown cell 'c10-sym40-tdms'; did you mean 'c10-sym40-tdsm'") as error:
        config_of("cell=c10-sym40-tdms")
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
    with pytest.raises(UserError, match="python -m tdsm_jax.paper lists them all"):
        config_of("smoke")
    done = call("tdsm_jax.main", "--config=configs/paper.py:cell=c10-sym40,smoke", "--workdir=/nowhere", "--dry_run")
    assert done.returncode == 2 and "did you mean" in done.stderr and done.stderr.count("\n") == 1


def test_the_manifest_is_printed_as_a_table():
    done = call("tdsm_jax.paper")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("| c10-sym40-tdsm |"))
    assert "FID 2.43, CW-FID 15.92, CAS 62.28" in row and "sym 40%" in row
    assert all(f"| {name} |" in done.stdout for name in CELLS) and "arXiv 2402.17517" in done.stdout
    for arguments in (("--smoke",), ("--collect", "/nowhere/at/all")):
        done = call("tdsm_jax.paper", *arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1


# -- what is finished ---------------------------------------------------------------------------------------


ARCHIVES = "data=/there/train.zip,test=/there/test.zip"


def finish(workdir, name, *, seed=0, metrics, arguments=ARCHIVES, training_files=(), **changed):
    """Leaves a workdir as a finished run of a cell does, its config recorded with some keys changed.

    `training_files` are what the score network's unit read.
    """
    config = configuration.resolved(config_of(f"cell={name},{arguments},seed={seed}"))
    values = configuration.flatten(config) | {key.replace("__", "."): value for key, value in changed.items()}
    content = {
        "methods": {CELLS[name].trained: metrics},
        "real": {"cas_resnet50": 0.95, "inception": {"fd": 3.5, "cw_fd": 9.5 + seed}},
        "counts": {"samples": 50000, "compared_with": 50000, "test": 10000},
        "config_hash": f"{seed}{'abcdef' * 10}",
    }
    files.write_json(workdir / "metrics.json", content)
    record(workdir, "labels", values | {"file /there/train.zip": "0", "file /there/test.zip": "0"})
    score = {"unit labels": unit_hash(workdir, "labels"), **{f"file {path}": "0" for path in training_files}}
    record(workdir, "score/x", score)
    record_page(workdir)
    return workdir


def record(workdir, unit, values, **more):
    """Leaves the manifest of a finished unit."""
    manifest = {"unit": unit, "hash": files.digest(values), "finished": True, "files": {}, "values": values, **more}
    files.write_json(pipeline.manifest_path(workdir, unit), manifest)


def record_page(workdir):
    made = {"metrics.json": files.file_digest(workdir / "metrics.json")}
    record(workdir, "report", {"task": "generation", "unit score/x": unit_hash(workdir, "score/x")}, files=made)


def unit_hash(workdir, unit):
    return pipeline.read_manifest(workdir, unit)["hash"]


def rows_of(text, name):
    return [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(f"| {name} |")]


def column(text, heading):
    return [c.strip() for c in text.splitlines()[0].split("|")[1:-1]].index(heading)


def test_finished_seeds_stand_beside_the_published_values(tmp_path):
    name = "c10-sym40-tdsm"
    finish(tmp_path / name, name, metrics={"cas_resnet50": 0.60, "inception": {"fd": 2.0, "cw_fd": 16.0}})
    more = {"cas_resnet50": 0.64, "inception": {"fd": 3.0, "cw_fd": 14.0}}
    finish(tmp_path / name / "seed1", name, seed=1, metrics=more)
    text = table.collect(str(tmp_path), smoke=False)
    (row,) = rows_of(text, name)
    assert row[1:4] == ["TDSM, as published", "0: 0abcdefa, 1: 1abcdefa", ""]
    cas, cw_fid = column(text, "CAS, %"), column(text, "CW-FID")
    assert row[cas : cas + 2] == ["62.00 ± 2.83", "62.28 (tdsm)"]
    assert row[cw_fid : cw_fid + 2] == ["15.00 ± 1.41", "15.92 (tdsm)"]
    assert row[column(text, "CW-density")] == ""
    (other,) = rows_of(text, "c10-sym40-dsm")
    assert other[2] == "" and other[cas : cas + 2] == ["", "47.21 (tdsm)"]  # not run
    assert "| (c10-sym40) | DMIS, not built here |" in text and "13.85 (dmis)" in text


def test_real_test_images_give_the_floor_of_a_setting(tmp_path):
    for name, seed in (("c10-sym40-dsm", 0), ("c10-sym40-tdsm", 0), ("c10-sym40-tdsm", 1), ("c10-sym50-dsm", 0)):
        changed = {"score__steps": 7} if name == "c10-sym50-dsm" else {}
        finish(tmp_path / f"{name}-seed{seed}", name, seed=seed, metrics={"inception": {"cw_fd": 16.0}}, **changed)
    text = table.collect(str(tmp_path), smoke=False)
    real = [row for row in rows_of(text, r"(c10-sym40)") if row[1].startswith("real")]
    assert [row[1] for row in real] == ["real test images: 10000, where cells have 50000 samples"]
    assert real[0][column(text, "CW-FID")] == "10.00 ± 0.71"  # of two seeds, not of three runs
    assert real[0][column(text, "CAS, %")] == "95.00 ± 0.00"
    assert not [row for row in rows_of(text, "(c10-sym50)") if row[1].startswith("real")]  # not the recipe


def test_the_real_images_of_clothing1m_are_said(tmp_path):
    said = "not to the million"
    assert said not in table.collect(str(tmp_path), smoke=False)
    finish(tmp_path / "clothing1m-dsm", "clothing1m-dsm", metrics={"inception": {"fd": 9.0}}, arguments="data=/there/c")
    assert said in table.collect(str(tmp_path), smoke=False)


def test_a_run_that_is_not_the_recipe_has_a_row_of_its_own_and_says_why(tmp_path):
    name = "c10-sym40-dsm"
    finish(tmp_path / name, name, metrics={"cas_resnet50": 0.4})
    finish(tmp_path / f"{name}-seed1", name, seed=1, metrics={"cas_resnet50": 0.5}, score__steps=1000)
    text = table.collect(str(tmp_path), smoke=False)
    whole, short = rows_of(text, name)
    cas = column(text, "CAS, %")
    assert (whole[cas], whole[3]) == ("40.00", "") and (short[cas], short[3]) == ("50.00", "not the recipe [1]")
    assert f"[1] {name}: score.steps: 390625 -> 1000" in text


def test_what_is_not_finished_or_not_a_cell_is_no_result(tmp_path):
    name = "mnist-clean"
    (finish(tmp_path / name, name, metrics={"cas_resnet50": 0.9}) / "units" / "report.json").unlink()
    finish(tmp_path / "something", name, metrics={"cas_resnet50": 0.9})
    finish(tmp_path / "mnist-sym20-dsm", name, metrics={"cas_resnet50": 0.9})  # of another method
    assert "90.00" not in table.collect(str(tmp_path), smoke=True)


@pytest.mark.parametrize("path", ["/there/ema.npz", "archive/ema.npz", "sym.npz", "/there/train.zip.npz"])
def test_training_that_starts_from_a_model_is_not_the_recipe(path, tmp_path):
    name = "mnist-sym20-dsm"
    finish(tmp_path / name, name, metrics={"cas_resnet50": 0.9}, training_files=(path, "/there/train.zip"))
    assert f"[1] {name}: file {path}: not there -> started from\n" in table.collect(str(tmp_path), smoke=False)


def test_what_a_prepared_dataset_reads_is_no_start(tmp_path):
    for name, arguments, read in (
        ("mnist-clean", "data_dir=/tfds", "/tfds"),
        ("c10-clean", "", "cifar10"),
        ("clothing1m-dsm", "data=/there/c", "/there/c/noisy_label_kv.txt"),
    ):
        finish(tmp_path / name, name, metrics={"cas_resnet50": 0.9}, arguments=arguments, training_files=(read,))
    assert "not the recipe" not in table.collect(str(tmp_path), smoke=False)
    workdir = finish(
        tmp_path / "c10-clean-seed1", "c10-clean", seed=1, metrics={}, arguments=ARCHIVES, training_files=("cifar10",)
    )
    assert table.finished(CELLS["c10-clean"], workdir).differs == ("file cifar10: not there -> started from",)


@pytest.mark.parametrize(
    ("arguments", "changed", "said"),
    [
        ("data=/there/train.zip", {}, "data.test_path: given -> ''"),
        (ARCHIVES, {"data__name": "digits"}, "data.name: cifar10 -> digits"),
        (ARCHIVES, {"data__test_fraction": 0.9}, "data.test_fraction: 0.2 -> 0.9"),
        (ARCHIVES, {"data__split_seed": 7, "data__stream": True}, None),
        ("data_dir=/tfds", {}, None),
    ],
)
def test_only_where_the_data_lie_is_free(arguments, changed, said, tmp_path):
    name = "c10-sym40-dsm"
    workdir = finish(tmp_path / name, name, metrics={}, arguments=arguments, **changed)
    assert table.finished(CELLS[name], workdir).differs == ((said,) if said else ())


def test_labels_of_another_rate_or_matrix_are_not_the_recipe(tmp_path):
    labels = np.arange(10000, dtype=np.int32) % 10
    data = Dataset("x", np.zeros((10000, 1, 1, 1), np.uint8), labels, tuple("0123456789"))
    S = transition_matrix("sym", 10, 0.4, "")
    name, given = "c10-sym40-dsm", f"{ARCHIVES},labels=/there/noisy.json"
    for seed, (kind, rate, said) in enumerate(
        (
            ("sym", 0.4, None),
            ("sym", 0.2, "label_noise.path: 40% wrong -> 20% wrong"),
            ("pair", 0.4, "label_noise.path: the matrix of sym -> another"),
        )
    ):
        workdir = finish(tmp_path / str(seed), name, metrics={}, arguments=given)
        drawn = label_files.draw(data, kind, rate, 0, exact=True)
        label_files.write(workdir / "labels.json", label_files.import_labels(data, drawn.y_tilde, S))
        assert table.finished(CELLS[name], workdir).differs == ((said,) if said else ())
    bare = finish(tmp_path / "bare", name, metrics={}, arguments=given)
    assert "of which there is no labels.json" in table.finished(CELLS[name], bare).differs[0]


def test_a_page_of_other_units_is_not_finished(tmp_path):
    name = "c10-sym40-dsm"
    cell = CELLS[name]
    for number, spoil in enumerate(
        (
            lambda w: None,
            lambda w: record(w, "labels", {"seed": 1, "data.name": "cifar10"}),  # made again of another config
            lambda w: record(w, "score/x", pipeline.read_manifest(w, "score/x")["values"], finished=False),
            lambda w: pipeline.manifest_path(w, "labels").unlink(),
            lambda w: record(w, "labels", {"seed": 1}, hash=unit_hash(w, "labels")),  # not what its hash is of
            lambda w: files.write_json(w / "metrics.json", {**files.read_json(w / "metrics.json"), "more": 1}),
        )
    ):
        workdir = finish(tmp_path / str(number), name, metrics={})
        record(workdir, "score/other", {"score.steps": 7})  # of which the page is not made
        spoil(workdir)
        found = table.finished(cell, workdir)
        assert (found is None) == bool(number)
        assert found is None or found.differs == ()


def test_one_run_is_not_counted_as_two_seeds(tmp_path):
    name = "c10-sym40-dsm"
    for workdir in (tmp_path / name, tmp_path / name / "seed1"):
        finish(workdir, name, metrics={"cas_resnet50": 0.4})
    with pytest.raises(UserError, match=f"{name} and .*{name}/seed1 are both {name} of seed 0; move one away"):
        table.collect(str(tmp_path), smoke=False)


# -- cells, really run --------------------------------------------------------------------------------------


@pytest.fixture
def shallow_judges(monkeypatch):
    """Judges of one block: what a judge in small takes is compiling its depth."""
    plain = functools.partial(ResNet, blocks=(1,), embedding_channels=0)
    monkeypatch.setitem(JUDGES, "resnet18", plain)
    monkeypatch.setitem(JUDGES, "resnet50", functools.partial(plain, block=Bottleneck, stem="imagenet"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The paper's datasets as TensorFlow Datasets has them, small and made up; Clothing-1M is none of them."""
    top = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        for make in (archives.mnist, archives.cifar10, archives.cifar100):
            folder = top / "archives" / make.__name__
            folder.mkdir(parents=True)
            make(folder)
            archives.register(patch, folder)
            prepare.prepare(make.__name__, folder, top / "prepared")
    return top / "prepared"


def run_in_small(name, out, data_dir=""):
    """A cell, cut to seconds, on prepared images where `data_dir` is given, else on made-up ones."""
    of_files = data_dir and CELLS[name].config != "clothing1m.py"
    config = config_of(f"cell={name},smoke{f',data_dir={data_dir}' if of_files else ''}")
    assert (config.data.name == "synthetic") == (not of_files)
    for judge in JUDGES:
        config.evaluation[judge].light = (0.0, 0.0, 0.0)  # less to compile
    carry_out(config, out / name, ())
    metrics = json.loads((out / name / "metrics.json").read_text())
    (values,) = metrics["methods"].values()
    assert {"cas", "cas_resnet18", "cas_resnet50", "label_fidelity_resnet50", "cw_fd"} <= values.keys()
    assert list(metrics["methods"]) == [CELLS[name].trained]


def test_cells_run_from_data_to_table_in_small(shallow_judges, data_dir, tmp_path):
    run_in_small("mnist-clean", tmp_path)
    run_in_small("mnist-sym40-tdsm", tmp_path, data_dir)
    hidden = table.collect(str(tmp_path), smoke=False)
    assert "Left out: 1 on made-up images (--smoke shows them)." in hidden and "made-up images |" not in hidden
    shown = table.collect(str(tmp_path), smoke=True)
    for name, mark in (("mnist-clean", "smoke: made-up images"), ("mnist-sym40-tdsm", "not the recipe [1]")):
        (row,) = rows_of(shown, name)
        assert row[3] == mark and re.fullmatch(r"0: [0-9a-f]{8}", row[2])
        assert re.fullmatch(r"\d+\.\d\d", row[column(shown, "CAS, %")])
    assert "score.steps: 390625 -> 4" in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_runs_in_small(name, shallow_judges, data_dir, tmp_path):
    run_in_small(name, tmp_path, data_dir)


@pytest.mark.slow
def test_a_cell_runs_by_its_command_with_the_real_judges(tmp_path):
    name = "c10-sym40-tdsm"
    done = call("tdsm_jax.main", f"--config=configs/paper.py:cell={name},smoke", f"--workdir={tmp_path / name}")
    assert done.returncode == 0, done.stderr[-3000:]
    done = call("tdsm_jax.paper", "--collect", str(tmp_path), "--smoke")
    assert done.returncode == 0 and cells.METHODS["tdsm"].words in done.stdout
    assert f"| {name} |" in done.stdout and "smoke: made-up images" in done.stdout
