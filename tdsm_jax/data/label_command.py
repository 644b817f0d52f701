"""Makes and inspects label files, without training anything.

  python -m tdsm_jax.data.label_files --dataset=digits --noise=asym --rate=0.4 --out=labels.json --picture=S.png
  python -m tdsm_jax.data.label_files --dataset=digits --noise=sym --rate=0.4 --exact --imbalance=0.1 --out=labels.json
  python -m tdsm_jax.data.label_files --dataset=digits --noise=matrix --from=S.csv --out=labels.json
  python -m tdsm_jax.data.label_files --dataset=archive --path=cifar10-32x32.zip --test_path=cifar10-test.zip \\
      --noise=human --from=CIFAR-10_human.csv --column=worse_label --out=labels.json
  python -m tdsm_jax.data.label_files --dataset=cifar10 --path=/data/tfds --noise=human --from=/data/tfds \\
      --column=worse_label --out=labels.json
  python -m tdsm_jax.data.label_files --inspect=labels.json --dataset=digits
"""

import argparse
import dataclasses
from collections.abc import Iterator

import numpy as np

from tdsm_jax import paths
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.data import human_labels, label_files, noise_files, sources
from tdsm_jax.data.dataset import Dataset, subset
from tdsm_jax.data.label_files import LabelFile
from tdsm_jax.data.matrix_picture import write_matrix_picture
from tdsm_jax.data.sources import DataSpec
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.labels.corruption import imbalanced
from tdsm_jax.labels.tables import ASYMMETRIC_TABLES

KINDS = (*label_files.DRAWN, "matrix", "labels", "human")
_FROM_FILE = ("matrix", "labels", "human")
# option -> the kinds of label noise that read it
_READERS = {
    "rate": label_files.DRAWN,
    "table": ("asym",),
    "exact": ("sym", "sym_inclusive", "pair", "asym", "matrix"),
    "source": _FROM_FILE,
    "column": ("labels", "human"),
    "order": ("human",),
}
_NEEDED = {"rate": label_files.DRAWN, "source": _FROM_FILE, "column": ("human",)}
_WIDEST = 20  # classes; a wider matrix is not printed


def run() -> None:
    """Parses the command line and runs the command."""
    parser = new_parser(__doc__)
    parser.add_argument("--dataset", default="", help=f"{', '.join(sorted(sources.SOURCES))}: its training images")
    parser.add_argument("--noise", default="", help=", ".join(KINDS))
    parser.add_argument("--rate", type=float, help="share of wrong labels; sym_inclusive: of labels drawn anew")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (%(default)s)")
    parser.add_argument("--table", default="", help=f"asym: {', '.join(ASYMMETRIC_TABLES)} (the name of the dataset)")
    parser.add_argument("--exact", action="store_true", help="whole shares of each class instead of independent flips")
    parser.add_argument("--imbalance", type=float, default=1.0, help="smallest class over the largest (%(default)s)")
    parser.add_argument("--from", dest="source", default="", help="matrix, labels, human: what to read")
    parser.add_argument("--column", default="", help=f"labels, human: of the file; {', '.join(human_labels.FIELDS)}")
    parser.add_argument("--order", default="", help="human: image_order_c10.npy, for files in the order of TFDS")
    parser.add_argument("--out", default="", help="the label file to make")
    parser.add_argument("--inspect", default="", help="a label file to describe instead of making one")
    parser.add_argument("--picture", default="", help="a .png file for the realised matrix")
    for field in _spec_fields():
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type, "default": field.default}
        parser.add_argument(f"--{field.name}", help="%(default)s", **kind)
    run_command(parser, main)


def _spec_fields() -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(DataSpec) if field.name != "name"]


def main(arguments: argparse.Namespace) -> None:
    """Makes a label file, or inspects one."""
    if bool(arguments.out) == bool(arguments.inspect):
        raise UserError("give --out to make a label file or --inspect to describe one; --help shows examples")
    for path in filter(None, (arguments.out, arguments.picture)):
        if paths.exists(path):
            raise UserError(f"{path} exists; give another path or remove it")
    if arguments.picture and not arguments.picture.endswith(".png"):
        raise UserError(f"--picture={arguments.picture}: the picture is a PNG file; let its name end in .png")
    if arguments.inspect:
        inspect(arguments)
    else:
        make(arguments)


def make(arguments: argparse.Namespace) -> None:
    """Makes the label file and describes it."""
    check_options(arguments)
    if not arguments.dataset:
        raise UserError("--out needs --dataset, the images to label; --help shows examples")
    dataset, kept = training_set(arguments)
    label_file = label_file_of(arguments, dataset, kept)
    label_files.write(arguments.out, label_file)
    finish(arguments, arguments.out, label_file, _subset(dataset, kept))


def inspect(arguments: argparse.Namespace) -> None:
    """Describes a label file and, given a dataset, says whether it fits; if not, this is the error."""
    for option in ("noise", *_READERS):
        if _given(arguments, option):
            raise UserError(f"{_flag(option)} says how to make a label file; leave it out with --inspect")
    label_file = label_files.read(arguments.inspect)
    dataset = _subset(*training_set(arguments)) if arguments.dataset else None
    finish(arguments, arguments.inspect, label_file, dataset)
    if dataset is None:
        print("not compared with any images: give --dataset")
    else:
        label_files.attach(label_file, dataset)
        print(f"fits {dataset.name}: these very images, in this order")


def check_options(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for an unknown kind of noise, an option that it does not read or one that it lacks."""
    if arguments.noise not in KINDS:
        raise UserError(f"--noise={arguments.noise}: no such label noise{did_you_mean(arguments.noise, KINDS)}")
    for option, readers in _READERS.items():
        if _given(arguments, option) and arguments.noise not in readers:
            raise UserError(f"{_flag(option)} is not read by --noise={arguments.noise}, but by: {', '.join(readers)}")
        if not _given(arguments, option) and arguments.noise in _NEEDED.get(option, ()):
            raise UserError(f"--noise={arguments.noise} needs {_flag(option)}")


def _given(arguments: argparse.Namespace, option: str) -> bool:
    value = getattr(arguments, option)
    return value is not False and value not in (None, "")  # a rate of 0 is given


def _flag(option: str) -> str:
    return "--from" if option == "source" else f"--{option}"


def training_set(arguments: argparse.Namespace) -> tuple[Dataset, np.ndarray]:
    """Returns the training images and the sorted indices of those that --imbalance keeps."""
    spec = {field.name: getattr(arguments, field.name) for field in _spec_fields()}
    dataset, _ = sources.load(DataSpec(arguments.dataset, **spec))
    return dataset, imbalanced(dataset.labels, arguments.imbalance, dataset.num_classes, arguments.seed)


def _subset(dataset: Dataset, kept: np.ndarray) -> Dataset:
    return subset(dataset, kept)


def label_file_of(arguments: argparse.Namespace, dataset: Dataset, kept: np.ndarray) -> LabelFile:
    """Returns the label file of the `kept` images; files of labels label the whole `dataset`."""
    subset = _subset(dataset, kept)
    if arguments.noise == "matrix":
        S = noise_files.read_matrix(arguments.source, dataset.num_classes)
        return label_files.make_from_matrix(subset, S, arguments.seed, arguments.exact)
    if arguments.noise == "labels":
        y_tilde = label_files.read_given_labels(arguments.source, dataset, arguments.column)
        return label_files.import_labels(subset, y_tilde[kept])
    if arguments.noise == "human":
        y_tilde = human_labels.read_human_labels(arguments.source, dataset, arguments.column, arguments.order)
        return label_files.import_labels(subset, y_tilde[kept])
    table = arguments.table or dataset.name
    return label_files.draw(subset, arguments.noise, arguments.rate, arguments.seed, table=table, exact=arguments.exact)


def finish(arguments: argparse.Namespace, path: str, label_file: LabelFile, dataset: Dataset | None) -> None:
    """Prints what the label file at `path` holds, and draws it if asked to."""
    print("\n".join(describe(path, label_file, dataset)))
    if arguments.picture and label_file.kind == label_files.GIVEN:
        raise UserError(f"{path}: the matrix of labels as given is not known; leave --picture out")
    if arguments.picture:
        write_matrix_picture(arguments.picture, label_file.realised_matrix)
        print(f"{arguments.picture}: the realised matrix")


def describe(path: str, label_file: LabelFile, dataset: Dataset | None) -> Iterator[str]:
    """Yields lines about a label file; clean counts only where the `dataset` [N] has as many images."""
    count, K = len(label_file.y_tilde), label_file.num_classes
    yield f"{path}: {count} labels of {label_file.dataset} in {K} classes"
    if label_file.kind == label_files.GIVEN:
        yield "kind     given: how many of them are wrong is not known"
        yield f"SHA-256  {label_files.label_file_hash(label_file)}"
        yield f"given    {_counts(label_file.y_tilde, K)}"
        return
    drawn = f", seed {label_file.seed}" + ", exact counts" * label_file.exact
    yield f"kind     {label_file.kind}, rate {label_file.rate:.6g}{drawn}"
    yield f"wrong    {label_file.realised_rate:.2%} of the labels"
    yield f"SHA-256  {label_files.label_file_hash(label_file)}"
    yield f"given    {_counts(label_file.y_tilde, K)}"
    if dataset is not None and len(dataset.labels) == count and dataset.num_classes == K:
        yield f"clean    {_counts(dataset.labels, K)}"
    if K <= _WIDEST:
        yield "realised matrix in %, rows: clean classes, columns: given labels"
        yield from (" ".join(f"{100 * p:5.1f}" for p in row) for row in label_file.realised_matrix)


def _counts(labels: np.ndarray, num_classes: int) -> str:
    return " ".join(map(str, np.bincount(labels, minlength=num_classes)))
