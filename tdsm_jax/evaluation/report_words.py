"""How the report names methods and metrics, explains its words and prints its numbers."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

METHODS = {  # name -> (label, what was trained), in the order of columns; a method's place is its colour and marker
    "dsm": ("DSM", "ordinary training, noisy labels"),
    "tdsm": ("TDSM", "this method, same noisy labels"),
    "clean": ("Clean", "ordinary training, true labels"),
    "s_weighted": ("S-weighted", "constant weights instead of the classifier's"),
    "posterior": ("Posterior", "DSM on labels drawn from p(y | image, noisy label)"),
    "relabel": ("Relabel", "DSM on the likeliest labels"),
    "relabel_tdsm": ("Relabel + TDSM", "TDSM on the likeliest labels, for what noise is left in them"),
    "tdsm_floor": ("TDSM, floor", "own class and null label"),
    "tdsm_threshold": ("TDSM, threshold", "classes of weight above tau, as published"),
    "tdsm_all": ("TDSM, all", "every class"),
    "tdsm_sampled": ("TDSM, sampled", "two classes drawn from the weights"),
    "refined": ("Refined", "Posterior once more, p(y | image, noisy label) corrected by its first model"),
    "corrected": ("Corrected", "the model of DSM, label noise undone by the classifier while it is sampled"),
    "init": ("Given model", "as it was given"),
}
METRICS = {  # key -> (label, factor to the unit in the label, +1 if higher is better, explanation)
    "label_fidelity": (
        "Label fidelity, %", 100, 1,
        "how often a classifier trained on clean data sees, in a generated image, the class asked for.",
    ),
    "label_fidelity_worst_class": ("… worst class, %", 100, 1, "the same for the class that does worst."),
    "cas": (
        "CAS, %", 100, 1,
        "classification accuracy score: train a classifier only on generated images, test it on real ones.",
    ),
    "cas_worst_class": ("… worst class, %", 100, 1, "the same for the class that does worst."),
    "fd": (
        "FD", 1, -1,
        "Fréchet distance between features of generated and real images: quality and variety, not labels.",
    ),
    "cw_fd": ("Class-wise FD", 1, -1, "the same distance within each class, averaged: shows wrong labels."),
    "density": ("Density", 1, 1, "how closely generated images lie to real ones; about 1 is natural."),
    "coverage": ("Coverage, %", 100, 1, "share of real images with a generated image close by: variety."),
    "cw_density": ("Class-wise density", 1, 1, "density within each class, averaged."),
    "cw_coverage": ("Class-wise coverage, %", 100, 1, "coverage within each class, averaged."),
}  # fmt: skip
_OF_EXTRACTORS = {
    "fd": METRICS["fd"],
    "cw_fd": METRICS["cw_fd"],
    "kid": ("KID", 1, -1, "kernel distance between features of generated and real images, unbiased."),
    "is": ("Inception Score", 1, 1, "how surely and variously a classifier of natural images sees classes."),
    "precision_k3": ("Precision, %", 100, 1, "share of generated images among the real ones (3 neighbours)."),
    "recall_k3": ("Recall, %", 100, 1, "share of real images among the generated ones (3 neighbours)."),
    "density_k3": ("Density, k=3", *METRICS["density"][1:]),
    "coverage_k3": ("Coverage, k=3, %", *METRICS["coverage"][1:]),
    "cw_density_k3": ("Class-wise density, k=3", *METRICS["cw_density"][1:]),
    "cw_coverage_k3": ("Class-wise coverage, k=3, %", *METRICS["cw_coverage"][1:]),
    "cmmd": ("MMD", 1, -1, "maximum mean discrepancy of embeddings, a thousandfold: CMMD where they are CLIP's."),
}
JUDGES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50"}  # beside the small judge, whose metrics carry no name
EXTRACTORS = {  # the kinds of tdsm_jax/extractors.py
    "inception": "Inception",
    "inception_unchecked": "Inception, other weights",
    "clip": "CLIP",
    "siglip": "SigLIP",
    "align": "ALIGN",
    "dinov2": "DINOv2",
    "pixels": "pixels",
}


def _variant(metric: tuple[str, int, int, str], of: str) -> tuple[str, int, int, str]:
    name, factor, direction, meaning = metric
    words, percents, _ = name.partition(", %")
    return f"{words} ({of}){percents}", factor, direction, meaning


_LABELS = ("label_fidelity", "label_fidelity_worst_class", "cas", "cas_worst_class")


def _worded(key: str, judge: str) -> str:
    """label_fidelity_worst_class of resnet18: label_fidelity_resnet18_worst_class"""
    name, worst, _ = key.partition("_worst_class")
    return f"{name}_{judge}{worst}"


METRICS |= {_worded(key, judge): _variant(METRICS[key], of) for judge, of in JUDGES.items() for key in _LABELS} | {
    f"{name}_{key}": _variant(one, of) for name, of in EXTRACTORS.items() for key, one in _OF_EXTRACTORS.items()
}
PLOTTED = ("label_fidelity", "cas", "fd", "cw_fd")  # where charts of all metrics would be too many
PER_CLASS = {  # key -> (label, factor to the unit in the label)
    "label_fidelity_per_class": ("label fidelity, %", 100),
    "cas_per_class": ("CAS, %", 100),
    "cw_fd_per_class": ("class-wise FD (lower is better)", -1),
}
WORDS = {
    "Label noise": "some training images carry the wrong class name. The images themselves are untouched.",
    "Diffusion model": "a network trained to remove Gaussian noise from images; run repeatedly from pure "
    "noise, it draws a new image of the class it is asked for.",
    "DSM": "denoising score matching, the ordinary way to train one. It believes every label.",
    "TDSM": "transition-aware weighted DSM. For each noisy image it weighs every class by how likely that "
    "class is to be the true one, so that wrong labels stop teaching the wrong class.",
    "Clean": "DSM on the true labels: the ceiling, possible only where the true labels are known.",
    "Transition matrix": "how often each true class (row) is given each label (column).",
    "Noise level σ": "the standard deviation of the Gaussian noise on an image: at small σ it is nearly "
    "clean, at large σ nothing is left to see.",
    "Recovery": "of the gap that label noise opened between DSM and Clean, the part a method closes: at 0 % "
    "it is no better than DSM, at 100 % as good as with the true labels.",
}
NOISE = {
    "sym": "symmetric",
    "asym": "asymmetric",
    "pair": "pair-flip",
    "imported": "imported",
    "sym_inclusive": "symmetric (inclusive)",
    "clean": "assumed symmetric",
    "matrix": "given",
    "instance": "instance-dependent",
}

IMAGE_NOISE = {
    "off_topic_symbols": "stroke drawings in their place",
    "off_topic_photos": "crops of photographs in their place",
    "occlusion": "a rectangle covers a part of them",
    "salt_pepper": "some of their pixels are black or white",
}


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a method's metrics with those of a feature extractor under "<extractor>_<metric>"."""
    inner = {f"{name}_{key}": value for name in EXTRACTORS for key, value in values.get(name, {}).items()}
    return {key: value for key, value in values.items() if key not in EXTRACTORS} | inner


def ordered(names: Iterable[str]) -> list[str]:
    """Returns `names` in the order of columns; those the report does not know come last."""
    names = list(names)
    return [name for name in METHODS if name in names] + [name for name in names if name not in METHODS]


def label(method: str) -> str:
    """Returns the name of a method, or of the real images, as a reader sees it; plain text."""
    return METHODS[method][0] if method in METHODS else "Real images" if method == "real" else method


def explanation(method: str) -> str:
    """Returns what was trained, or "" for a method the report does not know."""
    return METHODS[method][1] if method in METHODS else ""


def style_index(method: str) -> int:
    """Returns which colour, dash and marker is the method's, the same whichever methods a run has."""
    return list(METHODS).index(method) if method in METHODS else len(METHODS)


def real_words(counts: Mapping[str, int]) -> str:
    """Returns what the column of real images holds; `counts` as in metrics.json."""
    words = "real test images in place of samples"
    if counts and counts["test"] < counts["samples"]:
        words += (
            f", fewer than samples ({counts['test']} and {counts['samples']}): of fewer images distances are larger"
        )
    return words


def is_number(value: Any) -> bool:
    """Tells a finite number from everything else that JSON holds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: Any) -> str:
    """Returns a share as "97.0 %", a dash if there is none."""
    return f"{100 * value:.1f} %" if is_number(value) else "–"


def metric_value(key: str, value: Any) -> str:
    """Returns a metric in the unit of its label, a dash if there is none."""
    if not is_number(value):
        return "–"
    if METRICS[key][1] == 100:
        return f"{100 * value:.1f}"
    return f"{value:.2g}" if 0 < abs(value) < 0.095 else f"{value:.2f}"


def won_back(key: str, methods: Mapping[str, Mapping[str, Any]], method: str) -> float | None:
    """Returns the recovery of metric `key` by `method`, 1 for all of the damage, or None where there is none.

    `methods` is as in metrics.json. A gap between DSM and Clean that is not in Clean's favour, or too small to
    show in print, is no damage: a share of it would be a share of chance.
    """
    recovery = methods[method].get("recovery", {}).get(key)
    dsm, clean = (methods.get(m, {}).get(key) for m in ("dsm", "clean"))
    if not all(map(is_number, (recovery, dsm, clean))):
        return None
    damaged = METRICS[key][2] * (clean - dsm) > 0 and metric_value(key, clean) != metric_value(key, dsm)
    return recovery if damaged else None
