"""The command that prepares datasets: published formats in, what TensorFlow Datasets reads out, and refusals."""

import contextlib
import http.server
import pathlib
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

import tfds_archives as archives
from tdsm_jax.data import download, prepare, tfds_store
from tdsm_jax.errors import Unreachable, UserError

ROOT = pathlib.Path(__file__).parents[1]


def fails(*arguments):
    """Runs the command and returns the one line that it ends in."""
    done = subprocess.run(
        [sys.executable, "-m", "tdsm_jax.data.prepare", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "", (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "archives"
    made.mkdir()
    return made


def records(directory, split):
    """What TensorFlow Datasets itself reads, in its order."""
    source = tfds.builder_from_directory(str(directory)).as_data_source(split=split)
    return [source[n] for n in range(len(source))]


def assert_are(found, split, parts, order=None):
    """Compares what TensorFlow Datasets reads with the images of the archive, record by record."""
    images, labels = parts[split]
    order = tfds_store.hash_order(split, len(labels)) if order is None else order
    assert len(found) == len(labels)
    for record, index in zip(found, order, strict=True):
        np.testing.assert_array_equal(record["image"], images[index])
        assert record["label"] == labels[index]
        if "id" in record:
            assert record["id"] == f"{split}_{index:05d}".encode()


def test_cifar100_is_what_its_archive_holds(tmp_path, folder, monkeypatch, capsys):
    parts = archives.cifar100(folder, train=250, test=100)
    archives.register(monkeypatch, folder)
    made = prepare.prepare("cifar100", folder, tmp_path / "data")
    assert made == tmp_path / "data" / "cifar100" / str(tfds.builder_cls("cifar100").VERSION)
    for split in parts:
        found = records(made, split)
        assert_are(found, split, parts)
        assert all(record["coarse_label"] == record["label"] // 5 for record in found)
    stored = tfds.builder("cifar100", data_dir=tmp_path / "data")
    assert stored.is_prepared() and stored.info.features["label"].names[7] == "fine7"
    assert stored.info.features["coarse_label"].names[3] == "coarse3"
    assert "tensorflow" not in sys.modules


def test_cifar10_runs_over_its_batches(tmp_path, folder, monkeypatch):
    parts = archives.cifar10(folder)
    archives.register(monkeypatch, folder)
    made = prepare.prepare("cifar10", folder, tmp_path)
    for split in parts:
        assert_are(records(made, split), split, parts)
    assert tfds_store.Split("cifar10", made, 0).class_names == tuple(f"name{y}" for y in range(10))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_is_what_its_four_files_hold(tmp_path, folder, monkeypatch, name):
    parts = archives.mnist(folder)
    archives.register(monkeypatch, folder)
    made = prepare.prepare(name, folder, tmp_path)
    for split in parts:
        assert_are(records(made, split), split, parts)
    assert tfds_store.Split(name, made, 0).class_names[5] == {"mnist": "5", "fashion_mnist": "Sandal"}[name]


@pytest.mark.parametrize("side", [8, 64])
def test_small_imagenet_is_ordered_by_file_and_number(tmp_path, folder, monkeypatch, side):
    parts, keys = archives.imagenet(folder, side)
    archives.register(monkeypatch, folder)
    made = prepare.prepare(f"imagenet_resized/{side}x{side}", folder, tmp_path)
    assert made.parent.name == f"{side}x{side}"
    for split in parts:
        hasher = tfds.core.hashing.Hasher(split)
        order = sorted(range(len(keys[split])), key=lambda n: hasher.hash_key(keys[split][n]))  # noqa: B023
        assert_are(records(made, split), split, parts, order)


@pytest.mark.parametrize("number", [10, 100])
def test_human_labels_belong_to_their_images(tmp_path, folder, monkeypatch, number):
    parts = archives.cifar10(folder) if number == 10 else archives.cifar100(folder, train=200, test=100)
    archives.register(monkeypatch, folder)
    given = archives.human(folder, parts["train"][1], number)
    made = prepare.prepare(f"cifar{number}_n", folder, tmp_path)
    found = records(made, "train")
    assert_are(found, "train", parts)
    worker, group = ("worker2_id", 10) if number == 10 else ("worker_id", 5)
    for record in found:
        index = int(record["id"].removeprefix(b"train_"))
        for field in given.keys() - {"clean_label"}:
            assert record[field] == given[field][index]
        assert record[worker] == index // group * group + (2 if number == 10 else 0)
    test = records(made, "test")
    assert_are(test, "test", parts)
    assert {record["worse_label" if number == 10 else "noise_label"] for record in test} == {-1}


def test_annotations_as_published_are_pickled_and_read_once_converted(tmp_path, folder, monkeypatch):
    parts = archives.cifar10(folder)
    archives.register(monkeypatch, folder)
    given = archives.human(folder, parts["train"][1], 10)
    (folder / "CIFAR-10_human_annotations.csv").unlink()
    order = np.load(folder / "image_order_c10.npy")
    columns = {field: labels[order] for field, labels in given.items()}
    np.save(folder / "CIFAR-10_human_ordered.npy", np.array(columns, object), allow_pickle=True)
    with pytest.raises(UserError, match="CIFAR-10_human_ordered.npy: holds pickled .* CIFAR-10_human_ordered.npz$"):
        prepare.prepare("cifar10_n", folder, tmp_path)
    np.savez(folder / "CIFAR-10_human_ordered.npz", **columns)
    made = tfds_store.Split("cifar10_n", prepare.prepare("cifar10_n", folder, tmp_path), 0)
    np.testing.assert_array_equal(made.columns(["worse_label"])["worse_label"], given["worse_label"])


@pytest.mark.parametrize("cell", ["nan", "inf"])
def test_workers_are_numbers(tmp_path, folder, monkeypatch, cell):
    parts = archives.cifar10(folder)
    archives.register(monkeypatch, folder)
    archives.human(folder, parts["train"][1], 10)
    path = folder / "side_info_cifar10N.csv"
    path.write_text(path.read_text().replace("10--19,10,", f"10--19,{cell},"))
    with pytest.raises(UserError, match="side_info_cifar10N.csv: holds NaN or infinity"):
        prepare.prepare("cifar10_n", folder, tmp_path)


def test_human_labels_in_another_order_are_refused(tmp_path, folder, monkeypatch):
    parts = archives.cifar10(folder)
    archives.register(monkeypatch, folder)
    archives.human(folder, parts["train"][1], 10)
    np.save(folder / "image_order_c10.npy", np.arange(100))
    with pytest.raises(UserError, match="clean labels differ from those of the archive at .. of 100 images"):
        prepare.prepare("cifar10_n", folder, tmp_path / "data")
    np.save(folder / "image_order_c10.npy", np.arange(100) // 2)
    with pytest.raises(UserError, match="names 50 of 100 images"):
        prepare.prepare("cifar10_n", folder, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_files_for_hand_are_asked_for_before_anything_is_downloaded(tmp_path, folder):
    assert re.search(
        r"has no CIFAR-10_human_annotations.csv or .*ordered.npz or .*; put .* or .*, side_info_cifar10N.csv, "
        "image_order_c10.npy there, from https",
        fails("--dataset=cifar10_n", f"--archive_dir={folder}", f"--out={tmp_path}"),
    )
    assert not list(folder.iterdir())


def test_what_tensorflow_datasets_registers_is_asked_for():
    sizes = {name: {f: a.size for f, a in prepare.registered(name).items()} for name in prepare.ORIGINALS}
    for name, original in prepare.ORIGINALS.items():
        assert set(original.archives) <= sizes[name].keys(), name
    assert sizes["cifar100"] == {"cifar-100-binary.tar.gz": 168513733}
    cifar10 = prepare.registered("cifar10_n")["cifar-10-binary.tar.gz"]
    assert cifar10.checksum == "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    assert cifar10.url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


def test_archives_that_are_not_the_registered_ones_are_refused(tmp_path, folder):
    archives.cifar10(folder)
    path = folder / "cifar-10-binary.tar.gz"
    size = path.stat().st_size
    options = ("--dataset=cifar10", f"--archive-dir={folder}", f"--out={tmp_path / 'data'}")
    assert fails(*options) == (
        f"error: {path}: {size} of 170052171 bytes, not whole; finish or remove it, and this command downloads it"
    )
    with path.open("r+b") as file:
        file.truncate(170052171)  # a hole, which takes no room
    assert re.search(
        r"its SHA-256 is [0-9a-f]{64}, not c4a38c50\w+ as of https://.*; it is another file", fails(*options)
    )
    assert not (tmp_path / "data").exists() and path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=cifar11", "--archive_dir=x"], "--dataset=cifar11: no such dataset; did you mean 'cifar10'?"),
        (["--dataset=imagenet_resized", "--archive_dir=x"], "did you mean 'imagenet_resized/8x8'?"),
        (["--dataset=mnist"], "required: --archive_dir.*; --help shows examples"),
        (["--dataset=mnist", "--archive_dir=x", "--format=tfrecord"], "unrecognized arguments: --format=tfrecord"),
        (["--dataset=mnist", "--archive_dir=gs://b/x"], "gs://b/x: datasets are prepared on this machine"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    assert re.search(message, fails(*arguments))


def test_an_output_that_exists_is_kept(tmp_path, folder):
    made = tmp_path / "mnist" / str(tfds.builder_cls("mnist").VERSION)
    made.mkdir(parents=True)
    line = fails("--dataset=mnist", f"--archive_dir={folder}", f"--out={tmp_path}")
    assert line == f"error: {made} exists; give another --out or remove it"


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("cifar10", "cifar-10-binary.tar.gz", b"no archive", "not the archive it should be"),
        ("mnist", "t10k-images-idx3-ubyte.gz", b"no archive", "not the archive it should be"),
        ("imagenet_resized/8x8", "Imagenet8_val_npz.zip", b"no archive", "not the archive it should be"),
    ],
)
def test_archives_of_another_form_are_refused(tmp_path, folder, monkeypatch, name, file, content, message):
    {"cifar10": archives.cifar10, "mnist": archives.mnist}.get(name, archives.imagenet)(folder)
    (folder / file).write_bytes(content)
    archives.register(monkeypatch, folder)
    with pytest.raises(UserError, match=message) as error:
        prepare.prepare(name, folder, tmp_path / "data")
    assert "\n" not in str(error.value) and file in str(error.value)
    assert not list(tmp_path.glob("data/**/dataset_info.json"))


def test_batches_of_broken_records_are_refused(tmp_path, folder, monkeypatch):
    archives.write_tar(
        folder / "cifar-10-binary.tar.gz", {"cifar-10-batches-bin/batches.meta.txt": b"a\n"}
    )  # fmt: skip
    archives.register(monkeypatch, folder)
    with pytest.raises(UserError, match="has no cifar-10-batches-bin/data_batch_1.bin"):
        prepare.prepare("cifar10", folder, tmp_path / "data")
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    members = {"batches.meta.txt": b"a\n"} | {name: bytes(3074) for name in names}
    archives.write_tar(folder / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{k}": v for k, v in members.items()})
    archives.register(monkeypatch, folder)
    with pytest.raises(UserError, match="15370 bytes of train images are no records of 3073 bytes"):
        prepare.prepare("cifar10", folder, tmp_path / "data")


class Web:
    """A server of files that knows ranges; `cut` is after how many bytes it breaks the next answer off."""

    def __init__(self, contents):
        self.contents, self.cut, self.ranges, self.asked = contents, None, True, []
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                content = web.contents.get(self.path.lstrip("/"))
                wanted = self.headers.get("Range")
                web.asked.append(wanted)
                if content is None:
                    return self.send_error(404)
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and web.ranges else 0
                if start >= len(content):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                end, web.cut = web.cut, None
                self.wfile.write(content[start:end])

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def web():
    server = Web({"file.bin": np.random.default_rng(0).bytes(700_000)})
    with contextlib.closing(server.server.socket):
        yield server
        server.server.shutdown()


def fetch(web, path, **changes):
    content = web.contents["file.bin"]
    options = {"url": f"{web.url}file.bin", "size": len(content), "checksum": archives.sha256(content)} | changes
    download.fetch(path=path, **options)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(tmp_path, web, ranges):
    path, web.cut, web.ranges = tmp_path / "new" / "file.bin", 300_000, ranges
    with pytest.raises(Unreachable, match="the 300000 of 700000 bytes that are here are kept, and the same command"):
        fetch(web, path)
    assert not path.exists() and path.with_name("file.bin.part").stat().st_size == 300_000
    fetch(web, path)
    assert path.read_bytes() == web.contents["file.bin"]
    assert web.asked == [None, "bytes=300000-"]
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]


def test_a_download_that_was_only_to_be_renamed_asks_for_nothing(tmp_path, web):
    (tmp_path / "file.bin.part").write_bytes(web.contents["file.bin"])
    fetch(web, tmp_path / "file.bin")
    assert web.asked == [] and (tmp_path / "file.bin").read_bytes() == web.contents["file.bin"]


def test_other_bytes_than_registered_are_not_kept(tmp_path, web):
    with pytest.raises(UserError, match="not the registered 00; they are not kept"):
        fetch(web, tmp_path / "file.bin", checksum="00")
    web.contents["file.bin"] += b"more"
    with pytest.raises(UserError, match="700004 bytes have the SHA-256"):
        fetch(web, tmp_path / "file.bin", size=700_000, checksum="00")
    web.contents["file.bin"] = web.contents["file.bin"][:5]
    (tmp_path / "file.bin.part").write_bytes(b"0123456789")  # of another file: the server has nothing after it
    with pytest.raises(Unreachable, match="it ended after 5 bytes"):
        fetch(web, tmp_path / "file.bin", size=20)
    assert not (tmp_path / "file.bin").exists()


def test_no_server_or_no_file_is_one_line(tmp_path, web):
    for url, reason in ((f"{web.url}none", "404"), ("http://127.0.0.1:9/file.bin", "refused")):
        with pytest.raises(Unreachable, match=f"{reason}.*; or put the file at .*file.bin by hand") as error:
            fetch(web, tmp_path / "file.bin", url=url)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_command_downloads_what_is_missing_and_says_what_it_made(tmp_path, folder, web, monkeypatch, capsys):
    parts = archives.mnist(folder)
    web.contents |= {path.name: path.read_bytes() for path in folder.iterdir()}
    archives.register(monkeypatch, folder, web.url)
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    options = ["prepare", "--dataset=mnist", f"--archive_dir={folder}", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", options)
    prepare.run()
    made = tfds_store.find("mnist", tmp_path)
    said = f"{made}: 120 images to train and 30 to test, in 10 classes"
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert len(web.asked) == 1
    assert_are(records(made, "test"), "test", parts)
