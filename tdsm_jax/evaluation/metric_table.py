"""Metrics of repeated evaluations as one summary, and as Markdown: mean, spread, best, and what real images score."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tdsm_jax.evaluation.measure import HIGHER_IS_BETTER
from tdsm_jax.evaluation.table import grid

_NAMES = {
    "fd": "Frechet distance",
    "kid": "KID",
    "is": "Inception Score, 10 splits",
    "is_whole": "Inception Score, whole",
    "cmmd": "MMD of embeddings, a thousandfold",
}
_HIDDEN = ("_spread", "_worst_class", "_per_class", "_classes")  # in the JSON alone
_CLASS_COLUMNS = ("fd", "density_k3", "coverage_k3", "density_k5", "coverage_k5")
_DIGITS = 5  # significant ones
Values = Mapping[str, Any]


def summarised(repeats: Sequence[Values]) -> dict[str, Any]:
    """Returns of every number its mean, standard deviation (n - 1, 0 of one) and best over the repeats.

    The best is what papers give as the minimum of three: the smallest distance, or the largest score or share. Lists,
    one number a class, become their means over the repeats.
    """
    found: dict[str, Any] = {}
    for name, first in repeats[0].items():
        values = [repeat[name] for repeat in repeats]
        if isinstance(first, list):
            found[name] = first if name == "cw_classes" else np.mean(values, axis=0).tolist()
        elif not name.endswith("_worst_class"):  # classes have no mean
            best = max if _higher_is_better(name) else min
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            found[name] = {"mean": float(np.mean(values)), "std": spread, "best": best(values)}
    return found


def _higher_is_better(name: str) -> bool:
    return name.removeprefix("cw_").startswith(HIGHER_IS_BETTER)


def markdown(repeats: Sequence[Values], floor: Values, class_names: Sequence[str] = (), extractor: str = "") -> str:
    """Returns the table of all numbers, and one of the classes where there are class-wise ones.

    `floor`: what real images score against real ones, without what is not known of it. `extractor`: whose features
    they are of.
    """
    summary = summarised(repeats)
    rows = [
        [
            "CMMD" if (name, extractor) == ("cmmd", "clip") else named(name),
            _mean_and_spread(value, len(repeats)),
            _short(value["best"]),
            _short(floor.get(name)),
        ]
        for name, value in summary.items()
        if isinstance(value, dict) and not name.endswith(_HIDDEN)
    ]
    table = grid(("metric", "samples", f"best of {len(repeats)}", "real against real"), rows)
    return table + "\n" + (f"\n{_classes(summary, floor, class_names)}\n" if "cw_classes" in summary else "")


def _classes(summary: Values, floor: Values, class_names: Sequence[str]) -> str:
    headings = [heading for name in _CLASS_COLUMNS for heading in (named(name), "real")]
    rows = []
    for row, y in enumerate(summary["cw_classes"]):
        cells = []
        for name in _CLASS_COLUMNS:
            real = floor.get(f"cw_{name}_per_class")
            cells += [_short(summary[f"cw_{name}_per_class"][row]), _short(real and real[row])]
        rows.append([class_names[y] if y < len(class_names) else y, *cells])
    return grid(("class", *headings), rows)


def named(name: str) -> str:
    """Returns a metric's name for people: "class-wise coverage, k = 3, worst class"."""
    plain = name.removeprefix("cw_")
    body, worst, _ = plain.partition("_worst")
    body, k, number = body.partition("_k")
    words = _NAMES.get(body, body) + (f", k = {number}" if k else "") + (", worst class" if worst else "")
    return f"class-wise {words}" if name.startswith("cw_") else words


def _mean_and_spread(value: Values, repeats: int) -> str:
    return f"{_short(value['mean'])} ± {value['std']:.2g}" if repeats > 1 else _short(value["mean"])


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.{_DIGITS}g}"
