"""Makes a reference: what a feature extractor sees in real images, for `evaluate` and `compare` to measure against.

  python -m tdsm_jax.make_ref_stats --images=cifar10-32x32.zip --features=inception:WEIGHTS --out=cifar10.npz
  python -m tdsm_jax.make_ref_stats --images=noisy.zip --labels=clean/dataset.json --features=... --out=clean.npz
  python -m tdsm_jax.make_ref_stats --images=cifar10 --data_dir=/data/tfds --features=... --out=cifar10.npz
  python -m tdsm_jax.make_ref_stats --images=digits --split=train --features=pixels:8x8x1 --out=digits.npz

--images is an archive (a zip file or folder with a dataset.json), a folder of PNG files with a subfolder a class, a
.npz of images and labels, ADM's .npz, a .npy, or the name of a dataset. The numbers that papers give as FID and
class-wise FID are against the training images under their clean labels: give those, not the noisy ones.

The reference holds features, labels, mean and covariance, what they were made of, and the floor: what one half of the
images scores against the other, class by class. It is no zero, and for classes of few images it is far from it: with
500 images of a class and 2048 features even real images have a class-wise FID far above that of all images.

An interrupted command goes on where it stopped: what it has seen is kept in OUT.parts until the reference is there.
"""

import argparse
import dataclasses
from collections.abc import Collection

from tdsm_jax import hosts, paths, pipeline
from tdsm_jax.command import add_host_options, new_parser, run_on_hosts
from tdsm_jax.data import image_sets
from tdsm_jax.data.image_sets import ImageSet
from tdsm_jax.data.sources import NAMED, DataSpec
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import measure, references
from tdsm_jax.evaluation.features import Extractor, extract
from tdsm_jax.evaluation.measure import Observed, chosen_metrics, real_of
from tdsm_jax.extractors import open_extractor
from tdsm_jax.training.parallel import data_mesh

_NUMBERS = [field for field in dataclasses.fields(DataSpec) if field.type in (int, float)]


def main(arguments: argparse.Namespace) -> None:
    """Reads the images, extracts their features, writes the reference."""
    if not arguments.out.endswith(".npz"):
        raise UserError(f"--out={arguments.out}: a reference is one .npz; let its name end so")
    extractor = open_extractor(arguments.features, data_mesh())
    images, parts = real_images(arguments), parts_of(arguments.out)
    seen = observed(extractor, images, parts)
    reference = reference_of(extractor, images, seen, {} if arguments.no_floor else floor_of(seen))
    references.write(arguments.out, reference)
    forget(parts)
    classes = f", {reference.num_classes} classes" if reference.num_classes else ", no labels"
    if hosts.is_writer():
        print(f"{arguments.out}: {len(seen.features)} images{classes}, {extractor.width} features of {extractor.name}")


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that choose the real images among those of an archive or a named dataset."""
    parser.add_argument("--split", choices=("train", "test"), help="part of a dataset (train), or of an archive (all)")
    parser.add_argument("--labels", default="", help="a dataset.json whose labels replace those of an archive")
    parser.add_argument("--data_dir", help="where TensorFlow Datasets or data.prepare has put cifar10 and the like")
    for field in _NUMBERS:
        parser.add_argument(f"--{field.name}", type=field.type, help=f"as a run's config.data.{field.name}")


def real_images(arguments: argparse.Namespace) -> ImageSet:
    """Returns the images that --images and the options beside it name."""
    fields = {field.name: getattr(arguments, field.name) for field in _NUMBERS} | {"path": arguments.data_dir}
    given = {name: value for name, value in fields.items() if value is not None}
    return image_sets.read(arguments.images, arguments.split, arguments.labels, given)


def parts_of(out: str) -> paths.Path:
    """Returns the folder that keeps what was seen for the result `out` until it is there."""
    return paths.absolute(f"{out}.parts")


def observed(extractor: Extractor, images: ImageSet, parts: paths.Path | None) -> Observed:
    """Returns what an extractor sees in a set of images; it goes on from the folder `parts`."""
    seen = extract(extractor, images.images, label=f"features of {images.name}", parts=parts)
    return Observed(seen.features, seen.probabilities, images.labels)


def forget(parts: paths.Path) -> None:
    """Removes what was kept for a result that is there now."""
    if hosts.is_writer():
        paths.remove(parts)


def floor_of(seen: Observed, asked: Collection[str] = ()) -> dict:
    """Returns what real images score against real ones, of the metrics asked for, or of all that apply."""
    labelled = seen.labels is not None
    metrics = chosen_metrics(asked, real_of(seen.features, seen.labels), seen.probabilities is not None, labelled)
    return measure.floor(seen, metrics, measure.watched)


def reference_of(extractor: Extractor, images: ImageSet, seen: Observed, floor: dict) -> references.Reference:
    """Returns the reference that `seen` of the images makes, with what it was made of."""
    about = {
        "images": image_sets.describe(images),
        "class_names": list(images.class_names),
        "extractor": {"name": extractor.name, "digest": extractor.digest},
        "versions": pipeline.versions(),
        "floor": floor,
    }
    return references.made_of(seen, about)


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command line; `main` takes what it makes of arguments, from Python, too."""
    parser = new_parser(__doc__)
    parser.add_argument("--images", required=True, help=f"a file or folder, or {', '.join(NAMED)}")
    parser.add_argument("--features", required=True, help="the feature extractor, such as inception:WEIGHTS")
    parser.add_argument("--out", required=True, help="the reference, a .npz")
    parser.add_argument("--no_floor", action="store_true", help="do not compare real with real images")
    add_image_options(parser)
    add_host_options(parser)
    return parser


if __name__ == "__main__":
    run_on_hosts(options(), main)
