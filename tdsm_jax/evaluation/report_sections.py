"""The sections of the report: each turns the part of a run it is given into HTML, "" when there is nothing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from tdsm_jax.evaluation import charts, grids, svg
from tdsm_jax.evaluation.report_words import (
    JUDGES,
    METRICS,
    PER_CLASS,
    explanation,
    flat,
    is_number,
    label,
    metric_value,
    ordered,
    percent,
    real_words,
    style_index,
    won_back,
)
from tdsm_jax.evaluation.svg import escape

Methods = Mapping[str, Mapping[str, Any]]  # as in metrics.json, in the order of columns
_CURVE_POINTS = 80
_MOST_CLASSES = 20  # rows of a per-class chart


def figures(drawings: Iterable[tuple[str, str]]) -> str:
    """Lays out (caption, SVG) pairs side by side, one below the other on a phone; captions are plain text."""
    drawn = (f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}</figure>" for caption, drawing in drawings)
    return f'<div class="figures">{"".join(drawn)}</div>'


def swatch(method: str) -> str:
    """Returns the marker of a method, as in every chart, to stand beside its name."""
    return f'<svg class="swatch" viewBox="-6 -6 12 12" aria-hidden="true">{svg.marker(style_index(method), 0, 0)}</svg>'


def samples(images: Mapping[str, np.ndarray], class_names: Sequence[str]) -> str:
    """`images`: "real" and methods -> uint8 [K, columns, H, W, C], one row a class."""
    if not images:
        return ""
    shown = [
        grids.Grid(label(name), "for comparison" if name == "real" else explanation(name), images[name])
        for name in sorted(ordered(images), key="real".__ne__)
    ]
    return (
        "<p>Each row was asked for one class. Images of another class in a row are what label noise taught; "
        f"compare a row across the grids.</p>{grids.side_by_side(shown, class_names)}"
    )


def metric_table(methods: Methods, metrics: Mapping[str, Any]) -> str:
    """`metrics`: metrics.json, of which it reads what real images score, the judges, and the counts of images."""
    real, in_column = flat(metrics.get("real", {})), real_words(metrics.get("counts", {}))
    if not methods:
        return ""
    head = "".join(f'<th scope="col">{swatch(m)}{escape(label(m))}</th>' for m in methods)
    present = [key for key in METRICS if any(key in values for values in (*methods.values(), real))]
    rows = []
    for key in present:
        name, _, direction, _ = METRICS[key]
        best = _best(key, methods)
        cells = "".join(_metric_cell(key, methods, m, best if m != "clean" else None) for m in methods)
        *first, last = name.split()
        head_cell = " ".join([*first, f'<span class="unit">{last} {"↑" if direction > 0 else "↓"}</span>'])
        floor = metric_value(key, real.get(key))
        rows.append(f'<tr><th scope="row">{head_cell}</th>{cells}<td>{floor}</td></tr>')
    named: dict[str, str] = {}  # a metric is explained once, whatever judges and extractors there are of it
    for key in present:
        named.setdefault(METRICS[key][3], METRICS[key][0].removesuffix(", %").partition(" (")[0])
    meanings = "".join(f"<dt>{name}</dt><dd>{meaning}</dd>" for meaning, name in named.items())
    return (
        "<p>↑ higher is better, ↓ lower is better; bold is the best without clean labels. Small print under a number: "
        f"how much of the damage was won back, – where there was none. “Real vs real”: {in_column}.</p>"
        f'<div class="pair"><div class="scroll"><table><thead><tr><th scope="col">Metric</th>{head}'
        f'<th scope="col">Real vs real</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f"<dl>{meanings}</dl></div>{_judges(metrics.get('judges', {}))}"
    )


def _judges(judges: Mapping[str, Any]) -> str:
    said = [
        f"{escape(JUDGES.get(name, 'the small network'))} {percent(facts['test_accuracy'])} (weights "
        f"<code>{escape(facts['weights_sha256'][:12])}</code>)"
        for name, facts in judges.items()
    ]
    return f"<p>Judges of label fidelity, right on real test images: {', '.join(said)}.</p>" if said else ""


def _best(key: str, methods: Methods) -> str | None:
    """The best value, as printed, of the methods without clean labels; None when they all print the same."""
    rivals = [values[key] for m, values in methods.items() if m != "clean" and is_number(values.get(key))]
    if len({metric_value(key, value) for value in rivals}) < 2:
        return None
    return metric_value(key, max(rivals, key=lambda value: METRICS[key][2] * value))


def _metric_cell(key: str, methods: Methods, method: str, best: str | None) -> str:
    shown = metric_value(key, methods[method].get(key))
    number = f"<b>{shown}</b>" if shown == best else shown
    if key not in methods[method].get("recovery", {}):
        return f"<td>{number}</td>"
    recovery = won_back(key, methods, method)
    return f"<td>{number}<small>{'–' if recovery is None else f'{100 * recovery:.0f} % back'}</small></td>"


def class_by_class(methods: Methods, class_names: Sequence[str]) -> str:
    """The metrics that every class has, the worst classes where there are many."""
    drawn = []
    for key, (name, factor) in PER_CLASS.items():
        series = {m: abs(factor) * np.asarray(v[key], float) for m, v in methods.items() if v.get(key)}
        if not series:
            continue
        total = np.nan_to_num(list(series.values())).sum(axis=0)
        shown = np.sort(np.argsort(total * np.sign(factor), kind="stable")[:_MOST_CLASSES])
        plot = charts.dot_plot(
            {label(m): values[shown] for m, values in series.items()},
            names=[class_names[k] for k in shown],
            x_label=name,
            styles=[style_index(m) for m in series],
        )
        subset = "" if len(shown) == len(total) else f": the {len(shown)} worst of {len(total)} classes"
        drawn.append((name[0].upper() + name[1:] + subset, plot))
    if not drawn:
        return ""
    return f"<p>One row a class: a long bar means that the methods differ there.</p>{figures(drawn)}"


def confusion(methods: Methods, class_names: Sequence[str]) -> str:
    """What the judge saw for each class asked for."""
    drawn = []
    for method, values in methods.items():
        counts = np.asarray(values.get("confusion", []), float)
        if counts.size:
            with np.errstate(invalid="ignore"):
                share = counts / counts.sum(axis=1, keepdims=True)
            drawn.append((label(method), _shares(share, "class asked for", "class seen, %", class_names)))
    if not drawn:
        return ""
    return (
        "<p>What a classifier trained on clean data sees in the generated images. A perfect generator is dark on the "
        f"diagonal and blank elsewhere; label noise shows as shade off the diagonal.</p>{figures(drawn)}"
    )


def _shares(matrix: np.ndarray, row_label: str, column_label: str, class_names: Sequence[str]) -> str:
    percents = 100 * np.asarray(matrix, float)
    return charts.heat_map(percents, row_label=row_label, column_label=column_label, names=class_names, highest=100)


def transition_matrix(
    transitions: Mapping[str, np.ndarray], facts: Mapping[str, Any], class_names: Sequence[str]
) -> str:
    """`facts`: "estimator", "relative_l1", "condition_number", each if known."""
    captions = {
        "true": "True: how labels were corrupted",
        "realised": "Realised: what happened to these labels",
        "estimated": "Estimated: what TDSM used",
    }
    drawn = [
        (caption, _shares(transitions[name], "true class", "given label, %", class_names))
        for name, caption in captions.items()
        if name in transitions
    ]
    if not drawn:
        return ""
    said = [f"Estimator: <b>{escape(facts['estimator'])}</b>."] if "estimator" in facts else []
    if is_number(facts.get("relative_l1")):
        said.append(f"Relative L1 error {percent(facts['relative_l1'])} (0 % is exact).")
    if is_number(facts.get("condition_number")):
        number = svg.short_number(facts["condition_number"])
        said.append(f"Condition number {number}: the larger, the more label noise has mixed the classes.")
    return (
        "<p>How often each true class carries each label. The estimate should look like the truth. "
        f"{' '.join(said)}</p>{figures(drawn)}"
    )


def classifier(facts: Mapping[str, Any], num_classes: int) -> str:
    """The noise-conditional classifier's quality; `facts` as in `report.Report`."""
    if not facts.get("sigma"):
        return ""
    drawn: list[tuple[str, str]] = []

    def chart(caption: str, y_label: str, keys: Mapping[str, str], unit: float = 1.0, **options: Any) -> None:
        present = {name: key for key, name in keys.items() if facts.get(key)}
        series = {name: (facts["sigma"], unit * np.asarray(facts[key], float)) for name, key in present.items()}
        if series:
            x_label = "noise level σ (log scale)"
            drawn.append((caption, charts.line_chart(series, x_label=x_label, y_label=y_label, log_x=True, **options)))

    expected = facts.get("expected_own_weight")
    chart(
        "Accuracy: should be high at small σ and fall to chance.",
        "accuracy, %",
        {"accuracy": "against true labels", "noisy_accuracy": "against given labels"},
        unit=100,
        references={"chance": 100 / num_classes},
        y_takes_in=(0, 100),
    )
    chart(
        "Weight of the given label, on average: should lie on the dotted line at every σ.",
        "mean weight, %",
        {"own_weight": "calibrated", "own_weight_uncalibrated": "before calibration"},
        unit=100,
        references={"expected (share of right labels)": 100 * expected} if is_number(expected) else {},
        y_takes_in=(0, 100),
    )
    chart(
        "Surprise at the given labels, held out: lower is better.",
        "negative log-likelihood, nats",
        {"noisy_nll": "given labels"},
    )
    return (
        "<p>TDSM asks this classifier, at every noise level, which class an image probably has. It is measured out of "
        f"fold: each image is judged by the classifier that never saw it.</p>{figures(drawn)}"
    )


def training(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """`curves`: "score/<method>" and "classifier/<fold>" -> records with "step" and "loss" or "held_out_nll"."""

    def those_of(stage: str, key: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        names = ordered(name.removeprefix(stage) for name in curves if name.startswith(stage))
        smooth = {name: smooth_curve(curves[stage + name], key) for name in names}
        return {name: curve for name, curve in smooth.items() if len(curve[0])}

    drawn = []
    if models := those_of("score/", "loss"):
        chart = charts.line_chart(
            {label(m): curve for m, curve in models.items()},
            x_label="training step",
            y_label="training loss (log scale)",
            log_y=True,
            styles=[style_index(m) for m in models],
        )
        drawn.append(("Diffusion models: falls, then flattens.", chart))
    if folds := those_of("classifier/", "held_out_nll"):
        chart = charts.line_chart(folds, x_label="training step", y_label="negative log-likelihood, nats")
        drawn.append(("Classifier, on images it was not trained on: a rise means that it learns wrong labels.", chart))
    return f"<p>Long curves are averaged to {_CURVE_POINTS} points.</p>{figures(drawn)}" if drawn else ""


def smooth_curve(records: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, values), finite only, averaged in runs of neighbours down to `_CURVE_POINTS` points."""
    points = np.array([(r["step"], r[key]) for r in records if is_number(r.get(key))], float).reshape(-1, 2)
    runs = np.array_split(points, min(len(points), _CURVE_POINTS) or 1)
    means = np.array([run.mean(axis=0) for run in runs if len(run)]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def time(
    seconds: Mapping[str, Any], step_cost_ratio: float | None, evaluations: Mapping[str, float] = MappingProxyType({})
) -> str:
    """`seconds`: stage -> seconds. `step_cost_ratio`: a TDSM step over a DSM step. `evaluations`: method ->
    how often the network is evaluated for an image.
    """
    seconds = {stage: s for stage, s in seconds.items() if is_number(s)}
    if not seconds:
        return ""
    longest = max(*seconds.values(), 1e-9)
    rows = "".join(
        f'<tr><th scope="row">{escape(stage)}</th><td class="bar"><i style="width:{100 * s / longest:.1f}%"></i></td>'
        f"<td>{_duration(s)}</td></tr>"
        for stage, s in seconds.items()
    )
    cost = f" A TDSM training step took {step_cost_ratio:.2f} times a DSM step." if is_number(step_cost_ratio) else ""
    drawn = [f"{escape(label(m))} {count:.0f}" for m, count in evaluations.items() if is_number(count)]
    sampled = f" Evaluations of the network an image: {', '.join(drawn)}." if drawn else ""
    return (
        f"<p>{_duration(sum(seconds.values()))} in all.{cost}{sampled}</p>"
        f'<div class="scroll"><table class="time"><tbody>{rows}</tbody></table></div>'
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def setup(environment: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Two tables to unfold: what the run was made with and how."""
    tables = {"Environment": environment, "Configuration": dict(_flat(config))}
    return "".join(
        f'<details><summary>{title}</summary><div class="scroll"><table class="setup"><tbody>'
        + "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in values.items())
        + "</tbody></table></div></details>"
        for title, values in tables.items()
        if values
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
