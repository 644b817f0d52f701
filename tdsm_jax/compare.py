"""Compares two sets of images by their features, class by class where both have labels.

  python -m tdsm_jax.compare cifar10-32x32.zip samples.zip --features=inception:WEIGHTS
  python -m tdsm_jax.compare cifar10-reference.npz samples/ --features=inception:WEIGHTS --out=comparison
  python -m tdsm_jax.compare real/ samples.npz --features=inception:WEIGHTS --metrics=fd,neighbours

The first set is the real one: precision, density and coverage ask where the second lies among it, and the floor is what
its halves score against each other.
Either is an archive (a zip file or folder with a dataset.json), a folder of PNG files, flat or with a subfolder a
class, a .npz of images and labels, ADM's .npz, a .npy; the first also a reference of make_ref_stats or a file of `mu`
and `sigma` as other FID programs write, which gives the Frechet distance alone. With --out an interrupted command goes
on where it stopped.
"""

import argparse

import numpy as np

from tdsm_jax import files, hosts, paths, pipeline
from tdsm_jax.command import add_host_options, new_parser, run_on_hosts
from tdsm_jax.data import image_sets
from tdsm_jax.data.image_sets import ImageSet
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluation import measure, metric_table, references
from tdsm_jax.evaluation.features import Extractor
from tdsm_jax.evaluation.measure import METRICS, Real, chosen_metrics
from tdsm_jax.evaluation.references import Reference
from tdsm_jax.extractors import open_extractor
from tdsm_jax.make_ref_stats import (
    add_image_options,
    floor_of,
    forget,
    observed,
    parts_of,
    real_images,
    reference_of,
)
from tdsm_jax.training.parallel import data_mesh


def main(arguments: argparse.Namespace) -> None:
    """Reads both sets, extracts their features, prints and writes the metrics."""
    extractor = open_extractor(arguments.features, data_mesh())
    made = image_sets.read(arguments.made)
    asked = asked_metrics(arguments.metrics)
    stored = references.is_reference(arguments.images)
    real = references.read(arguments.images) if stored else real_images(arguments)
    metrics = _chosen(arguments, extractor, real, made, asked)
    reference = real if stored else _reference(arguments, extractor, real, asked)
    seen = observed(extractor, made, _parts(arguments, "made"))
    values = measure.measured(reference.real, seen, metrics, measure.watched)
    words = f"{len(made.images)} images of {arguments.made}, features {extractor.name}. {reference.words}"
    names = reference.description.get("class_names", ())
    table = metric_table.markdown([values], reference.floor, names, extractor.name)
    text = f"{words} {reference.floor_words}".strip() + f"\n\n{table}"
    if hosts.is_writer():
        print(text)
    if arguments.out:
        result = {
            "metrics": values,
            "floor": reference.floor,
            "reference": {name: value for name, value in reference.description.items() if name != "floor"},
            "images": image_sets.describe(made),
            "extractor": {"name": extractor.name, "digest": extractor.digest},
            "versions": pipeline.versions(),
        }
        files.write_json(f"{arguments.out}.json", result)
        files.write_text(f"{arguments.out}.md", text)
        for side in ("real", "made"):
            forget(_parts(arguments, side))


def _parts(arguments: argparse.Namespace, side: str) -> paths.Path | None:
    """Where what was seen of one side is kept until the result is there; None where that is printed alone."""
    return parts_of(f"{arguments.out}.{side}") if arguments.out else None


def asked_metrics(text: str) -> list[str]:
    """Returns the names that --metrics lists, none for all that apply."""
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}{did_you_mean(name, METRICS)}")
    return names


def _chosen(
    arguments: argparse.Namespace, extractor: Extractor, real: Reference | ImageSet, made: ImageSet, asked: list[str]
) -> tuple[str, ...]:
    """Returns the metrics; sets that cannot be compared by them are a `UserError` before either is looked at."""
    expected = real if isinstance(real, Reference) else _expected(extractor, real)
    references.check_extractor(arguments.images, expected, extractor.name, extractor.digest, extractor.width)
    references.check_form(arguments.images, expected, made.images.shape[1:], arguments.made)
    references.check_classes(arguments.images, expected, made.num_classes, arguments.made, made.class_names)
    metrics = chosen_metrics(asked, expected.real, extractor.classifies, made.labels is not None)
    measure.check_sizes(metrics, expected.real, len(made.images), made.labels)
    return metrics


def _expected(extractor: Extractor, images: ImageSet) -> Reference:
    """What is known of the reference of images before they are looked at."""
    unseen = Real(np.zeros(extractor.width), np.zeros((0, 0)), np.zeros((0, extractor.width)), images.labels)
    about = {"num_classes": images.num_classes, "class_names": images.class_names}
    return Reference(unseen, about | {"images": {"shape": images.images.shape}})


def _reference(arguments: argparse.Namespace, extractor: Extractor, images: ImageSet, asked: list[str]) -> Reference:
    """The reference of images, which is not kept."""
    seen = observed(extractor, images, _parts(arguments, "real"))
    return reference_of(extractor, images, seen, {} if arguments.no_floor else floor_of(seen, asked))


def add_metric_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what is measured."""
    parser.add_argument("--features", required=True, help="the feature extractor, such as inception:WEIGHTS")
    names = "; ".join(f"{name}: {what}" for name, what in METRICS.items())
    parser.add_argument("--metrics", default="", help=f"comma-separated, by default all that apply. {names}")


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("images", metavar="real", help="the real images, or a reference")
    parser.add_argument("made", metavar="made", help="the images that are compared with them")
    add_metric_options(parser)
    parser.add_argument("--out", default="", help="write OUT.json and OUT.md")
    parser.add_argument("--no_floor", action="store_true", help="do not compare real with real images")
    add_image_options(parser)
    add_host_options(parser)
    run_on_hosts(parser, main)
