"""Workdirs, data and models under gs://, in buckets that this machine plays (fake_bucket): no network, no gcsfs.

epath and Orbax's C++ client both see the same objects, so checkpoints too are written, resumed and found damaged here.
What only a real bucket can show is how gcsfs itself behaves, and how fast it is.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils.epath import backend
from fsspec.registry import _registry

import fake_bucket
import tfds_archives
from tdsm_jax import config as configuration
from tdsm_jax import files, paths, pipeline, runtime
from tdsm_jax.benchmark.cells import carry_out
from tdsm_jax.data import edm_zip, prepare, sources, tfds_store
from tdsm_jax.data.dataset import images_hash
from tdsm_jax.data.noise_files import read_matrix
from tdsm_jax.errors import UserError
from tdsm_jax.training import logs, loop, parallel
from tdsm_jax.training.checkpoint import Checkpoints
from tdsm_jax.training.logs import MetricLog, read_metrics

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = configuration.load_module(ROOT / "configs" / "digits.py")
STAGES = ("labels", "classifier", "transition")


@pytest.fixture(scope="module")
def server():
    """The one server of this process: TensorStore reads its address once."""
    server = fake_bucket.serve(fake_bucket.Store())
    address = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def store(server, monkeypatch):
    """The objects of gs://bucket, none at first; there is no other bucket."""
    store = server.RequestHandlerClass.store
    store.objects.clear()
    monkeypatch.setattr(store, "failure", None)
    monkeypatch.setattr(fake_bucket.FileSystem, "store", store)
    monkeypatch.setitem(_registry, "gcs", fake_bucket.FileSystem)
    monkeypatch.setattr(paths, "_reached", set())
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield store
    backend.fsspec_backend._get_filesystem.cache_clear()


def smoke(**classifier):
    config = DIGITS.get_config("smoke,methods=dsm")
    config.classifier.update(classifier)
    return config


def folder_of(store, name):
    return sorted(key.removeprefix(f"bucket/{name}/") for key in store.objects if key.startswith(f"bucket/{name}/"))


def test_local_names_are_made_into_local_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert type(paths.path_of("runs/a")) is type(pathlib.Path())
    assert paths.absolute("runs/a") == tmp_path / "runs" / "a"
    assert not paths.is_remote("runs/a") and not paths.is_remote(tmp_path)


def test_addresses_stay_what_they_are(store):
    path = paths.absolute("gs://bucket/runs/a/")
    assert str(path) == "gs://bucket/runs/a"
    assert str(path / "b" / "c.npz") == "gs://bucket/runs/a/b/c.npz"
    assert paths.path_of(path) == path and paths.is_remote(path / "b")


@pytest.mark.parametrize("address", ["s3://bucket/run", "https://example.org/run", "gs://"])
def test_other_addresses_are_refused(address):
    with pytest.raises(UserError, match="gs://BUCKET/NAME"):
        paths.path_of(address)


def test_a_file_is_there_when_the_block_ends_and_not_if_it_fails(store):
    with pytest.raises(ZeroDivisionError), files.atomic_write("gs://bucket/run/a") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert not store.objects
    with files.atomic_write("gs://bucket/run/a") as file:
        file.write(b"whole")
        assert not store.objects
    assert store.objects["bucket/run/a"].content == b"whole"
    with pytest.raises(ZeroDivisionError), files.atomic_write("gs://bucket/run/a") as file:
        file.write(b"other")
        raise ZeroDivisionError
    assert files.read_bytes("gs://bucket/run/a") == b"whole"


def test_what_is_written_is_read_again(store):
    arrays = {"a": np.arange(5), "b": np.ones((2, 3), np.float32)}
    files.write_arrays("gs://bucket/run/x.npz", arrays)
    found = files.read_arrays("gs://bucket/run/x.npz")
    assert found.keys() == arrays.keys()
    for name in arrays:
        np.testing.assert_array_equal(found[name], arrays[name])
    files.write_json("gs://bucket/run/deep/x.json", {"é": [1, 2]})
    assert files.read_json("gs://bucket/run/deep/x.json") == {"é": [1, 2]}
    assert paths.size("gs://bucket/run/x.npz") == len(store.objects["bucket/run/x.npz"].content)
    assert paths.walk("gs://bucket/run") == ["deep/x.json", "x.npz"]
    assert [path.name for path in paths.children("gs://bucket/run")] == ["deep", "x.npz"]
    assert paths.exists("gs://bucket/run/deep") and not paths.is_file("gs://bucket/run/deep")


def test_digests_are_those_of_the_same_bytes_here(store, tmp_path):
    for path in (tmp_path / "x", "gs://bucket/x"):
        files.write_text(path, "a" * 3_000_000)
    assert files.file_digest(tmp_path / "x") == files.file_digest("gs://bucket/x")
    assert edm_zip.fingerprint(tmp_path / "x") == edm_zip.fingerprint("gs://bucket/x")


def test_removing_takes_all_that_is_in_a_folder_and_nothing_beside_it(store):
    for name in ("run/a/x", "run/a/b/y", "run/ab"):
        files.write_text(f"gs://bucket/{name}", "")
    paths.remove("gs://bucket/run/a")
    assert list(store.objects) == ["bucket/run/ab"]
    paths.remove("gs://bucket/run/a")
    paths.remove("gs://bucket/run/ab")
    assert not store.objects and paths.children("gs://bucket/run") == []


@pytest.mark.parametrize("read", [files.read_json, files.read_arrays, edm_zip.fingerprint, edm_zip.Archive])
def test_a_missing_object_is_one_line(read, store):
    with pytest.raises(UserError, match=r"^gs://bucket/no[.\w]*: no such [^\n]*$"):
        read("gs://bucket/no.npz" if read is files.read_arrays else "gs://bucket/no")


def test_damaged_objects_are_one_line(store):
    for name in ("x.npz", "x.json", "x.zip"):
        files.write_text(f"gs://bucket/{name}", "not this")
    for read, name, said in (
        (files.read_arrays, "x.npz", "not a readable array file"),
        (files.read_json, "x.json", "not valid JSON"),
        (edm_zip.Archive, "x.zip", "no whole zip file"),
    ):
        with pytest.raises(UserError, match=f"^gs://bucket/{name}: {said}"):
            read(f"gs://bucket/{name}")


def test_a_bucket_that_is_not_there_is_one_line_when_it_is_written_to(store):
    with pytest.raises(UserError, match=r"^gs://nowhere/run/x: cannot be written; there is no such bucket$"):
        files.write_text("gs://nowhere/run/x", "")


def test_refused_access_is_one_line_and_never_a_missing_file(store):
    files.write_text("gs://bucket/run/x", "")
    store.failure = OSError("Forbidden: Anonymous caller\ndoes not have storage.objects.get access")
    for question in (paths.exists, paths.is_file, files.read_json, files.read_arrays, paths.children, paths.walk):
        with pytest.raises(UserError, match=r"^gs://bucket/run/x: cannot be reached \(Forbidden[^\n]*get access\)"):
            question("gs://bucket/run/x")


def test_records_are_in_the_object_at_each_save_and_a_resumed_log_drops_what_came_after(store):
    log = MetricLog("gs://bucket/run", resume_step=0)
    log.write(1, {"loss": 1.0})
    log.save()
    log.write(2, {"loss": 2.0})
    assert [record["step"] for record in read_metrics("gs://bucket/run")] == [1]
    log.close()
    log.close()
    assert [record["step"] for record in read_metrics("gs://bucket/run")] == [1, 2]
    log = MetricLog("gs://bucket/run", resume_step=1)
    log.write(2, {"loss": 3.0})
    log.close()
    assert read_metrics("gs://bucket/run") == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 3.0}]
    assert folder_of(store, "run") == ["metrics.jsonl"]


def test_the_log_is_saved_before_each_checkpoint(store, monkeypatch):
    seen = []

    def spy(self, step, state, **about):
        seen.append((step, [record["step"] for record in read_metrics("gs://bucket/run")]))

    monkeypatch.setattr(Checkpoints, "save", spy)
    loop.run(
        "counting",
        lambda state, batch, key: (state + 1, {"loss": state}),
        jnp.zeros(()),
        lambda step, position: {"x": np.zeros(len(position))},
        jax.random.key(0),
        batch_size=jax.device_count(),
        schedule=loop.Schedule(4, 1, 2),
        mesh=parallel.data_mesh(),
        directory=paths.path_of("gs://bucket/run"),
    )
    assert seen == [(2, [1, 2]), (4, [1, 2, 3, 4])]


def test_checkpoints_are_kept_restored_and_checked_byte_by_byte(store):
    state = {"w": jnp.arange(6.0).reshape(2, 3), "n": jnp.int32(7)}
    checkpoints = Checkpoints("gs://bucket/run/checkpoints", keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, jax.tree.map(lambda leaf, step=step: leaf + step, state))
    checkpoints.wait()
    assert {name.partition("/")[0] for name in folder_of(store, "run/checkpoints")} == {
        "00000002", "00000002.json", "00000003", "00000003.json"
    }  # fmt: skip
    step, found = Checkpoints("gs://bucket/run/checkpoints").restore(state)
    assert step == 3
    np.testing.assert_array_equal(found["w"], state["w"] + 3)
    damaged = next(key for key in store.objects if "/00000003/" in key and "/d/" in key)
    content = bytearray(store.objects[damaged].content)
    content[len(content) // 2] ^= 1
    store.put(damaged, content)
    assert Checkpoints("gs://bucket/run/checkpoints").restore(state)[0] == 2


def test_checkpoints_without_a_manifest_are_removed(store):
    files.write_text("gs://bucket/run/checkpoints/00000005/state/d/x", "")
    files.write_text("gs://bucket/run/checkpoints/notes.txt", "")
    assert Checkpoints("gs://bucket/run/checkpoints").latest_step() is None
    assert folder_of(store, "run/checkpoints") == ["notes.txt"]


def test_archives_label_files_and_matrices_are_read(store, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(12, dtype=np.int32) % 3
    edm_zip.write("gs://bucket/data/images.zip", images, labels)
    edm_zip.write(tmp_path / "images", images, labels)
    for name in paths.walk(tmp_path / "images"):
        store.put(f"bucket/data/folder/{name}", (tmp_path / "images" / name).read_bytes())
    for path in ("gs://bucket/data/images.zip", "gs://bucket/data/folder"):
        with edm_zip.Archive(path) as archive:
            np.testing.assert_array_equal(archive.load(), images)
            np.testing.assert_array_equal(archive.labels, labels)
        train, _ = sources.load(sources.DataSpec("archive", path=path, test_fraction=0.25))
        assert train.name == path.rpartition("/")[2].removesuffix(".zip") and len(train.labels) == 9
    edm_zip.write(tmp_path / "images.zip", images, labels)
    assert edm_zip.fingerprint("gs://bucket/data/images.zip") == edm_zip.fingerprint(tmp_path / "images.zip")
    assert edm_zip.fingerprint("gs://bucket/data/folder") == edm_zip.fingerprint(tmp_path / "images")
    with pytest.raises(UserError, match="let the name end in .zip"):
        edm_zip.write("gs://bucket/data/new", images, labels)
    files.write_text("gs://bucket/S.csv", "0.9,0.1\n0.2,0.8\n")
    np.testing.assert_array_equal(read_matrix("gs://bucket/S.csv", 2), [[0.9, 0.1], [0.2, 0.8]])


def test_the_small_images_of_an_archive_take_few_requests(store):
    images = np.zeros((200, 8, 8, 1), np.uint8)
    edm_zip.write("gs://bucket/images.zip", images, None)
    before = store.reads
    with edm_zip.Archive("gs://bucket/images.zip") as archive:
        assert len(archive.load()) == 200
    assert store.reads - before < 20


def test_compiled_programs_stay_on_this_machine(monkeypatch, tmp_path):
    assert runtime.cache_folder(tmp_path) == str(tmp_path / "compiled")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime.cache_folder("gs://bucket/run") == str(tmp_path / "tdsm_jax" / "compiled")


def test_an_interrupted_run_in_a_bucket_ends_where_one_on_this_machine_does(store, tmp_path, monkeypatch):
    config = smoke(folds=1, light=(0.0, 0.0, 0.0))
    carry_out(config, tmp_path / "run", STAGES)
    update, calls = logs.Progress.update, []

    def interrupted(self, *arguments, **shown):
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        update(self, *arguments, **shown)

    monkeypatch.setattr(logs.Progress, "update", interrupted)
    workdir = paths.path_of("gs://bucket/runs/a")
    with pytest.raises(KeyboardInterrupt):
        carry_out(config, workdir, STAGES)
    assert pipeline.read_manifest(workdir, "labels")["finished"]
    assert not pipeline.read_manifest(workdir, "classifier")["finished"]
    assert "checkpoints/00000010.json" in folder_of(store, "runs/a/classifier/fold0")
    carry_out(config, workdir, STAGES)
    assert pipeline.read_manifest(workdir, "classifier")["resumed"]
    for name in ("labels.json", "labels.png", "classifier/fold0/metrics.jsonl"):
        assert files.read_bytes(workdir / name) == (tmp_path / "run" / name).read_bytes(), name
    for name in ("weight_table.npz", "classifier/fold0.npz"):
        here, there = files.read_arrays(tmp_path / "run" / name), files.read_arrays(workdir / name)
        for array in here:
            np.testing.assert_array_equal(there[array], here[array], err_msg=f"{name} {array}")
    assert list(pipeline.seconds(workdir)) == list(pipeline.seconds(tmp_path / "run")) == list(STAGES)
    before = dict(store.objects)
    carry_out(config, workdir, STAGES)  # all is there already
    assert store.objects == before
    store.put("bucket/runs/a/weight_table.npz", b"other bytes")
    with pytest.raises(UserError, match=r"^gs://bucket/runs/a/weight_table.npz was changed after transition wrote it"):
        carry_out(config, workdir, STAGES)
    paths.remove(workdir / "weight_table.npz")
    given = smoke(init_from="gs://bucket/runs/a/classifier/fold0.npz", folds=1)
    carry_out(given, paths.path_of("gs://bucket/runs/given"), ("labels", "classifier"))
    one, other = (files.read_arrays(f"gs://bucket/runs/{name}/classifier/fold0.npz") for name in ("a", "given"))
    np.testing.assert_array_equal(one["S"], other["S"])


@pytest.mark.slow
def test_the_whole_job_leaves_its_report_in_a_bucket(store):
    carry_out(smoke(), paths.path_of("gs://bucket/run"), ())
    made = folder_of(store, "run")
    assert {"report.html", "metrics.json", "samples/dsm.npz", "samples/dsm.png", "score/dsm/ema.npz"} <= set(made)
    assert json.loads(store.objects["bucket/run/metrics.json"].content)["methods"]["dsm"]
    assert store.objects["bucket/run/report.html"].content.startswith(b"<!DOCTYPE html>")


def test_without_gcsfs_the_command_ends_in_one_line_that_names_the_extra():
    program = "import sys; sys.modules['gcsfs'] = None; from tdsm_jax.main import entry_point; entry_point()"
    arguments = ["--config=configs/digits.py:smoke", "--workdir=gs://bucket/run"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=os.environ | {"EPATH_USE_TF": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: gs://bucket/run: ") and done.stderr.count("\n") == 1
    assert "pip install 'tdsm_jax[gcs]'" in done.stderr


def test_a_prepared_dataset_in_a_bucket_is_the_local_one(store, tmp_path, monkeypatch):
    (tmp_path / "archives").mkdir()
    tfds_archives.mnist(tmp_path / "archives")
    tfds_archives.register(monkeypatch, tmp_path / "archives")
    made = prepare.prepare("mnist", tmp_path / "archives", tmp_path / "array_record")
    tfrecord = tfds_archives.as_tfrecord(made, tmp_path / "tfrecord" / "mnist" / made.name)
    for path in (*made.iterdir(), *tfrecord.iterdir()):
        store.put(f"bucket/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    local, _ = sources.load(sources.DataSpec("mnist", path=str(tmp_path / "array_record")))
    remote, _ = sources.load(sources.DataSpec("mnist", path="gs://bucket/tfrecord"))
    assert images_hash(local.images) == images_hash(remote.images)
    assert tfds_store.fingerprint(paths.path_of("gs://bucket/tfrecord/mnist/3.0.1")) == tfds_store.fingerprint(tfrecord)
    with pytest.raises(UserError, match="array_record files are read on this machine only"):
        sources.load(sources.DataSpec("mnist", path="gs://bucket/array_record"))
    with pytest.raises(UserError, match="gs://bucket/none: holds no prepared mnist"):
        sources.load(sources.DataSpec("mnist", path="gs://bucket/none"))
