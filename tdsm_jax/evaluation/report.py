"""The one page a run is judged by: report.html, self-contained, without network or script."""

import base64
import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tdsm_jax import files
from tdsm_jax.evaluation import charts
from tdsm_jax.evaluation.charts import escape

METHODS = {  # name -> (label, what was trained); this is also the order of columns and colours
    "dsm": ("DSM", "ordinary training, noisy labels"),
    "tdsm": ("TDSM", "this method, same noisy labels"),
    "clean": ("Clean", "ordinary training, true labels"),
    "s_weighted": ("S-weighted", "constant weights instead of the classifier's"),
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
_NOISE = {"sym": "symmetric", "asym": "asymmetric", "pair": "pair-flip", "instance": "instance-dependent"}
_GRID_BYTES = 1_500_000  # raw pixels of all sample grids together; keeps any page under 5 MB
_CURVE_POINTS = 80
_MOST_CLASSES = 20  # rows of a per-class chart


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run leaves behind, as `render` reads it. Every part but the title may be empty.

    config: nested and resolved. environment: versions, devices, date, command. metrics: what metrics.json
    holds. images: "real" and methods -> uint8 [K, columns, H, W, C], one row per class. transitions: "true",
    "realised", "estimated" -> [K, K], rows clean, columns noisy. curves: "classifier/<fold>" and
    "score/<method>" -> records with "step" and "held_out_nll" or "loss". classifier: "sigma", "accuracy",
    "noisy_accuracy", "own_weight", "noisy_nll" (lists) and "expected_own_weight". class_names: [K].
    """

    title: str
    config: dict[str, Any]
    environment: dict[str, str]
    metrics: dict[str, Any]
    images: dict[str, np.ndarray]
    transitions: dict[str, np.ndarray]
    curves: dict[str, list[dict[str, Any]]]
    classifier: dict[str, Any]
    class_names: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        """The methods with metrics, in the order of columns and colours."""
        return _ordered(self.metrics.get("methods", {}))


def write_report(path: str | os.PathLike, report: Report) -> None:
    """Writes `render(report)` to `path`, atomically."""
    files.write_text(path, render(report))


def render(report: Report) -> str:
    """Returns the whole page; parts the run does not have are named, not invented."""
    parts = {
        "Samples": _samples(report),
        "Metrics": _metric_table(report),
        "Class by class": _per_class(report),
        "Confusion": _confusion(report),
        "Transition matrix": _transitions(report),
        "Classifier": _classifier(report),
        "Training": _training(report),
        "Time": _seconds(report),
        "Setup": _setup(report),
    }
    present = {name: body for name, body in parts.items() if body}
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in present)
    sections = "".join(
        f'<section id="{_anchor(name)}"><h2>{name}</h2>{body}</section>' for name, body in present.items()
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(report.title)}</title><style>{charts.THEME}{_STYLE}</style></head><body><main>"
        f"{_headline(report, [name for name in parts if name not in present])}<nav>{links}</nav>{sections}"
        "</main></body></html>\n"
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _ordered(names: Iterable[str]) -> list[str]:
    names = list(names)
    return [name for name in METHODS if name in names] + [name for name in names if name not in METHODS]


def _label(method: str) -> str:
    return METHODS[method][0] if method in METHODS else "Real images" if method == "real" else method


def _explanation(method: str) -> str:
    return METHODS[method][1] if method in METHODS else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if _is_number(value) else "–"


def _figures(figures: Iterable[tuple[str, str]]) -> str:
    """Lays out (caption, SVG) pairs side by side, one below the other on a phone; captions are plain text."""
    return (
        '<div class="figures">'
        + "".join(f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>" for caption, svg in figures)
        + "</div>"
    )


def _headline(report: Report, missing: Sequence[str]) -> str:
    words = "".join(f"<dt>{word}</dt><dd>{meaning}</dd>" for word, meaning in WORDS.items())
    return (
        f'<header><p class="over">tdsm_jax report</p><h1>{escape(report.title)}</h1>'
        f'<p class="lead">{escape(_summary(report))}</p></header>{_big_numbers(report)}'
        f'<p class="note">{escape(_what_is_missing(report, missing))}</p>'
        f"<details><summary>The words on this page</summary><dl>{words}</dl></details>"
    )


def _big_numbers(report: Report) -> str:
    fidelity = {m: report.metrics["methods"][m].get("label_fidelity") for m in report.methods}
    if not fidelity:
        return ""
    cards = "".join(
        f'<div class="card"><div><b>{_swatch(i)}{escape(_label(m))}</b>'
        f"<small>{escape(_explanation(m))}</small></div>"
        f'<span class="big">{_percent(fidelity[m])}</span></div>'
        for i, m in enumerate(report.methods)
        if m in ("dsm", "tdsm", "clean") or len(fidelity) == 1
    )
    judge = report.metrics.get("real", {}).get("label_fidelity")
    trust = f" On real test images that classifier is right {_percent(judge)} of the time." if judge else ""
    return (
        "<h2>Does it draw the class it was asked for?</h2><p>Label fidelity: "
        f"{METRICS['label_fidelity'][3]}{trust}</p>"
        f'<div class="cards">{cards}</div>{_recovery_bar(report)}'
    )


def _what_is_missing(report: Report, sections: Sequence[str]) -> str:
    absent = [_label(m) for m in ("dsm", "tdsm", "clean") if m not in report.methods]
    said = [f"Not evaluated in this run: {', '.join(absent)}."] if absent else []
    if {"DSM", "Clean"} & set(absent):
        said.append("Recovery needs both DSM and Clean, so there is none.")
    if sections:
        said.append(f"Nothing recorded for: {', '.join(sections).lower()}.")
    return " ".join(said)


def _swatch(index: int) -> str:
    return f'<svg class="swatch" viewBox="-6 -6 12 12" aria-hidden="true">{charts.marker(index, 0, 0)}</svg>'


def _summary(report: Report) -> str:
    noise = report.config.get("label_noise", {})
    kind, rate = noise.get("kind") or "none", noise.get("rate")
    share = f"{100 * rate:.0f} % " if _is_number(rate) else ""
    what = "labels used as given" if kind == "none" else f"{share}{_NOISE.get(kind, kind)} label noise"
    K = len(report.class_names)
    trained = f" Compared: {', '.join(map(_label, report.methods))}." if report.methods else ""
    return f"{K} {'class' if K == 1 else 'classes'}, {what}.{trained}"


def _recovery_bar(report: Report) -> str:
    methods = report.metrics["methods"]
    recovery = methods.get("tdsm", {}).get("recovery", {}).get("label_fidelity")
    if not _is_number(recovery):
        return ""
    percent = f"{100 * recovery:.0f} %"
    if recovery < 0:
        sentence = "TDSM did worse than DSM in this run"
    else:
        sentence = f"TDSM won back <b>{percent}</b> of what label noise cost"
    return (
        f'<div class="recovery" role="img" aria-label="Recovery {percent}"><p>{sentence}</p>'
        f'<div class="track"><i style="width:{100 * min(max(recovery, 0), 1):.1f}%"></i></div>'
        "<p><small>DSM on noisy labels</small><small>clean labels</small></p></div>"
    )


def _samples(report: Report) -> str:
    grids = {name: report.images[name] for name in sorted(_ordered(report.images), key="real".__ne__)}
    if not grids:
        return ""
    rows, columns = _grid_that_fits(list(grids.values()))
    figures = []
    for name, grid in grids.items():
        small = _thumbnails(grid[rows, :columns])
        png = charts.image_grid_png(small, scale=max(1, 56 // small.shape[2]))
        labels = "".join(f"<span>{escape(report.class_names[row])}</span>" for row in rows)
        what = "for comparison" if name == "real" else _explanation(name)
        figures.append(
            f"<figure><figcaption><b>{escape(_label(name))}</b> {escape(what)}</figcaption>"
            f'<div class="grid"><div>{labels}</div><img alt="{escape(_label(name))}, one class a row" '
            f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></div></figure>'
        )
    K = len(report.class_names)
    subset = "" if len(rows) == K else f" Shown: {len(rows)} of {K} classes."
    return (
        "<p>Each row was asked for one class. Images of another class in a row are what label noise taught; "
        f"compare a row across the grids.{subset}</p>" + f'<div class="figures grids">{"".join(figures)}</div>'
    )


def _grid_that_fits(grids: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
    """Returns the rows (evenly spread) and the number of columns whose pixels fit the page's budget."""
    K, columns = min(len(g) for g in grids), min(8, *(g.shape[1] for g in grids), 8)
    image_bytes = sum(_thumbnails(g[:1, :1]).size for g in grids)
    affordable = max(1, _GRID_BYTES // image_bytes)
    rows = min(K, _MOST_CLASSES, max(1, affordable // min(columns, 4)))
    return np.linspace(0, K - 1, rows).round().astype(int), max(1, min(columns, affordable // rows))


def _thumbnails(grid: np.ndarray) -> np.ndarray:
    """Returns `grid` [rows, columns, H, W, C] with images halved, by averaging, down to 64 pixels."""
    while max(grid.shape[2:4]) > 64:
        rows, columns, H, W, C = grid.shape
        halved = grid[:, :, : H // 2 * 2, : W // 2 * 2].reshape(rows, columns, H // 2, 2, W // 2, 2, C)
        grid = halved.mean(axis=(3, 5)).round().astype(np.uint8)
    return grid


def _metric_table(report: Report) -> str:
    if not report.methods:
        return ""
    columns = {m: report.metrics["methods"][m] for m in report.methods}
    real = report.metrics.get("real", {})
    head = (
        "".join(f'<th scope="col">{_swatch(i)}{escape(_label(m))}</th>' for i, m in enumerate(columns))
        + '<th scope="col">Real vs real</th>'
    )
    present = [key for key in METRICS if any(key in values for values in (*columns.values(), real))]
    rows = []
    for key in present:
        label, factor, direction, _ = METRICS[key]
        rivals = [direction * v[key] for m, v in columns.items() if m != "clean" and _is_number(v.get(key))]
        best = direction * max(rivals) if len(rivals) > 1 else None
        cells = "".join(_metric_cell(key, v, None if m == "clean" else best) for m, v in columns.items())
        arrow = "↑" if direction > 0 else "↓"
        floor = _metric_value(key, real.get(key))
        rows.append(f'<tr><th scope="row">{label} {arrow}</th>{cells}<td>{floor}</td></tr>')
    meanings = {METRICS[key][0].removesuffix(", %"): METRICS[key][3] for key in present}
    meanings = "".join(f"<dt>{name}</dt><dd>{meaning}</dd>" for name, meaning in meanings.items())
    return (
        "<p>↑ higher is better, ↓ lower is better; bold is the best without clean labels. Small print under "
        "a number: how much of the damage was won back. “Real vs real”: what real images score.</p>"
        f'<div class="pair"><div class="scroll"><table><thead><tr><th scope="col">Metric</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div><dl>{meanings}</dl></div>"
    )


def _metric_value(key: str, value: Any) -> str:
    if not _is_number(value):
        return "–"
    factor = METRICS[key][1]
    return f"{factor * value:.1f}" if factor == 100 else f"{value:.2f}"


def _metric_cell(key: str, values: Mapping[str, Any], best: float | None) -> str:
    shown = _metric_value(key, values.get(key))
    if best is not None and values.get(key) == best:
        shown = f"<b>{shown}</b>"
    recovery = values.get("recovery", {}).get(key)
    won_back = f"<small>{100 * recovery:.0f} % back</small>" if _is_number(recovery) else ""
    return f"<td>{shown}{won_back}</td>"


def _per_class(report: Report) -> str:
    methods = {m: report.metrics["methods"][m] for m in report.methods}
    figures = []
    for key, (label, factor) in PER_CLASS.items():
        series = {_label(m): abs(factor) * np.asarray(v[key], float) for m, v in methods.items() if v.get(key)}
        if not series:
            continue
        total = np.nan_to_num(list(series.values())).sum(axis=0)
        shown = np.sort(np.argsort(total * np.sign(factor), kind="stable")[:_MOST_CLASSES])
        svg = charts.dot_plot(
            {m: v[shown] for m, v in series.items()},
            names=[report.class_names[k] for k in shown],
            x_label=label,
        )
        subset = "" if len(shown) == len(total) else f": the {len(shown)} worst of {len(total)} classes"
        figures.append((label[0].upper() + label[1:] + subset, svg))
    if not figures:
        return ""
    return "<p>One row a class: a long bar means that the methods differ there.</p>" + _figures(figures)


def _confusion(report: Report) -> str:
    figures = []
    for method in report.methods:
        counts = np.asarray(report.metrics["methods"][method].get("confusion", []), float)
        if counts.size:
            with np.errstate(invalid="ignore"):
                percent = 100 * counts / counts.sum(axis=1, keepdims=True)
            svg = charts.heat_map(
                percent,
                row_label="class asked for",
                column_label="class seen, %",
                names=report.class_names,
                highest=100,
            )
            figures.append((_label(method), svg))
    if not figures:
        return ""
    return (
        "<p>What a classifier trained on clean data sees in the generated images. A perfect generator is "
        "dark on the diagonal and blank elsewhere; label noise shows as shade off the diagonal.</p>" + _figures(figures)
    )


def _transitions(report: Report) -> str:
    captions = {
        "true": "True: how labels were corrupted",
        "realised": "Realised: what happened to these labels",
        "estimated": "Estimated: what TDSM used",
    }
    figures = [
        (
            captions[name],
            charts.heat_map(
                100 * np.asarray(report.transitions[name], float),
                row_label="true class",
                column_label="given label, %",
                names=report.class_names,
                highest=100,
            ),
        )
        for name in captions
        if name in report.transitions
    ]
    if not figures:
        return ""
    facts = report.metrics.get("transition", {})
    said = [f"Estimator: <b>{escape(facts['estimator'])}</b>."] if "estimator" in facts else []
    if _is_number(facts.get("relative_l1")):
        said.append(f"Relative L1 error {_percent(facts['relative_l1'])} (0 % is exact).")
    if _is_number(facts.get("condition_number")):
        number = charts.short_number(facts["condition_number"])
        said.append(f"Condition number {number}: the larger, the more label noise has mixed the classes.")
    return (
        "<p>How often each true class carries each label. The estimate should look like the truth. "
        f"{' '.join(said)}</p>{_figures(figures)}"
    )


def _classifier(report: Report) -> str:
    facts = report.classifier

    def chart(y_label: str, keys: dict[str, str], unit: float = 1.0, **options: Any) -> list[str]:
        series = {
            name: (facts["sigma"], unit * np.asarray(facts[key], float)) for key, name in keys.items() if facts.get(key)
        }
        x_label = "noise level σ (log scale)"
        return [charts.line_chart(series, x_label=x_label, y_label=y_label, log_x=True, **options)] if series else []

    if not facts.get("sigma"):
        return ""
    chance = {"chance": 100 / len(report.class_names)}
    expected = facts.get("expected_own_weight")
    expected = {"expected (share of right labels)": 100 * expected} if _is_number(expected) else {}
    accuracy = {"accuracy": "against true labels", "noisy_accuracy": "against given labels"}
    figures = [
        (
            "Accuracy: should be high at small σ and fall to chance.",
            chart("accuracy, %", accuracy, 100, references=chance),
        ),
        (
            "Weight of the given label, on average: should lie on the dotted line at every σ.",
            chart("mean weight, %", {"own_weight": "given label"}, 100, references=expected),
        ),
        (
            "Surprise at the given labels, held out: lower is better.",
            chart("negative log-likelihood, nats", {"noisy_nll": "given labels"}),
        ),
    ]
    return "<p>TDSM asks this classifier, at every noise level, which class an image probably has.</p>" + _figures(
        (caption, svg) for caption, svgs in figures for svg in svgs
    )


def _training(report: Report) -> str:
    figures = []
    for prefix, key, y_label, caption in (
        ("score/", "loss", "training loss (log scale)", "Diffusion models: falls, then flattens."),
        (
            "classifier/",
            "held_out_nll",
            "negative log-likelihood, nats",
            "Classifier, on images it was not trained on: a rise means that it learns wrong labels.",
        ),
    ):
        runs = {name.removeprefix(prefix): r for name, r in report.curves.items() if name.startswith(prefix)}
        series = {_label(name): _smooth_curve(runs[name], key) for name in _ordered(runs)}
        series = {name: curve for name, curve in series.items() if len(curve[0])}
        if series:
            log_y = key == "loss"
            figures.append((caption, charts.line_chart(series, x_label="training step", y_label=y_label, log_y=log_y)))
    if not figures:
        return ""
    return f"<p>Long curves are averaged to {_CURVE_POINTS} points.</p>{_figures(figures)}"


def _smooth_curve(records: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, values), finite only, averaged in runs of neighbours down to `_CURVE_POINTS` points."""
    points = np.array([(r["step"], r[key]) for r in records if _is_number(r.get(key))], float).reshape(-1, 2)
    runs = np.array_split(points, min(len(points), _CURVE_POINTS) or 1)
    means = np.array([run.mean(axis=0) for run in runs if len(run)]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _seconds(report: Report) -> str:
    seconds = {stage: s for stage, s in report.metrics.get("seconds", {}).items() if _is_number(s)}
    if not seconds:
        return ""
    longest = max(*seconds.values(), 1e-9)
    rows = "".join(
        f'<tr><th scope="row">{escape(stage)}</th><td class="bar">'
        f'<i style="width:{100 * s / longest:.1f}%"></i></td>'
        f"<td>{_duration(s)}</td></tr>"
        for stage, s in seconds.items()
    )
    ratio = report.metrics.get("step_cost_ratio")
    cost = f" A TDSM training step took {ratio:.2f} times a DSM step." if _is_number(ratio) else ""
    return (
        f"<p>{_duration(sum(seconds.values()))} in all.{cost}</p>"
        f'<div class="scroll"><table class="time"><tbody>{rows}</tbody></table></div>'
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _setup(report: Report) -> str:
    provenance = {k: report.metrics[k] for k in ("config_hash", "label_file_hash", "backend") if k in report.metrics}
    environment = report.environment | provenance | report.metrics.get("versions", {})
    tables = (("Environment", environment), ("Configuration", dict(_flat(report.config))))
    return "".join(
        f'<details><summary>{title}</summary><div class="scroll"><table class="setup"><tbody>'
        + "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in values.items())
        + "</tbody></table></div></details>"
        for title, values in tables
        if values
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_STYLE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
:root{--page:#f5f6f8;--bar:#0072B2}
@media(prefers-color-scheme:dark){:root{--page:#101419;--bar:#56B4E9}}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
main{max-width:1200px;margin:0 auto;padding:40px 24px 64px}
header{margin-bottom:30px}
h1{font-size:clamp(28px,5vw,42px);line-height:1.15;letter-spacing:-.02em;margin:0 0 8px;
 overflow-wrap:anywhere}
h2{font-size:22px;letter-spacing:-.01em;margin:0 0 4px}
p{margin:0 0 16px;max-width:75ch}
small,.note,.over,dd,section>p{color:var(--muted)}
.over{font-size:13px;letter-spacing:.08em;text-transform:uppercase;margin:0 0 6px}
.lead{font-size:18px;margin:0}
.note{font-size:14px}
.cards{display:grid;grid-template-columns:repeat(3,1fr);gap:16px}
.card,section,.recovery{
 background:var(--surface);border:1px solid var(--line);border-radius:14px}
.card{padding:20px 22px;display:flex;flex-direction:column;justify-content:space-between;gap:8px}
.card small{display:block;font-size:14px;line-height:1.4}
.big{font-size:44px;font-weight:650;letter-spacing:-.03em;line-height:1.1;
 font-variant-numeric:tabular-nums;white-space:nowrap}
.swatch{width:14px;height:14px;margin-right:7px;vertical-align:-1px}
.recovery{padding:18px 22px;margin:16px 0}
.note:empty{display:none}
.recovery p{display:flex;justify-content:space-between;max-width:none;margin:0}
.recovery p:first-child{display:block;font-size:18px}
.track{height:12px;border-radius:6px;background:var(--line);margin:10px 0 6px;overflow:hidden}
.track i,.bar i{display:block;height:100%;background:var(--bar);border-radius:6px}
nav{display:flex;flex-wrap:wrap;gap:6px 20px;margin:24px 0;font-size:15px}
a{color:var(--bar);text-underline-offset:3px}
section{padding:24px;margin:0 0 20px;scroll-margin-top:12px}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));
 gap:28px 32px;align-items:start}
figure{margin:0 auto;min-width:0;max-width:480px;width:100%}
figcaption{font-size:14px;line-height:1.45;margin-bottom:8px}
figcaption b{display:block;font-size:15px}
.grid{display:flex;gap:8px}
.grids{grid-template-columns:repeat(auto-fit,minmax(min(100%,240px),1fr));gap:24px}
.grid>div{display:grid;grid-auto-rows:1fr;align-items:center;flex:none;max-width:32%;text-align:right}
.grid span{font-size:12px;line-height:1;color:var(--muted);
 overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.grid img{min-width:0;flex:1;width:100%;height:auto;align-self:flex-start;border-radius:4px}
.pair{display:flex;flex-wrap:wrap;gap:16px 40px;align-items:start}
.pair dl{flex:1 1 300px}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:15px;font-variant-numeric:tabular-nums}
th,td{padding:8px 14px;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
th:first-child{text-align:left;padding-left:0;position:sticky;left:0;background:var(--surface)}
td{white-space:nowrap}
tbody th{font-weight:500}
thead th{font-size:14px;vertical-align:bottom}
td small{display:block;font-size:12px;line-height:1.3}
tbody tr:last-child>*{border-bottom:0}
dl{display:grid;grid-template-columns:minmax(9em,auto) 1fr;gap:6px 20px;font-size:14px;margin:8px 0 0}
dt{font-weight:600}
dd{margin:0}
.time{width:100%;max-width:640px}
.bar{width:100%}
.bar i{height:12px;min-width:2px;margin-top:6px}
.setup td{text-align:left;white-space:normal;overflow-wrap:anywhere;
 font-family:ui-monospace,monospace;font-size:13px}
details{margin:12px 0}
summary{cursor:pointer;font-weight:600;padding:4px 0}
@media(max-width:640px){
main{padding:24px 12px 40px}
section{padding:18px 14px;border-radius:12px}
.cards{grid-template-columns:1fr;gap:10px}
.card{flex-direction:row;align-items:center;padding:14px 16px}
.big{font-size:32px}
th,td{padding:7px 6px}
table{font-size:14px}
td small{font-size:11px}
thead .swatch{display:block;margin:0 0 0 auto}
dl{grid-template-columns:1fr;gap:2px}
dd{margin-bottom:10px}
}
@media print{section,.card{break-inside:avoid}nav{display:none}}
"""
