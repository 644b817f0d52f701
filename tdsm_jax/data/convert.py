"""Converts a dataset into the archive format of StyleGAN, EDM and TDSM, with clean or noisy labels.

  python -m tdsm_jax.data.convert --source=digits --out=digits.zip
  python -m tdsm_jax.data.convert --source=digits --out=noisy.zip --labels=runs/digits/labels.json
  python -m tdsm_jax.data.convert --source=digits --out=clean.zip --labels=runs/digits/labels.json \\
      --labels_out=noisy.json
  python -m tdsm_jax.data.convert --source=cifar10-32x32.zip --out=cifar10/ --labels=sym40/dataset.json

The first writes the clean labels into the archive's dataset.json, the second the noisy ones of a run; the third
keeps them apart, as the official implementation's noisy label files are released. The last one unpacks an archive
and puts such a label file into it. --out ending in .zip makes a zip file, any other a folder.
"""

import pathlib
import sys
from typing import NamedTuple

import numpy as np
from absl import app, flags

from tdsm_jax import files
from tdsm_jax.data import edm_zip, label_files, sources
from tdsm_jax.data.containers import read_file
from tdsm_jax.data.sources import Dataset, DataSpec
from tdsm_jax.errors import UserError, did_you_mean

NAMED = tuple(sorted(sources.SOURCES.keys() - {"archive"}))

_SOURCE = flags.DEFINE_string("source", None, f"{', '.join(NAMED)}, or the path of an archive (zip file or folder).")
_OUT = flags.DEFINE_string("out", None, "The archive to write: a zip file if it ends in .zip, else a new folder.")
_SPLIT = flags.DEFINE_enum(
    "split", "train", ["train", "test"], f"Which part of {' or '.join(NAMED)}; an archive is converted whole."
)
_LABELS = flags.DEFINE_string(
    "labels", "", "Noisy labels of these images: labels.json of a run, or a dataset.json. Default: the clean labels."
)
_LABELS_OUT = flags.DEFINE_string("labels_out", "", "Write the noisy labels here; the archive keeps the clean ones.")
_TEST_FRACTION = flags.DEFINE_float("test_fraction", DataSpec.test_fraction, "Share of the test part.")
_SPLIT_SEED = flags.DEFINE_integer("split_seed", DataSpec.split_seed, "Seed of the split.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", DataSpec.image_size, "synthetic: pixels a side.")
_CHANNELS = flags.DEFINE_integer("channels", DataSpec.channels, "synthetic: 1 (grey) or 3 (RGB).")
_NUM_CLASSES = flags.DEFINE_integer("num_classes", DataSpec.num_classes, "synthetic: number of classes.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", DataSpec.num_images, "synthetic: images of both parts.")


class Labelled(NamedTuple):
    """What an archive holds: names [N], images uint8 [N, H, W, C], labels int32 [N] or None, class names or ()."""

    names: list[str]
    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]


def main(argv: list[str]) -> None:
    """Reads the source, replaces its labels if asked to, writes the archive."""
    if argv[1:]:
        raise UserError(f"{argv[1]!r} is no flag; flags are written --name=value")
    if not _SOURCE.value or not _OUT.value:
        raise UserError("give --source=digits and --out=digits.zip; --help shows examples")
    if _LABELS_OUT.value and not _LABELS.value:
        raise UserError("--labels_out holds the noisy labels; give these as --labels")
    for path in filter(None, (_OUT.value, _LABELS_OUT.value)):
        if pathlib.Path(path).exists():
            raise UserError(f"{path} exists; give another path or remove it")
    source = read_source(_SOURCE.value)
    labels = source.labels
    if _LABELS.value:
        noisy = read_noisy(_LABELS.value, source)
        if _LABELS_OUT.value:
            files.write_text(_LABELS_OUT.value, edm_zip.labels_text(source.names, noisy, source.class_names))
        else:
            labels = noisy
    edm_zip.write(_OUT.value, source.images, labels, source.class_names, source.names)
    count, height, width, channels = source.images.shape
    print(f"{_OUT.value}: {count} images of {height}x{width}x{channels}")


def read_source(source: str) -> Labelled:
    """Returns the images of a named source or of an archive, the latter under the names they have there."""
    if source not in NAMED:
        if not pathlib.Path(source).exists():
            raise UserError(f"--source={source}: no such archive, and no such dataset{did_you_mean(source, NAMED)}")
        if _SPLIT.value != "train":
            raise UserError("--split=test: an archive is converted whole; leave --split out")
        labels_are_replaced = _LABELS.value and not _LABELS_OUT.value
        with edm_zip.Archive(source) as archive:
            labels = None if labels_are_replaced else archive.labels
            return Labelled(archive.names, archive.load(), labels, archive.class_names)
    spec = DataSpec(
        name=source,
        test_fraction=_TEST_FRACTION.value,
        split_seed=_SPLIT_SEED.value,
        image_size=_IMAGE_SIZE.value,
        channels=_CHANNELS.value,
        num_classes=_NUM_CLASSES.value,
        num_images=_NUM_IMAGES.value,
    )
    train, test = sources.load(spec)
    chosen = train if _SPLIT.value == "train" else test
    return Labelled(edm_zip.image_names(len(chosen.images)), chosen.images, chosen.labels, chosen.class_names)


def read_noisy(path: str, source: Labelled) -> np.ndarray:
    """Returns the noisy labels int32 [N] of `source` from a label file of ours or from a dataset.json."""
    if label_files.FORMAT.encode() not in read_file(pathlib.Path(path), edm_zip.MAX_LABELS_BYTES):
        return edm_zip.read_labels(path, source.names)
    label_file = label_files.read(path)
    class_names = source.class_names or tuple(str(y) for y in range(label_file.num_classes))
    unused = np.zeros(len(source.images), np.int32)  # noisy labels are bound to images, not to clean labels
    return label_files.attach(label_file, Dataset(_SOURCE.value, source.images, unused, class_names))


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it ends in a `UserError`."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(str(error).partition("\n")[0]) from None


def entry_point() -> None:
    """Runs the command line; a `UserError` is printed as one line, with exit code 2."""
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    entry_point()
