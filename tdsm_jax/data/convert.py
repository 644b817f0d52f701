"""Converts a dataset into the archive format of StyleGAN, EDM and TDSM, with clean or noisy labels.

  python -m tdsm_jax.data.convert --source=digits --out=digits.zip
  python -m tdsm_jax.data.convert --source=cifar10 --path=/data/tfds --split=test --out=cifar10-test.zip
  python -m tdsm_jax.data.convert --source=digits --out=noisy.zip --labels=runs/digits/labels.json
  python -m tdsm_jax.data.convert --source=digits --out=clean.zip --labels=runs/digits/labels.json \\
      --labels_out=noisy.json
  python -m tdsm_jax.data.convert --source=cifar10-32x32.zip --out=cifar10/ --labels=sym40/dataset.json

The first writes the clean labels into the archive's dataset.json, and so does the second, for images that TensorFlow
Datasets or data.prepare has prepared. The third writes the noisy ones of a run; the fourth keeps them apart, as the
official implementation's noisy label files are released. The last one unpacks an archive and puts such a label file
into it. --out ending in .zip makes a zip file, any other a folder.
"""

import argparse
import dataclasses
from typing import NamedTuple

import numpy as np

from tdsm_jax import files, paths
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.data import class_order, edm_zip, label_files, sources, tfds_store
from tdsm_jax.data.containers import read_file
from tdsm_jax.data.dataset import Dataset
from tdsm_jax.data.sources import NAMED, DataSpec
from tdsm_jax.errors import UserError, did_you_mean


class Labelled(NamedTuple):
    """What an archive holds: names [N], images uint8 [N, H, W, C], labels int32 [N] or None, class names or ()."""

    names: list[str]
    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]


def main(arguments: argparse.Namespace) -> None:
    """Reads the source, replaces its labels if asked to, writes the archive."""
    if arguments.labels_out and not arguments.labels:
        raise UserError("--labels_out holds the noisy labels; give these as --labels")
    for path in filter(None, (arguments.out, arguments.labels_out)):
        if paths.exists(path):
            raise UserError(f"{path} exists; give another path or remove it")
    source = read_source(arguments)
    labels = source.labels
    noisy = read_noisy(arguments.labels, source) if arguments.labels else None
    if noisy is not None and not arguments.labels_out:
        labels = noisy
    edm_zip.write(arguments.out, source.images, labels, source.class_names, source.names)
    if arguments.labels_out:
        files.write_text(arguments.labels_out, edm_zip.labels_text(source.names, noisy, source.class_names))
    count, height, width, channels = source.images.shape
    print(f"{arguments.out}: {count} images of {height}x{width}x{channels}")


def read_source(arguments: argparse.Namespace) -> Labelled:
    """Returns the images of a named source or of an archive, the latter under the names they have there."""
    source = arguments.source
    for field in _spec_fields():
        read = source == "synthetic" or field.name in _readers(source)
        if getattr(arguments, field.name) is not None and not read:
            raise UserError(f"--{field.name} says nothing about {source}; leave it out")
    if source not in NAMED:
        if not paths.exists(source):
            raise UserError(f"--source={source}: no such archive, and no such dataset{did_you_mean(source, NAMED)}")
        if arguments.split != "train":
            raise UserError("--split=test: an archive is converted whole; leave --split out")
        labels_are_replaced = arguments.labels and not arguments.labels_out
        with edm_zip.Archive(source) as archive:
            labels = None if labels_are_replaced else archive.labels
            return Labelled(archive.names, archive.load(), labels, archive.class_names)
    given = {field.name: getattr(arguments, field.name) for field in _spec_fields()}
    given = {name: value for name, value in given.items() if value is not None}
    train, test = sources.load(DataSpec(source, **given))
    chosen = train if arguments.split == "train" else test
    return Labelled(edm_zip.image_names(len(chosen.images)), chosen.images, chosen.labels, chosen.class_names)


def _spec_fields() -> list[dataclasses.Field]:
    """What says what a named source loads: where it is, its split, and what made-up images look like."""
    return [field for field in dataclasses.fields(DataSpec) if field.type in (int, float) or field.name == "path"]


def _readers(source: str) -> tuple[str, ...]:
    """The fields that a source but the made-up one reads."""
    if source in tfds_store.IMAGES:
        return "path", "image_size"
    return ("test_fraction", "split_seed") if source in NAMED else ()


def read_noisy(path: str, source: Labelled) -> np.ndarray:
    """Returns the noisy labels int32 [N] of `source` from a label file of ours or from a dataset.json."""
    if label_files.FORMAT.encode() not in read_file(path, edm_zip.MAX_LABELS_BYTES):
        labels, class_names = edm_zip.read_labels(path, source.names)
        class_order.check("the source", source.class_names, path, class_names)
        if source.class_names and labels.max() >= len(source.class_names):
            raise UserError(f"{path} holds label {labels.max()}, but the source has {len(source.class_names)} classes")
        return labels
    label_file = label_files.read(path)
    class_names = source.class_names or tuple(str(y) for y in range(label_file.num_classes))
    unused = np.zeros(len(source.images), np.int32)  # noisy labels are bound to images, not to clean labels
    return label_files.attach(label_file, Dataset("the source", source.images, unused, class_names))


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--source", required=True, help=f"{', '.join(NAMED)}, or the path of an archive")
    parser.add_argument("--out", required=True, help="the archive: a zip file if it ends in .zip, else a new folder")
    parser.add_argument(
        "--split", choices=("train", "test"), default="train", help="which part of a named source (%(default)s)"
    )
    parser.add_argument("--labels", default="", help="noisy labels: labels.json of a run, or a dataset.json")
    parser.add_argument(
        "--labels_out", default="", help="write the noisy labels here; the archive keeps the clean ones"
    )
    for field in _spec_fields():
        parser.add_argument(f"--{field.name}", type=field.type, help=f"of a named source ({field.default})")
    run_command(parser, main)
