"""The one page a run is judged by: report.html, self-contained, without network or script."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tdsm_jax import files
from tdsm_jax.evaluation import page
from tdsm_jax.evaluation import report_sections as sections
from tdsm_jax.evaluation.report_words import (
    METRICS,
    NOISE,
    WORDS,
    explanation,
    flat,
    is_number,
    label,
    ordered,
    percent,
    won_back,
)
from tdsm_jax.evaluation.svg import escape

_MAIN_METHODS = ("dsm", "tdsm", "clean")  # what the headline compares
_REMEDIES = ("tdsm", "posterior", "corrected")  # whose recovery it shows


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run leaves behind, as `render` reads it. Every part but the title may be empty.

    config: nested and resolved. environment: versions, devices, date, command. metrics: what metrics.json
    holds. images: "real" and methods -> uint8 [K, columns, H, W, C], one row per class. transitions: "true",
    "realised", "estimated" -> [K, K], rows clean, columns noisy. curves: "classifier/<fold>" and
    "score/<method>" -> records with "step" and "held_out_nll" or "loss". classifier: "sigma", "accuracy",
    "noisy_accuracy", "own_weight", "own_weight_uncalibrated", "noisy_nll" (lists) and "expected_own_weight", all out
    of fold. class_names: [K].
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
    def methods(self) -> dict[str, dict[str, Any]]:
        """The metrics of each method, in the order of columns."""
        methods = self.metrics.get("methods", {})
        return {m: flat(methods[m]) for m in ordered(methods)}


def write_report(path: str | os.PathLike, report: Report) -> None:
    """Writes `render(report)` to `path`, atomically."""
    files.write_text(path, render(report))


def render(report: Report) -> str:
    """Returns the whole page; parts the run does not have are named, not invented."""
    parts = _parts(report)
    present = {name: body for name, body in parts.items() if body}
    missing = [name for name in parts if name not in present]
    return page.page(report.title, _headline(report, missing), present)


def _parts(report: Report) -> dict[str, str]:
    """The sections in the order of the page."""
    metrics, methods, names = report.metrics, report.methods, report.class_names
    evaluations = metrics.get("evaluations", {})
    provenance = {k: metrics[k] for k in ("config_hash", "label_file_hash", "backend") if k in metrics}
    return {
        "Samples": sections.samples(report.images, names),
        "Metrics": sections.metric_table(methods, metrics),
        "Class by class": sections.class_by_class(methods, names),
        "Confusion": sections.confusion(methods, names),
        "Transition matrix": sections.transition_matrix(report.transitions, metrics.get("transition", {}), names),
        "Classifier": sections.classifier(report.classifier, len(names)),
        "Training": sections.training(report.curves),
        "Time": sections.time(metrics.get("seconds", {}), metrics.get("step_cost_ratio"), evaluations),
        "Setup": sections.setup(report.environment | provenance | metrics.get("versions", {}), report.config),
    }


def _headline(report: Report, missing: Sequence[str]) -> str:
    words = "".join(f"<dt>{word}</dt><dd>{meaning}</dd>" for word, meaning in WORDS.items())
    return (
        f"{page.header(report.title, _summary(report))}{_big_numbers(report)}"
        f'<p class="note">{escape(_what_is_missing(report, missing))}</p>'
        f"<details><summary>The words on this page</summary><dl>{words}</dl></details>"
    )


def _summary(report: Report) -> str:
    noise = report.config.get("label_noise", {})
    kind, rate = noise.get("kind") or "none", noise.get("rate")
    share = f"{100 * rate:.0f} % " if is_number(rate) else ""
    what = "labels used as given" if kind in ("none", "given") else f"{share}{NOISE.get(kind, kind)} label noise"
    K = len(report.class_names)
    trained = f" Compared: {', '.join(map(label, report.methods))}." if report.methods else ""
    return f"{K} {'class' if K == 1 else 'classes'}, {what}.{trained}"


def _big_numbers(report: Report) -> str:
    methods = report.methods
    if not any("label_fidelity" in values for values in methods.values()):
        return ""
    cards = "".join(
        f'<div class="card"><div><b>{sections.swatch(m)}{escape(label(m))}</b>'
        f"<small>{escape(explanation(m))}</small></div>"
        f'<span class="big">{percent(values.get("label_fidelity"))}</span></div>'
        for m, values in methods.items()
        if m in (*_MAIN_METHODS, *_REMEDIES) or len(methods) == 1
    )
    judge = report.metrics.get("real", {}).get("label_fidelity")
    trust = f" On real test images that classifier is right {percent(judge)} of the time." if judge else ""
    return (
        "<h2>Does it draw the class it was asked for?</h2><p>Label fidelity: "
        f"{METRICS['label_fidelity'][3]}{trust}</p>"
        f'<div class="cards">{cards}</div>{"".join(_recovery_bar(methods, m) for m in _REMEDIES)}'
    )


def _recovery_bar(methods: Mapping[str, Mapping[str, Any]], method: str) -> str:
    recovery = won_back("label_fidelity", methods, method) if method in methods else None
    if recovery is None:
        return ""
    share = f"{100 * recovery:.0f} %"
    if recovery < 0:
        sentence = f"{label(method)} did worse than DSM in this run"
    else:
        sentence = f"{label(method)} won back <b>{share}</b> of what label noise cost"
    return (
        f'<div class="recovery" role="img" aria-label="Recovery {share}"><p>{sentence}</p>'
        f'<div class="track"><i style="width:{100 * min(max(recovery, 0), 1):.1f}%"></i></div>'
        "<p><small>DSM on noisy labels</small><small>clean labels</small></p></div>"
    )


def _what_is_missing(report: Report, missing_sections: Sequence[str]) -> str:
    methods, as_given = report.methods, report.metrics.get("labels_as_given", "")
    absent = [m for m in _MAIN_METHODS if m not in methods]
    said = [text for text in (report.metrics.get("corrupted_images", ""), as_given) if text]
    said += [f"Not evaluated in this run: {', '.join(map(label, absent))}."] if absent else []
    if {"dsm", "clean"} & set(absent):
        said.append("Recovery needs both DSM and Clean, so there is none.")
    elif "label_fidelity" in methods.get("tdsm", {}).get("recovery", {}):
        if won_back("label_fidelity", methods, "tdsm") is None:
            said.append("Label noise cost DSM no label fidelity that could be measured: there is nothing to win back.")
    if missing_sections:
        said.append(f"Nothing recorded for: {', '.join(missing_sections).lower()}.")
    return " ".join(said)
