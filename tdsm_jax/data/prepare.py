"""Prepares MNIST, CIFAR, small ImageNet and CIFAR's human labels as TensorFlow Datasets does, without TensorFlow.

  python -m tdsm_jax.data.prepare --dataset=cifar100 --archive_dir=downloads
  python -m tdsm_jax.data.prepare --dataset=mnist --archive_dir=downloads/mnist --out=/data/tensorflow_datasets
  python -m tdsm_jax.data.prepare --dataset=imagenet_resized/32x32 --archive_dir=downloads
  python -m tdsm_jax.data.prepare --dataset=cifar10_n --archive_dir=downloads

The archives are taken from --archive_dir under their published names. What is not there is downloaded to it; what is
there but not whole, or not the file that TensorFlow Datasets registers, is refused. The files of CIFAR-10N and
CIFAR-100N beside the archive, for which nothing is registered, are to be put there by hand. The dataset is written as
array_record files, record for record what TensorFlow Datasets makes of the same archives, and can be read by it.
imagenet_resized is sorted in memory: 4 GB for 32x32, 15 GB for 64x64.
"""

import argparse
import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from PIL import Image

from tdsm_jax import files, paths
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.data import download, tfds_store
from tdsm_jax.data.original_archives import Contents, Example, read_cifar, read_imagenet, read_mnist
from tdsm_jax.data.original_human import read_human
from tdsm_jax.errors import UserError, did_you_mean


class Original(NamedTuple):
    """What a dataset is made from: archives with registered checksums, files without, and what reads them in order.

    Each of `also` is a file, or several of which one is enough.
    """

    archives: tuple[str, ...]
    read: Callable[..., Contents]
    also: tuple[tuple[str, ...], ...] = ()


class Archive(NamedTuple):
    """A file on the web, as TensorFlow Datasets registers it."""

    url: str
    size: int
    checksum: str


def _human(number: int) -> Original:
    annotations = tuple(f"CIFAR-{number}_human_{end}" for end in ("annotations.csv", "ordered.npz", "ordered.npy"))
    also = (annotations, (f"side_info_cifar{number}N.csv",), (f"image_order_c{number}.npy",))
    return Original((f"cifar-{number}-binary.tar.gz",), read_human, also)


def _imagenet(side: int) -> Original:
    parts = ("train_part1", "train_part2", "val") if side == 64 else ("train", "val")
    return Original(tuple(f"Imagenet{side}_{part}_npz.zip" for part in parts), read_imagenet)


_MNIST = Original(
    tuple(f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")),
    read_mnist,
)
ORIGINALS = {
    "mnist": _MNIST,
    "fashion_mnist": _MNIST,
    "cifar10": Original(("cifar-10-binary.tar.gz",), read_cifar),
    "cifar100": Original(("cifar-100-binary.tar.gz",), read_cifar),
    "cifar10_n": _human(10),
    "cifar100_n": _human(100),
    **{f"imagenet_resized/{side}x{side}": _imagenet(side) for side in tfds_store.DATASETS["imagenet_resized"].sides},
}


def run() -> None:
    """Parses the command line and runs the command."""
    parser = new_parser(__doc__)
    parser.add_argument("--dataset", required=True, help=", ".join(ORIGINALS))
    parser.add_argument("--archive_dir", "--archive-dir", required=True, help="where the archives are or go")
    parser.add_argument("--out", default="", help="data_dir ($TFDS_DATA_DIR, or ~/tensorflow_datasets)")
    run_command(parser, main)


def main(arguments: argparse.Namespace) -> None:
    """Prepares the dataset that the arguments name, and says what is there now."""
    folder = prepare(arguments.dataset, arguments.archive_dir, arguments.out)
    name = arguments.dataset.partition("/")[0]
    train, test = (tfds_store.Split(name, folder, part) for part in (0, 1))
    print(f"{folder}: {len(train)} images to train and {len(test)} to test, in {len(train.class_names)} classes")


def prepare(dataset: str, archive_dir: str | os.PathLike, out: str | os.PathLike = "") -> pathlib.Path:
    """Prepares `dataset`, such as "cifar10" or "imagenet_resized/8x8", and returns its folder.

    Archives are read from `archive_dir` and downloaded to it; `out` is a data_dir of TensorFlow Datasets, "" the
    default one. The folder appears when all is in it. Wrong archives and a folder that exists are a `UserError`.
    """
    if dataset not in ORIGINALS:
        raise UserError(f"--dataset={dataset}: no such dataset{did_you_mean(dataset, ORIGINALS)}")
    for path in filter(None, (archive_dir, out)):
        if paths.is_remote(path):
            raise UserError(f"{path}: datasets are prepared on this machine; copy them to the bucket afterwards")
    builder = _builder(dataset, out)
    folder = pathlib.Path(builder.data_path)
    if folder.exists():
        raise UserError(f"{folder} exists; give another --out or remove it")
    original, archive_dir = ORIGINALS[dataset], pathlib.Path(archive_dir)
    also = [_present(archive_dir, names, original.also) for names in original.also]  # before gigabytes are downloaded
    registered_files = registered(dataset)
    archives = [obtain(registered_files[name], archive_dir / name) for name in original.archives]
    builder.contents = original.read(dataset.partition("/")[0], *archives, *also)
    _write(builder)
    return folder


def registered(dataset: str) -> dict[str, Archive]:
    """Returns the archives that TensorFlow Datasets registers for a dataset, by file name."""
    import tensorflow_datasets as tfds

    name = dataset.partition("/")[0].removesuffix("_n")  # the images of CIFAR-10N are CIFAR-10's
    known = tfds.builder_cls(name).url_infos.items()
    return {info.filename: Archive(url, int(info.size), info.checksum) for url, info in known}


def obtain(archive: Archive, path: pathlib.Path) -> pathlib.Path:
    """Returns `path` once the file there is the registered one; it is downloaded where there is none."""
    if not path.exists():
        download.fetch(archive.url, path, archive.size, archive.checksum)
        return path
    size = path.stat().st_size
    if size < archive.size:
        raise UserError(
            f"{path}: {size} of {archive.size} bytes, not whole; finish or remove it, and this command downloads it"
        )
    found = files.file_digest(path)
    if found != archive.checksum:
        raise UserError(
            f"{path}: its SHA-256 is {found}, not {archive.checksum} as of {archive.url}; it is another file, which "
            "belongs in a folder of its own, or damaged: remove it, and this command downloads it"
        )
    return path


def _present(folder: pathlib.Path, names: tuple[str, ...], everything: tuple[tuple[str, ...], ...]) -> pathlib.Path:
    """The first of the files `names` that is in the folder."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    needed = ", ".join(" or ".join(alternatives) for alternatives in everything)
    raise UserError(
        f"{folder}: has no {' or '.join(names)}; put {needed} there, from https://github.com/UCSC-REAL/cifar-10-100n"
    )


def _builder(dataset: str, out: str | os.PathLike) -> Any:
    """A builder of TensorFlow Datasets whose examples are those of its attribute `contents`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered as registry

    name, _, config = dataset.partition("/")
    base: Any = tfds.builder_cls(name)
    with registry.skip_registration():

        class Builder(base):  # every builder needs a name, and its module is written to the metadata
            __module__ = base.__module__
            contents: Contents

            def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
                for feature, names in self.contents.class_names.items():
                    self.info.features[feature].names = names
                return {split: map(_as_picture, start()) for split, start in self.contents.examples.items()}

            def _generate_examples(self) -> None:
                """The splits are started above."""

    Builder.name, Builder.url_infos = name, base.url_infos or {}
    data_dir = os.fspath(out or tfds_store.default_dir())
    return Builder(data_dir=data_dir, file_format="array_record", config=config or None)


def _as_picture(example: Example) -> Example:
    """The example with its image as Pillow's, which TensorFlow Datasets encodes without TensorFlow."""
    key, features = example
    image = features["image"]
    return key, features | {"image": Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)}


def _write(builder: Any) -> None:
    from tensorflow_datasets.core import shuffle

    with _replaced(shuffle, "MAX_MEM_BUFFER_SIZE", 1 << 60):  # what does not fit goes to files by way of TensorFlow
        builder.download_and_prepare()


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


if __name__ == "__main__":
    run()
