"""Synthetic datasets in the formats that the real ones are published in, and as TensorFlow Datasets stores them."""

import csv
import functools
import gzip
import hashlib
import io
import json
import pathlib
import shutil
import struct
import tarfile
import zipfile

import numpy as np

from tdsm_jax.data import prepare, record_files

FIELDS_10N = ("aggre_label", "worse_label", "random_label1", "random_label2", "random_label3")


def made_up(count, shape, num_classes, seed=0):
    """Images uint8 [N, H, W, C], a colour a class with noise, and labels int [N], all classes as often, shuffled."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % num_classes)
    colours = np.random.default_rng(1).integers(40, 200, (num_classes, 1, 1, shape[2]))
    return (colours[labels] + rng.integers(0, 40, (count, *shape))).astype(np.uint8), labels


def write_tar(path, members):
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def cifar10(folder, train=100, test=40):
    """cifar-10-binary.tar.gz; returns {split: (images, labels)}."""
    parts = {"train": made_up(train, (32, 32, 3), 10), "test": made_up(test, (32, 32, 3), 10, seed=2)}
    rows = {
        split: np.concatenate([y[:, None], x.transpose(0, 3, 1, 2).reshape(len(x), -1)], 1).astype(np.uint8)
        for split, (x, y) in parts.items()
    }
    names = "".join(f"name{y}\n" for y in range(10)) + "\n"  # the real file ends in an empty line, too
    members = {"batches.meta.txt": names.encode(), "readme.html": b"<html>"}
    members |= {f"data_batch_{n + 1}.bin": part.tobytes() for n, part in enumerate(np.array_split(rows["train"], 5))}
    members |= {"test_batch.bin": rows["test"].tobytes()}
    write_tar(folder / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{k}": v for k, v in members.items()})
    return parts


def cifar100(folder, train=400, test=200):
    """cifar-100-binary.tar.gz; returns {split: (images, labels)}. The coarse label is a fifth of the fine one."""
    parts = {"train": made_up(train, (32, 32, 3), 100), "test": made_up(test, (32, 32, 3), 100, seed=2)}
    members = {
        "coarse_label_names.txt": "".join(f"coarse{y}\n" for y in range(20)).encode(),
        "fine_label_names.txt": "".join(f"fine{y}\n" for y in range(100)).encode(),
    }
    for split, (x, y) in parts.items():
        row = np.concatenate([y[:, None] // 5, y[:, None], x.transpose(0, 3, 1, 2).reshape(len(x), -1)], 1)
        members[f"{split}.bin"] = row.astype(np.uint8).tobytes()
    write_tar(folder / "cifar-100-binary.tar.gz", {f"cifar-100-binary/{k}": v for k, v in members.items()})
    return parts


def mnist(folder, train=120, test=30):
    """The four files of MNIST; returns {split: (images, labels)}."""
    parts = {"train": made_up(train, (28, 28, 1), 10), "test": made_up(test, (28, 28, 1), 10, seed=2)}
    for name, (x, y) in zip(("train", "t10k"), parts.values(), strict=True):
        with gzip.open(folder / f"{name}-images-idx3-ubyte.gz", "wb", 1) as file:
            file.write(struct.pack(">IIII", 2051, len(x), 28, 28) + x.tobytes())
        with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz", "wb", 1) as file:
            file.write(struct.pack(">II", 2049, len(y)) + y.astype(np.uint8).tobytes())
    return parts


def imagenet(folder, side=8):
    """The zips of imagenet_resized; returns {split: (images, labels)}, and the keys of the images by split."""
    zips = [("train", f"Imagenet{side}_train_npz.zip", ("train_data_batch_1.npz", "train_data_batch_2.npz"))]
    if side == 64:
        zips = [
            ("train", f"Imagenet64_train_part{n}_npz.zip", (f"train_data_batch_{n}.npz",)) for n in (1, 2)
        ]  # fmt: skip
    zips.append(("validation", f"Imagenet{side}_val_npz.zip", ("val_data.npz",)))
    parts, keys = {}, {}
    for seed, (split, name, members) in enumerate(zips):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("__MACOSX/._val_data.npz", b"of a file manager")
            for number, member in enumerate(members):
                x, y = made_up(40, (side, side, 3), 1000, seed=10 * seed + number)
                content, mean = io.BytesIO(), np.zeros(3 * side * side)
                np.savez(content, data=x.transpose(0, 3, 1, 2).reshape(40, -1), labels=y + 1, mean=mean)
                archive.writestr(member, content.getvalue())
                parts.setdefault(split, []).append((x, y))
                keys.setdefault(split, []).extend(f"{member}{n}" for n in range(40))
    return {split: tuple(map(np.concatenate, zip(*parts[split], strict=True))) for split in parts}, keys


def human(folder, clean, number):
    """The files of CIFAR-10N (number 10) or CIFAR-100N; returns {field: labels} in the order of the images."""
    rng = np.random.default_rng(3)
    order = rng.permutation(len(clean))  # line i is of image order[i]
    fields = FIELDS_10N if number == 10 else ("noise_label",)
    given = {"clean_label": clean} | {
        field: np.where(rng.random(len(clean)) < 0.3, rng.integers(0, number, len(clean)), clean) for field in fields
    }
    with open(folder / f"CIFAR-{number}_human_annotations.csv", "w", newline="") as file:
        csv.writer(file).writerows([list(given), *zip(*(labels[order] for labels in given.values()), strict=True)])
    group, workers = (10, 3) if number == 10 else (5, 1)
    with open(folder / f"side_info_cifar{number}N.csv", "w", newline="") as file:
        head = ["Image-batch", *(f"{what}-{n}" for n in range(workers) for what in ("Worker-id", "Work-time"))]
        lines = ([f"{start}--{start + group - 1}", *range(start, start + 2 * workers)] for start in
                 range(0, len(clean), group))  # fmt: skip
        csv.writer(file).writerows([head, *lines])
    np.save(folder / f"image_order_c{number}.npy", order)
    return given


def register(monkeypatch, folder, url="http://127.0.0.1:9/"):
    """Registers the archives that are in `folder` now, as TensorFlow Datasets registers the real ones."""
    known = registered_as(folder, url)
    monkeypatch.setattr(prepare, "registered", lambda dataset: known)


def registered_as(folder, url="http://127.0.0.1:9/"):
    """What TensorFlow Datasets would register for the archives that are in `folder` now."""
    return {
        path.name: prepare.Archive(url + path.name, path.stat().st_size, sha256(path.read_bytes()))
        for path in folder.iterdir()
    }


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def as_tfrecord(source, target, shards=2):
    """Copies a prepared dataset with its records in TFRECORD files, those that TensorFlow Datasets makes by default."""
    source, target = pathlib.Path(source), pathlib.Path(target)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*array_record*"))
    info = json.loads((source / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        (path,) = source.glob(f"*-{split['name']}.array_record-*")
        file = record_files.ArrayRecordFile(path)
        parts = np.array_split(np.arange(len(file)), shards)
        split["shardLengths"] = [str(len(part)) for part in parts]
        for number, part in enumerate(parts):
            name = f"{info['name']}-{split['name']}.tfrecord-{number:05d}-of-{shards:05d}"
            (target / name).write_bytes(b"".join(map(tfrecord, file.read(part))))
    (target / "dataset_info.json").write_text(json.dumps(info))
    return target


def tfrecord(content):
    """A record with its length and checksums."""
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content):
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _crc_table()[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@functools.cache
def _crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table
