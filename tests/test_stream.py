"""Images decoded when they are asked for: the same examples, batches and results as in memory, errors that surface."""

import errno
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from class_folders import class_folders
from tdsm_jax import checks, hosts, label_stages
from tdsm_jax import config as configuration
from tdsm_jax.data import edm_zip, label_files, sources, stream
from tdsm_jax.data.batches import batch_indices
from tdsm_jax.data.dataset import Dataset, images_hash, images_set_hash, subset
from tdsm_jax.data.image_corruption import ImageNoise, corrupted
from tdsm_jax.data.sources import DataSpec
from tdsm_jax.data.stream import Streamed
from tdsm_jax.errors import UserError
from tdsm_jax.run import Run
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training import loop, parallel
from tdsm_jax.training.classifier import Labelled
from tdsm_jax.validation import validate

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = configuration.load_module(ROOT / "configs" / "folder.py")


class Reader:
    """Random access to made-up images that counts what is read."""

    def __init__(self, count=40, shape=(4, 6, 3), bad=()):
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
        self.bad, self.read_so_far = bad, []

    def __len__(self):
        return len(self.pixels)

    def read(self, index):
        self.read_so_far.append(index)
        if index in self.bad:
            raise stream.Corrupt(f"image {index} is torn")
        return self.pixels[index]


def test_streamed_images_stand_where_an_array_stands():
    reader = Reader()
    images = Streamed(reader)
    assert images.shape == reader.pixels.shape and images.dtype == np.uint8 and images.ndim == 4 and len(images) == 40
    mask = np.arange(40) % 3 == 0
    for chosen in (np.array([5, 0, 5, 39]), np.array([-1]), mask, slice(3, 9), slice(None), [1, 2], np.array([], int)):
        np.testing.assert_array_equal(images[chosen], reader.pixels[chosen])
        np.testing.assert_array_equal(images.part(mask)[:][: len(images)], reader.pixels[mask])
    np.testing.assert_array_equal(images[7], reader.pixels[7])
    np.testing.assert_array_equal(images.part(mask)[2], reader.pixels[6])
    np.testing.assert_array_equal(np.concatenate(list(images.blocks())), reader.pixels)
    with pytest.raises(IndexError):
        images[40]


def test_a_part_decodes_nothing():
    reader = Reader()
    part = Streamed(reader).part(np.arange(5)).part(np.array([3, 1]))
    assert len(part) == 2 and not reader.read_so_far
    np.testing.assert_array_equal(part[:], reader.pixels[[3, 1]])
    assert set(reader.read_so_far) == {3, 1}


def test_what_would_load_everything_is_refused_in_one_line():
    images = Streamed(Reader())
    for whole in (np.asarray, lambda i: np.concatenate((i, i)), lambda i: np.stack([i])):
        with pytest.raises(UserError, match=r"data.stream=True leaves 40 images on disk.*data.stream=False"):
            whole(images)


def test_images_of_another_form_are_refused():
    reader = Reader()
    reader.read = lambda index: np.zeros((4, 4 + index, 1), np.uint8)
    with pytest.raises(UserError, match=r"image 2 is uint8 \(4, 6, 1\), the first one uint8 \(4, 4, 1\)"):
        Streamed(reader)[np.array([0, 2])]


def test_joined_images_stay_streamed():
    reader, more = Reader(), np.full((3, 4, 6, 3), 7, np.uint8)
    images = stream.joined(Streamed(reader), more)
    assert stream.is_streamed(images) and images.shape == (43, 4, 6, 3)
    np.testing.assert_array_equal(images[:], np.concatenate((reader.pixels, more)))
    np.testing.assert_array_equal(stream.joined(more, more), np.concatenate((more, more)))


def pair(tmp_path, **fields):
    """The same data in memory and streamed."""
    data = tmp_path / "photos"
    if not data.exists():
        class_folders(data, ("ant", "bee", "cat"), count=10)
    spec = {"name": "folder", "path": str(data), "image_size": 8} | fields
    return sources.load(DataSpec(**spec)), sources.load(DataSpec(**spec, stream=True))


def test_sources_give_the_same_examples_either_way(tmp_path):
    memory, streamed = pair(tmp_path)
    images = np.concatenate([part.images for part in memory])[:, :, :, :]
    edm_zip.write(tmp_path / "archive.zip", images, np.concatenate([part.labels for part in memory]))
    archives = pair(tmp_path, name="archive", path=str(tmp_path / "archive.zip"), image_size=32)
    for a, b in (*zip(memory, streamed, strict=True), *zip(*archives, strict=True)):
        assert not stream.is_streamed(a.images) and stream.is_streamed(b.images)
        np.testing.assert_array_equal(a.images, b.images[:])
        np.testing.assert_array_equal(a.labels, b.labels)


def test_sources_in_memory_anyway_do_not_stream():
    for name in ("digits", "synthetic"):
        with pytest.raises(UserError, match="reads no stream, but stream is given; it is for 'archive', 'clothing1m'"):
            sources.load(DataSpec(name, stream=True))


def test_a_streamed_label_file_fits_these_files_alone_and_decodes_none(tmp_path, monkeypatch):
    pair(tmp_path)

    def label_file():
        train = pair(tmp_path)[1][0]
        monkeypatch.setattr(Streamed, "_read", None)  # shape is asked for by the reader
        made = label_files.draw(train, "sym", 0.4, 0), train
        monkeypatch.undo()
        return made

    made, train = label_file()
    np.testing.assert_array_equal(label_files.attach(made, train), made.y_tilde)
    with pytest.raises(UserError, match="in another order"):
        label_files.attach(made, subset(train, np.arange(len(train.labels))[::-1]))
    (tmp_path / "photos" / "ant" / "0.png").write_bytes((tmp_path / "photos" / "bee" / "0.png").read_bytes() + b"x")
    with pytest.raises(UserError, match="made for other images"):
        label_files.attach(made, pair(tmp_path)[1][0])
    pixels = Streamed(Reader())  # a reader that knows no digests
    assert images_hash(pixels) != images_hash(pixels.part(np.arange(40)[::-1]))
    assert images_set_hash(pixels) == images_set_hash(pixels.part(np.arange(40)[::-1]))
    reader = Reader()
    pixels = Streamed(reader)
    assert images_hash(pixels) != images_set_hash(pixels)
    assert len(reader.read_so_far) == 41  # each image once, and the first for its shape


def test_corrupt_images_are_left_out_and_counted_the_same_way(tmp_path, caplog):
    pair(tmp_path)
    whole = pair(tmp_path, test_path=str(tmp_path / "photos"))[0][0]
    for name in ("ant/3.png", "cat/7.png"):
        (tmp_path / "photos" / name).write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(UserError, match=r"ant/3\.png is damaged or no PNG.*data.on_corrupt=skip"):
        pair(tmp_path)
    fields = {"test_path": str(tmp_path / "photos"), "on_corrupt": "skip"}
    for train, _ in pair(tmp_path, **fields):
        left = np.delete(np.arange(30), [3, 27])
        np.testing.assert_array_equal(train.images[:], whole.images[left])
        np.testing.assert_array_equal(train.labels, whole.labels[left])
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert (
        len(said) == 4
        and "2 of 30 images are left out" in said[0]
        and "ant/3.png" in said[0]
        and "cat/7.png" in said[0]
    )


def test_images_are_checked_in_blocks(monkeypatch):
    """A million of them would be a million futures, which wait in memory."""
    waiting, threads = [], stream._threads()

    class Counted:
        def map(self, function, numbers):
            waiting.append(len(numbers))
            return threads.map(function, numbers)

    monkeypatch.setattr(stream, "_threads", Counted)
    count = 2 * stream.BLOCK + 5
    kept = stream.readable(Reader(count, (1, 1, 1), bad=(0, stream.BLOCK, count - 1)), "x")
    np.testing.assert_array_equal(kept, np.delete(np.arange(count), [0, stream.BLOCK, count - 1]))
    assert waiting == [stream.BLOCK, stream.BLOCK, 5]


def test_a_folder_of_nothing_but_corrupt_images_is_refused(tmp_path):
    class_folders(tmp_path / "photos")
    for path in (tmp_path / "photos").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of its 12 images can be decoded"):
        pair(tmp_path, on_corrupt="skip")


def test_too_few_images_left_are_counted_where_they_are(tmp_path):
    """In the test folder, not in that of the training images."""
    class_folders(tmp_path / "checked", ("ant", "bee", "cat"), count=3)
    for name in ("bee/0.png", "bee/2.png"):
        (tmp_path / "checked" / name).write_bytes(b"")
    with pytest.raises(UserError, match="checked: class 'bee' has 1 of the images"):
        pair(tmp_path, test_path=str(tmp_path / "checked"), on_corrupt="skip")


def test_no_images_at_all_are_said_in_one_line():
    for images in (Streamed(Reader()).part(np.array([], int)), np.zeros((0, 4, 4, 1), np.uint8)):
        with pytest.raises(UserError, match="x: there must be images .* N >= 1, got none"):
            Dataset("x", images, np.zeros(0, np.int32), ("a", "b"))


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_disk_that_fails_leaves_no_image_out(tmp_path, monkeypatch, number, zipped):
    """Which examples there are must not depend on how the machine was doing."""
    pair(tmp_path)
    if zipped:
        shutil.make_archive(tmp_path / "photos", "zip", tmp_path / "photos")
    path = tmp_path / ("photos.zip" if zipped else "photos")
    opener, real = (zipfile.ZipFile, zipfile.ZipFile.open) if zipped else (pathlib.Path, pathlib.Path.open)

    def fails(self, *arguments, **named):
        if "3.png" in str(arguments if zipped else self):
            raise OSError(number, os.strerror(number))
        return real(self, *arguments, **named)

    monkeypatch.setattr(opener, "open", fails)
    with pytest.raises(UserError, match=r"cannot be read .") as error:
        sources.load(DataSpec("folder", path=str(path), image_size=8, on_corrupt="skip"))
    assert not isinstance(error.value, stream.Corrupt)
    assert error.value.exit_code == (2 if number == errno.EACCES else 75)  # 75: it may be there later


def test_all_hosts_must_leave_out_the_same_images(tmp_path, monkeypatch):
    pair(tmp_path)
    told = []
    monkeypatch.setattr(hosts, "check_equal", lambda value, what: told.append((value, what)))
    pair(tmp_path, on_corrupt="skip")
    assert len(told) == 2 and told[0] == told[1] and told[0][1] == "set of images that can be decoded"
    (tmp_path / "photos" / "ant" / "3.png").write_bytes(b"")
    pair(tmp_path, on_corrupt="skip")
    assert told[2] == told[3] != told[0]


def run_of(tmp_path, streamed, arguments="", **keys):
    """A small run on a folder whose names are true; the score network only has to exist."""
    pair(tmp_path)
    config = FOLDER.get_config(f"data={tmp_path / 'photos'},smoke,image_size=8,noise=sym,methods=posterior,{arguments}")
    config.update_from_flattened_dict({"data.stream": streamed, "transition.estimator": "known"} | keys)
    validate(config)
    return Run(FrozenConfigDict(config), tmp_path / f"run{streamed}")


def test_what_sees_all_images_of_a_run_sees_the_same(tmp_path):
    """Grids, held-out images, references: the stages around the loop."""
    runs = [run_of(tmp_path, streamed) for streamed in (False, True)]
    for run in runs:
        label_stages.make_labels(run)
    a, b = runs
    np.testing.assert_array_equal(a.y_tilde, b.y_tilde)
    assert (a.workdir / "labels.png").read_bytes() == (b.workdir / "labels.png").read_bytes()
    index = np.array([3, 1, 1])
    for name, rows in a.labelled_batch(index).items():
        np.testing.assert_array_equal(rows, b.labelled_batch(index)[name])
    chosen = a.fold == 0
    np.testing.assert_array_equal(a.given(chosen).images, b.given(chosen).images[:])
    held = [
        classifiers.make_held_out(label_stages.fit_settings(run), run.given(chosen), jax.random.key(0), run.mesh)
        for run in runs
    ]
    np.testing.assert_array_equal(held[0].sigma, held[1].sigma)
    np.testing.assert_array_equal(held[0].labels, held[1].labels)


def test_what_needs_all_pixels_at_once_is_refused_where_they_are_read(tmp_path):
    run = run_of(tmp_path, True, **{"transition.estimator": "hoc", "transition.features": "pixels"})
    label_stages.make_labels(run)
    with pytest.raises(UserError, match="data.stream=True leaves"):
        label_stages.evidence(run)
    assert label_stages.evidence(run_of(tmp_path, True, **{"transition.estimator": "counts"})).features is None
    with pytest.raises(UserError, match="data.stream=True leaves"):
        label_files.draw(run.train_set, "instance", 0.4, 0)
    with pytest.raises(UserError, match="data.stream=True leaves"):
        corrupted(run.train_set.images, np.arange(len(run.train_set.labels)), ImageNoise("occlusion", 0.5, 0.5, 0))


def test_of_many_held_out_images_an_even_share_is_looked_at():
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    data = Labelled(images, np.arange(100))
    kept = classifiers.even_share(data, 100)
    np.testing.assert_array_equal(kept.images, images)
    kept = classifiers.even_share(data, 10)
    assert kept.labels.tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    np.testing.assert_array_equal(kept.images.ravel(), kept.labels)


@pytest.mark.parametrize(("name", "path"), [("folder", "gs://bucket/x"), ("archive", "gs://b/x.zip"), ("cifar10", "")])
def test_images_in_a_bucket_are_not_streamed(tmp_path, monkeypatch, name, path):
    """Each of them would be a request of its own, and 16 MB of a zip or record file."""
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/tfds")
    run = run_of(tmp_path, True, **{"data.name": name, "data.path": path})
    with pytest.raises(UserError, match="data.stream=True reads single images.* gs://b.* copy the data"):
        checks.check(run)


def test_without_grain_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r"grain, which is not installed: pip install 'tdsm_jax\[stream\]'"):
        checks.check(run_of(tmp_path, True))
    checks.check(run_of(tmp_path, False))


def batches_of(images, labels, batch_size=6, seed=3):
    def batches(step, position):
        index = batch_indices(seed, step, batch_size, len(images))[position]
        return {"x": images[index], "label": labels[index], "position": position}

    return batches


@pytest.mark.parametrize("start", [0, 3, 8])
@pytest.mark.parametrize("rows", [np.arange(6), np.arange(2, 4)], ids=["one host", "the second of three"])
def test_batches_ahead_are_those_in_memory_from_any_step_on(start, rows):
    pytest.importorskip("grain")
    reader, labels = Reader(), np.arange(40)
    here, there = batches_of(reader.pixels, labels), batches_of(Streamed(reader), labels)
    steps = range(start, 9)
    with stream.ahead(lambda step: there(step, rows), steps) as made:
        found = list(made)
    assert len(found) == 9 - start
    for step, batch in zip(steps, found, strict=True):
        for name, expected in here(step, rows).items():
            np.testing.assert_array_equal(batch[name], expected)


def test_batches_are_made_ahead_and_in_threads():
    pytest.importorskip("grain")
    made, main = [], threading.get_ident()
    with stream.ahead(lambda step: made.append((step, threading.get_ident())) or step, range(1000)) as batches:
        assert next(batches) == 0
        for _ in range(200):
            if len(made) > 1:
                break
            time.sleep(0.01)
        assert len(made) > 1 and main not in {thread for _, thread in made[1:]}
    assert len(made) < 1000  # only so far ahead


def test_only_so_many_bytes_wait(monkeypatch):
    """Large batches, of several steps a call, would fill the memory of the host before the first step is done."""
    pytest.importorskip("grain")
    assert [stream.calls_ahead(size) for size in (0, 1000, 2**40)] == [stream.AHEAD, stream.AHEAD, 2]
    assert stream.calls_ahead(2**31 // 3) == min(stream.AHEAD, 3)
    for name, value in (("_WAITING", 5000), ("AHEAD", 32), ("THREADS", 16)):
        monkeypatch.setattr(stream, name, value)
    made = []
    with stream.ahead(lambda step: made.append(step) or {"x": np.zeros(4000, np.uint8)}, range(1000)) as batches:
        next(batches)
        time.sleep(0.5)
        assert len(made) <= 6  # the first, two that wait and what two threads hold


def test_no_call_is_left_to_be_made_ahead():
    pytest.importorskip("grain")
    with stream.ahead(None, range(0)) as batches:
        assert list(batches) == []


def test_an_error_in_a_thread_surfaces_in_its_turn():
    pytest.importorskip("grain")
    reader = Reader(bad=(17,))
    there = batches_of(Streamed(reader), np.arange(40))
    turn = next(step for step in range(7) if 17 in batch_indices(3, step, 6, 40))
    with (
        pytest.raises(UserError, match="^image 17 is torn$"),
        stream.ahead(lambda s: there(s, np.arange(6)), range(9)) as made,
    ):
        for step, _ in enumerate(made):
            assert step < turn


def step_fn(state, batch, key):
    """Remembers the order of what it saw."""
    seen = batch["x"].astype(np.float32).sum() + batch["label"].sum() * (state["step"] + 1)
    return {"step": state["step"] + 1, "sum": 0.5 * state["sum"] + seen}, {"loss": seen}


def test_the_loop_comes_to_the_same_state_streamed_and_resumed(tmp_path):
    pytest.importorskip("grain")
    reader, labels = Reader(), np.arange(40)
    mesh = parallel.data_mesh(jax.devices()[:1])

    def trained(images, steps, directory=None, steps_a_call=2):
        schedule = loop.Schedule(steps, 4, 4, steps_a_call=steps_a_call)
        several = jax.jit(parallel_step(steps_a_call))
        state = {"step": np.float32(0), "sum": np.float32(0)}
        options = {"batch_size": 6, "schedule": schedule, "mesh": mesh, "directory": directory}
        batches = batches_of(images, labels)
        return loop.run("x", several, state, batches, jax.random.key(0), **options, ahead=stream.is_streamed(images))

    expected = trained(reader.pixels, 12)
    streamed = trained(Streamed(reader), 12)
    trained(Streamed(reader), 8, tmp_path)
    resumed = trained(Streamed(reader), 12, tmp_path)
    for name, value in expected.items():
        assert float(value) == float(streamed[name]) == float(resumed[name])


def parallel_step(steps_a_call):
    def several(state, batch, key):
        losses = []
        for i in range(steps_a_call):
            state, metrics = step_fn(state, {name: rows[i] for name, rows in batch.items()}, key)
            losses.append(metrics["loss"])
        return state, {"loss": jax.numpy.stack(losses)}

    return several


def call(workdir, data, *more):
    """The real entry point, streamed."""
    keys = ("--config.score.augment=0", "--config.network.attention_resolutions=()", *more)
    config = f"{ROOT}/configs/folder.py:data={data},image_size=8,methods=dsm,noise=sym,transition=counts,smoke"
    return subprocess.run(
        [sys.executable, "-m", "tdsm_jax.main", f"--config={config}", f"--workdir={workdir}", *keys],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_streamed_run_gives_the_results_of_one_in_memory(tmp_path):
    pytest.importorskip("grain")
    class_folders(tmp_path / "photos", ("ant", "bee", "cat"), count=10)
    found = []
    for streamed in (False, True):
        workdir = tmp_path / f"run{streamed}"
        done = call(workdir, tmp_path / "photos", f"--config.data.stream={streamed}")
        assert done.returncode == 0, done.stderr[-3000:]
        metrics = json.loads((workdir / "metrics.json").read_text())
        for own in ("seconds", "config_hash", "label_file_hash"):  # which name data.stream, or digests of files
            del metrics[own]
        found.append((metrics, np.load(workdir / "samples" / "dsm.npz")["images"]))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_a_corrupt_image_ends_a_streamed_run_in_one_line(tmp_path):
    pytest.importorskip("grain")
    data = tmp_path / "photos"
    class_folders(data, ("ant", "bee", "cat"), count=10)
    for path in (data / "bee").glob("*.png"):  # whichever the split takes
        path.write_bytes(b"")
    done = call(tmp_path / "run", data, "--config.data.stream=True", "--stages=labels")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1, done.stderr[-2000:]
    assert re.search(r"bee/\d\.png is damaged", errors[0])
    assert "Traceback" not in done.stderr
