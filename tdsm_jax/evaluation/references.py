"""Reference files: what an extractor made of real images, kept so that samples are compared without them.

One .npz: `features` float32 [N,D], `labels` int32 [N], mean and covariance `mu` [D] and `sigma` [D,D] in float64 under
the names that other FID programs read, and a JSON `description`: images, extractor, versions, and what real images
score against real ones. The moments of single classes are no arrays of their own: they follow from features and
labels, and at 2048 features would take 33 MB a class.
"""

import datetime
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tdsm_jax import files
from tdsm_jax.errors import UserError, printable
from tdsm_jax.evaluation.measure import Observed, Real, real_of
from tdsm_jax.evaluation.pairs import check_features

FORMAT = 1
_DESCRIPTION = "description"


class Reference(NamedTuple):
    """Real images as an extractor sees them, and the description of the file: {} of one of another program."""

    real: Real
    description: dict[str, Any]

    @property
    def num_classes(self) -> int | None:
        """The number of classes, None where the images have no labels or the file says nothing of them."""
        return self.description.get("num_classes")

    @property
    def words(self) -> str:
        """How many images there are, as a sentence."""
        if not self.description:
            return "The reference is a mean and a covariance of unknown images."
        classes = f" of {self.num_classes} classes" if self.num_classes else ""
        return f"The reference has {self.description['count']} images{classes}."

    @property
    def floor_words(self) -> str:
        """What the floor compares, as a sentence; "" where there is none."""
        counts = self.description.get("count_per_class") or [self.description.get("count", 0)]
        half = sum(count // 2 for count in counts)
        return f"Real against real: {half} of them against {half} others." if self.floor else ""

    @property
    def floor(self) -> dict[str, Any]:
        """What real images score against real ones, by metric; {} where the file does not say."""
        return self.description.get("floor", {})


def made_of(seen: Observed, about: dict[str, Any]) -> Reference:
    """Returns the reference of real images that an extractor has seen; `about` joins its description."""
    check_features(seen.features)
    counts = None if seen.labels is None else np.bincount(seen.labels).tolist()
    description = {
        "format": FORMAT,
        "count": len(seen.features),
        "num_classes": counts and len(counts),
        "count_per_class": counts,
        "date": datetime.date.today().isoformat(),
        **about,
    }
    return Reference(real_of(seen.features, seen.labels), description)


def write(path: str | os.PathLike, reference: Reference) -> None:
    """Writes a reference with features as a file, atomically."""
    real = reference.real
    arrays = {"features": real.features.astype(np.float32), "mu": real.mean, "sigma": real.covariance}
    if real.labels is not None:
        arrays["labels"] = real.labels.astype(np.int32)
    files.write_arrays(path, arrays | {_DESCRIPTION: np.array(json.dumps(reference.description))})


def read(path: str | os.PathLike) -> Reference:
    """Reads a reference file, or the `mu` and `sigma` that other FID programs write; others are a `UserError`."""
    arrays = files.read_arrays(path)
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(f"{path} is no reference: it lacks mu and sigma; tdsm_jax.make_ref_stats makes one")
    mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
        raise UserError(f"{path}: mu {list(mean.shape)} and sigma {list(covariance.shape)} are no mean and covariance")
    if _DESCRIPTION not in arrays:
        return Reference(Real(mean, covariance, None, None), {})
    description = _described(path, arrays)
    features, labels = arrays["features"], arrays.get("labels")
    count = len(features)
    if features.shape != (count, mean.size) or (labels is not None and labels.shape != (count,)):
        raise UserError(f"{path}: features, labels and moments are of different sizes; make it again")
    return Reference(Real(mean, covariance, features, labels), description)


def _described(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    try:
        description = json.loads(str(arrays[_DESCRIPTION]))
        written = description["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its description cannot be read ({printable(repr(error))}); make it again") from None
    if written != FORMAT or "features" not in arrays:
        raise UserError(f"{path}: of format {printable(str(written))}, this version reads {FORMAT}; make it again")
    return description


def is_reference(path: str | os.PathLike) -> bool:
    """Says whether a .npz is a reference file and not one of images."""
    if not os.fspath(path).endswith(".npz"):
        return False
    arrays = files.array_names(path)
    return {"mu", "sigma"} <= arrays and not {"images", "arr_0"} & arrays


def check_extractor(path: str | os.PathLike, reference: Reference, name: str, digest: str, width: int) -> None:
    """Raises `UserError` unless a reference was made with the extractor of this name and digest."""
    made = reference.description.get("extractor")
    if made is not None and made != {"name": name, "digest": digest}:
        raise UserError(
            f"{path} was made with the extractor {made['name']} ({made['digest'][:12]}), "
            f"not with {name} ({digest[:12]}); give --features the same one"
        )
    if reference.real.mean.size != width:
        raise UserError(f"{path} has {reference.real.mean.size} features an image, the extractor {name} {width}")


def check_form(path: str | os.PathLike, reference: Reference, shape: Sequence[int], what: str) -> None:
    """Raises `UserError` unless the images of a reference have the shape (H, W, C) of `what`, where it says theirs."""
    made = reference.description.get("images", {}).get("shape", [0, *shape])[1:]
    if tuple(made) != tuple(shape):
        one, other = ("x".join(map(str, form)) for form in (made, shape))
        raise UserError(f"{path} is of images of {one}, {what} of {other}; bring both to one size and colour form")


def check_classes(
    path: str | os.PathLike, reference: Reference, num_classes: int | None, what: str, class_names: Sequence[str] = ()
) -> None:
    """Raises `UserError` where `what` has labels of other classes than a reference with labels.

    Where both name their classes these must be the same ones in one order; numbers are no names.
    """
    K = reference.num_classes
    if K and num_classes and K != num_classes:
        raise UserError(f"{path} has {K} classes, {what} has {num_classes}; make one of the data it was trained on")
    both = reference.description.get("class_names", ()), class_names
    if not all(any(not name.isdecimal() for name in names) for names in both):
        return
    for y, (one, other) in enumerate(itertools.zip_longest(*both)):
        if one != other:
            raise UserError(
                f"class {y} is {printable(repr(one))} in {path} and {printable(repr(other))} in {what}; "
                "name the classes of both alike, or give labels by number in a dataset.json"
            )
