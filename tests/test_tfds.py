"""Prepared datasets: both record formats give the images of the archives in their order, and wrong files one line."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import pickle
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import tfds_archives as archives
from tdsm_jax import config as configuration
from tdsm_jax import make_ref_stats
from tdsm_jax.data import (
    edm_zip,
    human_labels,
    label_command,
    label_files,
    prepare,
    record_files,
    sources,
    tfds_store,
)
from tdsm_jax.data.dataset import Dataset, images_hash, images_set_hash, subset
from tdsm_jax.data.sources import DataSpec
from tdsm_jax.data.stream import is_streamed
from tdsm_jax.errors import UserError
from tdsm_jax.run_data import RunData
from tdsm_jax.validation import validate
from test_main import call

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


@dataclasses.dataclass
class Prepared:
    """A data_dir of array_record files, the same with TFRECORD files, and what the archives hold."""

    array_record: pathlib.Path
    tfrecord: pathlib.Path
    parts: dict  # dataset -> split -> (images, labels)
    given: dict  # field -> labels of people, of cifar10_n and of cifar100_n


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """All datasets, made by the function behind the command."""
    top, parts, given = tmp_path_factory.mktemp("tfds"), {}, {}
    makers = {"cifar10": archives.cifar10, "cifar100": archives.cifar100, "mnist": archives.mnist}
    with pytest.MonkeyPatch.context() as patch:
        for name in (*makers, "fashion_mnist", "imagenet_resized/8x8"):
            folder = top / "archives" / name
            folder.mkdir(parents=True)
            parts[name] = makers.get(name, archives.mnist)(folder) if "/" not in name else archives.imagenet(folder)[0]
            archives.register(patch, folder)
            made = prepare.prepare(name, folder, top / "array_record")
            archives.as_tfrecord(made, top / "tfrecord" / made.relative_to(top / "array_record"))
            if name in ("cifar10", "cifar100"):
                given |= archives.human(folder, parts[name]["train"][1], int(name.removeprefix("cifar")))
                prepare.prepare(f"{name}_n", folder, top / "array_record")
    return Prepared(top / "array_record", top / "tfrecord", parts, given)


FORMATS = ("array_record", "tfrecord")


def spec(prepared, name, file_format="array_record", **changes):
    side = {"mnist": 28, "fashion_mnist": 28, "imagenet_resized": 8}.get(name, 32)
    return DataSpec(name, **{"path": str(getattr(prepared, file_format)), "image_size": side} | changes)


def copied(prepared, name, tmp_path, file_format="array_record"):
    """A copy of a dataset to damage, and its folder in there."""
    shutil.copytree(getattr(prepared, file_format) / name, tmp_path / name)
    return tmp_path, tfds_store.find(name, tmp_path)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_images_have_the_order_of_the_archive(prepared, name, file_format):
    loaded = sources.load(spec(prepared, name, file_format))
    for part, (images, labels) in zip(loaded, prepared.parts[name].values(), strict=True):
        np.testing.assert_array_equal(part.images, images, strict=True)
        np.testing.assert_array_equal(part.labels, labels.astype(np.int32), strict=True)
        assert part.name == name
    first = {"cifar10": "name0", "cifar100": "fine0", "mnist": "0", "fashion_mnist": "T-shirt/top"}[name]
    assert loaded[0].class_names[0] == loaded[1].class_names[0] == first


def test_small_imagenet_is_the_same_in_both_formats(prepared):
    array_record, tfrecord = (sources.load(spec(prepared, "imagenet_resized", each)) for each in FORMATS)
    for one, other, (images, labels) in zip(
        array_record, tfrecord, prepared.parts["imagenet_resized/8x8"].values(), strict=True
    ):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert images_set_hash(one.images) == images_set_hash(images)
        assert sorted(one.labels) == sorted(labels)
    assert array_record[0].class_names[0] == "n02119789" and array_record[0].num_classes == 1000


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("name", ["cifar10", "mnist", "imagenet_resized"])
def test_single_images_are_those_of_the_whole(prepared, name, file_format):
    asked = spec(prepared, name, file_format)
    split, test = tfds_store.open_splits(name, asked.path, asked.image_size)
    split = pickle.loads(pickle.dumps(split))  # a reader of another process gets a copy
    images, labels = split.load()
    assert len(split) == len(images) and images.shape[1:] == split.image_shape and len(test) < len(split)
    for index in (0, 7, len(split) // 2, len(split) - 1):
        np.testing.assert_array_equal(split.read(index), images[index])
    np.testing.assert_array_equal(split.columns(["label"])["label"], labels)


@pytest.mark.parametrize("file_format", FORMATS)
def test_streamed_images_are_those_in_memory(prepared, file_format):
    whole, _ = sources.load(spec(prepared, "cifar10", file_format))
    streamed, _ = sources.load(spec(prepared, "cifar10", file_format, stream=True))
    assert is_streamed(streamed.images) and streamed.class_names == whole.class_names
    chosen = np.array([7, 0, len(whole.labels) - 1, 7])
    np.testing.assert_array_equal(streamed.images[chosen], whole.images[chosen])
    np.testing.assert_array_equal(streamed.labels, whole.labels)


def test_digits_get_a_black_margin(prepared):
    images = prepared.parts["mnist"]["train"][0]
    train, test = sources.load(spec(prepared, "mnist", image_size=32))
    np.testing.assert_array_equal(train.images, np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))), strict=True)
    assert test.images.shape[1:] == (32, 32, 1)
    split, _ = tfds_store.open_splits("mnist", prepared.array_record, 31)
    np.testing.assert_array_equal(split.read(3), np.pad(images[3], ((1, 2), (1, 2), (0, 0))))


def test_the_environment_says_where_data_are(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared.array_record))
    assert len(sources.load(spec(prepared, "mnist", path=""))[0].labels) == 120


@pytest.mark.parametrize("inside", ["mnist", "mnist/3.0.1"])
def test_folders_in_the_data_dir_are_found_too(prepared, inside):
    assert tfds_store.find("mnist", prepared.array_record / inside) == prepared.array_record / "mnist" / "3.0.1"
    with pytest.raises(UserError, match="holds no prepared fashion_mnist"):
        tfds_store.find("fashion_mnist", prepared.array_record / inside)


def test_prepared_images_become_an_archive(prepared, tmp_path):
    out = tmp_path / "test.zip"
    command = [sys.executable, "-m", "tdsm_jax.data.convert", "--source=cifar10", f"--out={out}", "--split=test"]
    refused = subprocess.run([*command, "--num_images=3"], cwd=ROOT, capture_output=True, text=True)
    assert "--num_images says nothing about cifar10" in refused.stderr
    subprocess.run([*command, f"--path={prepared.tfrecord}"], cwd=ROOT, check=True, capture_output=True)
    with edm_zip.Archive(out) as archive:
        images, labels = prepared.parts["cifar10"]["test"]
        np.testing.assert_array_equal(archive.load(), images)
        np.testing.assert_array_equal(archive.labels, labels)


def test_labels_made_for_an_archive_fit(prepared, tmp_path):
    """The label file of an EDM archive in the original order is that of the prepared dataset, whatever its format."""
    images, labels = prepared.parts["cifar10"]["train"]
    edm_zip.write(tmp_path / "cifar10.zip", images, labels)
    edm_zip.write(tmp_path / "test.zip", *prepared.parts["cifar10"]["test"])
    archive, _ = sources.load(
        DataSpec("archive", path=str(tmp_path / "cifar10.zip"), test_path=str(tmp_path / "test.zip"))
    )
    made = label_files.draw(archive, "sym", 0.4, 3)
    for file_format in FORMATS:
        train, _ = sources.load(spec(prepared, "cifar10", file_format))
        assert images_hash(train.images) == images_hash(archive.images)
        np.testing.assert_array_equal(label_files.attach(made, train), made.y_tilde)


def test_published_label_files_name_the_images_by_their_index(prepared, tmp_path):
    y_tilde = np.arange(100) % 7
    path = tmp_path / "dataset.json"
    path.write_text(edm_zip.labels_text(edm_zip.image_names(100), y_tilde))
    np.testing.assert_array_equal(sources.archive_labels(spec(prepared, "cifar10"), str(path)), y_tilde)
    with pytest.raises(UserError, match="'imagenet_resized' have no names to match labels by"):
        sources.archive_labels(spec(prepared, "imagenet_resized"), str(path))


@pytest.mark.parametrize("field", [*archives.FIELDS_10N, "noisy_label"])
def test_what_people_said_is_matched_by_index(prepared, field):
    name = "cifar100" if field == "noisy_label" else "cifar10"
    train, _ = sources.load(spec(prepared, name))
    for path in (prepared.array_record, prepared.array_record / f"{name}_n"):
        y_tilde = human_labels.read_human_labels(path, train, field)
        expected = prepared.given["noise_label" if field == "noisy_label" else field]
        np.testing.assert_array_equal(y_tilde, expected.astype(np.int32), strict=True)


def test_the_command_for_label_files_reads_what_people_said(prepared, tmp_path, monkeypatch, capsys):
    out, top = tmp_path / "labels.json", prepared.array_record
    options = ("--dataset=cifar10", f"--path={top}", "--noise=human", f"--from={top}", "--column=aggre_label")
    monkeypatch.setattr(sys, "argv", ["label_files", *options, f"--out={out}"])
    label_command.run()
    np.testing.assert_array_equal(label_files.read(out).y_tilde, prepared.given["aggre_label"])
    assert "100 labels of cifar10 in 10 classes" in capsys.readouterr().out


def test_what_people_said_of_other_images_is_refused(prepared, tmp_path):
    train, _ = sources.load(spec(prepared, "cifar10"))
    turned = dataclasses.replace(train, labels=train.labels[::-1].copy())
    cases = (
        (turned, "worse_label", "", "clean labels differ from those of cifar10"),
        (subset(train, np.arange(50)), "worse_label", "", "holds 100 labels for 50 images"),
        (train, "worst_label", "", "unknown field of human labels 'worst_label'; did you mean 'worse_label'"),
        (train, "noisy_coarse_label", "", "no coarse labels that people gave"),
        (train, "worse_label", "order.npy", "leave the image order file out"),
    )
    for dataset, field, order, message in cases:
        with pytest.raises(UserError, match=message) as error:
            human_labels.read_human_labels(prepared.array_record, dataset, field, order)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="holds no prepared cifar10_n; run python -m tdsm_jax.data.prepare --dataset=c"):
        human_labels.read_human_labels(tmp_path, train, "worse_label")


def test_an_archive_is_no_data_dir(tmp_path):
    (tmp_path / "cifar10.zip").write_bytes(b"")
    with pytest.raises(UserError, match="cifar10.zip: a file, not a data_dir of TensorFlow Datasets; .* 'archive'"):
        sources.load(DataSpec("cifar10", path=str(tmp_path / "cifar10.zip")))


def test_missing_data_are_told_at_once(tmp_path, monkeypatch):
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        sources.load(DataSpec("cifar100", path=str(tmp_path)))
    assert str(error.value) == (
        f"{tmp_path}: holds no prepared cifar100; run python -m tdsm_jax.data.prepare --dataset=cifar100 "
        f"--archive_dir=FOLDER --out={tmp_path} with the original archives in FOLDER, or name the data_dir of "
        "TensorFlow Datasets that has it"
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(
        UserError, match="none: holds no prepared imagenet_resized/64x64; run .*=imagenet_resized/64x64 -"
    ):
        sources.load(DataSpec("imagenet_resized", image_size=64))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cifar10", {"image_size": 64}, "images of 32x32; set image_size so, not to 64"),
        ("mnist", {"image_size": 20}, "28x28, or larger with a black margin; set image_size so, not to 20"),
        ("imagenet_resized", {"image_size": 24}, "image sizes 8, 16, 32, 64, not 24"),
        ("cifar10", {"test_path": "test.zip"}, "test_path is given"),
        ("cifar_10", {}, "did you mean 'cifar10'"),
    ],
)
def test_what_cannot_be_asked_for(prepared, name, changes, message):
    with pytest.raises(UserError, match=message):
        sources.load(spec(prepared, name, **changes))


def damage(path, position, file_format):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(("what", "message"), [("cut", "damaged"), ("bit", "damaged"), ("gone", "missing")])
def test_damaged_record_files_are_named(prepared, tmp_path, file_format, what, message):
    top, folder = copied(prepared, "cifar10", tmp_path, file_format)
    path = sorted(folder.glob(f"*train.{file_format}*"))[-1]
    if what == "gone":
        path.unlink()
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
    else:
        damage(path, 60_000, file_format)
    with pytest.raises(UserError, match=message) as error:
        sources.load(DataSpec("cifar10", path=str(top)))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_every_bit_of_a_tfrecord_file_counts(tmp_path):
    contents = [bytes([n]) * (n + 3) for n in range(5)]
    whole = b"".join(map(archives.tfrecord, contents))
    path = tmp_path / "x.tfrecord"
    path.write_bytes(whole)
    file = record_files.TfrecordFile(path)
    assert file.read(range(5)) == contents and file.read([3, 1]) == [contents[3], contents[1]]
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(UserError, match="x.tfrecord: damaged"):
            record_files.TfrecordFile(path).read(range(5))
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with contextlib.suppress(UserError):
            assert len(record_files.TfrecordFile(path)) < 5  # cut between two records: the metadata count them


def test_a_content_is_checked_once(tmp_path, monkeypatch):
    contents = [bytes([n]) * 50 for n in range(5)]
    whole = b"".join(map(archives.tfrecord, contents))
    path = tmp_path / "x.tfrecord"
    path.write_bytes(whole)
    file = record_files.TfrecordFile(path)
    assert file.read([1, 2]) == contents[1:3]
    summed, real = [], record_files._crc32c
    monkeypatch.setattr(record_files, "_crc32c", lambda content: summed.append(content) or real(content))
    assert file.read([2]) == [contents[2]] and not summed
    assert file.read([3, 1]) == [contents[3], contents[1]] and summed == [contents[3]]
    damage(path, whole.index(contents[4]) + 7, "tfrecord")
    for _ in range(2):  # a wrong one stays unchecked
        with pytest.raises(UserError, match="record 4 does not have its checksum"):
            file.read([2, 4])


def test_labels_of_streamed_images_fit_the_same_record_files_and_decode_none(prepared, tmp_path, monkeypatch):
    def streamed(data_dir, part=0, **changes):
        return sources.load(spec(prepared, "mnist", stream=True, path=str(data_dir), **changes))[part]

    top, folder = copied(prepared, "mnist", tmp_path)
    train = streamed(prepared.array_record)
    decoded, real = [], tfds_store.png.decode
    monkeypatch.setattr(tfds_store.png, "decode", lambda content: decoded.append(content) or real(content))
    made = label_files.draw(train, "sym", 0.4, 0)
    np.testing.assert_array_equal(label_files.attach(made, streamed(top)), made.y_tilde)
    assert len(decoded) <= 2 < len(train.labels)  # for the shapes of two splits
    with pytest.raises(UserError, match="in another order"):
        label_files.attach(made, subset(train, np.arange(len(train.labels))[::-1]))
    others = [streamed(prepared.array_record, 1), streamed(top, image_size=32), streamed(prepared.tfrecord)]
    path = next(folder.glob("*train.array_record*"))
    damage(path, path.stat().st_size - 1, "array_record")
    split = tfds_store.open_splits("mnist", top, 28)[0]
    hashes = {images_hash(part.images) for part in (train, *others)}
    assert len(hashes) == 4 and split.digest(0) != next(train.images.digests())


@pytest.mark.parametrize("count", [1, 100])  # one by one, and all at once
def test_checksums_are_crc32c(count):
    """The check value of the catalogue of CRCs, and those of RFC 3720, B.4."""
    known = {
        b"123456789": 0xE3069283, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E, b"": 0
    }  # fmt: skip
    found = record_files.crc32c([*known] * count)
    np.testing.assert_array_equal(found, np.array([*known.values()] * count, np.uint32))


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_shards(info, value):
    info["splits"][0]["shardLengths"] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: set_shards(info, ["99"]), "holds 100 records, but dataset_info.json says 99"),
        (lambda info: info.update(fileFormat="riegeli"), "stored as .*; tfrecord and array_record are read here"),
        (lambda info: info["splits"].pop(0), "has no images in split 'train'"),
        (lambda info: set_shards(info, ["0"]), "has no images in split 'train'"),
        (lambda info: set_shards(info, []), "has no images in split 'train'"),
        (lambda info: info.update(splits=3), "its metadata cannot be read"),
        (lambda info: info.update(name="cifar100"), "holds no prepared cifar10"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(prepared, tmp_path, change, message):
    top, folder = copied(prepared, "cifar10", tmp_path)
    edited(folder / "dataset_info.json", change)
    with pytest.raises(UserError, match=message) as error:
        sources.load(DataSpec("cifar10", path=str(top)))
    assert "\n" not in str(error.value)


def test_images_of_another_size_are_refused(prepared, tmp_path):
    top, folder = copied(prepared, "cifar10", tmp_path)
    shape = {"dimensions": ["64", "64", "3"]}
    path = folder / "features.json"
    edited(path, lambda f: f["featuresDict"]["features"]["image"]["image"].update(shape=shape))
    with pytest.raises(UserError, match="its images are .64, 64, 3., which those of cifar10 are not"):
        sources.load(DataSpec("cifar10", path=str(top)))


def test_another_number_of_classes_is_refused(prepared, tmp_path):
    top, folder = copied(prepared, "cifar10", tmp_path)
    (folder / "label.labels.txt").write_text("a\nb\n")
    edited(
        folder / "features.json", lambda f: f["featuresDict"]["features"]["label"]["classLabel"].update(numClasses="2")
    )
    with pytest.raises(UserError, match="names 2 classes, but cifar10 has 10"):
        sources.load(DataSpec("cifar10", path=str(top)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"train_00007", b"train_00008", "two records of train are image 8"),
        (b"train_00007", b"train_00107", "has the id b'train_00107', not one from train_00000 to train_00099"),
        (b"train_00007", b"other_00007", "has the id b'other_00007', not one from"),
        (b"\x89PNG", b"\x89PNX", "the image of record 0 of train is not a PNG file"),
    ],
)
def test_records_that_do_not_fit_are_refused(prepared, tmp_path, old, new, message):
    top, folder = copied(prepared, "cifar10", tmp_path, "tfrecord")
    for path in folder.glob("*train.tfrecord*"):
        file = record_files.TfrecordFile(path)
        contents = (content.replace(old, new) for content in file.read(range(len(file))))
        path.write_bytes(b"".join(map(archives.tfrecord, contents)))
    with pytest.raises(UserError, match=message) as error:
        sources.load(DataSpec("cifar10", path=str(top)))
    assert "\n" not in str(error.value)


def test_records_of_another_kind_are_refused(prepared, tmp_path):
    top, folder = copied(prepared, "cifar10", tmp_path, "tfrecord")
    path = sorted(folder.glob("*train.tfrecord*"))[0]
    path.write_bytes(archives.tfrecord(b"\xff no example") * 50)
    with pytest.raises(UserError, match="holds a record that is no tf.train.Example") as error:
        sources.load(DataSpec("cifar10", path=str(top)))
    assert str(error.value).startswith(str(path))


def run_data(tmp_path, config, arguments):
    return RunData(configuration.load_module(CONFIGS / f"{config}.py").get_config(arguments), tmp_path)


def test_a_run_notices_that_its_data_changed(prepared, tmp_path):
    top, folder = copied(prepared, "cifar10", tmp_path)
    shutil.copytree(prepared.array_record / "cifar10_n", tmp_path / "cifar10_n")

    def inputs():
        data = run_data(tmp_path, "cifar10n", f"data_dir={top}")
        return data.data_inputs[str(top)], data.label_inputs[str(top)]

    images, labels = inputs()
    (tmp_path / "mnist").mkdir()  # other datasets do not matter, nor when files were written
    (folder / "label.labels.txt").touch()
    assert inputs() == (images, labels)
    path = next(folder.glob("*train.array_record*"))
    damage(path, 60_000, "array_record")
    assert inputs()[0] != images and inputs()[1] == labels
    damage(path, 60_000, "array_record")
    damage(next(tfds_store.find("cifar10_n", top).glob("*train*")), 60_000, "array_record")
    assert inputs()[0] == images and inputs()[1] != labels


def test_of_large_datasets_parts_are_hashed(prepared, tmp_path, monkeypatch):
    top, folder = copied(prepared, "cifar10", tmp_path)
    monkeypatch.setattr(tfds_store, "_HASHED_WHOLE", 0)
    monkeypatch.setattr(tfds_store, "_PART", 16)
    path = next(folder.glob("*train.array_record*"))
    before = tfds_store.fingerprint(folder)
    damage(path, path.stat().st_size - 1, "array_record")
    changed = tfds_store.fingerprint(folder)
    path.write_bytes(path.read_bytes() + b"0")
    assert len({before, changed, tfds_store.fingerprint(folder)}) == 3


def test_the_recipes_say_where_images_and_labels_come_from():
    def data(config, arguments):
        config = configuration.load_module(CONFIGS / f"{config}.py").get_config(arguments)
        validate(config)
        return config.data.name, config.data.path, config.label_noise.kind, config.label_noise.path

    for name in ("cifar10", "cifar100", "mnist"):
        assert data(name, "data_dir=x") == (name, "x", "sym", "")
        assert data(name, "smoke,data_dir=x") == (name, "x", "sym", "")
        assert data(name, "") == (name, "", "sym", "")
        assert data(name, "smoke") == ("synthetic", "", "sym", "")
        assert data(name, "data=x.zip,test=y.zip") == ("archive", "x.zip", "sym", "")
        assert data(name, "smoke,data=x.zip") == ("archive", "x.zip", "sym", "")
        for arguments, message in (("data=x,data_dir=y", "give one of them"), ("test=y", "give data, its training")):
            with pytest.raises(UserError, match=message):
                data(name, arguments)
    assert data("cifar10n", "data_dir=x") == ("cifar10", "x", "human", "x")
    assert data("cifar10n", "data_dir=x,labels=y.csv") == ("cifar10", "x", "human", "y.csv")
    assert data("cifar10n", "") == ("cifar10", "", "human", str(tfds_store.default_dir()))
    assert data("cifar10n", "smoke") == ("synthetic", "", "sym", "")
    with pytest.raises(UserError, match="did you mean 'worse_label'"):
        data("cifar10n", "column=worst_label")


def test_people_s_labels_are_those_of_the_run(prepared, tmp_path):
    data = run_data(tmp_path, "cifar10n", f"data_dir={prepared.array_record},column=random_label2")
    np.testing.assert_array_equal(data.new_labels.y_tilde, prepared.given["random_label2"])
    assert data.new_labels.realised_rate == np.mean(data.train_set.labels != prepared.given["random_label2"])


# Networks of which nothing is expected: what takes time here is compiling them.
TINY = ("classifier.network=cnn", "classifier.widths=(2,4)", "classifier.folds=1", "classifier.augment=0.0",
        "score.augment=0.0", "network.attention_resolutions=()", "network.multipliers=(1,)", "score.steps=2",
        "sampling.steps=1", "sampling.batch_size=200", "evaluation.widths=(2,)")  # fmt: skip


@pytest.mark.parametrize("file_format", ["array_record", pytest.param("tfrecord", marks=pytest.mark.slow)])
def test_the_command_runs_on_prepared_cifar100(prepared, tmp_path, file_format):
    arguments = f"configs/cifar100.py:smoke,methods=dsm,data_dir={getattr(prepared, file_format)}"
    done = call(f"--workdir={tmp_path}", *(f"--config.{key}" for key in TINY), config=arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert np.load(tmp_path / "samples" / "dsm.npz")["images"].shape == (200, 32, 32, 3)
    made = label_files.read(tmp_path / "labels.json")
    assert made.dataset == "cifar100" and made.num_classes == 100
    images, labels = prepared.parts["cifar100"]["train"]
    train = Dataset("cifar100", images, labels.astype(np.int32), tuple(map(str, range(100))))
    np.testing.assert_array_equal(label_files.attach(made, train), made.y_tilde)


def test_the_command_says_what_is_missing_in_one_line(tmp_path):
    done = call(f"--workdir={tmp_path / 'w'}", config=f"configs/mnist.py:data_dir={tmp_path}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{tmp_path}: holds no prepared mnist; run python -m tdsm_jax.data.prepare --dataset=mnist" in done.stderr


def test_references_are_made_of_prepared_images_too(prepared):
    parser = argparse.ArgumentParser()
    make_ref_stats.add_image_options(parser)
    given = parser.parse_args([f"--data_dir={prepared.array_record}", "--split=test", "--image_size=32"])
    given.images = "mnist"
    real = make_ref_stats.real_images(given)
    images, labels = prepared.parts["mnist"]["test"]
    np.testing.assert_array_equal(real.labels, labels)
    assert real.content_hash == images_hash(np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))))
