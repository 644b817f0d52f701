"""Several finished runs side by side on one page: what differs in their configs, and what came of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tdsm_jax.evaluation import charts, grids, page, table
from tdsm_jax.evaluation import report_sections as sections
from tdsm_jax.evaluation.report_words import (
    METRICS,
    PLOTTED,
    flat,
    is_number,
    label,
    metric_value,
    ordered,
    style_index,
)
from tdsm_jax.evaluation.svg import escape

_SEEDS = ("seed", "data.split_seed")  # runs that differ in nothing else are repeats of one experiment


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished run, as `render` reads it.

    name: what tells it from the others. config: its flat config, as far as its results depend on it. metrics: its
    metrics.json. images: method -> uint8 [K,columns,H,W,C], one row a class. curves: method -> records with "step" and
    "loss".
    """

    name: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    images: dict[str, np.ndarray]
    curves: dict[str, list[dict[str, Any]]]

    def measured(self, method: str, key: str) -> float | None:
        """Returns a metric of a method, None where the run has none."""
        return flat(self.metrics["methods"].get(method, {})).get(key)


def render(runs: Sequence[Finished]) -> str:
    """Returns the whole page of two or more runs, self-contained."""
    title = f"{len(runs)} runs side by side"
    methods = ordered(dict.fromkeys(m for run in runs for m in run.metrics["methods"]))
    what = "Repeats with other seeds." if repeats(runs) else "They differ in more than their seeds."
    lead = f"{', '.join(run.name for run in runs)}. {what} Methods: {', '.join(map(label, methods))}."
    parts = {
        "What differs": _differences(runs),
        "Metrics": _charts(runs, methods) + _numbers(runs, methods),
        "Samples": _samples(runs, methods),
        "Training": _training(runs, methods),
    }
    return page.page(title, page.header(title, lead), {name: body for name, body in parts.items() if body})


def differences(runs: Sequence[Finished]) -> dict[str, list[Any]]:
    """Returns the config keys in which runs differ, with the value of each run; None where it did not matter to one."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    values = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def repeats(runs: Sequence[Finished]) -> bool:
    """Says whether the runs are one experiment with several seeds."""
    return bool(differences(runs)) and set(differences(runs)) <= set(_SEEDS)


def _differences(runs: Sequence[Finished]) -> str:
    rows = {key: ["–" if v is None else str(v) for v in found] for key, found in differences(runs).items()}
    if not rows:
        return "<p>Nothing that results depend on: the same config each time.</p>"
    return (
        "<p>Config keys that the results of a run depend on and that are not the same in all; – where a key did not "
        f"matter to a run.</p>{_table('Key', [run.name for run in runs], rows)}"
    )


def _charts(runs: Sequence[Finished], methods: Sequence[str]) -> str:
    names, drawn = [run.name for run in runs], []
    for key in PLOTTED:
        heading, factor, direction, _ = METRICS[key]
        series = {m: np.array([_number(run.measured(m, key)) for run in runs]) * factor for m in methods}
        present = {m: values for m, values in series.items() if np.isfinite(values).any()}
        if present:
            better = "further right is better" if direction > 0 else "further left is better"
            chart = charts.dot_plot(
                {label(m): values for m, values in present.items()},
                names=names,
                x_label=heading,
                styles=[style_index(m) for m in present],
            )
            drawn.append((f"{heading.removesuffix(', %')}: {better}", chart))
    return f"<p>One row a run.{_judges(runs)}</p>{sections.figures(drawn)}" if drawn else ""


def _judges(runs: Sequence[Finished]) -> str:
    weights: dict[str, set[str]] = {}  # of each kind of judge
    for run in runs:
        for kind, facts in run.metrics.get("judges", {}).items():
            weights.setdefault(kind, set()).add(facts["weights_sha256"])
    if all(len(of_kind) < 2 for of_kind in weights.values()):
        return ""
    return (
        " The runs have classifiers of their own as judges: distances in their features compare methods within a run, "
        "and between runs only roughly."
    )


def _number(value: Any) -> float:
    return float(value) if is_number(value) else np.nan


def _numbers(runs: Sequence[Finished], methods: Sequence[str]) -> str:
    """Every metric: a table of methods and runs, of repeats also their mean and standard deviation."""
    drawn, previous = [], ""
    for key, (heading, factor, direction, meaning) in METRICS.items():
        heading = heading.replace("…", f"{previous},") if heading.startswith("…") else heading
        previous = heading.removesuffix(", %")
        found = {m: [run.measured(m, key) for run in runs] for m in methods}
        rows = {
            label(m): [metric_value(key, value) for value in values] + _mean(values, factor, runs)
            for m, values in found.items()
            if any(map(is_number, values))
        }
        if rows:
            columns = [run.name for run in runs] + (["mean ± sd"] if repeats(runs) else [])
            arrow = "↑ higher is better" if direction > 0 else "↓ lower is better"
            body = f"<p>{escape(meaning[0].upper() + meaning[1:])} {arrow}.</p>{_table('Method', columns, rows)}"
            drawn.append(f"<details{' open' if key in PLOTTED else ''}><summary>{heading}</summary>{body}</details>")
    return "".join(drawn)


def _mean(values: Sequence[Any], factor: int, runs: Sequence[Finished]) -> list[str]:
    if not repeats(runs):
        return []
    present = [factor * value for value in values if is_number(value)]
    return [table.spread(present, 1 if factor == 100 else 2)]


def _table(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    return page.table([corner, *columns], [[name, *cells] for name, cells in rows.items()])


def _samples(runs: Sequence[Finished], methods: Sequence[str]) -> str:
    """A grid of each run for every method, smaller the more there are."""
    drawn = [{run.name: run.images[m] for run in runs if m in run.images} for m in methods]
    shown = {m: images for m, images in zip(methods, drawn, strict=True) if images}
    budget = grids.BUDGET // max(len(shown), 1)
    words = "<p>Each row was asked for one class: compare a row across the runs.</p>" if shown else ""
    return words + "".join(f"<h3>{escape(label(m))}</h3>{_grids(runs, images, budget)}" for m, images in shown.items())


def _grids(runs: Sequence[Finished], images: Mapping[str, np.ndarray], budget: int) -> str:
    shown = [grids.Grid(name, "", rows) for name, rows in images.items()]
    return grids.side_by_side(shown, _class_names(runs, images), budget)


def _class_names(runs: Sequence[Finished], images: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the rows: those of the runs' classes where all call them alike, else their numbers."""
    names = [run.metrics.get("class_names") for run in runs if run.name in images]
    most = max(len(rows) for rows in images.values())
    if names[0] and all(n == names[0] for n in names):
        return names[0]
    return [str(y) for y in range(most)]


def _training(runs: Sequence[Finished], methods: Sequence[str]) -> str:
    drawn = []
    for m in methods:
        curves = {run.name: sections.smooth_curve(run.curves.get(m, []), "loss") for run in runs}
        present = {name: curve for name, curve in curves.items() if len(curve[0])}
        if present:
            y_label = "training loss (log scale)"
            chart = charts.line_chart(present, x_label="training step", y_label=y_label, log_y=True)
            drawn.append((f"{label(m)}: one line a run", chart))
    words = "Losses of runs with other noise levels, weightings or labels are not on one scale."
    return f"<p>{words}</p>{sections.figures(drawn)}" if drawn else ""
